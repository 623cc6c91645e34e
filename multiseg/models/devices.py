"""Which device to compute on."""

from __future__ import annotations

import torch

from multiseg.errors import UsageError


def resolve_device(name: str) -> torch.device:
    """The device of "auto" (CUDA where there is one), "cpu", "cuda" or "cuda:N".

    Raises:
        UsageError: the name is none of these, or that device is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"device {name!r} is none of auto, cpu, cuda, cuda:N.") from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"device {name!r} is none of auto, cpu, cuda, cuda:N.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"device {name!r} is not there: torch sees {torch.cuda.device_count()} CUDA devices.")
    return device
