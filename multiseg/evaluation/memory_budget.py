"""Keep the answer to a case within a budget of memory: the number of windows that go through the network together."""

from __future__ import annotations

import math
import os
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from multiseg.allocator import return_memory
from multiseg.errors import UsageError
from multiseg.evaluation.case_answers import AnswerOptions, Shown
from multiseg.evaluation.inference import ROWS_AT_ONCE, VOXELS_AT_ONCE
from multiseg.models.saved import Model
from multiseg.sizes import num_bytes
from multiseg.types import Index3

STATM = Path("/proc/self/statm")
WORKING_COPIES = 2.0
"""What a convolution needs beside the tensors that torch knows of: its library copies input and output into another
order."""
FLOAT = 4


def memory_bytes(text: str) -> int:
    """The budget of --memory; 0 if there is none.

    Raises:
        UsageError: it is not a size, or this system does not say how much memory a process has.
    """
    if not text:
        return 0
    if not STATM.is_file():
        raise UsageError("--memory needs Linux, where a process can ask how much memory it has: leave it out.")
    size = num_bytes(text, "--memory")
    if size == 0:
        raise UsageError(f"--memory is {text!r}: give a size such as 4GB, or leave it out.")
    return size


def check_memory(text: str, adapts: bool) -> None:
    """Raises UsageError if a budget is no size, or cannot be kept: an adaptation trains the network on the case."""
    if memory_bytes(text) and adapts:
        raise UsageError("--memory does not bound an adaptation: leave out --memory, or --adapt.")


def fitted(
    models: Sequence[Model], shown: Shown, options: AnswerOptions, other_bytes: int, later_bytes: int = 0
) -> AnswerOptions:
    """The options with the number of windows that fit into their budget together; without a budget as they are.

    The budget is for the whole process. The libraries and the case, which are in memory already, are measured; what is
    still to come is computed from the shapes. Freed memory is returned to the system first.

    Args:
        other_bytes: what the caller keeps beside the windows, at most: probabilities, labels.
        later_bytes: what the caller needs when all windows are done and their sums are gone, at most; what it still
            keeps by then is part of it.

    Raises:
        UsageError: not even one window fits, or what comes later does not; the message names the smallest budget
            that works.
    """
    if not options.memory:
        return options
    return_memory()
    base = resident_bytes()
    most = max(1, VOXELS_AT_ONCE // max(math.prod(model.info.patch) for model in models))
    passes = 2 if options.tta else 1
    sums = sum(passes * _sums_bytes(model, shown.images.shape[1:]) for model in models)
    window = max(window_bytes(model, len(model.info.axis)) for model in models)
    # A model with an axis of its own gets its channels as a copy.
    copies = sum(len(model.info.axis) for model in models if model.info.axis != shown.axis) * shown.images[0].nbytes
    fixed = base + sums + copies + math.prod(shown.images.shape[1:]) + other_bytes
    num = min(most, (options.memory - fixed) // window) if window else most
    smallest = max(fixed + window, base + later_bytes)
    if options.memory < smallest:
        raise UsageError(
            f"--memory {in_gb(options.memory)} is too little for this case: the smallest that works is "
            f"{in_gb(smallest)}."
        )
    return replace(options, windows_at_once=int(num))


def check_further(memory: int, what: str, further_bytes: int) -> None:
    """Raises UsageError if what is now in memory and further bytes exceed the budget; `what` needs them."""
    if not memory:
        return
    return_memory()
    needed = resident_bytes() + further_bytes
    if needed > memory:
        raise UsageError(
            f"--memory {in_gb(memory)} is too little for {what} of this case: the smallest that works is "
            f"{in_gb(needed)}."
        )


def check_prepared(peak_before: int, memory: int) -> None:
    """Raises UsageError if the preparation of a case took more memory than there may be."""
    peak = peak_bytes()
    if memory and peak > max(peak_before, memory):
        raise UsageError(
            f"--memory {in_gb(memory)} is too little to prepare this case: the smallest that works is {in_gb(peak)}."
        )


def resident_bytes() -> int:
    """The memory that this process has now."""
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_bytes() -> int:
    """The largest memory that this process ever had; 0 where the system does not say."""
    if not STATM.is_file():
        return 0
    import resource  # not on every system

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def in_gb(size: int) -> str:
    """A size in GB, rounded up."""
    return f"{math.ceil(size / 1e8) / 10:g}GB"


def window_bytes(network: Model, num_modalities: int) -> int:
    """The memory that one window takes while it goes through the network on a CPU; 0 on another device."""
    if next(network.parameters()).device.type != "cpu":
        return 0
    patch: Index3 = network.info.patch
    images, present = torch.zeros(1, num_modalities, *patch), torch.ones(1, num_modalities, dtype=torch.bool)
    with torch.inference_mode(), _Live() as live:
        network(images, present)
    return int(WORKING_COPIES * live.peak) + images.nbytes


def _sums_bytes(model: Model, shape: Sequence[int]) -> int:
    """The sums of logits and weights that windows still reach, and the copies of the planes that are finished."""
    patch, num_logits = model.info.patch, model.info.space.num_logits
    plane = math.prod(max(n, p) for n, p in zip(shape[1:], patch[1:], strict=True))
    depth = min(2 * patch[0], max(shape[0], patch[0]))
    return FLOAT * plane * ((num_logits + 1) * depth + 6 * (num_logits + 1) * ROWS_AT_ONCE)


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch's own code has no types
    """Counts the bytes of the tensors that are made and alive, and their largest sum. Views are of their tensor."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now, self.peak = 0, 0
        self.users: Counter[int] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = {_place(one) for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)}
        made = func(*args, **(kwargs or {}))
        for tensor in [one for one in tree_leaves(made) if isinstance(one, Tensor)]:
            place, size = _place(tensor), tensor.untyped_storage().nbytes()
            if not self.users[place]:
                if place in given:  # a view of what was there before
                    continue
                self.now += size
            self.users[place] += 1
            weakref.finalize(tensor, self._freed, place, size)
        self.peak = max(self.peak, self.now)
        return made

    def _freed(self, place: int, size: int) -> None:
        self.users[place] -= 1
        if not self.users[place]:
            self.now -= size


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
