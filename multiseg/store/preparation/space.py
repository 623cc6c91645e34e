"""A case laid out in space: which header is believed, what is moved, and the grid that all come onto."""

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
"""A case with more voxels on the store's grid (1024^3) has a wrong voxel size in its header."""
RIGHT_ANGLE_DEGREES = 0.1
"""Axes that are this near to right angles are taken as they are."""
WORST_ANGLE_DEGREES = 15.0
"""A header whose axes are farther from right angles is damaged."""
CLEARLY_BETTER = 1.25, 0.01
"""How far one reading's similarity, beyond 1, must exceed the other's to speak against it: times and plus."""
FAR_MM, FAR_DEGREES = 30.0, 30.0
"""A registration that moves farther has probably failed, or its header was lost."""


@dataclass(frozen=True, eq=False)
class Scene:
    """A case laid out in space.

    `native` are the volumes by role as their files have them, `volumes` the same turned to RAS+ with the
    affine that is believed, `names` the sequences in canonical order, `filled` the box of each sequence's
    voxels that are not 0, None where there are none.
    """

    names: tuple[str, ...]
    reference: str
    native: Mapping[str, Volume]
    volumes: Mapping[str, Volume]
    filled: Mapping[str, Box | None]
    grid: Grid

    @property
    def home(self) -> Volume:
        """The reference image as its file has it."""
        return self.native[self.reference]


def lay_out(names: tuple[str, ...], native: Mapping[str, Volume], recipe: Recipe, journal: Journal) -> Scene:
    """Turn every volume to RAS+, decide where it lies, and choose the case's grid.

    The grid is the reference's box in the recipe's voxels, at right angles even where its header is not.

    Raises:
        SourceError: headers contradict each other or themselves, or a volume lies elsewhere altogether.
    """
    for role, volume in native.items():
        _check_angles(role, volume, journal)
    reference = _reference(names, native, recipe)
    if recipe.reference and recipe.reference != reference:
        journal.warn("NO_REFERENCE", f"the case has no {recipe.reference}; its grid is that of {reference}.")
    moves = believed(names, native, reference, recipe, journal)
    volumes = {role: _turned(role, volume, moves, journal) for role, volume in native.items()}
    home = grid_of(volumes[reference])
    check_overlap(volumes, home, reference, journal)
    if recipe.register:
        volumes |= _registered(names, volumes, reference, journal)
        check_overlap(volumes, home, reference, Journal())
    square = home.orthonormal() if skew_degrees(home.affine) > RIGHT_ANGLE_DEGREES else home
    grid = square.respaced(recipe.spacing_mm)
    _check_size(native[reference], grid, recipe)
    filled = {name: box_of(volumes[name].voxels != 0) for name in names}
    return Scene(names, reference, native, volumes, filled, grid)


def skew_degrees(affine: Affine) -> float:
    """How far the angles between an affine's axes are from 90 degrees, at most."""
    i, j, k = (affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)).T
    return math.degrees(math.asin(min(1.0, max(abs(float(a @ b)) for a, b in ((i, j), (j, k), (i, k))))))


def _check_angles(role: str, volume: Volume, journal: Journal) -> None:
    angle = skew_degrees(volume.affine)
    said = f"{role} ({volume.path.name}): the axes of its header are {angle:.2g} degrees off right angles"
    if angle > WORST_ANGLE_DEGREES:
        message = f"{said}; no scanner does that (at most {WORST_ANGLE_DEGREES:g} are taken). Repair its header."
        raise SourceError(message, code="BAD_AFFINE", file=str(volume.path))
    if angle > RIGHT_ANGLE_DEGREES:
        text = f"{said}; it was resampled through them onto a grid at right angles. Look at the overlay."
        journal.warn("NOT_ORTHOGONAL", text)
        journal.step(role, f"straightened by {angle:.2g} degrees")


def _reference(names: Sequence[str], native: Mapping[str, Volume], recipe: Recipe) -> str:
    """The sequence whose box becomes the case's grid; the rule stands at `Recipe.reference`."""
    if recipe.reference in names:
        return recipe.reference
    first_label = next((volume for role, volume in native.items() if role.startswith("label:")), None)
    if first_label is not None:
        for name in names:
            if lies_on(first_label, native[name]):
                return name
    return names[0]


def believed(
    names: Sequence[str], native: Mapping[str, Volume], reference: str, recipe: Recipe, journal: Journal
) -> dict[str, Affine]:
    """How each volume whose header is not believed has to move through the world, by role.

    Files of one shape that their headers put in different places contradict each other, unless they were
    scanned in different places. A file is compared with the first of its shape: the reference, else the
    first sequence in canonical order.

    - `headers_disagree="array"`: it is taken as the same voxels.
    - `"world"`: its header holds.
    - `"refuse"`, a sequence: both readings are compared by their similarity to the first file. Where the same
      voxels fit clearly better (beyond 1: by a quarter and 0.01), the case is refused; else its header holds.
    - `"refuse"`, a label or mask: it says nothing of its place, so the case is refused.

    A label or mask on the very grid of a sequence, or on a box of its voxels, goes where that sequence goes.

    Raises:
        SourceError: a person has to say which is right (HEADERS_DISAGREE).
    """
    moves: dict[str, Affine] = {}
    first_ones = (reference, *names)
    for role in [*names, *(role for role in native if role not in names)]:
        volume = native[role]
        twins = [name for name in first_ones if native[name].shape == volume.shape]
        drawn_on = next((name for name in first_ones if lies_on(volume, native[name])), None)
        if role not in names and drawn_on:
            if drawn_on in moves:
                moves[role] = moves[drawn_on]
            continue
        if not twins or twins[0] == role or shares_grid(native[twins[0]], volume):
            continue
        if _is_same_voxels(role, twins[0], native, recipe, role in names, journal):
            moves[role] = native[twins[0]].affine @ np.linalg.inv(volume.affine)
            journal.step(role, f"header not believed: taken as the same voxels as {twins[0]}")
    return moves


