"""Align a case in space: decide which headers to trust, move volumes, and choose the grid of the case."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from multiseg.errors import SourceError
from multiseg.store.formats.volumes import Volume, axis_codes, same_grid, to_ras
from multiseg.store.preparation.boxes import Box, box_of
from multiseg.store.preparation.grids import Grid
from multiseg.store.preparation.journal import Journal
from multiseg.store.preparation.places import check_overlap, grid_of, lies_on, shares_grid
from multiseg.store.preparation.recipe import Recipe
from multiseg.store.preparation.registration import RegistrationError, register_rigid
from multiseg.store.preparation.similarity import Likeness
from multiseg.types import Affine

MAX_VOXELS = 2**30
"""A case with more voxels on the store's grid (1024^3) must have a wrong voxel size in its header."""
RIGHT_ANGLE_DEGREES = 0.1
"""Axes that deviate less from right angles are orthogonal."""
WORST_ANGLE_DEGREES = 15.0
"""A header whose axes deviate more from right angles is damaged."""
CLEARLY_BETTER = 1.25, 0.01
"""One alignment is clearly better if its similarity, minus 1, exceeds the other's by this factor and this margin."""
FAR_MM, FAR_DEGREES = 30.0, 30.0
"""A registration that moves an image farther has probably failed, or the header was lost."""


@dataclass(frozen=True, eq=False)
class Scene:
    """A case aligned in space.

    Attributes:
        names: the sequences in canonical order.
        native: the volumes as in their files, by role.
        volumes: the same turned to RAS+, with corrected affines.
        filled: the box of each sequence's non-zero voxels; None if all are 0.
    """

    names: tuple[str, ...]
    reference: str
    native: Mapping[str, Volume]
    volumes: Mapping[str, Volume]
    filled: Mapping[str, Box | None]
    grid: Grid

    @property
    def home(self) -> Volume:
        """The reference image as in its file, the grid on which predictions are written."""
        return self.native[self.reference]


def lay_out(names: tuple[str, ...], native: Mapping[str, Volume], recipe: Recipe, journal: Journal) -> Scene:
    """Turn every volume to RAS+, decide its position, and choose the case's grid.

    The grid is the reference's box in voxels of the recipe's size, with orthogonal axes even if the header's are not.

    Raises:
        SourceError: headers are damaged or contradict each other, or a volume does not overlap the reference.
    """
    for role, volume in native.items():
        _check_angles(role, volume, journal)
    reference = _reference(names, native, recipe)
    if recipe.reference and recipe.reference != reference:
        journal.warn("NO_REFERENCE", f"the case has no {recipe.reference}; its grid is that of {reference}.")
    corrections = header_corrections(names, native, reference, recipe, journal)
    volumes = {role: _turn(role, volume, corrections, journal) for role, volume in native.items()}
    home = grid_of(volumes[reference])
    check_overlap(volumes, home, reference, journal)
    if recipe.register:
        volumes |= _register(names, volumes, reference, journal)
        # Registration may move a volume away. Warnings were already given above.
        check_overlap(volumes, home, reference, Journal())
    square = home.orthonormal() if skew_degrees(home.affine) > RIGHT_ANGLE_DEGREES else home
    grid = square.respaced(recipe.spacing_mm)
    _check_size(native[reference], grid, recipe)
    filled = {name: box_of(volumes[name].voxels != 0) for name in names}
    return Scene(names, reference, native, volumes, filled, grid)


def skew_degrees(affine: Affine) -> float:
    """The largest deviation of the angles between an affine's axes from 90 degrees."""
    i, j, k = (affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)).T
    return math.degrees(math.asin(min(1.0, max(abs(float(a @ b)) for a, b in ((i, j), (j, k), (i, k))))))


