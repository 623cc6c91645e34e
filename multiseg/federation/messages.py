"""What server and sites say to each other: a task and its answer, both a kind, some JSON and some tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from multiseg.errors import FederationError
from multiseg.federation.bounded import Bounds, bounded_json

PROTOCOL = 1
"""Server and sites of different protocols refuse each other."""

DESCRIBE, FINGERPRINT, ROUND, EVALUATE, FINISH = "describe", "fingerprint", "round", "evaluate", "finish"
KINDS = (DESCRIBE, FINGERPRINT, ROUND, EVALUATE, FINISH)

TASK_BOUNDS, ANSWER_BOUNDS = Bounds(32_000_000), Bounds(8_000_000)
"""Of what is said in JSON: a task tells each site of all of them, an answer of one."""

_HEAD = {"kind": str, "site": str, "experiment": str, "round": int, "body": dict, "error": str, "passing": bool}


@dataclass(frozen=True, eq=False)
class SiteTask:
    """What the server asks of a site.

    Attributes:
        kind: one of `KINDS`.
        experiment: the run's name.
        round: number of the round, from 1 on; 0 before the first.
        body: what can be said in JSON.
        tensors: by name, on the CPU.
    """

    kind: str
    experiment: str
    round: int = 0
    body: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Answer:
    """What a site says to a task.

    Attributes:
        experiment: that of the task.
        error: why there is no answer, free of paths and names of cases; "" where there is one.
        passing: the error may pass, such as a full disk: the same task may be answered another time.
    """

    kind: str
    site: str
    round: int = 0
    body: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    error: str = ""
    passing: bool = False
    experiment: str = ""


def to_bytes(message: SiteTask | Answer) -> bytes:
    """A message as one safetensors file, JSON in its metadata. Equal messages give equal bytes."""
    head = {name: value for name, value in vars(message).items() if name not in ("tensors", "body")}
    text = json.dumps({**head, "body": message.body, "protocol": PROTOCOL}, sort_keys=True)
    tensors = {name: message.tensors[name].detach().cpu().contiguous() for name in sorted(message.tensors)}
    return save(tensors, metadata={"multiseg": text})


def task_from_bytes(data: bytes) -> SiteTask:
    """The task that a site received.

    Raises:
        FederationError: it is damaged, or from a server of another protocol.
    """
    head, tensors = _read(data, TASK_BOUNDS)
    try:
        return SiteTask(head["kind"], head["experiment"], head["round"], head["body"], tensors)
    except KeyError as error:
        raise FederationError(f"a task without {error}: is the server a multiseg of this version?") from error


def answer_from_bytes(data: bytes) -> Answer:
    """The answer that the server received.

    Raises:
        FederationError: it is damaged, or from a site of another protocol.
    """
    head, tensors = _read(data, ANSWER_BOUNDS)
    try:
        passing = bool(head.get("passing", False))  # stored answers of before do not say it
        of = head.get("experiment", "")
        return Answer(head["kind"], head["site"], head["round"], head["body"], tensors, head["error"], passing, of)
    except KeyError as error:
        raise FederationError(f"an answer without {error}: is the site a multiseg of this version?") from error


def _read(data: bytes, bounds: Bounds) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        size = int.from_bytes(data[:8], "little")
        head = bounded_json(bounded_json(data[8 : 8 + size], bounds)["__metadata__"]["multiseg"], bounds)
        protocol = head["protocol"]
        is_clear = all(type(head.get(name, kind())) is kind for name, kind in _HEAD.items())
        tensors = load(data)
    except (SafetensorError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        why = f"{error!r:.300}"
        raise FederationError(f"a message of {len(data)} bytes is damaged or none of ours: {why}.") from error
    if protocol != PROTOCOL:
        raise FederationError(
            f"a message of protocol {protocol!r:.40}; this multiseg speaks {PROTOCOL}. Install one version."
        )
    if not is_clear:
        raise FederationError(f"a message of {len(data)} bytes is none of ours: its head is of other types.")
    return head, tensors
