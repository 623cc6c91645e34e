"""An augmentation of one's own: what it is given, and what its answer has to be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from multiseg.errors import UsageError
from multiseg.labels import IGNORE
from multiseg.loaders.batches import Batch
from multiseg.own import check_takes, imported, name_of

Transform: TypeAlias = Callable[
    [Float[Tensor, "modality i j k"], UInt8[Tensor, "i j k"], torch.Generator], tuple[Tensor, Tensor]
]
"""From the images, the target and a seeded generator, all on the batch's device, to images and target of one patch."""
SIGNATURE = "(images, target, generator)"
STREAM = 0x5E1F
"""Told to the random generator, so that it shares no numbers with multiseg's own augmentation."""


def transform_named(name: str) -> Transform:
    """The augmentation that `module:name` stands for.

    Raises:
        UsageError: it cannot be imported, or not be called as (images, target, generator).
    """
    found: Transform = imported(name, "augmentation")
    check_takes(found, 3, "augmentation", SIGNATURE, name)
    return found


def transformed(batch: Batch, transform: Transform, seed: int) -> Batch:
    """The batch with every patch changed by a transform of one's own; the batch given stays unchanged.

    The generator is seeded by the seed and the patch's (epoch, index), and so are torch's global random numbers while
    the transform runs, which are as they were afterwards. Sequences that are not present stay 0.

    Raises:
        UsageError: the answer is not images and a target of the shapes and types that went in.
    """
    images, target = batch.images.float().clone(), batch.target.clone()
    cards = [images.device] if images.device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices=cards):
        for place, (epoch, index) in enumerate(batch.draws.tolist()):
            own_seed = int(np.random.SeedSequence((seed, epoch, index, STREAM)).generate_state(1, np.uint64)[0]) >> 1
            torch.manual_seed(own_seed)
            generator = torch.Generator(images.device).manual_seed(own_seed)
            answer = transform(images[place].clone(), target[place].clone(), generator)
            images[place], target[place] = _checked(answer, images[place], target[place], name_of(transform))
        images[~batch.present] = 0
    return replace(batch, images=images, target=target)


def _checked(answer: object, images: Tensor, target: Tensor, name: str) -> tuple[Tensor, Tensor]:
    if not (isinstance(answer, tuple) and len(answer) == 2 and all(isinstance(part, Tensor) for part in answer)):
        raise UsageError(
            f"the augmentation {name} returned {type(answer).__name__}: return (images, target), two tensors."
        )
    for part, before, what in zip(answer, (images, target), ("images", "target"), strict=True):
        if part.shape != before.shape or part.dtype != before.dtype:
            raise UsageError(
                f"the augmentation {name} returned {what} of {tuple(part.shape)} {part.dtype}: give back "
                f"{tuple(before.shape)} {before.dtype}, as it was called with."
            )
    new = set(torch.unique(answer[1]).tolist()) - set(torch.unique(target).tolist()) - {0, IGNORE}
    if new:
        raise UsageError(
            f"the augmentation {name} returned the labels {sorted(new)}, which the patch had not: codes are names, so "
            "take those of the nearest voxels, and 0 or 255 (not looked at) elsewhere."
        )
    return answer
