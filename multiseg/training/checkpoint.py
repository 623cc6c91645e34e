"""Save and load the whole state of a training, so that it resumes as if it had never stopped."""

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
    """What changes while training: the network, its optimiser, and the progress.

    `step` is the number of steps done; `best` the best validation score so far (NaN before the first).

    Attributes:
        average: moving average of the weights, if there is one; `fit` makes it.
        head_steps: number of first steps in which only the network's head learns.
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
"""States of a process's random generators: CPU, and GPU if it uses one."""


def generators(state: TrainState) -> Generators:
    """The states of this process's random generators."""
    device = next(state.network.parameters()).device
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def save_state(path: Path, state: TrainState, others: Sequence[Generators] = ()) -> None:
    """Write everything that resuming needs, atomically.

    Args:
        others: the random generators of the other processes that train the same model.
    """
    cpu_rng, cuda_rng = generators(state)
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
        "rng": cpu_rng,
        "cuda_rng": cuda_rng,
        "others": list(others),
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(path, buffer.getvalue())


def load_state(path: Path, state: TrainState, peers: Peers = ALONE) -> None:
    """Load a saved state into a fresh one, including the random generators of this process.

    Raises:
        CheckpointError: the file is damaged or belongs to another network.
        UsageError: the number of processes differs from the saved one: they would draw other batches.
    """
    try:
        # On the CPU: Adam counts its steps there. A count on the GPU would force a wait in every step.
        content = torch.load(path, map_location="cpu", weights_only=True)
        is_ours = content["format"] == FORMAT
        num_processes = 1 + len(content.get("others", ())) if is_ours else 1
        if is_ours and num_processes == peers.num:
            _restore(state, content, peers.rank)
    except (RuntimeError, LookupError, TypeError, ValueError, OSError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"cannot resume from {path}: {error}. If the network was changed, start in another folder."
        ) from error
    if not is_ours:
        raise CheckpointError(f"{path} has resume format {content['format']}; this multiseg reads {FORMAT}.")
    if num_processes != peers.num:
        raise UsageError(
            f"{path} was saved by {num_processes} processes, but {peers.num} are running: start {num_processes} "
            f"(torchrun --nproc-per-node {num_processes}), or start over with --overwrite."
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
    cpu_rng, cuda_rng = [(content["rng"], content["cuda_rng"]), *content.get("others", ())][rank]
    torch.set_rng_state(cpu_rng)
    device = next(state.network.parameters()).device
    if device.type == "cuda" and cuda_rng is not None:
        torch.cuda.set_rng_state(cuda_rng, device)
