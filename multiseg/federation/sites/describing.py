"""A site's description of itself, for the roster."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import torch

from multiseg.federation.messages import PROTOCOL
from multiseg.federation.pairwise_masks import public_key
from multiseg.federation.plan import FederationOptions
from multiseg.federation.sites.drawing import sequences_of, structures_of, training_cases
from multiseg.federation.sites.site import Site, databases_of, labelled, least_of, private_key, releasable_count
from multiseg.labels import LabelSpace
from multiseg.models.devices import resolve_device
from multiseg.store.catalogue import SPLITS, select
from multiseg.store.preparation.recipe import COMMAND
from multiseg.store.reader import Case, Store
from multiseg.store.structures import schemas_of


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
