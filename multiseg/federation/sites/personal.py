"""What a site keeps of each round, its answer and its own state, in one file per round that is written atomically.

A round starts from the file of the last round whose update was aggregated. That file does not change while the next
round is computed, so after a kill, a lost answer or a server that goes back the round repeats bit for bit.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from multiseg.errors import CheckpointError
from multiseg.federation.messages import SiteTask, to_bytes
from multiseg.files import write_atomically

FORMAT = 1
LATER = ("hold",)
"""Entries of a task that do not affect the answer."""


@dataclass(frozen=True, eq=False)
class PersonalState:
    """A site's own state after a round.

    Attributes:
        parts: of the network, by name.
        counters: the network's integer tensors, by name.
        moments: of the optimiser, by parameter and then by their own name.
        scaler: state of mixed precision.
    """

    parts: Mapping[str, Tensor] = field(default_factory=dict)
    counters: Mapping[str, Tensor] = field(default_factory=dict)
    moments: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    scaler: Mapping[str, Any] = field(default_factory=dict)


def key_of(task: SiteTask, site: str) -> str:
    """SHA-256 of everything in a task that a site's answer depends on."""
    body = {name: value for name, value in task.body.items() if name not in LATER}
    return hashlib.sha256(site.encode() + b"\n" + to_bytes(replace(task, body=body))).hexdigest()


def stored_answer(folder: Path, number: int, key: str) -> bytes | None:
    """The stored answer to this task, if there is one.

    Raises:
        CheckpointError: its file is damaged.
    """
    file = _file(folder, number, key)
    return bytes(_read(file)["answer"].numpy()) if file.is_file() else None


def own_after(folder: Path, number: int) -> PersonalState | None:
    """The site's own state after a round; None if it is not stored.

    Raises:
        CheckpointError: the file is damaged.
    """
    for file, (round_, _) in _files(folder):
        if round_ == number:
            content = _read(file)
            return PersonalState(content["parts"], content["counters"], content["moments"], content["scaler"])
    return None


def newest(folder: Path) -> int:
    """The last stored round; 0 if there is none."""
    return max((number for _, (number, _) in _files(folder)), default=0)


def commit(folder: Path, number: int, key: str, answer: bytes, own: PersonalState) -> None:
    """Store a round before its answer leaves.

    Raises:
        ResourceError: the disk is full; nothing has changed.
    """
    content = {
        "format": FORMAT,
        "answer": torch.frombuffer(bytearray(answer), dtype=torch.uint8),
        "parts": on_cpu(own.parts),
        "counters": on_cpu(own.counters),
        "moments": {name: on_cpu(moments) for name, moments in own.moments.items()},
        "scaler": dict(own.scaler),
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(_file(folder, number, key), buffer.getvalue())


def forget(folder: Path, number: int, key: str, hold: Collection[int]) -> None:
    """Delete the files that are obsolete at round `number`: all but its own and those of earlier rounds in `hold`.

    A file of this round with another key, or of a later round, is from before the server went back.
    """
    for file, (round_, own_key) in list(_files(folder)):
        if not (round_ in hold and round_ < number) and (round_, own_key) != (number, key[:32]):
            file.unlink(missing_ok=True)
    for half_written in folder.glob(".*.tmp"):  # by a process that was killed
        half_written.unlink(missing_ok=True)


def moments_of(network: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    """The optimiser's state by parameter name."""
    return {
        name: {what: value.detach().cpu().clone() for what, value in optimiser.state[parameter].items()}
        for name, parameter in network.named_parameters()
        if parameter in optimiser.state
    }


def take_moments(
    network: nn.Module, optimiser: torch.optim.Optimizer, moments: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """Restore the optimiser's state. New values of a parameter that has grown (a channel at the end) start at 0."""
    for name, parameter in network.named_parameters():
        if name in moments:
            # A count of steps stays on the CPU, where Adam wants it.
            optimiser.state[parameter] = {
                what: _grown(value, parameter) if value.dim() else value.clone()
                for what, value in moments[name].items()
            }


def _grown(value: Tensor, parameter: Tensor) -> Tensor:
    """The value in the first corner of a tensor of the parameter's shape."""
    new = torch.zeros_like(parameter)
    corner = tuple(slice(min(n, m)) for n, m in zip(value.shape, new.shape, strict=True))
    new[corner] = value[corner].to(new)
    return new.detach()


def on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of the tensors on the CPU."""
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}


def _file(folder: Path, number: int, key: str) -> Path:
    return folder / f"{number:06d}-{key[:32]}.pt"


def _files(folder: Path) -> Iterator[tuple[Path, tuple[int, str]]]:
    for file in sorted(folder.glob("*.pt")):
        match = re.fullmatch(r"(\d+)-([0-9a-f]{32})\.pt", file.name)
        if match:
            yield file, (int(match[1]), match[2])


def _read(file: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        is_ours = content["format"] == FORMAT
    except (RuntimeError, LookupError, TypeError, ValueError, OSError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"{file}, which holds the site's part of a round, is damaged: {error}. Move it away; the round then "
            "starts from the server's model."
        ) from error
    if not is_ours:
        raise CheckpointError(f"{file} has format {content['format']}; this multiseg reads {FORMAT}.")
    return content
