"""Which device to compute on."""

from __future__ import annotations

import torch

from multiseg.errors import UsageError


def resolve_device(name: str) -> torch.device:
    """The device of "auto" (CUDA if there is any), "cpu", "cuda" or "cuda:N".

    Raises:
        UsageError: the name is none of these, or the device does not exist.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    unknown = UsageError(f"the device is {name!r}: give one of auto, cpu, cuda, cuda:N.")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise unknown from error
    if device.type not in ("cpu", "cuda"):
        raise unknown
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"device {name!r} does not exist: torch sees {torch.cuda.device_count()} CUDA devices.")
    return device