def _is_same_voxels(
    role: str, twin: str, native: Mapping[str, Volume], recipe: Recipe, is_image: bool, journal: Journal
) -> bool:
    """What to believe of a file that has its twin's shape but not its place; see `believed`."""
    volume = native[role]
    said = f"{role} ({volume.path.name}) has the shape of {twin} but its header puts it elsewhere"
    ask = "Say which to believe: --headers-disagree array (the same voxels) or world (the headers)."
    if recipe.headers_disagree == "array":
        journal.warn("HEADERS_DISAGREE", f"{said}; taken as the same voxels, as asked.")
        return True
    if recipe.headers_disagree == "world":
        journal.warn("HEADERS_DISAGREE", f"{said}; brought over through its header, as asked. Look at the overlay.")
        return False
    if not is_image:
        raise SourceError(f"{said}. {ask}", code="HEADERS_DISAGREE", file=str(volume.path))
    first, own, same = to_ras(native[twin]), to_ras(volume), to_ras(replace(volume, affine=native[twin].affine))
    likeness = Likeness(first.voxels, grid_of(first))
    by_header, by_array = likeness.of(own.voxels, grid_of(own)), likeness.of(same.voxels, grid_of(same))
    numbers = f"similarity to {twin}: {by_array:.3f} as the same voxels, {by_header:.3f} through the headers"
    factor, margin = CLEARLY_BETTER
    if by_array - 1 > factor * (by_header - 1) + margin:
        raise SourceError(f"{said} ({numbers}). {ask}", code="HEADERS_DISAGREE", file=str(volume.path))
    journal.warn("HEADERS_DISAGREE", f"{said}; brought over through its header ({numbers}). Look at the overlay.")
    return False


def _turned(role: str, volume: Volume, moves: Mapping[str, Affine], journal: Journal) -> Volume:
    axes = axis_codes(volume.affine)
    if role in moves:
        volume = replace(volume, affine=moves[role] @ volume.affine)
        axes = axis_codes(volume.affine)
    if axes != "RAS":
        journal.step(role, f"turned from {axes} to RAS")
    return to_ras(volume)


def _registered(
    names: Sequence[str], volumes: Mapping[str, Volume], reference: str, journal: Journal
) -> dict[str, Volume]:
    """What moves when every sequence is registered to the reference: they, and what is drawn on their grids."""
    fixed, moved = volumes[reference], dict[str, Volume]()
    for name in names:
        if name == reference:
            continue
        volume = volumes[name]
        try:
            move = register_rigid(fixed.voxels, grid_of(fixed), volume.voxels, grid_of(volume))
        except RegistrationError as error:
            text = (
                f"{name} could not be registered to {reference} ({error}), so it stays where its header puts it. Look "
                "at the overlay; if it is out of place, repair its header or leave it out."
            )
            journal.warn("NOT_REGISTERED", text)
            journal.step(name, f"registered to {reference}: failed, stays")
            continue
        numbers = f"similarity {move.before:.3f} -> {move.after:.3f}"
        affine = move.matrix @ volume.affine
        if move.after <= move.before or same_grid(affine, volume.affine, volume.shape):
            journal.note("REGISTERED", f"{name} stays where its header puts it: no better place found ({numbers}).")
            journal.step(name, f"registered to {reference}: stays ({numbers})")
            continue
        mm, degrees = move.mm(grid_of(fixed).centre), move.degrees
        by = f"{mm:.1f} mm and {degrees:.1f} degrees"
        journal.note("REGISTERED", f"{name} was moved by {by} onto {reference} ({numbers}).")
        if mm > FAR_MM or degrees > FAR_DEGREES:
            text = f"{name} was moved by {by} onto {reference}: too far to trust unseen. Look at the overlay."
            journal.warn("REGISTERED_FAR", text)
        for role in _going_with(name, (reference, *names), volumes):
            moved[role] = replace(volumes[role], affine=move.matrix @ volumes[role].affine)
            journal.step(role, f"registered to {reference}: moved by {by} ({numbers})")
    return moved


def _going_with(name: str, names: Sequence[str], volumes: Mapping[str, Volume]) -> list[str]:
    """A sequence, and the labels and masks drawn on its voxels and on those of none before it."""
    drawn = [
        role for role, volume in volumes.items()
        if role not in names and next((one for one in names if lies_on(volume, volumes[one])), None) == name
    ]  # fmt: skip
    return [name, *drawn]


def _check_size(reference: Volume, grid: Grid, recipe: Recipe) -> None:
    if math.prod(grid.shape) > MAX_VOXELS:
        raise SourceError(
            f"{reference.path} has voxels of {grid_of(reference).spacing_mm} mm by its header, which makes "
            f"{grid.shape} voxels of {recipe.spacing_mm} mm: too many to be a head. Are its units micrometres?",
            code="BAD_SIZE",
            file=str(reference.path),
        )
