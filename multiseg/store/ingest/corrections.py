"""Corrected masks come back into the store, as annotations of their own beside those that the case has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from multiseg.errors import DataError, LabelError, SourceError, StoreError, UsageError
from multiseg.labels import LabelSchema
from multiseg.store.cases import CaseFiles
from multiseg.store.checks.layout import damaged_files_of_all
from multiseg.store.damage import naming_damage
from multiseg.store.findings import Finding
from multiseg.store.formats.volumes import Volume, axis_codes, same_grid, to_ras
from multiseg.store.ingest.encoding import encode
from multiseg.store.ingest.writer import DatabaseWriter, plan_arrays
from multiseg.store.native import ras_grid
from multiseg.store.preparation.grids import Grid, resample_codes
from multiseg.store.preparation.journal import Journal
from multiseg.store.preparation.labelling import read_label, resample_label
from multiseg.store.preparation.places import grid_of
from multiseg.store.preparation.recipe import Recipe
from multiseg.store.preparation.template import Template
from multiseg.store.reader import Case, Database, Store, open_store
from multiseg.store.root import DatabaseInfo, existing_root, locked
from multiseg.store.rows import RATER
from multiseg.store.stored_case import as_prepared
from multiseg.store.upkeep.removal import complete_removals
from multiseg.types import Codes, OnStep, no_progress

MARGIN = 1
"""Voxels of the store: how far from the centres of the outermost ones a mask may reach. Resampling, which gives a voxel
to what fills half of it, may have cut the rest from the label that the case was cropped to."""


@dataclass(frozen=True)
class Correction:
    """A corrected mask of one case.

    Attributes:
        annotation: its name in the store, see `labels.is_correction`.
        schema: what the numbers in the file mean.
        origin: the annotation that it was written from; "" for a prediction.
    """

    database: str
    case: str
    path: Path
    annotation: str
    schema: LabelSchema
    origin: str = ""

    @property
    def name(self) -> str:
        return f"{self.database}/{self.case}"


@dataclass(frozen=True)
class CorrectionOptions:
    """Who corrected, and when it is recorded.

    Attributes:
        replace: whether an earlier correction of a case is replaced.

    Raises:
        UsageError: nobody is named.
    """

    rater: str
    time: datetime = field(default_factory=lambda: datetime.now(UTC))
    replace: bool = False

    def __post_init__(self) -> None:
        if not self.rater.strip() or not self.rater.isprintable():
            raise UsageError("say who corrected the masks, in one line of text: --rater NAME.")


@dataclass
class CorrectionReport:
    """The names of the corrected cases, DATABASE/CASE, by outcome, and what a person should know."""

    written: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def fail(self, database: str, case: str, error: DataError) -> None:
        """Report a correction that cannot be taken."""
        self.failed.append(f"{database}/{case}")
        self.findings.append(Finding.from_error(error, database, case))


def ingest_corrections(
    url: str,
    corrections: Sequence[Correction],
    options: CorrectionOptions,
    report: CorrectionReport | None = None,
    dry_run: bool = False,
    on_case: OnStep = no_progress,
) -> CorrectionReport:
    """Write corrected masks into a store. A case that fails is reported, and the others continue.

    A mask has the voxels of the case's reference image and codes of its schema. It is resampled to the store's grid as
    `ingest` does with labels, and becomes a further annotation; everything else of the case stays as it is. The case
    gets a new row, so that a reader never sees a part of it.

    Args:
        report: what is known already; it is added to and returned.
        dry_run: whether only to say what would be written.
        on_case: called after each case.

    Raises:
        StoreError: there is no store, or it is damaged.
        ResourceError: the disk is full, or another process is writing to the store.
    """
    report = report or CorrectionReport()
    with locked(url), naming_damage(url, partial(damaged_files_of_all, url)):
        complete_removals(url)
        store = open_store(url)
        root = existing_root(url, "r+", store.spacing_mm)
        assert root is not None
        for done, correction in enumerate(corrections, start=1):
            try:
                is_new = _ingest_one(store, None if dry_run else root, correction, options, report)
            except DataError as error:
                report.fail(correction.database, correction.case, error)
            else:
                (report.written if is_new else report.unchanged).append(correction.name)
                store = open_store(url) if is_new and not dry_run else store
            on_case(done, len(corrections), correction.name)
    return report


def _ingest_one(
    store: Store, root: zarr.Group | None, correction: Correction, options: CorrectionOptions, report: CorrectionReport
) -> bool:
    """Write one correction, if there is a root; returns False if it is in the store already, or changes nothing."""
    database = store[correction.database]
    case = database[correction.case]
    journal = Journal()
    role = f"label:{correction.annotation}"
    volume = read_label(correction.annotation, correction.path, correction.schema, journal)
    codes = _codes_of(database, case)
    _check_place(database, case, volume)
    if _is_known(database, case, correction, volume, codes, options):
        return False
    resampled = resample_label(case.grid, to_ras(volume), correction.schema, correction.annotation, journal)
    check_inside(case.grid, to_ras(volume))
    source = _source_of(correction, volume, options, bool(database.attributes.get("pseudonyms")))
    source["steps"] += journal.steps.get(role, [])
    if root is not None:
        _write(root, database, case, correction, {**codes, correction.annotation: resampled}, source)
    report.findings += [Finding.from_doubt(doubt, case.database, case.name) for doubt in journal.doubts]
    return True


def _codes_of(database: Database, case: Case) -> dict[str, Codes]:
    """The annotations that a case has."""
    codes = database.codes(case, (0, 0, 0), case.extent)
    return {name: codes[index] for index, name in enumerate(database.schemas) if case.annotated[index]}


def _check_place(database: Database, case: Case, volume: Volume) -> None:
    """Raises SourceError if a mask is not on the voxels of the case's reference image, in whatever order of axes."""
    native, _ = database.native(case)
    home, mask = ras_grid(native), to_ras(volume)
    if mask.shape != home.shape or not same_grid(mask.affine, home.affine, home.shape):
        raise SourceError(
            f"{volume.path} has {_grid_text(grid_of(mask))}, but the scan of {case.database}/{case.name} has "
            f"{_grid_text(home)}. Save the corrected mask on the voxels of the scan; in 3D Slicer choose the scan as "
            "the reference volume when you export it.",
            code="OTHER_GRID",
            file=str(volume.path),
        )


