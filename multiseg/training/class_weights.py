"""Weights of the classes of a label space, from the numbers of voxels in a store."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from multiseg.errors import UsageError
from multiseg.labels import IGNORE, LabelSpace
from multiseg.store.reader import Case, Store

CLASS_WEIGHTS = ("none", "inverse-root")


def class_weights(name: str, store: Store, cases: Sequence[Case], space: LabelSpace) -> Float[Tensor, " class"] | None:
    """The weight of each class in a cross entropy, background first; None for equal ones.

    "inverse-root": 1 / sqrt(n), with n the number of voxels of the class in the cases. A cross entropy with equal
    weights hardly sees a lesion that has one voxel in ten thousand; with 1 / n it would see little else.

    Raises:
        UsageError: there are no such weights.
    """
    if name not in CLASS_WEIGHTS:
        raise UsageError(f"fit.class_weights is {name!r}: give one of {', '.join(CLASS_WEIGHTS)}.")
    if name == "none":
        return None
    counts = voxels_by_class(store, cases, space)
    return torch.from_numpy(1 / np.sqrt(np.maximum(counts, 1))).float()


def voxels_by_class(store: Store, cases: Sequence[Case], space: LabelSpace) -> Int[np.ndarray, " class"]:
    """Voxels of background and of each structure in the targets of some cases, from the counts in the store.

    A voxel that is in two annotations counts for both of its structures, and voxels to ignore count as background.
    """
    counts = np.zeros(1 + len(space.labels), dtype=np.int64)
    for case in cases:
        before = counts[1:].sum()
        for annotation, table in store[case.database].label_view(case, space).tables:
            by_structure = case.foreground_count[annotation]
            labels = table[1 : 1 + len(by_structure)]
            is_listed = (labels > 0) & (labels < IGNORE)
            np.add.at(counts, labels[is_listed], by_structure[is_listed])
        counts[0] += max(0, prod(case.extent) - int(counts[1:].sum() - before))
    return counts
