"""Tissues of one database and lesions of another in one model (Roulet et al. 2019, table 1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import pandas as pd

from multiseg.config import merged
from multiseg.experiments.anatomy_ground import roles_of, shared_sequences
from multiseg.experiments.comparisons import (
    INTERVAL,
    Table,
    by_part,
    compared_by_part,
    mean_dice,
    paired_difference,
    rows_of,
)
from multiseg.experiments.ground import Ground
from multiseg.experiments.runs import Arm, Exam, Run, training
from multiseg.labels import LESION
from multiseg.store.structures import written

ROULET = "Roulet et al. 2019"
QUESTION = "Can one model learn tissues from one database and lesions from another?"
NAIVE_CE, NAIVE_DICE, ACE, ACE_DICE = "naive CE", "naive Dice", "ACE", "ACE + Dice"
OBJECTIVES = {NAIVE_CE: "naive_ce", NAIVE_DICE: "naive_dice", ACE: "ace", ACE_DICE: "ace+dice"}
MULTI = "multi-network"
BALANCED = {"class_weights": "inverse-root"}
"""Of every cross entropy here: without it, small structures are not learnt in so few steps."""
LESION_DICE, TISSUE_DICE = "lesion", "mean of the tissues"
Check: TypeAlias = tuple[str, str, str, float]
"""What is measured, the first arm less the second, and the least difference at which it counts as shown."""
CHECKS: tuple[Check, ...] = (
    (TISSUE_DICE, ACE, NAIVE_CE, 0.30),
    (LESION_DICE, ACE, NAIVE_CE, -0.02),
    (TISSUE_DICE, ACE, MULTI, -0.05),
)


def anatomy_training(
    ground: Ground,
    name: str,
    databases: Sequence[str],
    labels: Sequence[str],
    seed: int,
    more: Mapping[str, Any],
    revealed: Sequence[str] = (),
) -> Run:
    """A training on one or both databases, without what the ground hides and is not `revealed`.

    The network is that of Roulet et al. unless `more` names another. It differs from the published one in its norm: the
    statistics of batch norm would mix patches with and without a sequence.
    """
    hidden = [one for one in roles_of(ground).hidden if one.partition("/")[0] in databases and one not in revealed]
    same = {
        "labels": list(labels),
        "hide": hidden,
        "model": {"builder": "unet_sum", "norm": "instance_affine"},
        "stream": {"draw": {"centre": "label"}},
    }
    hide = {"hide": [*hidden, *more.get("hide", ())]}
    return training(ground, name, databases, seed, merged(merged(same, more), hide))


def tissue_labels(ground: Ground) -> list[str]:
    return [written("tissue", name) for name in roles_of(ground).names]


def both(ground: Ground, seed: int, objective: str, without: Sequence[str] = ()) -> Run:
    """One model of both databases; without some sequences of the database of lesions."""
    roles = roles_of(ground)
    name = f"{objective} on {roles.tissues} and {roles.lesions}" + (f" without {', '.join(without)}" if without else "")
    balanced = {} if objective == OBJECTIVES[NAIVE_DICE] else BALANCED
    hide = [f"{roles.lesions}/{sequence}" for sequence in without]
    more = {"fit": {"objective": objective, **balanced}, "hide": hide}
    labels = [*tissue_labels(ground), LESION.name]
    return anatomy_training(ground, name, (roles.tissues, roles.lesions), labels, seed, more)


def fused(ground: Ground, seed: int) -> Run:
    """A model of the tissues and one of the lesions, trained with cross entropy, of which lesions overwrite tissues."""
    roles, more = roles_of(ground), {"fit": {"objective": "ace", **BALANCED}}  # of one database, plain cross entropy
    tissue = anatomy_training(ground, f"{roles.tissues} alone", [roles.tissues], tissue_labels(ground), seed, more)
    lesion = anatomy_training(ground, f"{roles.lesions} alone", [roles.lesions], [LESION.name], seed, more)
    settings = {"store": ground.store, "databases": [roles.tissues, roles.lesions], "seed": seed}
    return Run(f"{MULTI}, seed {seed}", settings, fused=(tissue, lesion))


def only_shared(ground: Ground) -> str:
    """The name of the arm that learns from shared sequences alone, as the paper's single network."""
    return f"{ACE} of {'+'.join(shared_sequences(ground))} alone"


def tested_shared(ground: Ground) -> str:
    """The name of the arm that learns from all sequences and is tested with the shared ones alone."""
    return f"{ACE}, tested on {'+'.join(shared_sequences(ground))}"


