"""Reads JSON from another machine within bounds on time, memory and stack."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

_STRUCTURE = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[{]|[\]}]', re.DOTALL)


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