def _check_angles(role: str, volume: Volume, journal: Journal) -> None:
    angle = skew_degrees(volume.affine)
    what = f"{role} ({volume.path.name}): the axes in its header are {angle:.2g} degrees off right angles"
    if angle > WORST_ANGLE_DEGREES:
        message = f"{what}; at most {WORST_ANGLE_DEGREES:g} are allowed. Repair its header."
        raise SourceError(message, code="BAD_AFFINE", file=str(volume.path))
    if angle > RIGHT_ANGLE_DEGREES:
        text = f"{what}; it was resampled to a grid with right angles. Look at the overlay."
        journal.warn("NOT_ORTHOGONAL", text)
        journal.step(role, f"straightened by {angle:.2g} degrees")


def _reference(names: Sequence[str], native: Mapping[str, Volume], recipe: Recipe) -> str:
    """The sequence that gives the case's grid; see `Recipe.reference`."""
    if recipe.reference in names:
        return recipe.reference
    first_label = next((volume for role, volume in native.items() if role.startswith("label:")), None)
    if first_label is not None:
        for name in names:
            if lies_on(first_label, native[name]):
                return name
    return names[0]


def header_corrections(
    names: Sequence[str], native: Mapping[str, Volume], reference: str, recipe: Recipe, journal: Journal
) -> dict[str, Affine]:
    """The moves in space that correct headers which are not trusted, by role.

    Files of the same shape whose headers give different positions contradict each other, unless they were really
    scanned there. A file is compared with the first file of its shape: the reference, or else the first sequence in
    canonical order.

    - `headers_disagree="array"`: both files are taken to have the same voxels.
    - `"world"`: the header is trusted.
    - `"refuse"`, for a sequence: its similarity to the first file is compared under both assumptions. If the same
      voxels fit clearly better (see `CLEARLY_BETTER`), the case is refused; otherwise the header is trusted.
    - `"refuse"`, for a label or mask: similarity cannot decide, so the case is refused.

    A label or mask on the grid of a sequence, or on a box of its voxels, moves with that sequence.

    Raises:
        SourceError: a person has to decide (HEADERS_DISAGREE).
    """
    corrections: dict[str, Affine] = {}
    candidates = (reference, *names)
    for role in [*names, *(role for role in native if role not in names)]:
        volume = native[role]
        twins = [name for name in candidates if native[name].shape == volume.shape]
        drawn_on = next((name for name in candidates if lies_on(volume, native[name])), None)
        if role not in names and drawn_on:
            if drawn_on in corrections:
                corrections[role] = corrections[drawn_on]
            continue
        if not twins or twins[0] == role or shares_grid(native[twins[0]], volume):
            continue
        if _is_same_voxels(role, twins[0], native, recipe, role in names, journal):
            corrections[role] = native[twins[0]].affine @ np.linalg.inv(volume.affine)
            journal.step(role, f"header not believed: taken as the same voxels as {twins[0]}")
    return corrections


def _is_same_voxels(
    role: str, twin: str, native: Mapping[str, Volume], recipe: Recipe, is_image: bool, journal: Journal
) -> bool:
    """Whether a file has the voxels of its twin, whose shape it has but not its position; see `header_corrections`."""
    volume = native[role]
    what = f"{role} ({volume.path.name}) has the shape of {twin}, but its header gives another position"
    choice = "Choose which to trust: --headers-disagree array (the same voxels) or world (the headers)."
    if recipe.headers_disagree == "array":
        journal.warn("HEADERS_DISAGREE", f"{what}; taken as the same voxels, by --headers-disagree.")
        return True
    if recipe.headers_disagree == "world":
        journal.warn("HEADERS_DISAGREE", f"{what}; its header was used, by --headers-disagree. Look at the overlay.")
        return False
    if not is_image:
        raise SourceError(f"{what}. {choice}", code="HEADERS_DISAGREE", file=str(volume.path))
    first = to_ras(native[twin])
    likeness = Likeness(first.voxels, grid_of(first))
    as_header, as_array = to_ras(volume), to_ras(replace(volume, affine=native[twin].affine))
    by_header = likeness.of(as_header.voxels, grid_of(as_header))
    by_array = likeness.of(as_array.voxels, grid_of(as_array))
    numbers = f"similarity to {twin}: {by_array:.3f} as the same voxels, {by_header:.3f} by the headers"
    factor, margin = CLEARLY_BETTER
    if by_array - 1 > factor * (by_header - 1) + margin:
        raise SourceError(f"{what} ({numbers}). {choice}", code="HEADERS_DISAGREE", file=str(volume.path))
    journal.warn("HEADERS_DISAGREE", f"{what}; its header was used ({numbers}). Look at the overlay.")
    return False


