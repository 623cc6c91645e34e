"""How a training computes: precision, compilation and determinism."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from multiseg.errors import TrainingError, UsageError
from multiseg.processes import environment

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


def precision(amp: str, device: torch.device) -> torch.dtype:
    """The dtype of the forward pass. On a CPU it is float32 unless `amp` is "bf16".

    Raises:
        UsageError: the name is unknown.
    """
    names = {"off": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if amp not in (*names, "auto"):
        raise UsageError(f"amp is {amp!r}: give one of auto, {', '.join(names)}.")
    if device.type != "cuda":
        return torch.bfloat16 if amp == "bf16" else torch.float32
    if amp == "auto":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if has_bf16 else torch.float16
    return names[amp]


@contextmanager
def deterministic(wanted: bool, device: torch.device) -> Iterator[None]:
    """Make torch use deterministic operations, and restore its settings afterwards.

    On a CPU an operation that has no deterministic version raises an error. On CUDA a 3-D network needs two of them
    (backward of nearest upsampling and of average pooling): torch warns and uses them, so two trainings on a GPU may
    still differ in their last bits.
    """
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True, warn_only=device.type == "cuda")
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        with environment({CUBLAS: ":4096:8"}):  # cuBLAS reads it on first use
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn


@contextmanager
def compiled(network: nn.Module, wanted: bool) -> Iterator[None]:
    """Compile the network in place on its first call; the names of its tensors stay.

    Raises:
        TrainingError: torch cannot compile it.
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
            f"torch cannot compile the network: {error}. Set fit.compile to false, and run the same command again."
        ) from error
