"""Statistics of a site's training cases that say nothing of one case: intensities, extents, sizes of lesions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from multiseg.federation.sites.cohorts import Cohorts
from multiseg.federation.sites.site import Site, databases_of, told
from multiseg.store.catalogue import select
from multiseg.store.reader import Case, Database, Store

DIGITS = 2
"""Significant digits that are told: more would help to tell a case from the numbers of all."""


def fingerprint(store: Store, site: Site, least: int) -> dict[str, Any]:
    """By database, of its training cases; what fewer than `least` cases tell is left out.

    {"num_cases" (rounded up; `least` where the site tells no counts), "extent_mm": means of each edge,
     "modalities": {sequence: {"num_cases", "mean", "std"}} of raw intensities in the brain, means over the cases,
     "lesions": {structure: {"num_cases", "volume_ml": means}} over the cases that have some of it}

    Means are [of all], or [of the lower half, of all, of the upper half] where each half has `least` cases. They are
    over such cases that they tell none apart by their difference from what was told before (`cohorts`).
    """
    cohorts = Cohorts(site.state, least)
    found = {}
    for name in databases_of(site, store):
        cases = {case.name: case for case in select(store, [name], split="train")}
        told = _Told(cohorts, name, site, least)
        found[name] = _database(store[name], told.among("cases", list(cases.values())), told)
    return {name: about for name, about in found.items() if about}


@dataclass(frozen=True)
class _Told:
    """What may be told of a database."""

    cohorts: Cohorts
    database: str
    site: Site
    least: int

    def among(self, what: str, cases: Sequence[Case]) -> list[Case]:
        """Those of the cases that a number on `what` may be told over."""
        kept = self.cohorts.admit(f"{self.database}/{what}", [case.name for case in cases])
        return [case for case in cases if case.name in kept]

    def count(self, cases: Sequence[Case]) -> int:
        return told(len(cases), self.site, self.least)


def _database(database: Database, cases: Sequence[Case], say: _Told) -> dict[str, Any]:
    if not cases:
        return {}
    edges_mm = np.array([np.multiply(case.extent, case.grid.spacing_mm) for case in cases])
    modalities = {name: _intensities(name, cases, say) for name in database.modalities}
    lesions = {}
    for at, (annotation, schema) in enumerate(database.schemas.items()):
        for code, structure in enumerate(schema.structures):
            if structure.kind != "lesion":
                continue
            name = structure.name if len(database.schemas) == 1 else f"{annotation}/{structure.name}"
            having = say.among(f"volume of {name}", [one for one in cases if one.foreground_count[at, code] > 0])
            if having:
                volumes_ml = [_volume_ml(case, at, code) for case in having]
                lesions[name] = {"num_cases": say.count(having), "volume_ml": _means(volumes_ml, say.least)}
    return {
        "num_cases": say.count(cases),
        "extent_mm": [_means(edge.tolist(), say.least) for edge in edges_mm.T],
        "modalities": {name: about for name, about in modalities.items() if about},
        "lesions": lesions,
    }


def _intensities(name: str, cases: Sequence[Case], say: _Told) -> dict[str, float | int]:
    having = say.among(f"intensities of {name}", [case for case in cases if name in case.intensity])
    if not having:
        return {}
    mean, std = np.mean([case.intensity[name] for case in having], axis=0).tolist()
    return {"num_cases": say.count(having), "mean": _short(mean), "std": _short(std)}


def _volume_ml(case: Case, annotation: int, structure: int) -> float:
    return float(case.foreground_count[annotation, structure] * np.prod(case.grid.spacing_mm) / 1000)


def _means(values: Sequence[float], least: int) -> list[float]:
    """The mean, between those of the lower and of the upper half where each is of `least` cases or more."""
    ordered, half = sorted(values), len(values) // 2
    parts = [ordered[:half], ordered, ordered[half:]] if half >= least else [ordered]
    return [_short(math.fsum(part) / len(part)) for part in parts]


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
