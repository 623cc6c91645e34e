"""The template of a database: a brain to which the brain of every case is registered affinely."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float

from multiseg.errors import UsageError
from multiseg.store.cases import sha256_of
from multiseg.store.findings import Doubt, Severity
from multiseg.store.formats.read_volume import read_volume
from multiseg.store.formats.volumes import to_ras
from multiseg.store.preparation.grids import Grid, resample
from multiseg.store.preparation.places import grid_of
from multiseg.store.preparation.plausible import BRAIN_ML
from multiseg.store.preparation.registration import RegistrationError, register_affine
from multiseg.types import Affine, Mask

if TYPE_CHECKING:
    from multiseg.store.preparation.prepare import PreparedCase

LEAST_DICE = 0.9
"""A registered brain whose overlap with the template's brain is smaller is doubted."""
PREFERRED = "T1"
"""The sequence that is registered, where a case has it."""


@dataclass(frozen=True)
class Template:
    """An image of a brain, and the file of its brain mask ("": all that is not 0 in the image).

    `sha256` is the digest of the image, or of both files.
    """

    path: str
    mask: str
    sha256: str

    def __str__(self) -> str:
        return self.text(self.to_json())

    @property
    def name(self) -> str:
        return Path(self.path).name

    def to_json(self) -> dict[str, str]:
        """Its name and digest, as they are stored."""
        return {"name": self.name, "sha256": self.sha256}

    @staticmethod
    def text(stored: Mapping[str, str]) -> str:
        """A stored template in words."""
        return f"{stored['name']} (sha256 {stored['sha256'][:12]}...)"


@dataclass(frozen=True, eq=False)
class Place:
    """Where a case is in its template: RAS+ mm of the case to RAS+ mm of the template, None if that is not known."""

    affine: Affine | None
    doubts: tuple[Doubt, ...] = ()


NOWHERE = Place(None)


def open_template(path: str, mask: str = "") -> Template | None:
    """Read and check a template; None without a path.

    Raises:
        SourceError: a file cannot be read.
        UsageError: the image does not show a brain alone, or a mask is given without an image.
    """
    if not path:
        if mask:
            raise UsageError(f"the mask {mask} needs the template that it belongs to: --template FILE.")
        return None
    volumes = [read_volume(Path(file)) for file in filter(None, (path, mask))]
    digests = [sha256_of(volume.path) for volume in volumes]
    template = Template(path, mask, digests[0] if not mask else hashlib.sha256("".join(digests).encode()).hexdigest())
    voxels, grid = brain_of_template(template)
    ml = float(np.count_nonzero(voxels)) * float(np.prod(grid.spacing_mm)) / 1000
    low, high = BRAIN_ML
    if not low <= ml <= high:
        raise UsageError(
            f"the template {path} shows {ml:.0f} ml{' within its mask' if mask else ' that is not 0'}, but a brain has "
            f"{low:.0f} to {high:.0f} ml. If it shows a skull, give the mask of its brain: --template-mask FILE."
        )
    return template


@lru_cache(maxsize=2)
def brain_of_template(template: Template) -> tuple[Float[np.ndarray, "i j k"], Grid]:
    """The template's voxels in RAS+, 0 outside of its brain, and their grid."""
    image = to_ras(read_volume(Path(template.path)))
    grid, voxels = grid_of(image), image.voxels.astype(np.float32)
    if template.mask:
        mask = to_ras(read_volume(Path(template.mask)))
        inside = resample((mask.voxels > 0).astype(np.float32), grid_of(mask), grid, smooth=False) > 0.5
        voxels = np.where(inside, above_zero(voxels, inside), 0)
    return voxels, grid


def above_zero(voxels: Float[np.ndarray, "i j k"], inside: Mask) -> Float[np.ndarray, "i j k"]:
    """Intensities moved so that all `inside` differ from 0: z-scores are 0 in the middle of a brain, too."""
    if not inside.any():
        return voxels
    values = voxels[inside].astype(np.float32)
    low, high = float(values.min()), float(values.max())
    return voxels.astype(np.float32) - low + np.float32(max(1e-3, 0.05 * (high - low)))


def place_in(template: Template, prepared: PreparedCase) -> Place:
    """Register a prepared case to a template, by its T1 or else its first sequence.

    What is not 0 counts as brain. The finding says the similarity (`normalised_mutual_information`) and the Dice of the
    two brains, and is a warning if that is below `LEAST_DICE`.
    """
    names = prepared.modalities
    name = PREFERRED if PREFERRED in names else names[0]
    image = prepared.images[names.index(name)].astype(np.float32)
    inside = image != 0
    moving = np.where(inside, above_zero(image, inside), 0)
    fixed, grid = brain_of_template(template)
    try:
        move = register_affine(fixed, grid, moving, prepared.grid)
    except RegistrationError as error:
        text = f"{name} could not be registered to {template.name} ({error}): no lesion can be grafted from or to it."
        return Place(None, (Doubt(Severity.WARNING, "NOT_IN_TEMPLATE", f"{text} Look at the scan."),))
    dice = _dice(fixed != 0, grid, inside, Grid(move.matrix @ prepared.grid.affine, prepared.grid.shape))
    numbers = f"similarity {move.after:.3f}, Dice of the brains {dice:.3f}"
    text = f"{name} was registered to {template.name} ({numbers})."
    if dice >= LEAST_DICE:
        return Place(move.matrix, (Doubt(Severity.NOTE, "IN_TEMPLATE", text),))
    to_do = f"Brains that fit reach a Dice of {LEAST_DICE:g}: look at the scan and its brain mask."
    return Place(move.matrix, (Doubt(Severity.WARNING, "POOR_IN_TEMPLATE", f"{text} {to_do}"),))


def _dice(fixed: Mask, grid: Grid, moving: Bool[np.ndarray, "x y z"], moving_grid: Grid) -> float:
    moved = resample(moving.astype(np.float32), moving_grid, grid, smooth=False) > 0.5
    num_both, num_in_either = int((moved & fixed).sum()), int(moved.sum()) + int(fixed.sum())
    return 2 * num_both / max(1, num_in_either)
