"""What a check of a machine returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

OK, WARNING, ERROR = "ok", "warning", "error"


class Found(NamedTuple):
    """What a check found, its verdict, and what to do about it: a remedy is empty only if the verdict is ok."""

    found: str
    verdict: str = OK
    remedy: str = ""


@dataclass(frozen=True)
class Check:
    """A check by name with what it found.

    Attributes:
        verdict: "ok"; "warning" if multiseg works, but slowly or not everywhere; "error" if something would fail.
        remedy: what to do; empty only if the verdict is "ok".
    """

    name: str
    found: str
    verdict: str
    remedy: str
