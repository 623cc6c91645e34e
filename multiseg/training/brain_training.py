"""Train the network that finds the brain in a scan with its skull, from the brains of a store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from multiseg.allocator import keep_memory
from multiseg.errors import DataError, UsageError, few
from multiseg.evaluation.metrics import dice
from multiseg.labels import LabelSpace
from multiseg.loaders.batches import Batch
from multiseg.loaders.synthetic_scans import GRID, SPACING_MM, BrainShape, draw_scan
from multiseg.modalities import ModalityAxis
from multiseg.models.brain_network import ANY_SEQUENCE, BRAIN, NEWEST_RECIPE, RECIPE
from multiseg.models.builders import build
from multiseg.models.devices import resolve_device
from multiseg.models.learnt_scans import LearntScans
from multiseg.models.saved import ModelInfo, save_model
from multiseg.store.reader import Case, Store, open_store
from multiseg.training.brain_shapes import brain_shapes
from multiseg.training.checkpoint import TrainState
from multiseg.training.events import Event, Validation
from multiseg.training.fit import FitOptions, Hooks, fit
from multiseg.training.phantom_scans import draw_phantom_scan

TRAIN, HELD_OUT = 0, 1
"""Part of the seed of a scan, so that training and validation share none."""


@dataclass(frozen=True)
class BrainOptions:
    """How the network learns.

    Attributes:
        databases: of the store; empty for all.
        num_steps: of `batch_size` synthetic scans each.
        widths: of the U-Net's levels.
        phantom_share: the share of the scans that show the heads of phantoms instead of brains of the store.
        num_checks: synthetic scans on which the result is measured.
    """

    databases: tuple[str, ...] = ()
    num_steps: int = 1200
    batch_size: int = 2
    learning_rate: float = 2e-3
    widths: tuple[int, ...] = (8, 16, 32, 64)
    phantom_share: float = 0.5
    num_checks: int = 16
    seed: int = 0
    device: str = "cpu"


@dataclass(frozen=True)
class TrainedBrain:
    """A trained brain network.

    Attributes:
        cases: whose brains it learnt from.
        left_out: the names of cases that show more or less than a brain, with why.
        dice: on synthetic scans of cases that were held out; on others of the same cases if none was.
        is_held_out: whether they were.
    """

    path: Path
    cases: tuple[Case, ...]
    left_out: Mapping[str, str]
    dice: float
    is_held_out: bool


@dataclass(frozen=True, eq=False)
class ScanStream:
    """Synthetic scans as batches. Batch n is a function of the shapes, the seed and n."""

    shapes: Sequence[BrainShape]
    batch_size: int
    seed: int
    part: int = TRAIN
    phantom_share: float = 0.0

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        for number in range(start, stop):
            yield self._batch(range(number * self.batch_size, (number + 1) * self.batch_size))

    def _batch(self, indices: range) -> Batch:
        images, target, shapes = [], [], []
        for index in indices:
            rng = np.random.default_rng([self.seed, self.part, index])
            shapes.append(self.shapes[int(rng.integers(len(self.shapes)))])
            is_phantom = rng.random() < self.phantom_share
            scan, share = draw_phantom_scan(rng) if is_phantom else draw_scan(shapes[-1], rng)
            # In training a voxel is brain as often as its share says. So the network answers with the share, and the
            # outline of the mask lies between the coarse voxels.
            least = rng.random(share.shape) if self.part == TRAIN else 0.5
            images.append(torch.from_numpy(scan)[None])
            target.append(torch.from_numpy((share > least).astype(np.uint8)))
        num = len(indices)
        return Batch(
            images=torch.stack(images),
            present=torch.ones(num, 1, dtype=torch.bool),
            target=torch.stack(target),
            annotated=torch.ones(num, 1, dtype=torch.bool),
            database=tuple(shape.database for shape in shapes),
            case=tuple(shape.case for shape in shapes),
            corner=torch.zeros(num, 3, dtype=torch.int64),
            draws=torch.tensor([(0, index) for index in indices]),
            tissues=(0,),
            sequences=(ANY_SEQUENCE,),
        )


def train_brain(
    store: str, out: Path, options: BrainOptions | None = None, on_event: Callable[[Event], None] = lambda event: None
) -> TrainedBrain:
    """Train a brain network from the brains of a store's training cases, and write it.

    Each step sees other synthetic scans (see `loaders.synthetic_scans`), in the loop of every training.

    Args:
        out: its file.

    Raises:
        DataError: the store has no case that shows a brain and nothing else.
        StoreError: the store cannot be read.
        UsageError: an option is out of its range.
    """
    keep_memory()
    options = options or BrainOptions()
    _check(options)
    opened = open_store(store)
    learnt, left_out = brain_shapes(opened, options.databases)
    if not learnt:
        raise DataError(
            f"{store} has no training case that shows a brain without its skull: {few(list(left_out)) or 'no case'}. "
            "Ingest scans of which the skull was removed, or scans with their brain masks: --brain-mask."
        )
    held_out, _ = brain_shapes(opened, options.databases, "val")
    state = _fresh(options)
    checks = ScanStream([shape for _, shape in held_out or learnt], 1, options.seed, HELD_OUT)
    fit(
        state,
        ScanStream([shape for _, shape in learnt], options.batch_size, options.seed, TRAIN, options.phantom_share),
        FitOptions(
            num_steps=options.num_steps,
            learning_rate=options.learning_rate,
            ema=0.98,
            channels_last=True,
            validate_every=options.num_steps,
        ),
        Hooks(on_event, validate=lambda: _checked(state.model, checks, options.num_checks)),
    )
    cases = tuple(case for case, _ in learnt)
    info = _info(opened, options, cases).at(state.step, {**state.history[-1], RECIPE: NEWEST_RECIPE})
    scans = LearntScans.of(digest for case in cases for digest in case.content.values())
    save_model(out, state.model, info, scans)
    return TrainedBrain(out, cases, left_out, state.history[-1]["score"], bool(held_out))


def _check(options: BrainOptions) -> None:
    for name in ("num_steps", "batch_size", "num_checks"):
        if getattr(options, name) < 1:
            raise UsageError(f"{name} is {getattr(options, name)}: give at least 1.")


def _fresh(options: BrainOptions) -> TrainState:
    torch.manual_seed(options.seed)
    device = resolve_device(options.device)
    network = build("multi_unet", 1, 1, **_numbers(options)).to(device)
    optimiser = torch.optim.Adam(network.parameters(), lr=options.learning_rate)
    return TrainState(network, optimiser, torch.amp.GradScaler(device.type, enabled=False))


def _numbers(options: BrainOptions) -> dict[str, object]:
    return {"widths": list(options.widths), "dropout": 0.0, "norm": "instance"}


def _checked(network: nn.Module, checks: ScanStream, num: int) -> Validation:
    """The mean Dice of the brain on `num` synthetic scans."""
    device = next(network.parameters()).device
    network.eval()
    scores = []
    with torch.inference_mode():
        for batch in checks.batches(0, num):
            logits: Tensor = network(batch.images.to(device), batch.present.to(device))
            scores.append(dice(logits[0, 0].cpu().numpy() > 0, batch.target[0].numpy() == 1))
    mean = float(np.mean(scores))
    return Validation(mean, {BRAIN: mean})


def _info(store: Store, options: BrainOptions, cases: Sequence[Case]) -> ModelInfo:
    names = tuple(dict.fromkeys(case.database for case in cases))
    return ModelInfo(
        builder="multi_unet",
        numbers=_numbers(options),
        axis=ModalityAxis(ANY_SEQUENCE),
        space=LabelSpace.of(f"tissue:{BRAIN}"),
        spacing_mm=(SPACING_MM, SPACING_MM, SPACING_MM),
        patch=GRID,
        trained_on={ANY_SEQUENCE: names},
        databases={
            name: {
                "pathology": store[name].pathology,
                "num_cases": sum(case.database == name for case in cases),
                "licence": store[name].attributes.get("licence", ""),
            }
            for name in names
        },
    )
