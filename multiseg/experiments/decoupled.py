"""Tissues under lesions by a network of two branches that learns in stages (Himmetoglu et al. 2025)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from multiseg.config import merged
from multiseg.evaluation.adaptation import FOUND, TRUE_LESION
from multiseg.evaluation.zones import COLUMNS
from multiseg.experiments.ace import anatomy_training, tissue_labels
from multiseg.experiments.anatomy_ground import roles_of
from multiseg.experiments.comparisons import INTERVAL, Table, by_part, compared_by_part
from multiseg.experiments.ground import Ground
from multiseg.experiments.runs import Arm, Exam, Run
from multiseg.labels import LESION
from multiseg.models.two_unets import PASTED
from multiseg.training.stages import PSEUDO_LABEL

HIMMETOGLU = "Himmetoglu et al. 2025"
QUESTION = "Do grafted lesions, meta-learning and adaptation help the tissues under and near lesions?"
PRETRAINED, GRAFTED, COTRAINED, JOINT = "pretrained", "grafted, no inner step", "co-trained", "joint"
FIRST_ORDER, FOUND_LABELS = "co-trained, first order", "joint, labels of found lesions"
COTRAINING: Mapping[str, Mapping[str, Any]] = {
    GRAFTED: {"inner_rate": 0.0}, COTRAINED: {}, FIRST_ORDER: {"first_order": True},
}  # fmt: skip
"""The arms whose anatomy branch learns from grafted lesions, and their settings."""
JOINING: Mapping[str, Mapping[str, Any]] = {JOINT: {}, FOUND_LABELS: {"adapt_to": FOUND}}
"""The arms that learn the fusion from pseudo-labels, and the settings of these."""
KINDS = (PRETRAINED, *COTRAINING, *JOINING)
ADAPTED, OF_BRANCH = ", adapted", ", anatomy branch"
"""Endings of the names of arms."""
LESIONS: Mapping[str, str] = {
    f"{COTRAINED}{ADAPTED} to half": "half",
    f"{COTRAINED}{ADAPTED} to a quarter": "quarter",
    f"{COTRAINED}{ADAPTED} to the true lesion": TRUE_LESION,
}
"""The arms that are adapted to other lesions than all that the model finds."""
QUOTED = " and ".join(f'"{name}"' for name in JOINING)
WHOLE = f"Lesions of one branch pasted over the tissues of the other; of the arms {QUOTED} the fusion."
ZONES = dict(zip(COLUMNS, ("under the lesion", "within 10 mm", "elsewhere"), strict=True))
UNDER = ZONES[COLUMNS[0]]


def stage_run(
    ground: Ground, stage: str, database: str, seed: int, parent: Run | None, meta: Mapping[str, Any] | None = None
) -> Run:
    """One stage of a two_branch network on one database; without a parent it is the first.

    The stages after pretraining take `finetune_steps`. The anchor of the first one stays in the weights.
    """
    meta = meta or {}
    scale = ground.scale
    steps = scale.steps if stage.startswith("pretrain") else scale.finetune_steps
    more = {
        "stage": stage,
        "model": {"builder": "two_branch"},
        "stream": {"draw": {"drop": "none"}},
        "fit": {"num_steps": steps},
        "meta": dict(meta),
        **({"start": {"grow": True}} if parent and stage != PSEUDO_LABEL else {}),
    }
    labels = [*tissue_labels(ground), LESION.name]
    name = ", ".join([f"{stage} on {database}", *(f"{key} {value}" for key, value in meta.items() if key != "anchor")])
    return replace(anatomy_training(ground, name, [database], labels, seed, more), parent=parent)


def runs_of(ground: Ground, seed: int) -> dict[str, Run]:
    """The last stage of each kind of arm; the stages that they share are equal runs.

    The pretrained tissues learn for as many further steps as the co-training takes, so that all arms have learnt from
    as many healthy patches.
    """
    roles = roles_of(ground)
    tissue = stage_run(ground, "pretrain_tissue", roles.tissues, seed, None, {"anchor": roles.anchor})
    both = stage_run(ground, "pretrain_lesion", roles.lesions, seed, tissue)
    found = {PRETRAINED: _further(ground, seed, both)}
    for kind, settings in COTRAINING.items():
        meta = {"donors": [roles.lesions], **settings}
        found[kind] = stage_run(ground, "cotrain", roles.tissues, seed, both, meta)
    joint = stage_run(ground, "joint", roles.lesions, seed, found[COTRAINED])
    for kind, settings in JOINING.items():
        labels = stage_run(ground, PSEUDO_LABEL, roles.lesions, seed, found[COTRAINED], settings)
        found[kind] = replace(joint, name=f"{kind} on {roles.lesions}, seed {seed}", pseudo_labels=labels)
    return found


def _further(ground: Ground, seed: int, both: Run) -> Run:
    run = stage_run(ground, "pretrain_tissue", roles_of(ground).tissues, seed, both)
    steps = ground.scale.finetune_steps
    return replace(run, name=f"further {run.name}", settings=merged(run.settings, {"fit": {"num_steps": steps}}))


def plan(ground: Ground) -> list[Arm]:
    """Every kind of arm with its whole answer and that of its anatomy branch, which is also adapted.

    Of the whole answers only the fusion's is adapted, too: pasted lesions are those of the lesion branch, which no
    adaptation changes. The co-trained branch is adapted to other lesions, too.
    """
    roles = roles_of(ground)
    databases = roles.test_databases or (roles.lesions,)
    arms = []
    for seed in range(ground.num_seeds):
        for kind, run in runs_of(ground, seed).items():
            whole = Exam(databases, zones=True, branch="" if kind in JOINING else PASTED, store=roles.test_store)
            branch = replace(whole, branch="anatomy")
            adapted = replace(branch, adapt=True)
            arms += [Arm(kind, run, whole), Arm(kind + OF_BRANCH, run, branch)]
            arms.append(Arm(kind + ADAPTED + OF_BRANCH, run, adapted))
            if kind in JOINING:
                arms.append(Arm(kind + ADAPTED, run, replace(whole, adapt=True)))
            if kind == COTRAINED:
                arms += [Arm(one + OF_BRANCH, run, replace(adapted, adapt_to=to)) for one, to in LESIONS.items()]
    return arms


def pictured(ground: Ground) -> list[Arm]:
    """The anatomy branches of the first seed, and the whole answers of the first and the last stage."""
    first = {arm.name: arm for arm in plan(ground) if arm.run.seed == 0}
    branches = [kind + ending + OF_BRANCH for kind in (PRETRAINED, COTRAINED, JOINT) for ending in ("", ADAPTED)]
    return [first[name] for name in (PRETRAINED, COTRAINED, JOINT, *branches)]


def branch_parts(cases: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """By zone the rows of the anatomy branches, with the Dice there."""
    branch = cases[cases["arm"].str.endswith(OF_BRANCH)]
    branch = branch.assign(arm=branch["arm"].str.removesuffix(OF_BRANCH))
    return {name: branch.assign(dice=branch[column]) for column, name in ZONES.items()}


def whole_parts(cases: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """By zone the rows of the tissues in whole answers, with the Dice there, and those of the lesion.

    Under the lesion there is nothing to compare, since a whole answer says "lesion" there.
    """
    whole = cases[~cases["arm"].str.endswith(OF_BRANCH)]
    is_lesion = whole["label"] == LESION.name
    zones = {name: whole[~is_lesion].assign(dice=whole[column]) for column, name in ZONES.items() if name != UNDER}
    return {**zones, "lesion": whole[is_lesion]}


PAIRS = (
    (GRAFTED, PRETRAINED), (COTRAINED, PRETRAINED), (COTRAINED, GRAFTED), (FIRST_ORDER, COTRAINED), (JOINT, COTRAINED),
    (JOINT, PRETRAINED), (FOUND_LABELS, JOINT),
)  # fmt: skip
ADAPTING = (
    *((kind + ADAPTED, kind) for kind in KINDS), (COTRAINED + ADAPTED, GRAFTED + ADAPTED),
    (COTRAINED + ADAPTED, PRETRAINED), *((name, COTRAINED + ADAPTED) for name in LESIONS),
)  # fmt: skip


def tables(cases: pd.DataFrame, ground: Ground) -> list[Table]:
    branch, whole = branch_parts(cases), whole_parts(cases)
    full = [*((kind + ADAPTED, kind) for kind in JOINING), (JOINT + ADAPTED, PRETRAINED)]
    return [
        Table("Dice of the tissues by zone, anatomy branch", by_part(branch, tuple(branch)), note_of(ground)),
        Table("Paired differences, anatomy branch", compared_by_part(branch, "zone", PAIRS), INTERVAL),
        Table("Paired differences by adaptation, anatomy branch", compared_by_part(branch, "zone", ADAPTING), INTERVAL),
        Table("Dice by zone, whole answer", by_part(whole, tuple(whole)), WHOLE),
        Table("Paired differences, whole answer", compared_by_part(whole, "zone", [*PAIRS, *full]), INTERVAL),
    ]


def note_of(ground: Ground) -> str:
    """What the arms and the zones are."""
    roles, scale = roles_of(ground), ground.scale
    hidden = ", ".join(roles.hidden) or "nothing"
    if roles.test_store:
        tests = f"{hidden} hidden from every training). The test cases are held-out cases of {roles.tissues} with "
        tests += f"lesions of {roles.lesions} grafted in, so that the tissue under a lesion is known"
        if num_left_out := len(roles.without) + len(roles.with_lesions):
            tests += f"; {num_left_out} others are left out, since no lesion fits into them ({len(roles.without)}) or "
            tests += f"they have lesions of their own ({len(roles.with_lesions)})"
    else:
        tests = f"{hidden} hidden from every training, and the truth here)"
    anchor = f"with {roles.anchor} as anchor" if roles.anchor else "without an anchor (no train case is public)"
    return (
        f"Tissues are learnt from {roles.tissues}, lesions from {roles.lesions} ({tests}. The anatomy branch sees T1 "
        f"and knows no lesions, so that it says which tissue is {UNDER}. The branches were pretrained for "
        f"{scale.steps} steps each. Then every arm learnt tissues for {scale.finetune_steps} more, and "
        f"{QUOTED} the whole for as many after these; network two_branch, no modality drop. Adapted: "
        f"to the lesion that the model finds, or to the half or quarter of it around one of its voxels, or to the true "
        f"one; {anchor}."
    )
