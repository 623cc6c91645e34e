"""The whole state of a training on disk, so that it goes on as if nothing had happened."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from multiseg.errors import CheckpointError, UsageError
from multiseg.files import write_atomically
from multiseg.training.average import average_of
from multiseg.training.distributed import ALONE, Peers

RESUME = "resume.pt"
FORMAT = 1


@dataclass(eq=False)
class TrainState:
    """What changes while training: the network, its optimiser, and how far it has come.

    `step` is the number of steps done; `best` the best validation score so far (NaN before the first).

    Attributes:
        average: of the weights, where one is kept; `fit` makes it.
        head_steps: so many first steps only the network's head learns.
    """

    network: nn.Module
    optimiser: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: nn.Module | None = None
    head_steps: int = 0
    step: int = 0
    best: float = float("nan")
    bad_steps: int = 0
    history: list[dict[str, float]] = field(default_factory=list)

    @property
    def model(self) -> nn.Module:
        """What is validated and saved as the model: the average where there is one."""
        return self.average if self.average is not None else self.network


Generators: TypeAlias = tuple[Tensor, Tensor | None]
"""The states of a process's random generators, on the CPU and on its card."""


def generators(state: TrainState) -> Generators:
    """Those of this process."""
    device = next(state.network.parameters()).device
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def save_state(path: Path, state: TrainState, others: Sequence[Generators] = ()) -> None:
    """Write everything that resuming needs, whole or not at all.

    Args:
        others: the random generators of the other processes that train the same model.
    """
    own, on_card = generators(state)
    content: dict[str, Any] = {
        "format": FORMAT,
        "step": state.step,
        "best": state.best,
        "bad_steps": state.bad_steps,
        "history": state.history,
        "network": state.network.state_dict(),
        "optimiser": state.optimiser.state_dict(),
        "scaler": state.scaler.state_dict(),
        "average": None if state.average is None else state.average.state_dict(),
        "rng": own,
        "cuda_rng": on_card,
        "others": list(others),
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(path, buffer.getvalue())


def load_state(path: Path, state: TrainState, peers: Peers = ALONE) -> None:
    """Put a saved state into a fresh one, random generators included; of the files that `peers` share, all of it.

    Raises:
        CheckpointError: the file is damaged or belongs to another network.
        UsageError: so many other processes trained it: together they took other batches.
    """
    try:
        # On the CPU: Adam counts its steps there, and a count on the GPU would be waited for at every step.
        content = torch.load(path, map_location="cpu", weights_only=True)
        is_ours = content["format"] == FORMAT
        num = 1 + len(content.get("others", ())) if is_ours else 1
        if is_ours and num == peers.num:
            _restore(state, content, peers.rank)
    except (RuntimeError, LookupError, TypeError, ValueError, OSError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"{path} cannot be resumed from: {error}. If the network was changed, start in another folder."
        ) from error
    if not is_ours:
        raise CheckpointError(f"{path} has resume format {content['format']}; this multiseg reads {FORMAT}.")
    if num != peers.num:
        raise UsageError(
            f"{path} was trained by {num} processes, and now there are {peers.num}: start as many again "
            f"(torchrun --nproc-per-node {num}), or train anew with --overwrite."
        )


def _restore(state: TrainState, content: Mapping[str, Any], rank: int) -> None:
    state.network.load_state_dict(content["network"])
    if content.get("average") is not None:
        state.average = average_of(state.network)
        state.average.load_state_dict(content["average"])
    state.optimiser.load_state_dict(content["optimiser"])
    if content["scaler"]:  # empty when saved by a run without fp16, on another card
        state.scaler.load_state_dict(content["scaler"])
    state.step, state.best, state.bad_steps = content["step"], content["best"], content["bad_steps"]
    state.history = content["history"]
    own, on_card = [(content["rng"], content["cuda_rng"]), *content.get("others", ())][rank]
    torch.set_rng_state(own)
    device = next(state.network.parameters()).device
    if device.type == "cuda" and on_card is not None:
        torch.cuda.set_rng_state(on_card, device)
