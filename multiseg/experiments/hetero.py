"""Lesions of T1 and FLAIR with tissues of T1 alone in one model (Dorent et al. 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from multiseg.errors import UsageError
from multiseg.experiments.ace import (
    LESION_DICE,
    TISSUE_DICE,
    Check,
    anatomy_training,
    by_structure,
    checked,
    data_of,
    further_sequences,
    parts_of,
    tissue_labels,
)
from multiseg.experiments.anatomy_ground import roles_of, shared_sequences
from multiseg.experiments.comparisons import INTERVAL, Table, compared_by_part
from multiseg.experiments.ground import Ground
from multiseg.experiments.runs import Arm, Exam, Run
from multiseg.labels import LESION

DORENT = "Dorent et al. 2019"
QUESTION = "Can a model learn lesions from T1 and FLAIR and tissues from T1 alone, and give both from either?"
BOTH, INCONSISTENT, UPPER, ALONE = "both", "both, no consistency", "upper bound", "each alone"
KINDS = (BOTH, INCONSISTENT, UPPER, ALONE)
WITHIN = -0.03
"""The joint model counts as good as the separate ones if it loses no more Dice than this."""
RAISED = 0.01
"""The least difference of Dice that counts as raised."""
OUTCOME = (
    "A difference counts as shown from the number in the check on, which was set before the runs. A failed run shows "
    "nothing, nor does a first arm with a Dice of 0."
)


def partner(ground: Ground) -> str:
    """The sequence that the tissues are learnt from, and that lesions have, too.

    Raises:
        UsageError: there are several, or the database of lesions has no further sequence.
    """
    roles, shared = roles_of(ground), shared_sequences(ground)
    if len(shared) > 1 or not further_sequences(ground):
        raise UsageError(
            f"hetero compares the answers to one sequence that both databases have with those to more: {roles.tissues} "
            f"has {', '.join(ground.sequences[roles.tissues])}, {roles.lesions} has "
            f"{', '.join(ground.sequences[roles.lesions])}. Choose others with --tissues and --lesions."
        )
    return shared[0]


def hetero_training(ground: Ground, kind: str, seed: int) -> Run:
    """A model of both databases; only that of the upper bound sees the tissues of the database of lesions."""
    roles = roles_of(ground)
    revealed = tuple(one for one in roles.hidden if one.startswith(f"{roles.lesions}/")) if kind == UPPER else ()
    more = settings(ground, consistency=1.0 if kind == BOTH else 0.0)
    labels = [*tissue_labels(ground), LESION.name]
    return anatomy_training(ground, kind, (roles.tissues, roles.lesions), labels, seed, more, revealed)


def alone(ground: Ground, seed: int) -> Run:
    """A model of the lesions only and one of the tissues only; what the first calls lesion is not tissue."""
    roles, more = roles_of(ground), settings(ground, consistency=0.0)
    tissue = anatomy_training(ground, "tissues only", [roles.tissues], tissue_labels(ground), seed, more)
    lesion = anatomy_training(ground, "lesions only", [roles.lesions], [LESION.name], seed, more)
    both = {"store": ground.store, "databases": [roles.tissues, roles.lesions], "seed": seed}
    return Run(f"{ALONE}, seed {seed}", both, fused=(tissue, lesion))


def settings(ground: Ground, consistency: float) -> dict[str, Any]:
    """What all arms share: no sequence is dropped, as in the paper."""
    return {
        "model": {"builder": "unet_hetero"},
        "stream": {"draw": {"drop": "none"}},
        "fit": {
            "objective": "joint_jaccard",
            "consistency": consistency,
            "consistency_partner": partner(ground),
        },
    }


def exams_of(ground: Ground) -> dict[str, Exam]:
    """The two tests, by the sequences that a model is given: the shared one alone, and all."""
    lesions = roles_of(ground).lesions
    few, full = partner(ground), "+".join((partner(ground), *further_sequences(ground)))
    return {few: Exam((lesions,), few), full: Exam((lesions,))}


def arm_name(kind: str, sequences: str) -> str:
    return f"{kind}, from {sequences}"


def plan(ground: Ground) -> list[Arm]:
    arms = []
    for seed in range(ground.num_seeds):
        for kind in KINDS:
            run = alone(ground, seed) if kind == ALONE else hetero_training(ground, kind, seed)
            arms += [Arm(arm_name(kind, sequences), run, exam) for sequences, exam in exams_of(ground).items()]
    return arms


def pictured(ground: Ground) -> list[Arm]:
    """Every model of the first seed, with all sequences."""
    return [arm for arm in plan(ground) if arm.run.seed == 0 and arm.exam.subsets == "full"]


def checks_of(few: str, full: str) -> tuple[Check, ...]:
    """What is asked of each seed, with the names of the two sets of sequences."""
    return (
        (LESION_DICE, arm_name(BOTH, full), arm_name(ALONE, full), WITHIN),
        (TISSUE_DICE, arm_name(BOTH, few), arm_name(ALONE, few), WITHIN),
        (TISSUE_DICE, arm_name(BOTH, full), arm_name(ALONE, full), WITHIN),
        (TISSUE_DICE, arm_name(BOTH, full), arm_name(INCONSISTENT, full), RAISED),
    )


def tables(cases: pd.DataFrame, ground: Ground) -> list[Table]:
    few, full = exams_of(ground)
    parts = parts_of(cases, ground)
    together = {name: parts[name] for name in (LESION_DICE, TISSUE_DICE)}
    each = {name: parts[name] for name in roles_of(ground).tested}
    pairs = [(arm_name(BOTH, given), arm_name(other, given)) for given in (few, full) for other in KINDS[1:]]
    pairs += [(arm_name(kind, full), arm_name(kind, few)) for kind in (BOTH, INCONSISTENT)]
    data = (
        f"{data_of(ground)} The upper bound learns the tissues of {roles_of(ground).lesions}, too. The arm "
        f'"{ALONE}" is a model of lesions only and one of tissues only, of which lesions overwrite tissues; the model '
        f"of tissues knows {few} alone, whatever it is given. Network unet_hetero, windows centred on a label that is "
        "drawn first, no modality drop."
    )
    return [
        Table(f"Dice by structure, from {few}", by_structure(_given(parts, few)), data),
        Table(f"Dice by structure, from {full}", by_structure(_given(parts, full))),
        Table("Paired differences of Dice", compared_by_part(together, "structure", pairs), INTERVAL),
        Table("The same of each tissue", compared_by_part(each, "structure", pairs), INTERVAL),
        Table("Checks", checked(parts, ground.num_seeds, checks_of(few, full)), OUTCOME),
    ]


def _given(parts: Mapping[str, pd.DataFrame], sequences: str) -> dict[str, pd.DataFrame]:
    """The rows of the arms that were given these sequences."""
    names = [arm_name(kind, sequences) for kind in KINDS]
    return {name: part[part["arm"].isin(names)] for name, part in parts.items()}
