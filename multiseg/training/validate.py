"""How well a network in training does on held-out cases."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import nn

from multiseg.evaluation.evaluate import segment
from multiseg.evaluation.metrics import CaseMetrics, case_metrics, summarise
from multiseg.labels import IGNORE
from multiseg.loaders.align import place
from multiseg.models.saved import Model, ModelInfo
from multiseg.store.catalogue import select
from multiseg.store.reader import Case, Store


def validation_cases(store: Store, info: ModelInfo, num_cases: int) -> list[Case]:
    """The first few held-out cases of every database that have a label of the space."""
    chosen = []
    for name in info.databases:
        schemas = store[name].schemas
        cases = [
            case
            for case in select(store, [name], split="val")
            if info.space.view(schemas, list(case.annotated)).annotated.any() and info.usable(case.modalities)
        ]
        chosen += cases[:num_cases]
    return chosen


def validate(network: nn.Module, info: ModelInfo, store: Store, cases: Sequence[Case]) -> dict[str, float]:
    """Mean Dice by database, all sequences of each case, windows that overlap by a quarter."""
    model = Model(network, info).eval()
    found: dict[str, list[CaseMetrics]] = {}
    for case in cases:
        database = store[case.database]
        own, codes = database.whole(case)
        usable = info.usable(case.modalities)
        images, _ = place(own, database.modalities, usable, info.axis)
        view = info.space.view(database.schemas, list(case.annotated))
        target = view.target(codes)
        predicted = segment(model, images, usable, overlap=0.25)
        found.setdefault(case.database, []).extend(
            case_metrics(predicted == label, target == label, case.grid.spacing_mm, looked_at=target != IGNORE)
            for label in np.flatnonzero(view.annotated) + 1
        )
    return {name: float(summarise(metrics)["dice"]) for name, metrics in found.items()}
