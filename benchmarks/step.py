"""The training loop against a bare loop of the same network on ready tensors. Run: python -m benchmarks.step"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.paired import phantom_store, ratios, report
from multiseg.labels import LabelSpace
from multiseg.loaders.batches import Batch, PatchStream, StreamOptions
from multiseg.loaders.draw import DrawOptions
from multiseg.modalities import ModalityAxis
from multiseg.models.builders import multi_unet
from multiseg.training.checkpoint import TrainState
from multiseg.training.fit import FitOptions, Hooks, fit
from multiseg.training.objectives import OBJECTIVES

STEPS = 20


class Ready:
    """Batches that lie ready in memory, in the place of a stream."""

    def __init__(self, batches: list[Batch]) -> None:
        self.ready = batches

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        yield from self.ready[start:stop]


def main() -> None:
    store = phantom_store(2.0)
    axis = ModalityAxis.union(database.modalities for database in store.databases.values())
    options = StreamOptions(DrawOptions((48, 48, 48)), batch_size=4, workers=1)
    stream = PatchStream(store, axis, LabelSpace(), options)
    batches = list(stream.batches(0, STEPS))
    network = multi_unet(len(axis), 1, widths=(8, 16, 32, 64))

    def fresh() -> TrainState:
        optimiser = torch.optim.Adam(network.parameters())
        return TrainState(network, optimiser, torch.amp.GradScaler("cpu", enabled=False))

    def bare() -> None:
        optimiser = torch.optim.Adam(network.parameters())
        network.train()
        for batch in batches:
            optimiser.zero_grad(set_to_none=True)
            loss, _ = OBJECTIVES["dice+bce"](network, batch.to(torch.device("cpu")), 0)
            loss.backward()
            optimiser.step()

    for what, source in (("fit, ready batches", Ready(batches)), ("fit, streamed, 1 worker", stream)):

        def ours(source: Any = source) -> None:
            fit(fresh(), source, FitOptions(num_steps=STEPS, validate_every=STEPS + 1), Hooks())

        report(what, "bare loop on ready tensors", ratios(ours, bare, rounds=5))


if __name__ == "__main__":
    main()
