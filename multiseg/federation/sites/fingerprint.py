"""Statistics of a site's training cases that reveal no single case: intensities, extents, sizes of lesions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from multiseg.federation.sites.cohorts import Cohorts
from multiseg.federation.sites.site import Site, databases_of, releasable_count
from multiseg.store.catalogue import select
from multiseg.store.reader import Case, Database, Store

DIGITS = 2
"""Significant digits: more would help to identify a case."""


def fingerprint(store: Store, site: Site, least: int) -> dict[str, Any]:
    """The statistics of each database's training cases; those over fewer than `least` cases are left out.

    {"num_cases" (rounded up; `least` if the site reports no counts), "extent_mm": means of each edge,
     "modalities": {sequence: {"num_cases", "mean", "std"}} of raw intensities in the brain, means over the cases,
     "lesions": {structure: {"num_cases", "volume_ml": means}} over the cases that have some of it}

    Means are [of all], or [of the lower half, of all, of the upper half] if each half has `least` cases. Their cases
    are chosen so that differences from earlier numbers reveal no single case (`cohorts`).
    """
    cohorts = Cohorts(site.state, least)
    found = {}
    for name in databases_of(site, store):
        cases = {case.name: case for case in select(store, [name], split="train")}
        release = _Release(cohorts, name, site, least)
        found[name] = _database(store[name], release.among("cases", list(cases.values())), release)
    return {name: about for name, about in found.items() if about}


@dataclass(frozen=True)
class _Release:
    """What may leave the site of a database."""

    cohorts: Cohorts
    database: str
    site: Site
    least: int

    def among(self, what: str, cases: Sequence[Case]) -> list[Case]:
        """The cases that a number on `what` may be computed over."""
        kept = self.cohorts.admit(f"{self.database}/{what}", [case.name for case in cases])
        return [case for case in cases if case.name in kept]

    def count(self, cases: Sequence[Case]) -> int:
        return releasable_count(len(cases), self.site, self.least)


def _database(database: Database, cases: Sequence[Case], release: _Release) -> dict[str, Any]:
    if not cases:
        return {}
    edges_mm = np.array([np.multiply(case.extent, case.grid.spacing_mm) for case in cases])
    modalities = {name: _intensities(name, cases, release) for name in database.modalities}
    lesions = {}
    for index, (annotation, schema) in enumerate(database.schemas.items()):
        for code, structure in enumerate(schema.structures):
            if structure.kind != "lesion":
                continue
            name = structure.name if len(database.schemas) == 1 else f"{annotation}/{structure.name}"
            having = [case for case in cases if case.foreground_count[index, code] > 0]
            having = release.among(f"volume of {name}", having)
            if having:
                volumes_ml = [_volume_ml(case, index, code) for case in having]
                lesions[name] = {"num_cases": release.count(having), "volume_ml": _means(volumes_ml, release.least)}
    return {
        "num_cases": release.count(cases),
        "extent_mm": [_means(edge.tolist(), release.least) for edge in edges_mm.T],
        "modalities": {name: about for name, about in modalities.items() if about},
        "lesions": lesions,
    }


def _intensities(name: str, cases: Sequence[Case], release: _Release) -> dict[str, float | int]:
    having = release.among(f"intensities of {name}", [case for case in cases if name in case.intensity])
    if not having:
        return {}
    mean, std = np.mean([case.intensity[name] for case in having], axis=0).tolist()
    return {"num_cases": release.count(having), "mean": _short(mean), "std": _short(std)}


def _volume_ml(case: Case, annotation: int, structure: int) -> float:
    return float(case.foreground_count[annotation, structure] * np.prod(case.grid.spacing_mm) / 1000)


def _means(values: Sequence[float], least: int) -> list[float]:
    """The mean, between those of the lower and upper half if each has `least` cases or more."""
    ordered, half = sorted(values), len(values) // 2
    parts = [ordered[:half], ordered, ordered[half:]] if half >= least else [ordered]
    return [_short(math.fsum(part) / len(part)) for part in parts]


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
