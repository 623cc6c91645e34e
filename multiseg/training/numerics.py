"""How a training computes: in which precision and memory layout, compiled or not, and the same every time or not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from multiseg.errors import TrainingError, UsageError

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


def precision(amp: str, device: torch.device) -> torch.dtype:
    """The type that the forward pass computes in. Off CUDA it is float32, but for "bf16" asked for by name.

    Raises:
        UsageError: the name is unknown.
    """
    names = {"off": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if amp not in (*names, "auto"):
        raise UsageError(f"amp {amp!r} is none of auto, {', '.join(names)}.")
    if device.type != "cuda":
        return torch.bfloat16 if amp == "bf16" else torch.float32
    if amp == "auto":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if has_bf16 else torch.float16
    return names[amp]


@contextmanager
def deterministic(wanted: bool, device: torch.device) -> Iterator[None]:
    """Make torch choose operations that give the same bits every time; as it was before, afterwards.

    On a CPU an operation that cannot is an error. On CUDA some cannot, and they are what a 3-D network needs
    (backward of nearest upsampling and of average pooling): torch warns of those and uses them, so that two
    trainings on a card may differ in their last bits even so.
    """
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    workspace = os.environ.get(CUBLAS)
    os.environ.setdefault(CUBLAS, ":4096:8")  # cuBLAS asks for it when it is first used
    torch.use_deterministic_algorithms(True, warn_only=device.type == "cuda")
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn
        if workspace is None:
            os.environ.pop(CUBLAS, None)


@contextmanager
def compiled(network: nn.Module, wanted: bool) -> Iterator[None]:
    """Compile the network in place, which keeps the names of its tensors; that happens when it is first called.

    Raises:
        TrainingError: it could not be compiled.
    """
    if not wanted:
        yield
        return
    from torch._dynamo.exc import TorchDynamoException  # slow to import

    network.compile()
    try:
        yield
    except TorchDynamoException as error:
        raise TrainingError(
            f"torch could not compile the network: {error}. Set fit.compile to false; the same command then goes on."
        ) from error
