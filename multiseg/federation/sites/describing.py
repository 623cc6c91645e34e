"""What a site says of its data: a description, and statistics that reveal no single case."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from multiseg.federation.messages import PROTOCOL
from multiseg.federation.pairwise_masks import public_key
from multiseg.federation.plan import FederationOptions
from multiseg.federation.sites.cohorts import Cohorts
from multiseg.federation.sites.drawing import sequences_of, structures_of, training_cases
from multiseg.federation.sites.site import Site, databases_of, labelled, least_of, private_key, releasable_count
from multiseg.labels import LabelSpace
from multiseg.models.devices import resolve_device
from multiseg.store.catalogue import SPLITS, select
from multiseg.store.preparation.recipe import COMMAND
from multiseg.store.reader import Case, Database, Store
from multiseg.store.structures import schemas_of

DIGITS = 2
"""Significant digits of statistics: more would help to identify a case."""


def describe(store: Store, site: Site, options: FederationOptions) -> dict[str, Any]:
    """Databases, sequences, labels, rounded counts, voxel size and versions, for the roster."""
    space, least = LabelSpace.of(options.labels, options.rest), least_of(site, options)
    learnt = training_cases(store, site, options, space)
    device = resolve_device(site.device)
    card = f": {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
    return {
        "site": site.name,
        "databases": {
            name: _about(store, name, space, [case for case in learnt if case.database == name], site, least)
            for name in databases_of(site, store)
        },
        "spacing_mm": list(store.spacing_mm),
        "versions": {"multiseg": version("multiseg"), "torch": torch.__version__, "protocol": PROTOCOL},
        "can_train": site.trains and bool(learnt),
        "public_key": public_key(private_key(site)),
        "device": device.type + card,
    }


def _about(
    store: Store, name: str, space: LabelSpace, learnt: Sequence[Case], site: Site, least: int
) -> dict[str, Any]:
    database = store[name]
    usable = {split: labelled(store, name, space, split) for split in SPLITS} | {"train": learnt}
    counts = {split: releasable_count(len(cases), site, least) for split, cases in usable.items()}
    shown = learnt or [case for cases in usable.values() for case in cases]
    sequences, labels = sequences_of(shown, site.leaves.least), structures_of(shown, store, site.leaves.least)
    unlisted = space.unlisted(schemas_of(store, learnt).get(name, ()), store[name].pathology)
    recipe = database.recipe.to_json()
    # Landmarks are quantiles of intensities over the site's cases, so they need enough cases, too.
    enough = sequences_of(select(store, [name], split="train"), least) if site.leaves.fingerprint else set[str]()
    landmarks = {sequence: scale for sequence, scale in recipe.pop("landmarks", {}).items() if sequence in enough}
    recipe |= {"landmarks": landmarks} if landmarks else {}
    if database.recipe.brain_mask.startswith(COMMAND):  # hide the path of the site's program
        recipe["brain_mask"] = f"{COMMAND}PROGRAM {{image}} {{mask}}"
    return {
        "pathology": database.pathology,
        "num_cases": counts,
        "modalities": [name for name in database.modalities if name in sequences],
        "labels": [{"name": label, "kind": kind} for label, kind in labels],
        "unlisted": list(unlisted),
        "recipe": recipe,
        "licence": database.attributes.get("licence", ""),
    }


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
        found[name] = _statistics(store[name], release.among("cases", list(cases.values())), release)
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


def _statistics(database: Database, cases: Sequence[Case], release: _Release) -> dict[str, Any]:
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
            having = [case for case in cases if case.annotated[index] and case.foreground_count[index, code] > 0]
            having = release.among(f"volume of {name}", having)
            if having:
                voxels = [(case.foreground_count[index, code], case.grid.spacing_mm) for case in having]
                volumes_ml = [float(count * np.prod(spacing_mm) / 1000) for count, spacing_mm in voxels]
                lesions[name] = {"num_cases": release.count(having), "volume_ml": _means(volumes_ml, release.least)}
    return {
        "num_cases": release.count(cases),
        "extent_mm": [_means(edge.tolist(), release.least) for edge in edges_mm.T],
        "modalities": {name: about for name, about in modalities.items() if about},
        "lesions": lesions,
    }


def _intensities(name: str, cases: Sequence[Case], release: _Release) -> dict[str, float | int]:
    having = release.among(f"intensities of {name}", [case for case in cases if name in case.modalities])
    if not having:
        return {}
    mean, std = np.mean([case.intensity[name] for case in having], axis=0).tolist()
    return {"num_cases": release.count(having), "mean": _short(mean), "std": _short(std)}


def _means(values: Sequence[float], least: int) -> list[float]:
    """The mean, between those of the lower and upper half if each has `least` cases or more."""
    ordered, half = sorted(values), len(values) // 2
    parts = [ordered[:half], ordered, ordered[half:]] if half >= least else [ordered]
    return [_short(math.fsum(part) / len(part)) for part in parts]


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
