"""CONTRIBUTING.md's recipes: each diff fits the code of today, and what it adds works."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
RECIPES: dict[str, str] = dict(re.findall(r"^### (.+?)$.*?^````diff\n(.*?)^````$", PAGE, re.MULTILINE | re.DOTALL))
PARTS = ("multiseg", "tests", "benchmarks", "docs", "README.md", "pyproject.toml")
CHECKS_OF_ALL = (
    # What already holds for every network, objective, strategy and verb, and so for the new ones.
    ("tests/models/test_builders.py", "mix_unet"),
    ("tests/models/test_network_parts.py", "mix_unet"),
    ("tests/test_models_page.py", "is_on_the_page or mix_unet"),
    ("tests/test_config_models.py", "20_gib"),
    ("tests/test_readme.py", "names_every_layout"),
    ("tests/training/test_objectives.py", "focal"),
    ("tests/evaluation/test_metrics.py", "never_improves_a_mean"),
    ("tests/cli/test_app.py", "[sequences"),
)


def run(command: list[str], folder: Path, **options: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, encoding="utf-8", **options)
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}{done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with all recipes applied."""
    if shutil.which("git") is None:
        pytest.skip("needs git to apply the diffs")
    folder = tmp_path_factory.mktemp("repository")
    for name in PARTS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name)  # with the compiled modules, which take long to make
        else:
            shutil.copy(ROOT / name, folder / name)
    for diff in RECIPES.values():
        run(["git", "apply", "--whitespace=error-all", "-"], folder, input=diff)
    return folder


def test_there_are_six() -> None:
    assert len(RECIPES) == 6


@pytest.mark.slow
def test_what_they_add_is_tested(changed: Path) -> None:
    for diff in RECIPES.values():
        assert re.search(r"^\+\+\+ b/tests/", diff, re.MULTILINE)
    added = {path for diff in RECIPES.values() for path in re.findall(r"^\+\+\+ b/(tests/\S+)", diff, re.MULTILINE)}
    names = [name for diff in RECIPES.values() for name in re.findall(r"^\+def (test_\w+)", diff, re.MULTILINE)]
    words = [*names, *(word for _, word in CHECKS_OF_ALL)]
    files = sorted({*added, *(file for file, _ in CHECKS_OF_ALL)})
    pytest_command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-p", "no:xdist"]
    shown = run([*pytest_command, "-k", " or ".join(words), *files], changed)
    for name in (*names, *(file for file, _ in CHECKS_OF_ALL)):
        assert name in shown
    assert "[mix_unet" in shown


@pytest.mark.slow
def test_they_are_written_as_the_rest(changed: Path) -> None:
    files = [file for diff in RECIPES.values() for file in re.findall(r"^\+\+\+ b/(\S+\.py)", diff, re.MULTILINE)]
    run([sys.executable, "-m", "ruff", "check", *files], changed)
    run([sys.executable, "-m", "ruff", "format", "--check", *files], changed)