def _turn(role: str, volume: Volume, corrections: Mapping[str, Affine], journal: Journal) -> Volume:
    axes = axis_codes(volume.affine)
    if role in corrections:
        volume = replace(volume, affine=corrections[role] @ volume.affine)
        axes = axis_codes(volume.affine)
    if axes != "RAS":
        journal.step(role, f"turned from {axes} to RAS")
    return to_ras(volume)


def _register(
    names: Sequence[str], volumes: Mapping[str, Volume], reference: str, journal: Journal
) -> dict[str, Volume]:
    """Register every sequence to the reference; returns the volumes that moved, with the labels drawn on them."""
    fixed, moved = volumes[reference], dict[str, Volume]()
    for name in names:
        if name == reference:
            continue
        volume = volumes[name]
        try:
            move = register_rigid(fixed.voxels, grid_of(fixed), volume.voxels, grid_of(volume))
        except RegistrationError as error:
            text = (
                f"{name} could not be registered to {reference} ({error}), so the position in its header is kept. "
                "Look at the overlay; if it is misaligned, repair its header or leave it out."
            )
            journal.warn("NOT_REGISTERED", text)
            journal.step(name, f"registered to {reference}: failed, stays")
            continue
        numbers = f"similarity {move.before:.3f} -> {move.after:.3f}"
        affine = move.matrix @ volume.affine
        if move.after <= move.before or same_grid(affine, volume.affine, volume.shape):
            journal.note("REGISTERED", f"{name} keeps the position in its header: no better one was found ({numbers}).")
            journal.step(name, f"registered to {reference}: stays ({numbers})")
            continue
        mm, degrees = move.mm(grid_of(fixed).centre), move.degrees
        distance = f"{mm:.1f} mm and {degrees:.1f} degrees"
        journal.note("REGISTERED", f"{name} was moved by {distance} onto {reference} ({numbers}).")
        if mm > FAR_MM or degrees > FAR_DEGREES:
            text = f"{name} was moved by {distance} onto {reference}, which is unusually far. Look at the overlay."
            journal.warn("REGISTERED_FAR", text)
        for role in _roles_moving_with(name, (reference, *names), volumes):
            moved[role] = replace(volumes[role], affine=move.matrix @ volumes[role].affine)
            journal.step(role, f"registered to {reference}: moved by {distance} ({numbers})")
    return moved


def _roles_moving_with(name: str, names: Sequence[str], volumes: Mapping[str, Volume]) -> list[str]:
    """A sequence, and the labels and masks drawn on its voxels but not on those of a sequence before it."""
    drawn = [
        role for role, volume in volumes.items()
        if role not in names and next((other for other in names if lies_on(volume, volumes[other])), None) == name
    ]  # fmt: skip
    return [name, *drawn]


def _check_size(reference: Volume, grid: Grid, recipe: Recipe) -> None:
    if math.prod(grid.shape) > MAX_VOXELS:
        message = (
            f"{reference.path} has voxels of {grid_of(reference).spacing_mm} mm by its header, which would make "
            f"{grid.shape} voxels of {recipe.spacing_mm} mm: too many for a head. Are its units micrometres?"
        )
        raise SourceError(message, code="BAD_SIZE", file=str(reference.path))
