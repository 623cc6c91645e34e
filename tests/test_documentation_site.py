"""The site: what is generated for it says all that there is, and it loads nothing from outside."""

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


def tool(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of docs/site_tools."""
    monkeypatch.syspath_prepend(ROOT / "docs" / "site_tools")
    return __import__(name)


@dataclass
class Options:
    """Some options.

    Attributes:
        size, other: in voxels,
            of each.
        names: of sequences: any.
    """

    size: int = 3
    other: float = 0.5
    names: tuple[str, ...] = ("T1",)


def test_every_public_name_is_in_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    import multiseg

    pages = tool("reference_pages", monkeypatch)
    assert pages.python_page().count("\n::: multiseg.") == len(multiseg.__all__)
    monkeypatch.setitem(pages.PUBLIC, "The store", "open_store select")
    with pytest.raises(ValueError, match="'table'"):
        pages.python_page()


def test_settings_come_with_default_and_meaning(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = tool("reference_pages", monkeypatch)
    assert [*pages._rows(Options)] == [
        "| `size` | `3` | in voxels, of each. |",
        "| `other` | `0.5` | in voxels, of each. |",
        '| `names` | `["T1"]` | of sequences: any. |',
    ]


def test_the_run_file_has_all_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    page = tool("reference_pages", monkeypatch).run_file_page()
    tables = {line[4:-2] for line in page.splitlines() if line.startswith("## `[")}
    assert tables >= {"[model", "[fit", "[stream", "[stream.draw", "[augment", "[optimiser", "[start"}
    assert "| `lesion_share` | `0.5` |" in page


def test_every_command_has_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    from multiseg.cli.app import COMMANDS

    pages = tool("command_pages", monkeypatch).command_pages()
    assert {f"reference/commands/{name}.md" for name in (*COMMANDS, "fed-join", "fed-simulate")} <= pages.keys()
    page = pages["reference/commands/doctor.md"]
    assert "| `--folder` path | `.` | Where stores and runs are to lie." in page
    assert "multiseg doctor brain.zarr" in page
    assert "[`multiseg doctor`](doctor.md) | Check this machine" in pages["reference/commands/index.md"]


def test_what_a_page_loads_from_outside_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outer_requests = tool("outer_requests", monkeypatch).outer_requests
    (tmp_path / "a.html").write_text(
        '<a href="https://a.org">a</a><img src="b.png"><script src="//c.org/x.js"></script><link href="HTTPS://d.org/s">'
        '<p style="background: url(https://e.org/f)">'
    )
    (tmp_path / "b.css").write_text("@import 'https://f.org/g'; p { background: url(h.png) }")
    assert outer_requests(tmp_path) == [
        "a.html: //c.org/x.js",
        "a.html: HTTPS://d.org/s",
        "a.html: https://e.org/f",
        "b.css: https://f.org/g",
    ]


def test_lists_and_notebooks_become_markdown(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mkdocs")
    pages = tool("pages", monkeypatch)
    assert pages.spaced_lists("See:\n- one\n  more\n  - two\n- three") == "See:\n\n- one\n  more\n    - two\n- three"
    assert pages.spaced_lists("text\n\n- one") == "text\n\n- one"
    assert pages.outside_fences("a\n```\na\n```\na", str.upper) == "A\n```\na\n```\nA"
    assert {f"{name}.py" for name in pages.NOTEBOOKS} == {p.name for p in (ROOT / "docs" / "notebooks").glob("*.py")}
    page = pages.notebook_page(ROOT / "docs" / "notebooks" / "own_parts.py")
    assert page.startswith("# Your own network, objective, source and metric\n\nThis page is the notebook")
    assert "```python\n%%writefile mine.py\nimport math\n" in page


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess

    pytest.importorskip("mkdocs")
    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr
    assert tool("outer_requests", monkeypatch).outer_requests(tmp_path / "site") == []
    assert (tmp_path / "site" / "reference" / "commands" / "ingest.html").is_file()
    home = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    dialogs = re.findall(r"<[^>]*role=.?dialog[^>]*>", home)
    assert dialogs
    assert all("aria-label" in dialog for dialog in dialogs)
