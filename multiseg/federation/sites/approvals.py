"""Approvals of runs by a person at the site, each for all settings of a run: a changed run waits again."""

from __future__ import annotations

import hashlib
import json
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path

import tomli_w

from multiseg.errors import FederationError, UsageError
from multiseg.federation.plan import FederationOptions, drop_ignored
from multiseg.files import write_atomically

FOLDER = "approvals"
WAITS, APPROVED, REFUSED = "waits", "approved", "refused"
SHOWN, LEAST_TYPED, MOST_WAITING = 12, 8, 100


@dataclass(frozen=True)
class ApprovalRequest:
    """A run that the centre has asked for.

    Attributes:
        digest: SHA-256 of its settings.
        answer: "waits", "approved" or "refused".
        settings: as TOML.
    """

    digest: str
    experiment: str
    answer: str
    settings: str


def digest_of(options: FederationOptions) -> str:
    """SHA-256 of all settings of a run."""
    return hashlib.sha256(json.dumps(asdict(options), sort_keys=True).encode()).hexdigest()


def answer_to(state: Path, options: FederationOptions) -> str:
    """The decision on a run with these settings; "waits" if there is none."""
    return _answer(state / FOLDER / f"{digest_of(options)}.json")


def note_waiting(state: Path, options: FederationOptions) -> bool:
    """Record a run that waits for approval; whether it is new. FederationError if too many wait already."""
    file = state / FOLDER / f"{digest_of(options)}.toml"
    if file.is_file():
        return False
    if sum(run.answer == WAITS for run in asked(state)) >= MOST_WAITING:
        raise FederationError(f"{MOST_WAITING} runs wait for this site's approval already.")
    write_atomically(file, tomli_w.dumps(drop_ignored(asdict(options))).encode())
    return True


def asked(state: Path) -> list[ApprovalRequest]:
    """All requested runs, the newest last."""
    files = sorted((state / FOLDER).glob("*.toml"), key=lambda file: (file.stat().st_mtime_ns, file.name))
    return [_asked(file) for file in files]


def decide(state: Path, typed: str, approves: bool) -> ApprovalRequest:
    """Approve or refuse a run by the first digits of its hash.

    Raises:
        UsageError: no run here has this hash, or several start with it.
    """
    runs = asked(state)
    found = [run for run in runs if run.digest.startswith(typed.lower())]
    if len(typed) < LEAST_TYPED or len(found) != 1:
        known = ", ".join(run.digest[:SHOWN] for run in runs) or "none"
        raise UsageError(f"{typed!r} is not the hash of one run: give {LEAST_TYPED} digits or more of {known}.")
    file = state / FOLDER / f"{found[0].digest}.toml"
    answer = APPROVED if approves else REFUSED
    write_atomically(file.with_suffix(".json"), json.dumps({"answer": answer}).encode())
    return _asked(file)


def _asked(file: Path) -> ApprovalRequest:
    settings = file.read_text(encoding="utf-8")
    experiment = str(tomllib.loads(settings).get("experiment", ""))
    return ApprovalRequest(file.stem, experiment, _answer(file.with_suffix(".json")), settings)


def _answer(file: Path) -> str:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))["answer"]
    except (OSError, ValueError, KeyError, TypeError):
        return WAITS
    return found if found in (APPROVED, REFUSED) else WAITS
