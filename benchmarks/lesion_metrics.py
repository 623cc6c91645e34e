"""What lesions cost beside the metrics of voxels and surfaces, on a grid of a brain at 1 mm with about 100 lesions.

    python -m benchmarks.lesion_metrics

Prints seconds of processor time, the least of three, for a plausible prediction and for one of the whole brain.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from multiseg.evaluation.lesions import RULES, find_lesions, lesion_metrics
from multiseg.evaluation.metrics import case_metrics
from multiseg.types import Mask

SHAPE = (240, 240, 155)
SPACING_MM = (1.0, 1.0, 1.0)
RADII, SHARES = (1.5, 2.5, 4.0, 8.0, 12.0), (0.3, 0.3, 0.2, 0.15, 0.05)
EDGE = 15
"""Half of the box that a ball is drawn in, in voxels."""


def lesions_and_answer(num_lesions: int = 100, num_false: int = 40, seed: int = 0) -> tuple[Mask, Mask]:
    """Balls, and an answer that finds four in five of them, each up to a voxel beside it, and false pairs of voxels."""
    rng = np.random.default_rng(seed)
    truth, answer = np.zeros(SHAPE, dtype=bool), np.zeros(SHAPE, dtype=bool)
    distance = np.sqrt((((np.indices((2 * EDGE + 1,) * 3)) - EDGE) ** 2).sum(axis=0))
    for _ in range(num_lesions):
        ball = distance <= rng.choice(RADII, p=SHARES)
        centre = [int(rng.integers(2 * EDGE, n - 2 * EDGE)) for n in SHAPE]
        truth[_box(centre)] |= ball
        if rng.random() < 0.8:
            answer[_box([at + int(rng.integers(-1, 2)) for at in centre])] |= ball
    for _ in range(num_false):
        i, j, k = (int(rng.integers(2 * EDGE, n - 2 * EDGE)) for n in SHAPE)
        answer[i : i + 2, j, k] = True
    return truth, answer


def whole_brain() -> Mask:
    """An ellipsoid of 2 million voxels."""
    i, j, k = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    brain: Mask = ((i - 120) / 80) ** 2 + ((j - 120) / 95) ** 2 + ((k - 77) / 65) ** 2 < 1
    return brain


def _box(centre: list[int]) -> tuple[slice, ...]:
    return tuple(slice(at - EDGE, at + EDGE + 1) for at in centre)


def _seconds(work: Callable[[], object]) -> float:
    found = []
    for _ in range(3):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return min(found)


def main() -> None:
    truth, answer = lesions_and_answer()
    for name, predicted in (("plausible", answer), ("whole brain", whole_brain())):
        print(f"{name}: voxels and surfaces {_seconds(lambda p=predicted: case_metrics(p, truth, SPACING_MM)):.2f} s")
        for rule in ("ours", "brats-gli"):
            work = lambda p=predicted, r=rule: lesion_metrics(find_lesions(p, truth, SPACING_MM, RULES[r]))  # noqa: E731
            found = work()
            counts = f"{found['num_lesions']} lesions that count, {found['num_lesions_false']} false components"
            print(f"  lesions, {rule}: {_seconds(work):.2f} s ({counts})")


if __name__ == "__main__":
    main()
