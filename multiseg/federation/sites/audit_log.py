"""The audit log of a site: a line of JSON for every message in and out, each with the hash of the line before."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import Tensor

from multiseg.errors import FederationError, ResourceError
from multiseg.files import write_atomically
from multiseg.flushing import flush, flush_folders
from multiseg.locks import locked

LOG = "audit.jsonl"
FIRST = "0" * 64
"""The previous hash of the first line."""


@dataclass(frozen=True)
class AuditEntry:
    """A message that came in ("in") or left ("out").

    Attributes:
        num_bytes, sha256: of the message as it was sent.
        tensors: type and shape by name, such as "float32 [8, 3, 3, 3, 3]".
        metrics: numbers by name.
        notes: what the policy left out or refused, and errors as they were sent.
        told: the rest of an answer; of a task, its settings for protection and local work.
    """

    direction: str
    kind: str
    experiment: str
    round: int
    num_bytes: int
    sha256: str
    tensors: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float | int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    told: Mapping[str, Any] = field(default_factory=dict)


def described(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Type and shape of each tensor."""
    return {name: f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}" for name, t in tensors.items()}


def record(path: Path, entry: AuditEntry) -> None:
    """Append a line and flush it to the disk.

    A second file keeps the hash of the newest line, so that missing lines at the end show, too.

    Raises:
        ResourceError: the disk is full or the file cannot be written. Nothing may leave then.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file, locked(file, path):
            last = _last_line(path)
            now = datetime.now(UTC).isoformat(timespec="seconds")
            line = json.dumps({"time": now, **asdict(entry), "previous": _hash(last)}).encode()
            is_whole = not last or last.endswith(b"\n")
            file.write((b"" if is_whole else b"\n") + line + b"\n")
            file.flush()
            flush(file.fileno())
            if not last:  # the file's name must be on disk before the head refers to it
                flush_folders({path.parent})
            write_atomically(_head(path), _hash(line).encode())
    except OSError as error:
        raise ResourceError(
            f"the audit log {path} cannot be written ({error.strerror}), and nothing leaves without it."
        ) from error


def record_decision(path: Path, experiment: str, digest: str, answer: str) -> None:
    """Append that a person at the site approved or refused a run, by the hash of its settings.

    Raises:
        ResourceError: see `record`.
    """
    nothing = hashlib.sha256().hexdigest()
    record(path, AuditEntry("in", "approval", experiment, 0, 0, nothing, notes=(f"{answer} here: settings {digest}",)))


def verify(path: Path) -> list[str]:
    """The faults of an audit log, by line; empty if no line was changed, removed or inserted."""
    if not path.is_file():
        return ["there is no audit log."] if _head(path).is_file() else []
    faults, previous, hashes = [], FIRST, [FIRST]
    with path.open("rb") as file, locked(file, path, shared=True):  # while the site goes on writing
        data = file.read()
        head = _head(path).read_text().strip() if _head(path).is_file() else ""
    for number, line in enumerate(data.splitlines(), start=1):
        entry = _parsed(line)
        if entry is None:
            faults.append(f"line {number} is incomplete.")
        elif entry.get("previous") != previous:
            faults.append(f"line {number} does not follow the line before it: one was changed, removed or inserted.")
        previous = _hash(line)
        hashes.append(previous)
    # A process that was killed between its two writes leaves the head one line behind.
    if head not in hashes[-2:]:
        faults.append("lines are missing at the end, or the last one was changed.")
    return faults


def rows(path: Path, experiment: str = "") -> list[dict[str, str | int]]:
    """The log as a table with a row per entry, oldest first, of one experiment or of all.

    Raises:
        FederationError: there is no log, or a line cannot be read.
    """
    if not path.is_file():
        raise FederationError(f"there is no audit log at {path}: has this site answered anything yet?")
    table = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        entry = _parsed(line)
        if entry is None:
            raise FederationError(f"line {number} of {path} cannot be read. See: multiseg fed audit --verify.")
        if experiment in ("", entry["experiment"]):
            table.append(_row(entry))
    return table


def _row(entry: Mapping[str, Any]) -> dict[str, str | int]:
    metrics: Sequence[str] = [
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in entry["metrics"].items()
    ]
    return {
        **{name: entry[name] for name in ("time", "direction", "kind", "experiment", "round")},
        "bytes": entry["num_bytes"],
        "tensors": len(entry["tensors"]),
        "metrics": ", ".join(metrics),
        "notes": " ".join(entry["notes"]),
        "told": json.dumps(entry["told"]),
        "sha256": entry["sha256"],
    }


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and {"previous", *AuditEntry.__dataclass_fields__} <= entry.keys() else None


def _head(path: Path) -> Path:
    return path.with_suffix(".head")


def _hash(line: bytes) -> str:
    return hashlib.sha256(line.rstrip(b"\n")).hexdigest() if line else FIRST


def _last_line(path: Path) -> bytes:
    """The last line, with its newline if it has one."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        size = 65_536
        while True:
            file.seek(max(0, end - size))
            lines = file.read().splitlines(keepends=True)
            if len(lines) > 1 or size >= end:
                return lines[-1] if lines else b""
            size *= 4
