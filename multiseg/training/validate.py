"""Validate a network in training on held-out cases."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from multiseg.evaluation.decision import brain_of
from multiseg.evaluation.metrics import dice, mean_of_defined
from multiseg.evaluation.preparation import network_input
from multiseg.evaluation.stored_answers import segment
from multiseg.evaluation.subsets import chosen_subsets
from multiseg.labels import IGNORE, KINDS, SpaceLabel
from multiseg.models.saved import Model, ModelInfo
from multiseg.store.catalogue import select
from multiseg.store.reader import Case, Store
from multiseg.training.distributed import ALONE, Peers
from multiseg.training.events import Validation
from multiseg.types import Mask


def validation_cases(
    store: Store, info: ModelInfo, databases: Sequence[str], num_cases: int | None, split: str = "val"
) -> list[Case]:
    """The first `num_cases` held-out cases of each database that are annotated for a label; all if it is None."""
    chosen = []
    for name in databases:
        usable = [case for case in select(store, [name], split=split) if info.usable(case.modalities)]
        chosen += [case for case in usable if store[name].label_view(case, info.space).annotated.any()][:num_cases]
    return chosen


@dataclass(frozen=True)
class Judged:
    """The result for one structure in one case.

    Attributes:
        structure, kind: the label and whether it is a "lesion" or a "tissue".
        dice: NaN if the case does not have the structure.
        is_false_alarm: the structure was predicted in a case that does not have it.
    """

    dice: float
    is_false_alarm: bool = False
    structure: str = "lesion"
    kind: str = "lesion"

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
    """Validate with all sequences of each case and windows that overlap by a quarter.

    None if `should_stop`, asked before each case, was true. Several processes share the cases and all get the
    same result.
    """
    parts = peers.gather(_judged_by_database(network, info, store, cases[peers.rank :: peers.num], should_stop))
    by_database: dict[str, list[Judged]] = {case.database: [] for case in cases}
    for part in parts:
        if part is None:
            return None
        for name, results in part.items():
            by_database[name] += results
    absent = [result for results in by_database.values() for result in results if result.is_absent]
    by_kind = {
        kind: [mean_dice([result for result in results if result.kind == kind]) for results in by_database.values()]
        for kind in KINDS
    }
    kinds = {kind: mean_of_defined(values) for kind, values in by_kind.items()}
    return Validation(
        score=score_of(by_database.values()),
        dice={name: mean_dice(results) for name, results in by_database.items()},
        num_false_alarms=sum(result.is_false_alarm for result in absent),
        num_absent=len(absent),
        structures={
            f"{name}/{structure}": mean_dice(group)
            for name, results in by_database.items()
            for structure, group in _grouped(results, lambda result: result.structure).items()
        },
        kinds={kind: value for kind, value in kinds.items() if not math.isnan(value)},
    )


def _grouped(judged: Iterable[Judged], key: Callable[[Judged], str]) -> dict[str, list[Judged]]:
    groups: dict[str, list[Judged]] = {}
    for result in judged:
        groups.setdefault(key(result), []).append(result)
    return groups


def mean_dice(judged: Sequence[Judged]) -> float:
    """The mean of the mean Dice of lesions and that of tissues, where they are defined; NaN if neither is.

    Six tissues and a lesion in one mean would hide a lesion that is never found.
    """
    by_kind = _grouped(judged, lambda result: result.kind).values()
    return mean_of_defined([mean_of_defined([result.dice for result in group]) for group in by_kind])


def database_score(judged: Sequence[Judged]) -> float:
    """The score of one database: the mean of the scores of its lesions and of its tissues, if it has both.

    The score of a kind is its mean Dice, in which every false alarm counts as a Dice of 0: with n present structures
    and f false alarms, (sum of the n Dices) / (n + f). This is Dice by its formula, 2 |P ∩ T| / (|P| + |T|), over all
    structures for which it is defined. A structure that is neither present nor predicted has 0 / 0 and is left out:
    otherwise a model that predicts nothing would be best if most cases have no lesion. If no structure is present in
    any case, the score is the share without a false alarm.

    NaN without any result.
    """
    return _mean_score(_grouped(judged, lambda result: result.kind).values(), _kind_score)


def _kind_score(judged: Sequence[Judged]) -> float:
    present = [result.dice for result in judged if not result.is_absent]
    num_false_alarms = sum(result.is_false_alarm for result in judged)
    if present:
        return math.fsum(present) / (len(present) + num_false_alarms)
    return 1 - num_false_alarms / len(judged) if judged else math.nan


def score_of(databases: Iterable[Sequence[Judged]]) -> float:
    """The score that chooses the best model: the mean over the databases with equal weights.

    A database without any structure counts as 0, weighted with its share of false alarms, like a false alarm within
    a database. If no database has any structure, the score is the mean of their shares without a false alarm.
    """
    return _mean_score(databases, database_score)


def _mean_score(groups: Iterable[Sequence[Judged]], score: Callable[[Sequence[Judged]], float]) -> float:
    """The mean score of groups; those without any structure count as 0, weighted with their share of false alarms."""
    present: list[float] = []
    absent: list[float] = []
    for judged in groups:
        if judged:
            scores = absent if all(result.is_absent for result in judged) else present
            scores.append(score(judged))
    if present:
        return math.fsum(present) / (len(present) + math.fsum(1 - score for score in absent))
    return math.fsum(absent) / len(absent) if absent else math.nan


def _judged_by_database(
    network: nn.Module, info: ModelInfo, store: Store, cases: Sequence[Case], should_stop: Callable[[], bool]
) -> dict[str, list[Judged]] | None:
    model = Model(network, info).eval()
    by_database: dict[str, list[Judged]] = {}
    for case in cases:
        if should_stop():
            return None
        for results in judged_by_subset(model, store, case).values():
            by_database.setdefault(case.database, []).extend(results)
    return by_database


def judged_by_subset(
    model: Model, store: Store, case: Case, subsets: str = "full", overlap: float = 0.25
) -> dict[str, list[Judged]]:
    """The results for each annotated label of a case, by the sequences that the model was given ("FLAIR+T1").

    Args:
        subsets: of the case's sequences, "full" or "all"; they are in the order of the model's axis.
        overlap: of the windows.
    """
    info, database = model.info, store[case.database]
    stored, codes = database.whole(case)
    usable = tuple(name for name in info.axis if name in info.usable(case.modalities))
    images, _ = network_input(info, stored, database.modalities, usable, case.intensity)
    view = database.label_view(case, info.space)
    target = view.target(codes)
    labels = (np.flatnonzero(view.annotated) + 1).tolist()
    by_subset = {}
    for subset in chosen_subsets(subsets, usable):
        brain = brain_of(stored[database.modalities.index(name)] for name in subset)
        predicted = np.where(target == IGNORE, 0, segment(model, images, subset, overlap, brain))
        by_subset["+".join(subset)] = [
            _judged(predicted == label, target == label, info.space.labels[label - 1]) for label in labels
        ]
    return by_subset


def _judged(predicted: Mask, truth: Mask, label: SpaceLabel) -> Judged:
    value = dice(predicted, truth)
    return Judged(value, math.isnan(value) and bool(predicted.any()), label.name, label.kind)
