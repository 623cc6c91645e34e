"""How well a network in training does on held-out cases."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch import nn

from multiseg.evaluation.decision import brain_of
from multiseg.evaluation.evaluate import segment
from multiseg.evaluation.metrics import dice, mean_of_defined
from multiseg.evaluation.preparation import network_input
from multiseg.evaluation.subsets import chosen_subsets
from multiseg.labels import IGNORE
from multiseg.models.saved import Model, ModelInfo
from multiseg.store.catalogue import select
from multiseg.store.reader import Case, Store
from multiseg.training.distributed import ALONE, Peers


def validation_cases(
    store: Store, info: ModelInfo, databases: Sequence[str], num_cases: int | None, split: str = "val"
) -> list[Case]:
    """The first few held-out cases of each database that have a label of the space; all where `num_cases` is None."""
    chosen = []
    for name in databases:
        held_out = [case for case in select(store, [name], split=split) if info.usable(case.modalities)]
        chosen += [c for c in held_out if store[name].label_view(c, info.space).annotated.any()][:num_cases]
    return chosen


def validate(
    network: nn.Module,
    info: ModelInfo,
    store: Store,
    cases: Sequence[Case],
    should_stop: Callable[[], bool] = lambda: False,
    peers: Peers = ALONE,
) -> dict[str, float] | None:
    """Mean Dice by database, all sequences of each case, windows that overlap by a quarter.

    None where `should_stop`, asked before each case, said so. Several processes share the cases out and all
    get the same answer.
    """
    parts = peers.gather(_dice_by_database(network, info, store, cases[peers.rank :: peers.num], should_stop))
    found: dict[str, list[float]] = {case.database: [] for case in cases}
    for part in parts:
        if part is None:
            return None
        for name, values in part.items():
            found[name] += values
    return {name: mean_of_defined(values) for name, values in found.items()}


def _dice_by_database(
    network: nn.Module, info: ModelInfo, store: Store, cases: Sequence[Case], should_stop: Callable[[], bool]
) -> dict[str, list[float]] | None:
    model = Model(network, info).eval()
    found: dict[str, list[float]] = {}
    for case in cases:
        if should_stop():
            return None
        for values in dice_by_subset(model, store, case).values():
            found.setdefault(case.database, []).extend(values)
    return found


def dice_by_subset(
    model: Model, store: Store, case: Case, subsets: str = "full", overlap: float = 0.25
) -> dict[str, list[float]]:
    """Dice of each annotated label, NaN where the case has none of it, by what the model was shown ("FLAIR+T1").

    Args:
        subsets: of the case's sequences, "full" or "all"; they are in the order of the model's axis.
        overlap: of the windows.
    """
    info, database = model.info, store[case.database]
    own, codes = database.whole(case)
    usable = tuple(name for name in info.axis if name in info.usable(case.modalities))
    images, _ = network_input(info, own, database.modalities, usable, case.intensity)
    view = database.label_view(case, info.space)
    target = view.target(codes)
    found = {}
    for subset in chosen_subsets(subsets, usable):
        brain = brain_of(own[database.modalities.index(name)] for name in subset)
        predicted = segment(model, images, subset, overlap, brain)
        found["+".join(subset)] = [
            dice((predicted == label) & (target != IGNORE), target == label)
            for label in np.flatnonzero(view.annotated) + 1
        ]
    return found
