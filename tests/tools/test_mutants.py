"""The mutants that the package is tried with: what they change, and that a weak test lets one live."""

import time
from pathlib import Path

import pytest
from mutants import Trial, draw, files_concerned, mutants_of

SOURCE = '''"""Says 1 < 2."""


def share(part: "int 3", whole: int, is_open: bool = True) -> float:
    """Part of 4."""
    if (part) < whole and is_open:
        print(part, whole)
    return part / whole if whole != 0 else 0.5
'''


def test_each_change_is_one_place_of_the_program() -> None:
    found = {(mutant.line, mutant.kind, mutant.after.strip()) for mutant in mutants_of("a.py", SOURCE)}
    assert found == {
        (4, "constant", "False"),
        (6, "comparison", "<="),
        (6, "boolean", "or"),
        (6, "negation", "not ((part) < whole and is_open)"),
        (7, "dropped statement", "pass"),
        (7, "swapped arguments", "whole, part"),
        (8, "operator", "*"),
        (8, "negation", "not (whole != 0)"),
        (8, "comparison", "=="),
        (8, "off by one", "1"),
        (8, "constant", "1.0"),
    }


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small program with tests, whose pytest loads no plugin but xdist: hypothesis alone takes half a second."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTEST_PLUGINS", "xdist.plugin")
    root = tmp_path / "root"
    for name, text in {
        "multiseg/parts/share.py": SOURCE,
        "multiseg/parts/other.py": "NUM = 1\n",
        "tests/parts/test_share.py": (
            "from multiseg.parts.share import share\n\n\ndef test_a_half():\n    assert share(1, 2) == 0.5\n"
        ),
        "tests/test_all.py": "from multiseg.parts import other\n\n\ndef test_num():\n    assert other.NUM\n",
        "tests/test_nothing.py": "def test_that_fails_anyway():\n    assert False\n",
        "pyproject.toml": '[tool.pytest.ini_options]\nmarkers = ["slow"]\n',
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_a_seed_draws_whole_programs_and_each_mutant_once(tree: Path) -> None:
    drawn = draw(tree, num=99, seed=3)
    assert draw(tree, num=99, seed=3) == drawn != draw(tree, num=99, seed=4)
    # The bracket around `part` is no part of its node: with another operator behind it nothing could be parsed.
    assert {mutant.file for mutant in drawn} == {"multiseg/parts/share.py", "multiseg/parts/other.py"}
    assert len(set(drawn)) == len(drawn) >= 10
    assert draw(tree, num=2, seed=3) == drawn[:2]


def test_files_that_concern_a_module_are_named_for_it_or_import_it_or_one_beside_it(tree: Path) -> None:
    assert files_concerned(tree, "multiseg/parts/share.py") == ["tests/parts/test_share.py", "tests/test_all.py"]
    assert files_concerned(tree, "multiseg/parts/other.py") == ["tests/test_all.py", "tests/parts/test_share.py"]


@pytest.mark.slow
def test_a_mutant_is_killed_by_a_test_that_passes_without_it(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    trial = Trial(tree, tmp_path / "place", timeout_s=600, jobs=1)
    by_kind = {mutant.after.strip(): mutant for mutant in draw(tree, num=99, seed=0)}
    assert trial.outcome(by_kind["*"]) == "killed by tests/parts/test_share.py::test_a_half"
    assert trial.outcome(by_kind["1.0"]) == "SURVIVED"
    assert (trial.tree / "multiseg/parts/share.py").read_text() == SOURCE


@pytest.mark.slow
def test_a_process_that_a_test_leaves_behind_holds_nothing_up(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    (tree / "tests/test_leaves.py").write_text(
        "import pathlib, subprocess\n\n\ndef test_it():\n"
        '    pathlib.Path("pid").write_text(str(subprocess.Popen(["sleep", "600"]).pid))\n'
    )
    trial = Trial(tree, tmp_path / "place", timeout_s=600, jobs=1)
    assert trial.pytest(["tests/test_leaves.py"])[0] == 0
    status = Path("/proc", (trial.tree / "pid").read_text(), "status")
    deadline = time.monotonic() + 60
    while is_alive := status.exists() and "State:\tZ" not in status.read_text():
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)  # it was killed, which takes a moment
    assert not is_alive
