"""What a card has to show, a line each; see `benchmarks.gpu`, which runs every line in a process of its own."""

from __future__ import annotations

import logging
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.paired import noise_batch, phantom_store
from benchmarks.step import Ready, optimised
from multiseg.evaluation.inference import predict_volume
from multiseg.evaluation.preparation import place
from multiseg.labels import LabelSpace
from multiseg.loaders.augment import PRESETS, augment
from multiseg.loaders.batches import Batch, PatchStream, StreamOptions
from multiseg.loaders.draw import DrawOptions
from multiseg.modalities import ModalityAxis
from multiseg.models.builders import PUBLISHED_WIDTHS, multi_unet
from multiseg.models.devices import resolve_device
from multiseg.store.reader import Store
from multiseg.training.checkpoint import TrainState
from multiseg.training.distributed import ALONE, Peers
from multiseg.training.events import Event, StepDone
from multiseg.training.fit import FitOptions, Hooks, fit
from multiseg.training.numerics import precision


class LeftOutError(Exception):
    """A line cannot be run here; the message says why."""


@dataclass(frozen=True)
class Setup:
    """Where, and how much: all of it on a card, or little of it on any device."""

    device: torch.device
    is_small: bool

    @property
    def edge(self) -> int:
        return 32 if self.is_small else 128

    @property
    def steps(self) -> int:
        return 2 if self.is_small else 6

    @property
    def widths(self) -> tuple[int, ...]:
        return (6, 8, 12, 16) if self.is_small else tuple(PUBLISHED_WIDTHS)

    def patches(self, num: int) -> int:
        return min(num, 2) if self.is_small else num

    def store(self) -> Store:
        return phantom_store(4.0 if self.is_small else 1.0)

    def state(self, num_modalities: int = 6, amp: str = "auto") -> TrainState:
        torch.manual_seed(0)
        state = optimised(multi_unet(num_modalities, 1, widths=self.widths).to(self.device))
        is_scaled = precision(amp, self.device) == torch.float16
        return replace(state, scaler=torch.amp.GradScaler(self.device.type, enabled=is_scaled))

    def settings(self, steps: int, **more: Any) -> FitOptions:
        return FitOptions(num_steps=steps, validate_every=steps + 1, **more)

    def batch(self, num: int = 10) -> Batch:
        """Noise of six sequences on the device."""
        num, size = self.patches(num), [self.edge] * 3
        images = torch.randn(num, 6, *size, generator=torch.Generator().manual_seed(0)).half()
        return noise_batch(images).to(self.device)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], Any]) -> float:
        self.wait()
        began = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - began

    def peak_gib(self) -> float:
        return torch.cuda.max_memory_allocated(self.device) / 2**30 if self.device.type == "cuda" else math.nan


def _trained(setup: Setup, state: TrainState, batch: Batch, peers: Peers = ALONE, **more: Any) -> list[StepDone]:
    """What some steps on one batch told."""
    events: list[StepDone] = []

    def keep(event: Event) -> None:
        setup.wait()
        if isinstance(event, StepDone):
            events.append(event)

    settings = setup.settings(state.step + setup.steps, **more)
    fit(state, Ready([batch] * settings.num_steps), settings, Hooks(keep), peers=peers)
    return events


def card(setup: Setup) -> dict[str, Any]:
    """What is here."""
    found: dict[str, Any] = {"torch": torch.__version__, "processors": os.cpu_count()}
    if setup.device.type == "cuda":
        about = torch.cuda.get_device_properties(setup.device)
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        found |= {"name": about.name, "gib": about.total_memory / 2**30, "cuda": torch.version.cuda, "bf16": has_bf16}
    return found


def steps(setup: Setup, **more: Any) -> dict[str, Any]:
    """Training steps of the published network on ready patches: seconds, memory, and the loss that came out.

    The first steps, in which kernels are chosen and compiled, are not counted.
    """
    state, batch = setup.state(amp=more["amp"]), setup.batch()
    started = setup.seconds(lambda: _trained(setup, state, batch, **more))
    if setup.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(setup.device)
    events = _trained(setup, state, batch, **more)
    speed = [event.patches_per_second for event in events]
    return {
        "patches a second": statistics.median(speed), "peak GiB": setup.peak_gib(), "loss": events[-1].loss,
        "first steps, s": started,
    }  # fmt: skip


