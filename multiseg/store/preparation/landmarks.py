"""Learn the standard intensity scale of each sequence from some cases of a database."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from multiseg.errors import DataError
from multiseg.store.border import one_case
from multiseg.store.cases import CaseFiles
from multiseg.store.preparation.brain import find_brains
from multiseg.store.preparation.journal import Journal
from multiseg.store.preparation.normalisation import percentiles_of, remove_bias
from multiseg.store.preparation.prepare import read_scene
from multiseg.store.preparation.recipe import Recipe

LOWEST, HIGHEST = 0.0, 100.0
"""The first and the last percentile of every case on the standard scale."""


def learn_landmarks(cases: Sequence[CaseFiles], recipe: Recipe) -> dict[str, tuple[float, ...]]:
    """Learn `Recipe.landmarks`, by sequence (Nyul & Udupa 2000, doi:10.1109/42.836373).

    The percentiles of each case's brain are scaled so that the first is 0 and the last is 100, and averaged over the
    cases, in any order. A case that cannot be prepared is skipped; preparing it later reports why.
    """
    rows: dict[str, list[tuple[float, ...]]] = {}
    for files in sorted(cases, key=lambda case: case.case):
        try:
            with one_case(files.case, files.paths):
                by_sequence = _percentiles(files, recipe)
        except DataError:
            continue
        for name, percentiles in by_sequence.items():
            rows.setdefault(name, []).append(percentiles)
    scales = {name: np.mean([_scaled(row) for row in listed], axis=0) for name, listed in rows.items()}
    return {name: tuple(float(value) for value in scale) for name, scale in sorted(scales.items())}


def _percentiles(files: CaseFiles, recipe: Recipe) -> dict[str, tuple[float, ...]]:
    """The percentiles of each sequence of a case, except sequences whose first and last are equal."""
    journal = Journal()
    mask = files.brain_mask if recipe.brain_mask == "file" else None
    scene = read_scene(replace(files, labels={}, brain_mask=mask), {}, recipe, journal)
    by_sequence = {}
    for name, image in find_brains(scene, recipe, journal).items():
        if recipe.n4:
            image = remove_bias(name, image, scene.grid.spacing_mm, journal)
        percentiles = percentiles_of(image.values[image.mask])
        if percentiles[-1] > percentiles[0]:
            by_sequence[name] = percentiles
    return by_sequence


def _scaled(percentiles: tuple[float, ...]) -> list[float]:
    first, last = percentiles[0], percentiles[-1]
    return [LOWEST + (HIGHEST - LOWEST) * (value - first) / (last - first) for value in percentiles]
