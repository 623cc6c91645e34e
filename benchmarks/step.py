"""The training loop against a bare loop of the same network on ready tensors. Run: python -m benchmarks.step"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.paired import noise_batch, phantom_store, ratios, report
from multiseg.allocator import keep_memory
from multiseg.labels import LabelSpace
from multiseg.loaders.batches import Batch, PatchStream, StreamOptions
from multiseg.loaders.draw import DrawOptions
from multiseg.modalities import ModalityAxis
from multiseg.models.builders import multi_unet
from multiseg.training.checkpoint import TrainState
from multiseg.training.fit import FitOptions, Hooks, fit
from multiseg.training.objectives import OBJECTIVES

STEPS = 8


class Ready:
    """Batches that lie ready in memory, in the place of a stream."""

    def __init__(self, batches: list[Batch]) -> None:
        self.ready = batches

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        yield from self.ready[start:stop]


def optimised(network: torch.nn.Module) -> TrainState:
    optimiser = torch.optim.Adam(network.parameters())
    return TrainState(network, optimiser, torch.amp.GradScaler("cpu", enabled=False))


def main() -> None:
    """On the processor, with a small network, and then on a card, where there is one."""
    keep_memory()
    store = phantom_store(2.0)
    axis = ModalityAxis.union(database.modalities for database in store.databases.values())
    options = StreamOptions(DrawOptions((48, 48, 48)), batch_size=4, workers=1)
    stream = PatchStream(store, axis, LabelSpace(), options)
    batches = list(stream.batches(0, STEPS))
    network = multi_unet(len(axis), 1, widths=(8, 16, 32, 64))

    def bare() -> None:
        optimiser = torch.optim.Adam(network.parameters())
        network.train()
        for batch in batches:
            optimiser.zero_grad(set_to_none=True)
            loss, _ = OBJECTIVES["dice+bce"](network, batch.to(torch.device("cpu")), 0)
            loss.backward()
            optimiser.step()

    ready = Ready(batches)
    rows: list[tuple[str, Any, dict[str, Any]]] = [
        ("fit, ready batches", ready, {}),
        ("fit, streamed, 1 worker", stream, {}),
        ("fit, ready batches, average of the weights", ready, {"ema": 0.999}),
        ("fit, ready batches, 2 a step, the same batches", ready, {"accumulate": 2}),
        ("fit, ready batches, channels last", ready, {"channels_last": True}),
    ]
    for what, source, more in rows:
        num_steps = STEPS // more.get("accumulate", 1)
        settings = FitOptions(num_steps=num_steps, validate_every=num_steps + 1, **more)

        def ours(source: Any = source, settings: FitOptions = settings) -> None:
            fit(optimised(network), source, settings, Hooks())
            network.to(memory_format=torch.contiguous_format)

        report(what, "bare loop on ready tensors", ratios(ours, bare, rounds=5))
    if torch.cuda.is_available():
        on_card()
    else:
        print("no CUDA here: bf16 against the published settings was not measured")


def on_card(num_patches: int = 10, edge: int = 128, steps: int = 5) -> None:
    """A step of the published network and batch in bf16, channels last, and compiled, against float32 as released.

    As released: float32 without AMP, torch's own choice of algorithms (cudnn.benchmark off), soft Dice, Adam,
    no clipping. TF32 is torch's default for convolutions, as it was for them. Their five passes of two patches
    are one pass of ten here, on both sides.
    """
    card = torch.device("cuda")
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(num_patches, 6, *[edge] * 3, generator=generator).half()
    batch = noise_batch(images).to(card)
    torch.backends.cudnn.benchmark = False

    def side(**more: Any) -> Callable[[], None]:
        network = multi_unet(6, 1).to(card)  # of its own, since it stays compiled
        settings = FitOptions(num_steps=steps, validate_every=steps + 1, objective="dice", **more)

        def run() -> None:
            fit(optimised(network), Ready([batch] * steps), settings, Hooks())
            torch.cuda.synchronize()

        return run

    def peak_gib(run: Callable[[], None]) -> float:
        torch.cuda.reset_peak_memory_stats()
        run()
        return float(torch.cuda.max_memory_allocated() / 2**30)

    print(torch.cuda.get_device_name(card))
    released = side(amp="off", clip_norm=0.0)
    rows: dict[str, dict[str, Any]] = {
        "float32": {"amp": "off"},
        "bf16": {"amp": "bf16"},
        "bf16, channels last": {"amp": "bf16", "channels_last": True},
        "bf16, channels last, compiled": {"amp": "bf16", "channels_last": True, "compile": True},
    }
    for what, more in rows.items():
        ours = side(**more)
        report(f"{what}, {num_patches} x {edge}^3", "float32 as released", ratios(ours, released, rounds=3))
        print(f"  memory of the card: {peak_gib(ours):.1f} against {peak_gib(released):.1f} GiB")


if __name__ == "__main__":
    main()
