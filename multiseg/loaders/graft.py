"""Lesions grafted into healthy anatomy: images with a lesion whose full anatomy is known (Himmetoglu et al. 2025).

The case with the lesion and the healthy case were both registered to one template (`multiseg ingest --template`). The
lesion goes from its own space through the template to the healthy case. Inside the moved mask the images are those of
the case with the lesion, outside they stay healthy; the target stays the healthy anatomy, also under the lesion.

Both images are z-scored within their brains, so they are pasted as they are. Nothing is blended at the border, as in
the paper (arXiv:2503.18840): the mask is where more than half of a voxel is lesion, and it never leaves the brain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from multiseg.errors import DataError, UsageError
from multiseg.labels import LabelSpace, corrected_kinds, is_correction
from multiseg.modalities import in_canonical_order
from multiseg.store.catalogue import select
from multiseg.store.preparation.boxes import box_of, sizes, starts
from multiseg.store.preparation.grids import Grid, resample
from multiseg.store.preparation.template import Template
from multiseg.store.reader import Case, Database, Store
from multiseg.types import Images, Mask

MOST_OUTSIDE = 0.2
"""A lesion with a larger share of its voxels outside the healthy brain is not grafted."""
MARGIN = 3
"""Voxels that are read around a lesion, more than interpolation needs."""


@dataclass(frozen=True, eq=False)
class Lesion:
    """A lesion with the images around it.

    Attributes:
        grid: from voxels to millimetres of the template.
    """

    modalities: tuple[str, ...]
    images: Images
    mask: Mask
    grid: Grid


@dataclass(frozen=True, eq=False)
class Healthy:
    """A healthy case, or a window of one.

    Attributes:
        brain: where it has a brain.
        grid: from voxels to millimetres of the template.
    """

    modalities: tuple[str, ...]
    images: Images
    brain: Mask
    grid: Grid


@dataclass(frozen=True, eq=False)
class Graft:
    """A healthy case with a lesion. What it shows is known everywhere: the healthy case's annotations are its target.

    Attributes:
        modalities: the sequences that both cases have; the others of the healthy case show no lesion and are left out.
        lesion: where the images are those of the case with the lesion.
    """

    modalities: tuple[str, ...]
    images: Images
    lesion: Mask


def graft(lesion: Lesion, healthy: Healthy) -> Graft | None:
    """Paste a lesion into a whole healthy case: x_P = x_A (1 - y_L) + x_L y_L, with x_L and its mask y_L moved there.

    Returns:
        None if more than `MOST_OUTSIDE` of the lesion would be outside the healthy brain, or nothing of it inside: draw
        another lesion or another case.

    Raises:
        DataError: the cases share no sequence.
    """
    if share_outside(lesion, healthy.brain, healthy.grid) > MOST_OUTSIDE:
        return None
    return paste(lesion, healthy)


def share_outside(lesion: Lesion, brain: Mask, grid: Grid) -> float:
    """The share of a lesion's voxels whose centre is outside of a brain.

    Args:
        grid: of the brain, from voxels to millimetres of the template.
    """
    matrix, offset = lesion.grid.voxel_map(grid)  # from indices of `grid` to those of the lesion
    points = (np.argwhere(lesion.mask) - offset) @ np.linalg.inv(matrix).T
    nearest = np.rint(points).astype(int)
    on_grid = ((nearest >= 0) & (nearest < brain.shape)).all(axis=1)
    inside = int(np.count_nonzero(brain[tuple(nearest[on_grid].T)]))
    return 1 - inside / max(1, len(nearest))


def paste(lesion: Lesion, healthy: Healthy) -> Graft | None:
    """Paste a lesion into a healthy case or window; None if nothing of the lesion is in its brain.

    Raises:
        DataError: the cases share no sequence.
    """
    names = tuple(name for name in healthy.modalities if name in lesion.modalities)
    if not names:
        raise DataError(
            f"no sequence is shared: the case with the lesion has {', '.join(lesion.modalities)}, the healthy case "
            f"{', '.join(healthy.modalities)}."
        )
    images = healthy.images[[healthy.modalities.index(name) for name in names]].astype(np.float32)
    moved = np.zeros(healthy.grid.shape, dtype=bool)
    inner = box_of(lesion.mask)
    region = None if inner is None else lesion.grid.box_on(healthy.grid, inner)
    if region is None:
        return None
    part = healthy.grid.part(region)
    moved[region] = resample(lesion.mask.astype(np.float32), lesion.grid, part, smooth=False) > 0.5
    moved &= healthy.brain
    if not moved.any():
        return None
    for image, name in zip(images, names, strict=True):
        pasted = resample(lesion.images[lesion.modalities.index(name)].astype(np.float32), lesion.grid, part)
        np.copyto(image[region], pasted, where=moved[region])
    return Graft(names, images, moved)


def template_grid(case: Case) -> Grid:
    """The grid of a case from its voxels to millimetres of the template.

    Raises:
        UsageError: the case was not registered to a template.
    """
    if case.to_template is None:
        raise UsageError(
            f"{case.database}/{case.name} was not registered to a template. Ingest its database with --template FILE."
        )
    return Grid(case.to_template @ case.grid.affine, case.extent)


def load_lesion(database: Database, case: Case) -> Lesion:
    """The lesions of a case, of any name, with the images in the box around them.

    Raises:
        UsageError: the case was not registered to a template.
        DataError: it has no voxel of a lesion.
        StoreError: a file of the case is damaged or missing.
    """
    grid = template_grid(case)
    mask = database.label_view(case, LabelSpace()).target(database.codes(case, (0, 0, 0), case.extent)) == 1
    box = box_of(mask)
    if box is None:
        raise DataError(f"{case.database}/{case.name} has no voxel of a lesion. Leave it out.")
    sides = zip(box, mask.shape, strict=True)
    i, j, k = (slice(max(0, side.start - MARGIN), min(n, side.stop + MARGIN)) for side, n in sides)
    images = database.image(case, starts((i, j, k)), sizes((i, j, k)))
    images = images[[database.modalities.index(name) for name in case.modalities]]
    return Lesion(case.modalities, images, mask[i, j, k], grid.part((i, j, k)))


def load_healthy(database: Database, case: Case) -> Healthy:
    """A whole case to graft into.

    Raises:
        UsageError: the case was not registered to a template.
        StoreError: a file of the case is damaged or missing.
    """
    grid = template_grid(case)
    stored = database.image(case, (0, 0, 0), case.extent)
    images = stored[[database.modalities.index(name) for name in case.modalities]]
    return Healthy(case.modalities, images, (images != 0).any(axis=0), grid)


def lesion_cases(store: Store, databases: Sequence[str], split: str = "") -> tuple[Case, ...]:
    """The cases with a lesion that can be grafted, of these databases and this split; "": of all.

    Raises:
        DataError: there is none.
    """
    cases = select(store, databases, split=split)
    found = tuple(case for case in cases if case.to_template is not None and has_lesion(store[case.database], case))
    if not found:
        raise DataError(
            f"{', '.join(databases)} has no {split or 'single'} case with a lesion that was registered to a template "
            f"(of {len(cases)} cases). Ingest it with --template FILE, or name another split."
        )
    return found


def has_lesion(database: Database, case: Case, even_hidden: bool = False) -> bool:
    """Whether a case has annotated voxels of a lesion; where somebody corrected its lesions, in the correction.

    Args:
        even_hidden: whether annotations count that it has, but that are hidden (see `Database.hide`).
    """
    is_corrected = "lesion" in corrected_kinds(database.schemas, case.annotated.tolist())
    annotated = zip(database.schemas.items(), case.foreground_count, case.annotated | even_hidden, strict=True)
    for (name, schema), counts, has_it in annotated:
        is_lesion = [structure.kind == "lesion" for structure in schema.structures]
        is_read = has_it and (is_correction(name) or not is_corrected)
        if is_read and counts[: len(is_lesion)][is_lesion].any():
            return True
    return False


def is_same_person(one: Case, other: Case) -> bool:
    """Whether two cases are of one subject of a database, or share a scan."""
    has_scan = bool(set(one.content.values()) & set(other.content.values()))
    return has_scan or (one.database, one.subject or one.name) == (other.database, other.subject or other.name)


def check_graftable(store: Store, lesions: Sequence[str], into: Sequence[str]) -> tuple[str, ...]:
    """Check that lesions of some databases can be grafted into cases of others; returns the sequences that all share.

    Raises:
        UsageError: a database has no template, or they have different ones; intensities are not normalised; or no
            sequence is shared.
        StoreError: there is no such database.
    """
    databases = [store[name] for name in (*lesions, *into)]
    templates: dict[str, str] = {}
    for database in databases:
        if database.template is None:
            raise UsageError(f"{database.name} has no template. Ingest it again with --template FILE.")
        if database.recipe.normalise == "none":
            raise UsageError(
                f"the intensities of {database.name} are not normalised, so those of two cases cannot be mixed. Ingest "
                "it with --normalise zscore."
            )
        templates.setdefault(database.template["sha256"], f"{database.name}: {Template.text(database.template)}")
    if len(templates) > 1:
        raise UsageError(
            f"the databases were registered to different templates ({'; '.join(templates.values())}), so no lesion can "
            "be moved between them. Ingest them with one template."
        )
    donors, hosts = ({name for one in names for name in store[one].modalities} for names in (lesions, into))
    shared = in_canonical_order(sorted(donors & hosts))
    if not shared:
        raise UsageError(
            f"no sequence is shared: {', '.join(lesions)} has {', '.join(sorted(donors))}, {', '.join(into)} has "
            f"{', '.join(sorted(hosts))}."
        )
    return shared
