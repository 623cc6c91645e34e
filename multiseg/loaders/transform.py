"""An augmentation of the user: how it is called, and checks of its result."""

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
"""Maps the images and the target of one patch and a seeded generator, all on the batch's device, to images and
target."""
SIGNATURE = "(images, target, generator)"
STREAM = 0x5E1F
"""Part of the generator's seed, so that it shares no random numbers with multiseg's own augmentation."""


def transform_named(name: str) -> Transform:
    """The augmentation `module:name`.

    Raises:
        UsageError: it cannot be imported, or not be called as (images, target, generator).
    """
    transform: Transform = imported(name, "augmentation")
    check_takes(transform, 3, "augmentation", SIGNATURE, name)
    return transform


def transformed(batch: Batch, transform: Transform, seed: int) -> Batch:
    """A new batch with every patch changed by the user's transform.

    The generator, and torch's global generators while the transform runs, are seeded by the seed and the patch's
    (epoch, index); the global ones are restored. Sequences that are not present stay 0.

    Raises:
        UsageError: the result is not images and a target of the same shapes and types.
    """
    images, target = batch.images.float().clone(), batch.target.clone()
    cuda_devices = [images.device] if images.device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices=cuda_devices):
        for n, (epoch, index) in enumerate(batch.draws.tolist()):
            patch_seed = int(np.random.SeedSequence((seed, epoch, index, STREAM)).generate_state(1, np.uint64)[0]) >> 1
            torch.manual_seed(patch_seed)
            generator = torch.Generator(images.device).manual_seed(patch_seed)
            result = transform(images[n].clone(), target[n].clone(), generator)
            images[n], target[n] = _checked(result, images[n], target[n], name_of(transform))
        images[~batch.present] = 0
    return replace(batch, images=images, target=target)


def _checked(result: object, images: Tensor, target: Tensor, name: str) -> tuple[Tensor, Tensor]:
    if not (isinstance(result, tuple) and len(result) == 2 and all(isinstance(part, Tensor) for part in result)):
        raise UsageError(
            f"the augmentation {name} returned {type(result).__name__}: return (images, target), two tensors."
        )
    for part, before, kind in zip(result, (images, target), ("images", "target"), strict=True):
        if part.shape != before.shape or part.dtype != before.dtype:
            raise UsageError(
                f"the augmentation {name} returned {kind} of {tuple(part.shape)} {part.dtype}: return "
                f"{tuple(before.shape)} {before.dtype}, as it was called with."
            )
    new = set(torch.unique(result[1]).tolist()) - set(torch.unique(target).tolist()) - {0, IGNORE}
    if new:
        raise UsageError(
            f"the augmentation {name} returned the labels {sorted(new)}, which the patch did not have: use the labels "
            "of the nearest voxels, and 0 or 255 (ignored) elsewhere."
        )
    return result
