"""The whole state of a training on disk, so that it goes on as if nothing had happened."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from multiseg.errors import CheckpointError
from multiseg.files import write_atomically

RESUME = "resume.pt"
FORMAT = 1


@dataclass(eq=False)
class TrainState:
    """What changes while training: the network, its optimiser, and how far it has come.

    `step` is the number of steps done, which is also the place in the stream; `best` the best validation
    score so far (NaN before the first).
    """

    network: nn.Module
    optimiser: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    step: int = 0
    best: float = float("nan")
    bad_steps: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


def save_state(path: Path, state: TrainState) -> None:
    """Write everything that resuming needs, whole or not at all."""
    device = next(state.network.parameters()).device
    content: dict[str, Any] = {
        "format": FORMAT,
        "step": state.step,
        "best": state.best,
        "bad_steps": state.bad_steps,
        "history": state.history,
        "network": state.network.state_dict(),
        "optimiser": state.optimiser.state_dict(),
        "scaler": state.scaler.state_dict(),
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(path, buffer.getvalue())


def load_state(path: Path, state: TrainState) -> None:
    """Put a saved state into a fresh one, random generators included.

    Raises:
        CheckpointError: the file is damaged or belongs to another network.
    """
    try:
        # On the CPU: Adam counts its steps there, and a count on the GPU would be waited for at every step.
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content["format"] == FORMAT:
            _restore(state, content)
    except (RuntimeError, LookupError, TypeError, ValueError, OSError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"{path} cannot be resumed from: {error}. If the network was changed, start in another folder."
        ) from error
    if content["format"] != FORMAT:
        raise CheckpointError(f"{path} has resume format {content['format']}; this multiseg reads {FORMAT}.")


def _restore(state: TrainState, content: Mapping[str, Any]) -> None:
    state.network.load_state_dict(content["network"])
    state.optimiser.load_state_dict(content["optimiser"])
    if content["scaler"]:  # empty when saved by a run without fp16, on another card
        state.scaler.load_state_dict(content["scaler"])
    state.step, state.best, state.bad_steps = content["step"], content["best"], content["bad_steps"]
    state.history = content["history"]
    torch.set_rng_state(content["rng"])
    device = next(state.network.parameters()).device
    if device.type == "cuda" and content["cuda_rng"] is not None:
        torch.cuda.set_rng_state(content["cuda_rng"], device)
