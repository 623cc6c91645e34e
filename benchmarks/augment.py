"""CPU time of each augmentation, alone and in the presets, on a batch of 4 patches of 4 sequences.

Run: python -m benchmarks.augment [--patch 64]
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace

import torch

from benchmarks.paired import noise_batch
from multiseg.loaders.augment import PRESETS, TRANSFORMS, AugmentOptions, augment, draw
from multiseg.loaders.batches import Batch

ROUNDS = 7


def brain_batch(size: int) -> Batch:
    """Brain in all but the outer sixth of the window, as in a patch that reaches over the brain's rim."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 4, size, size, size, generator=generator)
    images[..., : size // 6] = 0
    return noise_batch(images)


def milliseconds(batch: Batch, options: AugmentOptions, batches: int) -> float:
    """CPU time a batch, the mean over several draws."""
    began = time.process_time()
    for number in range(batches):
        augment(replace(batch, draws=batch.draws + torch.tensor([0, 4 * number])), options)
    return 1000 * (time.process_time() - began) / batches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patch", type=int, default=64)
    batch = brain_batch(parser.parse_args().patch)
    began = time.process_time()
    for index in range(1000):
        draw(PRESETS["standard"], 0, index, 4)
    print(f"the draws of a patch: {1000 * (time.process_time() - began):.0f} us")
    alone = {name.removesuffix("_probability"): replace(PRESETS["none"], **{name: 1.0}) for name in TRANSFORMS}
    for name, options in alone.items():
        found = [milliseconds(batch, options, 2) for _ in range(ROUNDS)]
        print(f"{name} of every patch and sequence: {statistics.median(found):.1f} ms a batch", flush=True)
    for name, options in PRESETS.items():
        found = [milliseconds(batch, options, 20) for _ in range(ROUNDS)]
        print(f"preset {name}: {statistics.median(found):.2f} ms a batch", flush=True)


if __name__ == "__main__":
    main()
