"""Statistics of a site's training cases that say nothing of one case: intensities, extents, sizes of lesions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from multiseg.federation.sites.site import Site, databases_of, told
from multiseg.store.catalogue import select
from multiseg.store.reader import Case, Database, Store

QUARTILES = (0.25, 0.5, 0.75)
DIGITS = 3
"""Significant digits that are told: more would help to tell a case from the numbers of all."""


def fingerprint(store: Store, site: Site, least: int) -> dict[str, Any]:
    """By database, of its training cases; what fewer than `least` cases tell is left out.

    {"num_cases" (rounded up; `least` where the site tells no counts), "extent_mm": quartiles of each edge,
     "modalities": {sequence: {"num_cases", "mean", "std"}} of raw intensities in the brain, means over the cases,
     "lesions": {structure: {"num_cases", "volume_ml": quartiles}} over the cases that have some of it}
    """
    found = {name: _database(store[name], _train_cases(store, name), least, site) for name in databases_of(site, store)}
    return {name: about for name, about in found.items() if about}


def _train_cases(store: Store, name: str) -> tuple[Case, ...]:
    return select(store, [name], split="train")


def _database(database: Database, cases: Sequence[Case], least: int, site: Site) -> dict[str, Any]:
    if len(cases) < least:
        return {}
    edges_mm = np.array([np.multiply(case.extent, case.grid.spacing_mm) for case in cases])
    modalities = {name: _intensities(name, cases, least, site) for name in database.modalities}
    lesions = {}
    for at, (annotation, schema) in enumerate(database.schemas.items()):
        for code, structure in enumerate(schema.structures):
            volumes_ml = [_volume_ml(case, at, code) for case in cases if case.foreground_count[at, code] > 0]
            if structure.kind == "lesion" and len(volumes_ml) >= least:
                name = structure.name if len(database.schemas) == 1 else f"{annotation}/{structure.name}"
                lesions[name] = {"num_cases": told(len(volumes_ml), site, least), "volume_ml": _quartiles(volumes_ml)}
    return {
        "num_cases": told(len(cases), site, least),
        "extent_mm": [_quartiles(edge.tolist()) for edge in edges_mm.T],
        "modalities": {name: about for name, about in modalities.items() if about},
        "lesions": lesions,
    }


def _intensities(name: str, cases: Sequence[Case], least: int, site: Site) -> dict[str, float | int]:
    scales = [case.intensity[name] for case in cases if name in case.intensity]
    if len(scales) < least:
        return {}
    mean, std = np.mean(scales, axis=0).tolist()
    return {"num_cases": told(len(scales), site, least), "mean": _short(mean), "std": _short(std)}


def _volume_ml(case: Case, annotation: int, structure: int) -> float:
    return float(case.foreground_count[annotation, structure] * np.prod(case.grid.spacing_mm) / 1000)


def _quartiles(values: Sequence[float]) -> list[float]:
    return [_short(value) for value in np.quantile(values, QUARTILES).tolist()]


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
