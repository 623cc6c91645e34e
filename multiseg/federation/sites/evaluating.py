"""How good a model is at a site, in numbers that tell of no single case."""

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
from multiseg.training.validate import Judged, judged_by_subset, validation_cases

DIGITS = 2
"""Of a Dice, after the point: a hundredth of a mean over five cases is a twentieth of the Dice of one."""
LOGGER = logging.getLogger("multiseg.federation")


@dataclass(frozen=True)
class EvaluationRequest:
    """What to evaluate on; as a round does, by default.

    Attributes:
        num_cases: of each database, about; None for all.
        overlap: of the windows.
    """

    split: str = "val"
    subsets: str = "full"
    num_cases: int | None = None
    overlap: float = 0.25


@dataclass(frozen=True)
class Score:
    """Mean Dice over the cases that have a structure, and how many these are; and what chooses the best model, in
    which a false alarm counts as a Dice of 0 (`validate.database_score`). NaN where no number may be told."""

    dice: float = math.nan
    num_cases: int = 0
    score: float = math.nan


@dataclass(frozen=True)
class _Found:
    """A label in a case: `member` stands for the case and the structures that make up the label in it."""

    label: int
    member: str
    judged: Judged


def asked_in_round(order: Order) -> EvaluationRequest:
    """What a round evaluates the received model on."""
    schedule = order.options.schedule
    return EvaluationRequest("val", schedule.evaluate_subsets, schedule.validation_cases)


def examined(order: Order, store: Store, site: Site, asked: EvaluationRequest) -> tuple[list[Case], tuple[str, ...]]:
    """The cases to evaluate on, which the site chooses (`cohorts.chosen`), and what a person should know of it.

    Without those whose scans the experiment has learnt from here. Ask once for an answer: what is told changes it.
    """
    cohorts, found, num_left_out = Cohorts(site.state, site.leaves.least), list[Case](), 0
    folder = experiment_folder(site, order.options.experiment)
    for name in databases_of(site, store):
        cases = validation_cases(store, order.info, [name], None, asked.split)
        usable = {case.name: case for case in fair(cases, folder, asked.split)}
        num_left_out += len(cases) - len(usable)
        if len(usable) < len(cases):
            LOGGER.warning(
                "%d of %d %s cases of %s are left out: the experiment has learnt from their scans at this site.",
                len(cases) - len(usable), len(cases), asked.split, name,
            )  # fmt: skip
        found += [usable[one] for one in cohorts.choose(name, usable, asked.num_cases)]
    subsets = [len(chosen_subsets(asked.subsets, order.info.usable(case.modalities))) for case in found]
    check_evaluations(sum(subsets), site.limits)
    note = f"some {asked.split} cases were left out: the experiment has learnt from their scans at this site."
    return found, (note,) if num_left_out >= site.leaves.least else ()


def evaluate_model(
    network: nn.Module,
    order: Order,
    store: Store,
    site: Site,
    cases: Sequence[Case],
    asked: EvaluationRequest,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Score]:
    """How good a model is on these cases by database ("full"), or by "database/SUBSET" of its sequences ("all").

    Each Dice is a mean over `least` cases or more with the structure, rounded, and over such cases that it tells no
    single one apart by its difference from what was told before (`cohorts`).

    Raises:
        StoppedError: `should_stop`, asked before each case, said so.
        DataError: the store does not fit, or a file of it is damaged.
    """
    info, found = order.info, dict[tuple[str, str], list[_Found]]()
    check_spacing(info, store)
    model = Model(network, info).eval()
    for case in cases:
        if should_stop():
            raise StoppedError("the evaluation was stopped at the site; it starts again when the site is back.")
        members = _members(case, store, info.space)
        for subset, judged in judged_by_subset(model, store, case, asked.subsets, asked.overlap).items():
            place = (case.database, "" if asked.subsets == "full" else f"/{subset}")
            both = zip(members.items(), judged, strict=True)
            found.setdefault(place, []).extend(_Found(label, member, one) for (label, member), one in both)
    cohorts, digits = Cohorts(site.state, site.leaves.least), DIGITS if site.leaves.least > 1 else None
    return {
        database + subset: _score(some, database, cohorts, digits) for (database, subset), some in sorted(found.items())
    }


def why_none(scores: Mapping[str, Score], least: int) -> tuple[str, ...]:
    """What to tell where no Dice may be told."""
    if least <= 1 or any(not math.isnan(score.score) for score in scores.values()):
        return ()
    return (
        f"it tells no Dice: each has to be a mean over {least} cases or more that have a structure, and not over a few "
        "more or fewer than one that was told before.",
    )


def _members(case: Case, store: Store, space: LabelSpace) -> dict[int, str]:
    """For each label that was looked for in a case, what stands for both: labels with the same voxels are the same."""
    view = store[case.database].label_view(case, space)
    voxels = case.foreground_count
    found = {}
    for label in (np.flatnonzero(view.annotated) + 1).tolist():
        structures = [
            f"{at}.{code}"
            for at, table in view.tables
            for code in np.flatnonzero(table == label).tolist()
            if voxels[at, code - 1] > 0
        ]
        found[label] = f"{case.name}\n{' '.join(sorted(structures))}"
    return found


def _score(found: Iterable[_Found], database: str, cohorts: Cohorts, digits: int | None) -> Score:
    """What may be told of these: of each label by itself, then over all labels."""
    by_label: dict[int, list[_Found]] = {}
    for one in found:
        by_label.setdefault(one.label, []).append(one)
    present, absent = list[_Found](), list[_Found]()
    for some in by_label.values():
        having = [one for one in some if not one.judged.is_absent]
        has = _told(having, database, cohorts)
        if has or not having:  # of a label that too few cases have nothing counts
            present += has
            absent += _told([one for one in some if one.judged.is_absent], database, cohorts)
    alarms = sum(one.judged.is_false_alarm for one in absent)
    if present:
        total = math.fsum(one.judged.dice for one in present)
        num_cases = len({one.member.partition("\n")[0] for one in present})
        return Score(_round(total / len(present), digits), num_cases, _round(total / (len(present) + alarms), digits))
    return Score(score=_round(1 - alarms / len(absent), digits) if absent else math.nan)


def _round(value: float, digits: int | None) -> float:
    return value if digits is None else round(value, digits)


def _told(found: Sequence[_Found], database: str, cohorts: Cohorts) -> list[_Found]:
    members: Mapping[str, _Found] = {one.member: one for one in found}
    kept = cohorts.admit(database, members)
    return [one for name, one in members.items() if name in kept]
