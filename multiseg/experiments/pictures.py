"""A picture of a test case: the truth, and beside it what the models of several arms answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from multiseg.evaluation.case_panel import CasePanel, Parcels
from multiseg.evaluation.comparison import Truth
from multiseg.evaluation.metrics import dice
from multiseg.evaluation.montage import save_montage
from multiseg.evaluation.stored_answers import answered
from multiseg.experiments.ground import Ground
from multiseg.experiments.runs import Arm
from multiseg.experiments.worker import model_of
from multiseg.labels import IGNORE, LabelSpace
from multiseg.models.branch_models import branch_info
from multiseg.models.devices import resolve_device
from multiseg.store.catalogue import select
from multiseg.store.reader import Case, Store, open_store
from multiseg.types import Codes

MOST_SEQUENCES = 2


def draw_arms(path: Path, arms: Sequence[Arm], runs: Path, ground: Ground, device: str) -> None:
    """Draw one test case with the answers of finished runs, and the Dice of lesion and tissues of each.

    The case is the one with the median volume of lesions, and the slice the one with most lesion, so that neither is
    chosen by its result. Every model sees all the sequences of the case that it knows. What answers without lesions has
    a truth of its own, which shows the tissues under them.
    """
    store = open_store(arms[0].exam.store or ground.store)
    case = median_case(store, arms[0])
    images: dict[str, Float[np.ndarray, "i j k"]] = {}
    parcels: dict[str, Parcels] = {}
    values, lesion = {}, np.zeros(case.extent, bool)
    for arm in arms:
        model = model_of(runs, arm.run, str(resolve_device(device)))
        shown, truth, codes = answered(model, store, case, arm.exam.options(ground.scale.overlap))
        space = branch_info(model.info, arm.exam.branch).space
        images |= shown
        target = np.where(truth.target == IGNORE, 0, truth.target).astype(np.uint8)
        is_lesion = np.isin(target, [code for code, one in enumerate(space.labels, 1) if one.kind == "lesion"])
        lesion |= is_lesion
        has_lesions = any(one.kind == "lesion" for one in space.labels)
        parcels.setdefault("truth" if has_lesions else "true tissues", Parcels(target, space.names))
        parcels[arm.name] = Parcels(np.where(truth.target == IGNORE, 0, codes).astype(np.uint8), space.names)
        values[arm.name] = _agreement(space, truth, codes)
    caption = f"{case.pathology}\nDice of the lesion / mean of the tissues:"
    few = dict(list(images.items())[:MOST_SEQUENCES])
    name = f"{case.database}/{case.name}"
    panel = CasePanel(name, caption, few, lesion, None, case.grid.spacing_mm, parcels, values)
    save_montage(path, [panel], f"{name}: truth, and the models of the first seed", overwrite=True)


def median_case(store: Store, arm: Arm) -> Case:
    """The test case of an arm with the median volume of lesions; of two in the middle the smaller one."""
    cases = sorted(
        select(store, arm.exam.databases, split=arm.exam.split), key=lambda case: _lesion_voxels(store, case)
    )
    return cases[(len(cases) - 1) // 2]


def _lesion_voxels(store: Store, case: Case) -> int:
    counts = zip(store[case.database].schemas.values(), case.foreground_count, strict=True)
    return sum(
        int(number)
        for schema, numbers in counts
        for structure, number in zip(schema.structures, numbers, strict=False)
        if structure.kind == "lesion"
    )


def _agreement(space: LabelSpace, truth: Truth, codes: Codes) -> str:
    """The Dice of lesions, and the mean of that of the tissues, where the case has them."""
    looked_at = truth.target != IGNORE
    by_kind: dict[str, list[float]] = {"lesion": [], "tissue": []}
    for code, label in enumerate(space.labels, start=1):
        expected = truth.target == code
        if truth.annotated[code - 1] and expected.any():
            by_kind[label.kind].append(dice((codes == code) & looked_at, expected))
    return " / ".join(f"{np.mean(values):.2f}" if values else "-" for values in by_kind.values())
