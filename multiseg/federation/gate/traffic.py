"""Counts the traffic through the gate by site; the counts survive restarts."""

from __future__ import annotations

import json
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from multiseg.errors import ResourceError
from multiseg.files import write_atomically


@dataclass
class Count:
    """Traffic of a site: requests, bytes of bodies from it (up) and to it (down), and its last call (Unix time)."""

    requests: int = 0
    up: int = 0
    down: int = 0
    last: float = 0.0


class Traffic:
    """Counts that are kept in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sites, refused = read_traffic(path)
        self._refused = Counter(refused)
        self._saved = ""

    def of(self, site: str) -> Count:
        """The count of a site, to be increased."""
        count = self._sites.setdefault(site, Count())
        count.last = time.time()
        return count

    def refuse(self, reason: str) -> None:
        """Count a refused request."""
        self._refused[reason] += 1

    def save(self) -> None:
        """Write the file if something has changed. A full disk loses counts and stops nothing."""
        sites = {name: asdict(count) for name, count in sorted(self._sites.items())}
        text = json.dumps({"sites": sites, "refused": dict(self._refused)}, indent=1)
        if text == self._saved:
            return
        with suppress(ResourceError):
            write_atomically(self._path, text.encode())
            self._saved = text


def read_traffic(path: Path) -> tuple[dict[str, Count], dict[str, int]]:
    """Counts by site and refusals by reason; empty without a readable file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {name: Count(**count) for name, count in content["sites"].items()}, dict(content["refused"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}, {}