def released(setup: Setup) -> dict[str, Any]:
    """float32 through our loop against a bare loop of the same network with the released settings, in turns."""
    batch = setup.batch()
    ours, theirs = setup.state(), setup.state()

    def bare() -> None:
        theirs.network.train()
        for _ in range(setup.steps):
            theirs.optimiser.zero_grad(set_to_none=True)
            probabilities = theirs.network(batch.images, batch.present).sigmoid()
            target = (batch.target == 1).to(probabilities.dtype)[:, None]
            dims = (1, 2, 3, 4)
            overlap = (2 * (probabilities * target).sum(dims) + 1e-5) / (
                probabilities.sum(dims) + target.sum(dims) + 1e-5
            )
            (1 - overlap).mean().backward()
            theirs.optimiser.step()

    more = {"amp": "off", "clip_norm": 0.0, "objective": "dice"}
    ratios = []
    for turn in range(4):
        both: list[Callable[[], Any]] = [lambda: _trained(setup, ours, batch, **more), bare]
        first, second = (setup.seconds(work) for work in (both if turn % 2 else both[::-1]))
        own, bare_s = (first, second) if turn % 2 else (second, first)
        ratios.append(bare_s / own)
    return {"bare loop / ours": statistics.median(ratios[1:]), "least": min(ratios[1:]), "most": max(ratios[1:])}


