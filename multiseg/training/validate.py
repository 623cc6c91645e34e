"""How well a network in training does on held-out cases."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from multiseg.evaluation.decision import brain_of
from multiseg.evaluation.metrics import dice, mean_of_defined
from multiseg.evaluation.model_evaluation import segment
from multiseg.evaluation.preparation import network_input
from multiseg.evaluation.subsets import chosen_subsets
from multiseg.labels import IGNORE
from multiseg.models.saved import Model, ModelInfo
from multiseg.store.catalogue import select
from multiseg.store.reader import Case, Store
from multiseg.training.distributed import ALONE, Peers
from multiseg.training.events import Validation
from multiseg.types import Mask


def validation_cases(
    store: Store, info: ModelInfo, databases: Sequence[str], num_cases: int | None, split: str = "val"
) -> list[Case]:
    """The first few held-out cases of each database that have a label of the space; all where `num_cases` is None."""
    chosen = []
    for name in databases:
        held_out = [case for case in select(store, [name], split=split) if info.usable(case.modalities)]
        chosen += [c for c in held_out if store[name].label_view(c, info.space).annotated.any()][:num_cases]
    return chosen


@dataclass(frozen=True)
class Judged:
    """One structure in one case.

    Attributes:
        dice: NaN where the case has none of it.
        is_false_alarm: it has none, and some was predicted.
    """

    dice: float
    is_false_alarm: bool = False

    @property
    def is_absent(self) -> bool:
        return math.isnan(self.dice)


def validate(
    network: nn.Module,
    info: ModelInfo,
    store: Store,
    cases: Sequence[Case],
    should_stop: Callable[[], bool] = lambda: False,
    peers: Peers = ALONE,
) -> Validation | None:
    """How good the network is, by all sequences of each case and windows that overlap by a quarter.

    None where `should_stop`, asked before each case, said so. Several processes share the cases out and all
    get the same answer.
    """
    parts = peers.gather(_judged_by_database(network, info, store, cases[peers.rank :: peers.num], should_stop))
    found: dict[str, list[Judged]] = {case.database: [] for case in cases}
    for part in parts:
        if part is None:
            return None
        for name, values in part.items():
            found[name] += values
    absent = [one for values in found.values() for one in values if one.is_absent]
    return Validation(
        score=score_of(found.values()),
        dice={name: mean_of_defined([one.dice for one in values]) for name, values in found.items()},
        num_false_alarms=sum(one.is_false_alarm for one in absent),
        num_absent=len(absent),
    )


def database_score(judged: Sequence[Judged]) -> float:
    """What chooses the best model on one database: its mean Dice, in which every false alarm counts as a Dice of 0.

    With n structures that are there and f false alarms, (sum of the n Dices) / (n + f). That is Dice by its formula,
    2 |P ∩ T| / (|P| + |T|), of everything that has one: a structure that is neither there nor predicted has 0 / 0 and
    is left out, for a model that predicts nothing would be the best one where most cases have no lesion. Where nothing
    is there in any case, there is no Dice to weigh them against, and it is the share without a false alarm.

    NaN where nothing was judged.
    """
    present = [one.dice for one in judged if not one.is_absent]
    num_false_alarms = sum(one.is_false_alarm for one in judged)
    if present:
        return math.fsum(present) / (len(present) + num_false_alarms)
    return 1 - num_false_alarms / len(judged) if judged else math.nan


def score_of(databases: Iterable[Sequence[Judged]]) -> float:
    """What chooses the best model: the mean score of the databases, each counting alike.

    One in which nothing is there weighs by its share of false alarms, and then as 0, like a false alarm within a
    database. Where no database has anything, the score is the mean of their shares without a false alarm.
    """
    judged = [some for some in databases if some]
    has_something = [any(not one.is_absent for one in some) for some in judged]
    scores = [database_score(some) for some in judged]
    with_something = [score for score, has in zip(scores, has_something, strict=True) if has]
    if not with_something:
        return math.fsum(scores) / len(scores) if scores else math.nan
    weight = math.fsum(1 - score for score, has in zip(scores, has_something, strict=True) if not has)
    return math.fsum(with_something) / (len(with_something) + weight)


def _judged_by_database(
    network: nn.Module, info: ModelInfo, store: Store, cases: Sequence[Case], should_stop: Callable[[], bool]
) -> dict[str, list[Judged]] | None:
    model = Model(network, info).eval()
    found: dict[str, list[Judged]] = {}
    for case in cases:
        if should_stop():
            return None
        for values in judged_by_subset(model, store, case).values():
            found.setdefault(case.database, []).extend(values)
    return found


def judged_by_subset(
    model: Model, store: Store, case: Case, subsets: str = "full", overlap: float = 0.25
) -> dict[str, list[Judged]]:
    """Each label that was looked for in the case, by what the model was shown ("FLAIR+T1").

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
    labels = (np.flatnonzero(view.annotated) + 1).tolist()
    found = {}
    for subset in chosen_subsets(subsets, usable):
        brain = brain_of(own[database.modalities.index(name)] for name in subset)
        predicted = np.where(target == IGNORE, 0, segment(model, images, subset, overlap, brain))
        found["+".join(subset)] = [_judged(predicted == label, target == label) for label in labels]
    return found


def _judged(predicted: Mask, truth: Mask) -> Judged:
    value = dice(predicted, truth)
    return Judged(value, math.isnan(value) and bool(predicted.any()))
