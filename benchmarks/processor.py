"""Training and inference on a processor: memory kept or given back, float32 or bf16.

Run: python -m benchmarks.processor

Each side runs in a process of its own, in turns, with one thread: the published network on batches of two patches of
64^3, and windows of 64^3 of a whole volume. The table tells wall time, the system's share of the processor time, and
peak memory, as medians; then each side against the first, as the median of the ratios of the rounds, with their range.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.paired import noise_batch
from benchmarks.step import Ready, optimised
from multiseg.allocator import keep_memory
from multiseg.evaluation.inference import predict_volume
from multiseg.models.builders import PUBLISHED_WIDTHS, multi_unet
from multiseg.training.fit import FitOptions, Hooks, fit

KEEP = "MULTISEG_KEEP_MEMORY"
SIDES: dict[str, dict[str, str]] = {
    "memory kept": {"amp": "off", KEEP: "1"},
    "memory given back": {"amp": "off", KEEP: "0"},
    "memory kept, bf16": {"amp": "bf16", KEEP: "1"},
}
WIDTHS = {False: tuple(PUBLISHED_WIDTHS), True: (6, 8)}
EDGE = {False: 64, True: 16}


def train(amp: str, is_small: bool) -> Callable[[], Any]:
    """Three steps of training."""
    edge, network = EDGE[is_small], multi_unet(6, 1, widths=WIDTHS[is_small])
    images = torch.randn(2, 6, edge, edge, edge, generator=torch.Generator().manual_seed(0)).half()
    batch = noise_batch(images)
    settings = FitOptions(num_steps=3, validate_every=4, amp=amp)
    return lambda: fit(optimised(network), Ready([batch] * 3), settings, Hooks())


def infer(amp: str, is_small: bool) -> Callable[[], Any]:
    """A volume of two windows along each axis."""
    edge, network = EDGE[is_small], multi_unet(6, 1, widths=WIDTHS[is_small]).eval()
    images = np.random.default_rng(0).normal(size=(6, *[edge * 3 // 2] * 3)).astype(np.float16)
    present, patch = np.ones(6, dtype=bool), (edge,) * 3
    dtype = torch.bfloat16 if amp == "bf16" else torch.float32

    def run() -> None:
        with torch.autocast("cpu", dtype=dtype, enabled=amp == "bf16"):
            predict_volume(network, images, present, patch, overlap=0.5)

    return run


WORK = {"three training steps": train, "a volume of eight windows": infer}


def measured(work: str, amp: str, is_small: bool) -> dict[str, float]:
    """Seconds and bytes of this process for the second time that the work is done."""
    keep_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    once = WORK[work](amp, is_small)
    once()
    before, began = os.times(), time.perf_counter()
    once()
    wall, after = time.perf_counter() - began, os.times()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "wall s": wall,
        "system s": after.system - before.system,
        "user s": after.user - before.user,
        "peak MB": peak,
    }


def in_a_process(work: str, side: str, is_small: bool) -> dict[str, float]:
    """The same in a new process."""
    command = [sys.executable, "-m", "benchmarks.processor", "--work", work, "--side", side]
    environment = os.environ | {KEEP: SIDES[side][KEEP]}
    done = subprocess.run(
        command + ["--small"] * is_small, env=environment, capture_output=True, encoding="utf-8", check=True
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--sides", nargs="+", choices=SIDES, default=list(SIDES), help="the first is what others are held against"
    )
    parser.add_argument("--small", action="store_true", help="a tiny network: whether it runs at all")
    parser.add_argument("--work", choices=WORK, help=argparse.SUPPRESS)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.work:
        print(json.dumps(measured(given.work, SIDES[given.side]["amp"], given.small)))
        return
    for work in WORK:
        rounds: list[dict[str, dict[str, float]]] = []
        for turn in range(given.rounds):
            order = given.sides[:: 1 if turn % 2 else -1]
            rounds.append({side: in_a_process(work, side, given.small) for side in order})
        first = given.sides[0]
        for side in given.sides:
            middle = {name: statistics.median(one[side][name] for one in rounds) for name in rounds[0][side]}
            took = [one[side]["wall s"] / one[first]["wall s"] for one in rounds]
            figures = ", ".join(f"{name} {value:.2f}" for name, value in middle.items())
            times = f"{statistics.median(took):.2f}x the time ({min(took):.2f}-{max(took):.2f})"
            print(f"{work}, {side}: {figures}; {times}", flush=True)


if __name__ == "__main__":
    main()
