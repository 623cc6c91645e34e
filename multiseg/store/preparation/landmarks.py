"""The standard scale of each sequence's intensities, learnt from some cases of a database."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from multiseg.errors import DataError
from multiseg.store.border import one_case
from multiseg.store.cases import CaseFiles
from multiseg.store.preparation.brain import brains
from multiseg.store.preparation.intensity import percentiles_of, without_bias
from multiseg.store.preparation.journal import Journal
from multiseg.store.preparation.prepare import read_scene
from multiseg.store.preparation.recipe import Recipe

LOWEST, HIGHEST = 0.0, 100.0
"""Where the first and the last percentile of every case go on the standard scale."""


def learn_landmarks(cases: Sequence[CaseFiles], recipe: Recipe) -> dict[str, tuple[float, ...]]:
    """Landmarks for `Recipe.landmarks`, by sequence (Nyul & Udupa 2000, doi:10.1109/42.836373).

    The percentiles of each case's brain are mapped so that the first is 0 and the last is 100, and averaged
    over the cases. A case that cannot be prepared is left out here; preparing it says why. The same cases
    in any order give the same landmarks.
    """
    found: dict[str, list[tuple[float, ...]]] = {}
    for files in sorted(cases, key=lambda case: case.case):
        try:
            with one_case(files.case, files.paths):
                own = _percentiles(files, recipe)
        except DataError:
            continue
        for name, percentiles in own.items():
            found.setdefault(name, []).append(percentiles)
    scales = {name: np.mean([_scaled(one) for one in rows], axis=0) for name, rows in found.items()}
    return {name: tuple(float(value) for value in scale) for name, scale in sorted(scales.items())}


def _percentiles(files: CaseFiles, recipe: Recipe) -> dict[str, tuple[float, ...]]:
    """Of each sequence of a case; one whose first and last are equal has no scale."""
    journal = Journal()
    mask = files.brain_mask if recipe.brain_mask == "file" else None
    scene = read_scene(replace(files, labels={}, brain_mask=mask), {}, recipe, journal)
    found = {}
    for name, place in brains(scene, recipe, journal).items():
        flat = without_bias(name, place, scene.grid.spacing_mm, journal) if recipe.n4 else place
        percentiles = percentiles_of(flat.values[flat.mask])
        if percentiles[-1] > percentiles[0]:
            found[name] = percentiles
    return found


def _scaled(percentiles: tuple[float, ...]) -> list[float]:
    first, last = percentiles[0], percentiles[-1]
    return [LOWEST + (HIGHEST - LOWEST) * (value - first) / (last - first) for value in percentiles]
