"""What it costs to adapt a two_branch model to a case of 2 mm, beside its plain prediction.

    python -m benchmarks.adaptation [STEPS]

Prints seconds of processor time and of the clock, with the default widths and patch on a CPU, an anchor, and random
weights: of STEPS steps (10) as many as lower the loss.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from multiseg.config import CPU_DEFAULTS
from multiseg.evaluation.adaptation import AdaptOptions, adapted
from multiseg.evaluation.inference import predict_volume
from multiseg.labels import LabelSpace
from multiseg.modalities import ModalityAxis
from multiseg.models.builders import CPU_WIDTHS, build
from multiseg.models.saved import Model, ModelInfo
from multiseg.models.two_branch import TwoBranch

SHAPE = (72, 88, 72)
"""A brain's box at 2 mm."""
PATCH = CPU_DEFAULTS["stream"]["draw"]["patch"]
SPACE = LabelSpace.of(["tissue:CSF", "tissue:grey matter", "tissue:white matter", "lesion"])


def model_of(seed: int = 0) -> Model:
    """A model with random weights and an anchor."""
    torch.manual_seed(seed)
    numbers = {"widths": CPU_WIDTHS, "anatomy_channels": [1], "lesion_logits": [4], "anchor": list(PATCH)}
    axis = ModalityAxis(("FLAIR", "T1"))
    info = ModelInfo("two_branch", numbers, axis, SPACE, (2.0, 2.0, 2.0), PATCH, dict.fromkeys(axis, ("a",)), {})
    network = build("two_branch", len(axis), SPACE.num_logits, **numbers)
    assert isinstance(network, TwoBranch)
    target = torch.randint(4, PATCH, dtype=torch.uint8)
    network.put_anchor(torch.randn(1, *PATCH), target, torch.ones(3, dtype=torch.bool))
    return Model(network, info).eval()


def measured(name: str, work: Callable[[], object]) -> None:
    began, cpu = time.perf_counter(), time.process_time()
    done = work()
    cpu, clock = time.process_time() - cpu, time.perf_counter() - began
    print(f"{name}: {cpu:.1f} s of processor time, {clock:.1f} s on the clock, {done}", flush=True)


def main() -> None:
    num_steps = int(sys.argv[1]) if len(sys.argv) > 1 else AdaptOptions.num_steps
    model, present = model_of(), np.array([True, True])
    images = np.random.default_rng(0).normal(size=(2, *SHAPE)).astype(np.float32)
    lesion = np.zeros(SHAPE, dtype=bool)
    lesion[20:36, 30:46, 30:46] = True
    print(f"{torch.get_num_threads()} threads, widths {CPU_WIDTHS}, windows {PATCH}, a case of {SHAPE} voxels")
    measured("plain prediction", lambda: predict_volume(model, images, present, PATCH).shape)
    options = AdaptOptions(num_steps=num_steps)
    measured("adaptation", lambda: str(adapted(model, images, present, lesion, options)))


if __name__ == "__main__":
    main()