def waiting(setup: Setup, batch_size: int) -> dict[str, Any]:
    """The share of a step's time that is spent waiting for the stream, as it is trained: augmented, in bf16 or fp16."""
    store = setup.store()
    axis = ModalityAxis.union(database.modalities for database in store.databases.values())
    workers = 0 if setup.is_small else min(8, max(1, (os.cpu_count() or 1) - 1))
    draw = DrawOptions((setup.edge,) * 3, seed=0)
    stream = PatchStream(store, axis, LabelSpace(), StreamOptions(draw, setup.patches(batch_size), workers))
    events: list[StepDone] = []

    def keep(event: Event) -> None:
        if isinstance(event, StepDone):
            events.append(event)

    num = 5 * setup.steps
    preset = "none" if setup.is_small else "standard"
    fit(setup.state(len(axis)), stream, setup.settings(num), Hooks(keep), replace(PRESETS[preset], seed=0))
    late = events[num // 3 :]  # until then kernels are chosen
    return {
        "waiting": statistics.mean(event.waiting for event in late),
        "patches a second": statistics.median(event.patches_per_second for event in late),
        "workers": workers,
    }


def page_locked(setup: Setup) -> dict[str, Any]:
    """Whether the ring's memory is page-locked, and how fast a batch of it is on the card, against other memory."""
    if setup.device.type != "cuda":
        raise LeftOutError("memory is page-locked for a card")
    store = setup.store()
    axis = ModalityAxis.union(database.modalities for database in store.databases.values())
    torch.zeros(1, device=setup.device)  # the ring locks its memory where CUDA is in use
    options = StreamOptions(DrawOptions((setup.edge,) * 3), setup.patches(10), workers=1)
    stream = PatchStream(store, axis, LabelSpace(), options)
    (batch,) = list(stream.batches(0, 1))
    pageable = batch.images.clone()

    def speed(images: torch.Tensor) -> float:
        seconds = [setup.seconds(lambda: images.to(setup.device, non_blocking=True)) for _ in range(6)]
        return images.nbytes / statistics.median(seconds[1:]) / 1e9

    if not batch.images.is_pinned():
        raise RuntimeError("the memory of the ring is not page-locked; see the warnings of the stream")
    return {"GB/s": speed(batch.images), "GB/s of other memory": speed(pageable)}


def augmentation(setup: Setup) -> dict[str, Any]:
    """Milliseconds that each preset takes for a batch on the device."""
    batch, found = setup.batch(2), {}
    for name in ("published", "standard"):
        options = replace(PRESETS[name], seed=0)
        shifted = [replace(batch, draws=batch.draws + torch.tensor([0, 2 * at])) for at in range(3 * setup.steps)]
        augment(batch, options)
        took = [setup.seconds(lambda one=one, options=options: augment(one, options)) for one in shifted]
        found[f"{name}, ms"] = 1000 * statistics.mean(took)
    return found


def several(setup: Setup) -> dict[str, Any]:
    """The path of several processes with one: nccl on a card, gradients through DDP, the same weights as without."""
    backend = "cpu:gloo,cuda:nccl" if setup.device.type == "cuda" else "gloo"
    alone, together, batch = setup.state(), setup.state(), setup.batch(2)
    torch.manual_seed(0)
    _trained(setup, alone, batch, amp="off")
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group(backend, init_method=f"file://{folder}/meeting", rank=0, world_size=1)
        try:
            torch.manual_seed(0)
            peers = Peers(0, 2)  # as one of two, so that nothing is left out
            speed = [one.patches_per_second for one in _trained(setup, together, batch, peers, amp="off")]
        finally:
            dist.destroy_process_group()
    return {"backend": backend, "largest difference of weights": _apart(alone, together), "patches a second": speed[-1]}


def _apart(one: TrainState, other: TrainState) -> float:
    pairs = zip(one.network.parameters(), other.network.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


def twice(setup: Setup) -> dict[str, Any]:
    """Two trainings with `deterministic`: how far apart their weights are, and how far without it."""
    found = {}
    for name, wanted in (("deterministic", True), ("not", False)):
        states = [setup.state(), setup.state()]
        for state in states:
            torch.manual_seed(0)
            _trained(setup, state, setup.batch(2), deterministic=wanted)
        found[f"largest difference of weights, {name}"] = _apart(*states)
    return found


def inference(setup: Setup) -> dict[str, Any]:
    """Seconds for a whole volume of 1 mm."""
    store = setup.store()
    database = next(iter(store.databases.values()))
    case, axis = database.cases[0], ModalityAxis(database.modalities)
    images, present = place(database.whole(case)[0], axis.names, axis.names, axis)
    network = multi_unet(len(axis), 1, widths=setup.widths).to(setup.device).eval()
    took = [
        setup.seconds(lambda: predict_volume(network, images, present, (setup.edge,) * 3, overlap=0.5))
        for _ in range(3)
    ]
    return {"s a volume": min(took), "voxels": "x".join(map(str, case.extent))}


def federated(setup: Setup) -> dict[str, Any]:
    """Two sites on this device, deployed with TLS and keys: a round, and what a site says that it trained on."""
    from benchmarks import federation
    from multiseg.cli.app import run as multiseg
    from multiseg.federation.centre.experiment_folder import read_history
    from multiseg.federation.local_deployment import prepared, staged

    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory() as name:
        folder, names = Path(name), ("alder", "birch")
        found = dict(_site_stores(folder, names, multiseg))
        rehearsal = prepared(folder / "deployed", found, device=str(setup.device))
        recipe = federation.RUN_TOML.format(rounds=2, payload="float32")
        text = recipe.replace(', "dogwood"', "") + ("model = { widths = [8, 16, 32] }\n" * setup.is_small)
        (folder / "run.toml").write_text(text)
        run = rehearsal.home / "runs" / "overhead"
        with staged(rehearsal):
            assert multiseg(["fed", "run", f"{rehearsal.home}", f"{folder / 'run.toml'}"]) == 0
            while not ((run / "state.safetensors").is_file() and "test" in read_history(run)["final"]):
                time.sleep(0.5)
        history = read_history(run)
    return {
        "rounds": len(history["history"]), "s a round": history["history"][-1]["seconds"],
        "sites": ", ".join(history["history"][-1]["sites"]), "device": str(setup.device),
    }  # fmt: skip


def _site_stores(
    folder: Path, names: tuple[str, ...], multiseg: Callable[[list[str]], int]
) -> Iterator[tuple[str, str]]:
    for name in names:
        hospital, url = folder / "hospitals" / name, str(folder / f"{name}.zarr")
        assert multiseg(["phantoms", f"{hospital}", "--hospital", name, "--cases", "4", "--coarseness", "2"]) == 0
        assert multiseg(["ingest", f"{hospital / 'manifest.toml'}", "--store", url, "--spacing", "5"]) == 0
        yield name, url


def cases(setup: Setup) -> dict[str, Any]:
    """The synthetic cases that other lines read, made once."""
    store = setup.store()
    return {"cases": len(store.cases), "store": store.url}


@dataclass(frozen=True)
class Line:
    """A line of the table: what is run, and the seconds that it may take."""

    run: Callable[[Setup], dict[str, Any]]
    budget_s: float


LINES: dict[str, Line] = {
    "card": Line(card, 60),
    "step, float32": Line(lambda setup: steps(setup, amp="off"), 60),
    "step, bf16": Line(lambda setup: steps(setup, amp="bf16"), 45),
    "step, fp16": Line(lambda setup: steps(setup, amp="fp16"), 45),
    "step, bf16, channels last": Line(lambda setup: steps(setup, amp="bf16", channels_last=True), 45),
    "step against the released loop, float32": Line(released, 75),
    "augmentation": Line(augmentation, 40),
    "several processes": Line(several, 60),
    "deterministic": Line(twice, 60),
    "cases": Line(cases, 120),
    "page-locked ring": Line(page_locked, 45),
    "waiting, 2 patches": Line(lambda setup: waiting(setup, 2), 45),
    "waiting, 10 patches": Line(lambda setup: waiting(setup, 10), 60),
    "whole volume": Line(inference, 45),
    "federated sites": Line(federated, 150),
    "step, bf16, compiled": Line(lambda setup: steps(setup, amp="bf16", channels_last=True, compile=True), 90),
}
"""In the order of how much a first card is asked for, since time may run out."""


def run_line(name: str, device: str, is_small: bool) -> dict[str, Any]:
    """What a line found."""
    return LINES[name].run(Setup(resolve_device(device), is_small))
