"""What the tutorial, the README and other pages tell a user to type works, word for word."""

import json
import math
import os
import re
import shlex
import subprocess
import sys
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Command

from multiseg.store.reader import open_store
from multiseg.store.sources.recognise import LAYOUTS

ROOT = Path(__file__).parents[1]
TUTORIAL = "docs/tutorial.md"
SMALL = "[model]\nwidths = [8, 16]\n[stream]\nbatch_size = 2\n"
"""Of the network that the tutorial trains: the default one takes a minute for its few steps."""
SMALLER = {
    "--coarseness 2": "--coarseness 4",
    "--spacing 5": "--spacing 8",
    "--patch 32": "--patch 16",
    "--steps 60": "--steps 3",
    "--steps 10": "--steps 2",
}
"""What the flags of the tutorial are replaced with: its other words stay as they are."""
PYTHON = """
import contextlib, io, json, sys

answers = []
for block, expression in json.load(sys.stdin):
    names = {"__name__": "__main__"}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(block, names)
    answers.append([printed.getvalue(), eval(expression, names)])
print(json.dumps(answers))
"""
"""Runs blocks with names of their own, and says what each printed and what an expression is after it."""
VALUES = {
    "flair.where": "float(flair.where(lesion == 1).mean())",
    "mean_in_lesion": "[mean_in_lesion.values.tolist(), deviation.values.tolist(), volume_ml.values.tolist()]",
}
"""By what a block contains: an expression whose value is compared with numpy's."""


def blocks(language: str, page: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tour was walked once: its first command from the shell, the others as processes that start sooner."""
    folder = tmp_path_factory.mktemp("readme")
    tour = "".join(blocks("bash", TUTORIAL))
    for flag, smaller in SMALLER.items():
        assert flag in tour
        tour = tour.replace(flag, smaller)
    first, *others = tour.splitlines()
    shell(first, folder)
    (folder / "small.toml").write_text(SMALL, encoding="utf-8")
    for line in others:
        name, *arguments = shlex.split(line)
        assert name == "multiseg"
        with chdir(folder):
            process = Command([*arguments, *(["--run", "small.toml"] * (arguments[0] == "train"))], folder / "said.txt")
        assert process.wait() == 0, (line, (folder / "said.txt").read_text(encoding="utf-8"))
    return folder


def shell(commands: str, folder: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euc", commands],
        cwd=folder,
        env=os.environ | {"PATH": path},
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_tour_leaves_what_it_promises(folder: Path) -> None:
    for name in ("tour.zarr", "runs/tour/model.safetensors", "runs/tour/evaluation-test/montage.png", "lesions.nii.gz"):
        assert (folder / name).exists(), name


@pytest.fixture(scope="module")
def answers(folder: Path) -> list[tuple[str, str, Any]]:
    """For each block of Python: the block, what it printed, and the value of its expression in `VALUES`.

    One process runs them all, since each would import torch again.
    """
    pages = (TUTORIAL, "docs/stream.md", "docs/finetune.md", "docs/store.md")
    found = [block for page in pages for block in blocks("python", page)]
    asked = [next((VALUES[word] for word in VALUES if word in block), "None") for block in found]
    done = subprocess.run(
        [sys.executable, "-c", PYTHON],
        cwd=folder,
        input=json.dumps([*zip(found, asked, strict=True)]),
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    return [(block, *answer) for block, answer in zip(found, json.loads(done.stdout), strict=True)]


@pytest.mark.slow
def test_the_python_runs(answers: list[tuple[str, str, Any]]) -> None:
    assert len(answers) >= 4
    for block, printed, _ in answers:
        assert printed, block


def value(word: str, answers: list[tuple[str, str, Any]]) -> Any:
    """The value of the expression of `VALUES` after the block with this word."""
    (found,) = [value for block, _, value in answers if word in block]
    return found


@pytest.mark.slow
def test_the_tutorial_computes_what_numpy_computes(folder: Path, answers: list[tuple[str, str, Any]]) -> None:
    database = open_store(str(folder / "tour.zarr"))["dogwood"]
    image, codes = (array[at] for array, at in zip(database.whole(database["D001"]), (0, 0), strict=True))
    expected = image.astype(np.float64)[codes == 1].mean()
    assert value("flair.where", answers) == pytest.approx(expected, rel=1e-9)


@pytest.mark.slow
def test_the_store_guide_computes_what_numpy_computes(folder: Path, answers: list[tuple[str, str, Any]]) -> None:
    database = open_store(str(folder / "tour.zarr"))["cedar"]
    means, deviations, volumes = value("mean_in_lesion", answers)
    for row, case in enumerate(database.cases):
        image, codes = database.whole(case)
        ml = np.prod(database.recipe.spacing_mm) / 1000
        assert volumes[row] == pytest.approx(np.count_nonzero(codes[0] == 1) * ml)
        for channel, name in enumerate(database.modalities):
            if name not in case.modalities:
                assert math.isnan(means[row][channel])
                continue
            inside = (image[channel] != 0) & (codes[0] == 1)
            voxels = image[channel].astype(np.float64)
            assert means[row][channel] == pytest.approx(voxels[inside].mean(), rel=1e-9)
            raw = voxels[voxels != 0] * case.intensity[name][1] + case.intensity[name][0]
            assert deviations[row][channel] == pytest.approx(raw.std(), rel=1e-9)


@pytest.mark.slow
def test_the_commands_on_real_data(data: Path, tmp_path: Path) -> None:
    (real,) = blocks("bash", "docs/real.md")
    quick = (
        real.replace("--steps 1500", "--steps 20")
        .replace("--steps 300", "--steps 5")
        .replace("evaluate runs/joint", "evaluate runs/joint --subsets full")
    )
    shell(quick, tmp_path)
    assert (tmp_path / "patient26.nii.gz").exists()
    assert (tmp_path / "runs" / "stroke" / "evaluation-test" / "cases.csv").exists()


@pytest.mark.slow
def test_the_commands_of_the_ingest_guide_on_real_data(data: Path, tmp_path: Path) -> None:
    (commands,) = blocks("bash", "docs/ingest.md")
    shell(commands, tmp_path)
    names = {path.stem for path in (tmp_path / "pictures").glob("*.png")}
    assert names == {"ms", "tumour", "wmh", "anatomy", "freesurfer", "native", "stroke", "brats", "template"}


def test_the_ingest_guide_names_every_layout() -> None:
    _, _, below = (ROOT / "docs" / "ingest.md").read_text(encoding="utf-8").partition("\n| `--as` | layout |")
    table = below[: below.index("\n\n")]
    named = {
        name for row in re.findall(r"^\| (`.*?) \|", table, flags=re.MULTILINE) for name in re.findall(r"`(\w+)`", row)
    }
    assert named == {layout.name for layout in LAYOUTS}


def test_every_file_that_is_linked_is_there() -> None:
    for page in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")):
        # Not in the diffs of recipes, which are of other pages.
        text = re.sub(r"^````diff$.*?^````$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for link in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (page.parent / link).exists(), (page, link)