def _grid_text(grid: Grid) -> str:
    shape, spacing, origin = grid.shape, grid.spacing_mm, grid.affine[:3, 3]
    return (
        f"{' x '.join(map(str, shape))} voxels of {' x '.join(f'{mm:.4g}' for mm in spacing)} mm from "
        f"({', '.join(f'{mm:.1f}' for mm in origin)}) mm"
    )


def _is_known(
    database: Database,
    case: Case,
    correction: Correction,
    volume: Volume,
    codes: dict[str, Codes],
    options: CorrectionOptions,
) -> bool:
    """Whether a mask is in the store already: as this correction, or as what it was written from.

    Raises:
        StoreError: the case has another correction.
    """
    role = f"label:{correction.annotation}"
    before = next((source for source in database.sources(case) if source["role"] == role), None)
    if before is not None and before["sha256"] == volume.sha256:
        return True
    if correction.origin in codes:
        native, _ = database.native(case)
        written = resample_codes(codes[correction.origin], case.grid, ras_grid(native))
        if np.array_equal(written, to_ras(volume).voxels):
            return True
    if before is not None and not (options.replace and RATER in before):
        who = f"a correction by {before[RATER]} of {before['time']}" if RATER in before else "a label from its source"
        remedy = "Pass --replace to replace it." if RATER in before else "Give that annotation another name first."
        raise StoreError(
            f"case {correction.name} has {who} as its annotation {correction.annotation!r} already. {remedy}",
            code="CORRECTED_BEFORE",
        )
    return False


def check_inside(box: Grid, mask: Volume) -> None:
    """Check that a mask marks only what the store holds of a scan: the box of the brain and its labels.

    Raises:
        LabelError: it does not.
    """
    marked = np.argwhere(mask.voxels != 0)
    matrix, offset = box.voxel_map(grid_of(mask))
    places = marked @ matrix.T + offset
    is_outside = ((places < -MARGIN) | (places > np.asarray(box.shape) - 1 + MARGIN)).any(axis=1)
    if num := int(np.count_nonzero(is_outside)):
        raise LabelError(
            f"{mask.path} marks {num} of {len(marked)} voxels outside of the box of the brain, which is all that the "
            "store holds of the scan. Remove them, or ingest the scan again with this mask as its label.",
            code="OUTSIDE_BOX",
            file=str(mask.path),
        )


def _source_of(
    correction: Correction, volume: Volume, options: CorrectionOptions, has_pseudonyms: bool
) -> dict[str, Any]:
    """The provenance of a correction; with pseudonyms files are named by their role, as at ingest."""
    time = options.time.isoformat(timespec="seconds")
    origin = f"annotation {correction.origin}" if correction.origin else "prediction"
    role = f"label:{correction.annotation}"
    return {
        "role": role,
        "file": role.replace(":", "_") + ".nii.gz" if has_pseudonyms else correction.path.name,
        "sha256": volume.sha256,
        "shape": list(volume.shape),
        "voxel_mm": [round(mm, 6) for mm in grid_of(volume).spacing_mm],
        "axes": axis_codes(volume.affine),
        "steps": [f"{origin} corrected by {options.rater}, recorded {time}"],
        RATER: options.rater,
        "time": time,
    }


def _write(
    root: zarr.Group,
    database: Database,
    case: Case,
    correction: Correction,
    labels: dict[str, Codes],
    source: dict[str, Any],
) -> None:
    """Write the case again, with the correction, into a new row, and commit that."""
    attributes = database.attributes
    template = database.template
    info = DatabaseInfo(
        name=database.name,
        pathology=database.pathology,
        recipe=Recipe.from_json(attributes["recipe"]),
        schemas={correction.annotation: correction.schema},
        codec=attributes["codec"],
        pseudonyms=attributes.get("pseudonyms", ""),
        template=None if template is None else Template(template["name"], "", template["sha256"]),
    )
    plan = plan_arrays(root[database.name], info, ())
    prepared = as_prepared(database, case, case.modalities)
    others = [one for one in prepared.sources if one["role"] != source["role"]]
    changed = replace(prepared, labels=labels, sources=(*others, source))
    encoded = encode(case.name, changed, plan, case.to_template)
    writer = DatabaseWriter(root, info, plan)
    files = CaseFiles(
        case=case.name, images={}, subject=case.subject, session=case.session, site=case.site, split=case.split,
        split_given=bool(writer.arrays.row("split_given", case.row)), participant=case.participant,
    )  # fmt: skip
    try:
        writer.write(writer.reserve([case.name])[case.name], files, encoded)
    finally:
        writer.release_rows()
