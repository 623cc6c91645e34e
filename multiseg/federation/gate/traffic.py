"""How much went through the gate, by site, over all its lives."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from multiseg.errors import ResourceError
from multiseg.files import write_atomically


@dataclass
class Count:
    """Of one site: requests, bytes of bodies from it (up) and to it (down), and when it was last heard (Unix time)."""

    requests: int = 0
    up: int = 0
    down: int = 0
    last: float = 0.0


class Traffic:
    """Counts that a file remembers."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sites, refused = read_traffic(path)
        self._refused = Counter(refused)
        self._saved = ""

    def of(self, site: str) -> Count:
        """The count of a site, to add to."""
        count = self._sites.setdefault(site, Count())
        count.last = time.time()
        return count

    def refuse(self, reason: str) -> None:
        """One request more that was refused."""
        self._refused[reason] += 1

    def save(self) -> None:
        """Write the file where something has changed. A full disk loses counts and stops nothing."""
        sites = {name: asdict(count) for name, count in sorted(self._sites.items())}
        text = json.dumps({"sites": sites, "refused": dict(self._refused)}, indent=1)
        if text == self._saved:
            return
        try:
            write_atomically(self._path, text.encode())
            self._saved = text
        except ResourceError:
            return


def read_traffic(path: Path) -> tuple[dict[str, Count], dict[str, int]]:
    """Counts by site and refusals by reason; none where there is no file that can be read."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        return {name: Count(**count) for name, count in said["sites"].items()}, dict(said["refused"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}, {}
