"""The messages between server and sites: a task and its answer, each with a kind, a JSON body and tensors.

Their JSON comes from another machine, so it is read within bounds on time, memory and stack.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from multiseg.errors import FederationError

PROTOCOL = 1
"""Server and sites of different protocols refuse each other."""

DESCRIBE, FINGERPRINT, ROUND, EVALUATE, FINISH = "describe", "fingerprint", "round", "evaluate", "finish"
KINDS = (DESCRIBE, FINGERPRINT, ROUND, EVALUATE, FINISH)


@dataclass(frozen=True)
class Bounds:
    """The most that a JSON text may hold.

    Attributes:
        length: characters of the whole text.
        depth: lists and mappings inside each other.
        digits: of a whole number.
        entries: of all mappings together.
    """

    length: int
    depth: int = 16
    digits: int = 20
    entries: int = 200_000


TASK_BOUNDS, ANSWER_BOUNDS = Bounds(32_000_000), Bounds(8_000_000)
"""Of the JSON: a task describes all sites, an answer only one."""

_STRUCTURE = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[{]|[\]}]', re.DOTALL)
_HEAD = {"kind": str, "site": str, "experiment": str, "round": int, "body": dict, "error": str, "passing": bool}


@dataclass(frozen=True, eq=False)
class SiteTask:
    """What the server asks of a site.

    Attributes:
        kind: one of `KINDS`.
        experiment: the run's name.
        round: number of the round, from 1 on; 0 before the first.
        body: JSON.
        tensors: by name, on the CPU.
    """

    kind: str
    experiment: str
    round: int = 0
    body: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Answer:
    """A site's answer to a task.

    Attributes:
        experiment: that of the task.
        error: why the task failed, without paths and names of cases; "" on success.
        passing: the error may be temporary, such as a full disk: the same task may succeed later.
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
        FederationError: it is damaged, or the server has another protocol.
    """
    head, tensors = _read(data, TASK_BOUNDS)
    try:
        return SiteTask(head["kind"], head["experiment"], head["round"], head["body"], tensors)
    except KeyError as error:
        raise FederationError(f"a task without {error}: is the server a multiseg of this version?") from error


def answer_from_bytes(data: bytes) -> Answer:
    """The answer that the server received.

    Raises:
        FederationError: it is damaged, or the site has another protocol.
    """
    head, tensors = _read(data, ANSWER_BOUNDS)
    try:
        passing = bool(head.get("passing", False))  # answers stored by older versions lack it
        experiment = head.get("experiment", "")
        return Answer(
            head["kind"], head["site"], head["round"], head["body"], tensors, head["error"], passing, experiment
        )
    except KeyError as error:
        raise FederationError(f"an answer without {error}: is the site a multiseg of this version?") from error


def _read(data: bytes, bounds: Bounds) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        size = int.from_bytes(data[:8], "little")
        head = bounded_json(bounded_json(data[8 : 8 + size], bounds)["__metadata__"]["multiseg"], bounds)
        protocol = head["protocol"]
        has_types = all(type(head.get(name, kind())) is kind for name, kind in _HEAD.items())
        tensors = load(data)
    except (SafetensorError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        reason = f"{error!r:.300}"
        raise FederationError(f"a message of {len(data)} bytes is damaged or not from multiseg: {reason}.") from error
    if protocol != PROTOCOL:
        raise FederationError(
            f"a message of protocol {protocol!r:.40}, but this multiseg uses {PROTOCOL}: install one version."
        )
    if not has_types:
        raise FederationError(f"a message of {len(data)} bytes is not from multiseg: its header has wrong types.")
    return head, tensors


def bounded_json(data: str | bytes, bounds: Bounds) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is not valid JSON, exceeds a bound, or a mapping holds a name twice.
    """
    if len(data) > bounds.length:
        raise ValueError(f"{len(data)} characters of JSON, more than {bounds.length}")
    text = data if isinstance(data, str) else data.decode("utf-8")
    _check_depth(text, bounds.depth)
    num_entries = 0

    def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal num_entries
        num_entries += len(pairs)
        if num_entries > bounds.entries:
            raise ValueError(f"more than {bounds.entries} entries")
        result = dict(pairs)
        if len(result) < len(pairs):
            names = [name for name, _ in pairs]
            duplicate = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"{duplicate!r:.80} occurs twice")
        return result

    def whole(digits: str) -> int:
        if len(digits) > bounds.digits:
            raise ValueError(f"a whole number of {len(digits)} digits")
        return int(digits)

    return json.loads(text, object_pairs_hook=mapping, parse_int=whole)


def _check_depth(text: str, limit: int) -> None:
    """Raises ValueError for deep nesting, before parsing: the parser itself would recurse as deep as the text."""
    depth = 0
    for match in _STRUCTURE.finditer(text):
        letter = text[match.start()]
        if letter in "[{":
            depth += 1
            if depth > limit:
                raise ValueError(f"JSON that is nested more than {limit} deep")
        elif letter != '"':
            depth -= 1
