"""CPU time of each augmentation, alone and in the presets, on a batch of 4 patches of 4 sequences.

Run: python -m benchmarks.augment [--patch 64]
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace

import torch

from multiseg.loaders.augment import PRESETS, TRANSFORMS, AugmentOptions, augment, draw
from multiseg.loaders.batches import Batch

ROUNDS = 7


def noise_batch(size: int) -> Batch:
    """Brain in all but the outer sixth of the window, as in a patch that reaches over the brain's rim."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 4, size, size, size, generator=generator)
    images[..., : size // 6] = 0
    return Batch(
        images=images,
        present=torch.ones(4, 4, dtype=torch.bool),
        target=(images[:, 0] > 2).to(torch.uint8),
        annotated=torch.ones(4, 1, dtype=torch.bool),
        database=("noise",) * 4,
        case=("noise",) * 4,
        corner=torch.zeros(4, 3, dtype=torch.int64),
        draws=torch.stack([torch.zeros(4, dtype=torch.int64), torch.arange(4)], dim=1),
    )


def milliseconds(batch: Batch, options: AugmentOptions, batches: int) -> float:
    """CPU time a batch, the mean over several draws."""
    began = time.process_time()
    for number in range(batches):
        augment(replace(batch, draws=batch.draws + torch.tensor([0, 4 * number])), options)
    return 1000 * (time.process_time() - began) / batches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patch", type=int, default=64)
    batch = noise_batch(parser.parse_args().patch)
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
