"""The plan of the house: names that mean one thing, and pages about it that are true."""

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "multiseg"
PAGES = {path: path.read_text(encoding="utf-8") for path in (ROOT / "ARCHITECTURE.md", ROOT / "docs" / "README.md")}


def test_no_two_modules_share_a_name() -> None:
    names = Counter(path.name for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
    assert [name for name, count in names.items() if count > 1] == []


def test_the_architecture_names_every_room() -> None:
    page = PAGES[ROOT / "ARCHITECTURE.md"]
    rooms = [path.parent for path in PACKAGE.rglob("__init__.py") if path.parent != PACKAGE]
    assert [str(room) for room in rooms if f"`{room.name}/`" not in page] == []


def test_files_that_the_architecture_names_are_there() -> None:
    named = re.findall(r"`((?:\w+/)*\w+\.(?:py|toml))`", PAGES[ROOT / "ARCHITECTURE.md"])
    assert len(named) > 10
    places = (ROOT, PACKAGE, PACKAGE / "store", PACKAGE / "federation")
    assert [name for name in named if not any((place / name).is_file() for place in places)] == []


@pytest.mark.parametrize(
    ("folder", "index"), [("docs", "docs/README.md"), ("docs/decisions", "docs/decisions/README.md")]
)
def test_every_page_is_in_its_index(folder: str, index: str) -> None:
    text = (ROOT / index).read_text(encoding="utf-8")
    pages = [path.name for path in (ROOT / folder).glob("*.md") if path.name != "README.md"]
    assert len(pages) > 10
    assert [name for name in pages if f"]({name})" not in text] == []
