"""The changelog has a section of this version, by subject, and its formats are those that the code writes."""

import re
import tomllib
from pathlib import Path

from multiseg.federation.flower.flower_words import VERSION
from multiseg.federation.messages import PROTOCOL
from multiseg.models import packages, saved
from multiseg.store import schema
from multiseg.training import checkpoint, run_data

ROOT = Path(__file__).parents[1]
SUBJECTS = """Formats, Store and ingest, Stream, Training, Networks, Evaluation, Prediction, Export, Federation, Pages,
    Command line and Python, For those who change multiseg"""


def section() -> str:
    """What the changelog says of the version in pyproject.toml."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    parts = re.split(r"^## (\S+).*$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    found = dict(zip(parts[1::2], parts[2::2], strict=True))
    assert version in found
    assert next(iter(found)) == version  # the newest first
    return found[version]


def test_this_version_has_a_section_by_subject() -> None:
    assert re.findall(r"^### (.+)$", section(), re.MULTILINE) == [name.strip() for name in SUBJECTS.split(",")]


def test_the_formats_are_those_that_are_written() -> None:
    rows = dict(re.findall(r"^\| ([^|`(]+?)(?: \(.*?\)|:.*?)? \| ([^|]+) \|", section(), re.MULTILINE))
    numbers = {name: [int(number) for number in re.findall(r"\b\d+\b", cell)] for name, cell in rows.items()}
    assert numbers["store"][0] == schema.FORMAT
    assert numbers["model file"][0] == saved.FORMAT
    assert numbers["package"][0] == packages.FORMAT
    assert numbers["run folder"][0] == run_data.FORMAT == checkpoint.FORMAT
    assert numbers["messages of a federation"][0] == PROTOCOL
    assert f"Flower {VERSION}" in rows["messages of a federation"]
