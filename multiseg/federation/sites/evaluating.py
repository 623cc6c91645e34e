"""Evaluates a model at a site, in numbers that reveal no single case."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from multiseg.errors import StoppedError
from multiseg.evaluation.model_evaluation import check_spacing
from multiseg.evaluation.subsets import chosen_subsets
from multiseg.federation.sites.cohorts import Cohorts
from multiseg.federation.sites.limits import check_evaluations
from multiseg.federation.sites.remembered import fair
from multiseg.federation.sites.site import Order, Site, databases_of, experiment_folder
from multiseg.labels import LabelSpace
from multiseg.models.saved import Model
from multiseg.store.reader import Case, Store
from multiseg.training.validate import Judged, database_score, judged_by_subset, mean_dice, validation_cases

DIGITS = 2
"""Decimals of a Dice: a hundredth of a mean over five cases is a twentieth of the Dice of one case."""
LOGGER = logging.getLogger("multiseg.federation")


@dataclass(frozen=True)
class EvaluationRequest:
    """What to evaluate on; the defaults are those of a round.

    Attributes:
        num_cases: of each database, approximately; None for all.
    """

    split: str = "val"
    subsets: str = "full"
    num_cases: int | None = None


@dataclass(frozen=True)
class Score:
    """Mean Dice over the cases that have a structure, their number, and the score that chooses the best model, in which
    a false alarm counts as a Dice of 0 (`validate.database_score`). NaN if no number may leave."""

    dice: float = math.nan
    num_cases: int = 0
    score: float = math.nan


@dataclass(frozen=True)
class _Result:
    """The result of a label in a case: `member` identifies the case and the structures that form the label in it."""

    label: int
    member: str
    judged: Judged


def request_for(order: Order, split: str = "val") -> EvaluationRequest:
    """What a run evaluates models on: a number of validation cases, or all test cases."""
    schedule = order.options.schedule
    return EvaluationRequest(split, schedule.evaluate_subsets, schedule.validation_cases if split == "val" else None)


def choose_cases(
    order: Order, store: Store, site: Site, request: EvaluationRequest
) -> tuple[list[Case], tuple[str, ...]]:
    """The cases to evaluate on, which the site chooses (`cohorts.chosen`), and notes on them.

    Cases with scans that the experiment has learnt from here are left out. Call it once per answer: each choice is
    recorded and changes the next.
    """
    cohorts, chosen, num_left_out = Cohorts(site.state, site.leaves.least), list[Case](), 0
    folder = experiment_folder(site, order.options.experiment)
    for name in databases_of(site, store):
        cases = validation_cases(store, order.info, [name], None, request.split)
        usable = {case.name: case for case in fair(cases, folder, request.split)}
        num_left_out += len(cases) - len(usable)
        if len(usable) < len(cases):
            LOGGER.warning(
                "%d of %d %s cases of %s are left out: the experiment has learnt from their scans at this site.",
                len(cases) - len(usable), len(cases), request.split, name,
            )  # fmt: skip
        chosen += [usable[case] for case in cohorts.choose(name, usable, request.num_cases)]
    subsets = [len(chosen_subsets(request.subsets, order.info.usable(case.modalities))) for case in chosen]
    check_evaluations(sum(subsets), site.limits)
    note = f"some {request.split} cases were left out: the experiment has learnt from their scans at this site."
    return chosen, (note,) if num_left_out >= site.leaves.least else ()


def evaluate_model(
    network: nn.Module,
    order: Order,
    store: Store,
    site: Site,
    cases: Sequence[Case],
    request: EvaluationRequest,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Score]:
    """The scores of a model on these cases by database ("full"), or by "database/SUBSET" of its sequences ("all").

    Each Dice is a rounded mean over `least` or more cases with the structure, which are chosen so that differences
    from earlier numbers reveal no single case (`cohorts`).

    Raises:
        StoppedError: `should_stop`, asked before each case, returned True.
        DataError: the store does not fit, or a file of it is damaged.
    """
    info, found = order.info, dict[tuple[str, str], list[_Result]]()
    check_spacing(info, store)
    model = Model(network, info).eval()
    for case in cases:
        if should_stop():
            raise StoppedError("the evaluation was stopped at the site; it starts again when the site is back.")
        members = _members(case, store, info.space)
        for subset, judged in judged_by_subset(model, store, case, request.subsets).items():
            key = (case.database, "" if request.subsets == "full" else f"/{subset}")
            results = found.setdefault(key, [])
            pairs = zip(members.items(), judged, strict=True)
            results += [_Result(label, member, result) for (label, member), result in pairs]
    cohorts, digits = Cohorts(site.state, site.leaves.least), DIGITS if site.leaves.least > 1 else None
    return {
        database + subset: _score(results, database, cohorts, digits)
        for (database, subset), results in sorted(found.items(), key=lambda item: item[0])
    }


def why_none(scores: Mapping[str, Score], least: int) -> tuple[str, ...]:
    """A note for an answer without any Dice."""
    if least <= 1 or any(not math.isnan(score.score) for score in scores.values()):
        return ()
    return (
        f"it sends no Dice: each has to be a mean over {least} or more cases with a structure, and not over a few more "
        "or fewer cases than an earlier one.",
    )


def _members(case: Case, store: Store, space: LabelSpace) -> dict[int, str]:
    """A key for each annotated label of a case; labels of the same structures, hence the same voxels, share it."""
    view = store[case.database].label_view(case, space)
    voxels = case.foreground_count
    found = {}
    for label in (np.flatnonzero(view.annotated) + 1).tolist():
        structures = [
            f"{annotation}.{code}"
            for annotation, table in view.tables
            for code in np.flatnonzero(table == label).tolist()
            if voxels[annotation, code - 1] > 0
        ]
        found[label] = f"{case.name}\n{' '.join(sorted(structures))}"
    return found


def _score(found: Iterable[_Result], database: str, cohorts: Cohorts, digits: int | None) -> Score:
    """The score over all labels, from the results that may be used of each label."""
    by_label: dict[int, list[_Result]] = {}
    for result in found:
        by_label.setdefault(result.label, []).append(result)
    admitted = list[_Result]()
    for results in by_label.values():
        having = [result for result in results if not result.judged.is_absent]
        usable = _admitted(having, database, cohorts)
        if usable or not having:  # a label that too few cases have does not count at all
            admitted += usable
            admitted += _admitted([result for result in results if result.judged.is_absent], database, cohorts)
    num_cases = len({result.member.partition("\n")[0] for result in admitted if not result.judged.is_absent})
    judged = [result.judged for result in admitted]
    return Score(_round(mean_dice(judged), digits), num_cases, _round(database_score(judged), digits))


def _round(value: float, digits: int | None) -> float:
    return value if digits is None else round(value, digits)


def _admitted(results: Sequence[_Result], database: str, cohorts: Cohorts) -> list[_Result]:
    """The results that a number may be computed over."""
    members = {result.member: result for result in results}
    admitted = cohorts.admit(database, members)
    return [result for name, result in members.items() if name in admitted]