def further_sequences(ground: Ground) -> tuple[str, ...]:
    """The sequences of the database of lesions that the other one does not have."""
    shared = shared_sequences(ground)
    return tuple(name for name in ground.sequences[roles_of(ground).lesions] if name not in shared)


def plan(ground: Ground) -> list[Arm]:
    exam = Exam((roles_of(ground).lesions,))
    arms = []
    for seed in range(ground.num_seeds):
        arms += [Arm(name, both(ground, seed, objective), exam) for name, objective in OBJECTIVES.items()]
        arms.append(Arm(MULTI, fused(ground, seed), exam))
        if further := further_sequences(ground):
            arms.append(Arm(only_shared(ground), both(ground, seed, "ace", further), exam))
            shared = Exam(exam.databases, "+".join(shared_sequences(ground)))
            arms.append(Arm(tested_shared(ground), both(ground, seed, "ace"), shared))
    return arms


def pictured(ground: Ground) -> list[Arm]:
    """Every model of the first seed, once."""
    return [arm for arm in plan(ground) if arm.run.seed == 0 and arm.exam.subsets == "full"]


def parts_of(cases: pd.DataFrame, ground: Ground) -> dict[str, pd.DataFrame]:
    """The rows of the lesion, those of all tissues together, and those of each tissue."""
    tissues = roles_of(ground).tested
    together = {LESION_DICE: cases[cases["label"] == LESION.name], TISSUE_DICE: cases[cases["label"].isin(tissues)]}
    return {**together, **{name: cases[cases["label"] == name] for name in tissues}}


def by_structure(parts: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """One row per arm: the Dice of each part, and for the lesion and the tissues together the range over the seeds."""
    return by_part(parts, (LESION_DICE, TISSUE_DICE))


def checked(parts: Mapping[str, pd.DataFrame], num_seeds: int, checks: Sequence[Check] = CHECKS) -> pd.DataFrame:
    """One row per check and seed: the difference, and whether it is what the paper says.

    Two arms that find nothing do not differ; that shows nothing, so the first must find something.
    """
    rows = []
    for measured, first, second, least in checks:
        pair = [rows_of(parts[measured], arm) for arm in (first, second)]
        for seed in range(num_seeds):
            one, other = (arm[arm["seed"] == seed] for arm in pair)
            gap = float("nan") if one.empty or other.empty else paired_difference(one, other, "dice").mean
            values = {"Dice of the first": mean_dice(one), "of the second": mean_dice(other)}
            verdict = "shown" if gap >= least and values["Dice of the first"] > 0 else "not shown"
            check = f"{measured}: {first} - {second} at least {least:+.2f}"
            rows.append({"check": check, "seed": seed, **values, "difference": gap, "verdict": verdict})
    return pd.DataFrame(rows)


def data_of(ground: Ground) -> str:
    """What is learnt from which database, and what it is tested against, for the note of a table."""
    roles = roles_of(ground)
    hidden = f" ({', '.join(roles.hidden)} hidden)" if roles.hidden else ""
    apart = [name for name in roles.names if name not in roles.tested]
    untested = f" Learnt, but not tested: {', '.join(apart)}." if apart else ""
    return (
        f"Tissues are learnt from {roles.tissues} ({' '.join(ground.sequences[roles.tissues])}), lesions from "
        f"{roles.lesions} ({' '.join(ground.sequences[roles.lesions])}){hidden}. All arms are tested on "
        f"{roles.lesions}. The truth has one label a voxel, lesion where there is one, so that tissue is measured "
        f"outside lesions.{untested}"
    )


def tables(cases: pd.DataFrame, ground: Ground) -> list[Table]:
    roles, parts = roles_of(ground), parts_of(cases, ground)
    pairs = [(ACE, NAIVE_CE), (ACE, NAIVE_DICE), (ACE, MULTI), (ACE_DICE, ACE)]
    if further_sequences(ground):
        pairs += [(ACE, only_shared(ground)), (tested_shared(ground), only_shared(ground))]
    together = {name: parts[name] for name in (LESION_DICE, TISSUE_DICE)}
    each = {name: parts[name] for name in roles.tested}
    data = (
        f"{data_of(ground)} Network unet_sum with instance norm, windows centred on a label that is drawn first, "
        "modality drop in every arm; classes weigh the inverse root of their voxels in every cross entropy."
    )
    return [
        Table("Dice by structure", by_structure(parts), data),
        Table("Paired differences of Dice", compared_by_part(together, "structure", pairs), INTERVAL),
        Table("The same of each tissue", compared_by_part(each, "structure", pairs[:3]), INTERVAL),
        Table(
            "Checks",
            checked(parts, ground.num_seeds),
            "A failed run shows nothing, nor does a first arm with a Dice of 0.",
        ),
    ]
