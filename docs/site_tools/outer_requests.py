"""Check that a built site loads nothing from outside: `python docs/site_tools/outer_requests.py site`.

Links that a reader follows may lead outside. What a browser loads by itself may not: scripts, styles, fonts, pictures.
"""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

LOADED = dict.fromkeys(("script", "img", "iframe", "source", "video", "audio", "embed"), "src")
LOADED |= {"object": "data", "link": "href"}
"""By element, the attribute whose address a browser loads by itself."""
OUTSIDE = re.compile(r"^\s*(?:https?:)?//", re.IGNORECASE)
IN_STYLE = re.compile(r"(?:url\(|@import)\s*[\"']?\s*((?:https?:)?//[^\"')\s]+)", re.IGNORECASE)


class _Loads(HTMLParser):
    """Collects the addresses outside that a page loads."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        address = values.get(LOADED.get(tag, "")) or ""
        if OUTSIDE.match(address):
            self.found.append(address)
        self.found += IN_STYLE.findall(values.get("style") or "")


def outer_requests(site: Path) -> list[str]:
    """A line for each address outside that a page or a style of the site loads."""
    lines = []
    for path in sorted(site.rglob("*")):
        if path.suffix not in (".html", ".css"):
            continue
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".css":
            found = IN_STYLE.findall(text)
        else:
            page = _Loads()
            page.feed(text)
            found = page.found
        lines += [f"{path.relative_to(site)}: {address}" for address in found]
    return lines


if __name__ == "__main__":
    site = Path(sys.argv[1])
    lines = outer_requests(site)
    num_pages = len(list(site.rglob("*.html")))
    print("\n".join(lines) or f"{num_pages} pages load nothing from outside.")
    sys.exit(bool(lines) or not num_pages)
