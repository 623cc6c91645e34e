"""What the README tells a user to type works, word for word."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from multiseg.store.reader import open_store
from multiseg.store.sources.recognise import LAYOUTS

ROOT = Path(__file__).parents[1]


def blocks(language: str, page: str = "README.md") -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tour was walked once, from the shell."""
    folder = tmp_path_factory.mktemp("readme")
    (tour,) = [block for block in blocks("bash") if "MULTISEG_DATA" not in block]
    shell(tour, folder)
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


@pytest.mark.slow
def test_the_python_runs(folder: Path) -> None:
    found = blocks("python") + blocks("python", "docs/stream.md") + blocks("python", "docs/finetune.md")
    found += blocks("python", "docs/store.md")
    assert len(found) >= 4
    for block in found:
        done = subprocess.run([sys.executable, "-c", block], cwd=folder, capture_output=True, encoding="utf-8")
        assert done.returncode == 0, done.stderr
        assert done.stdout


def printed(block: str, expression: str, folder: Path) -> Any:
    """What an expression is after a block of Python."""
    code = f"{block}\nimport json\nprint(json.dumps(({expression})))"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_the_notebook_of_the_readme_computes_what_numpy_computes(folder: Path) -> None:
    (block,) = [block for block in blocks("python") if "flair.where" in block]
    database = open_store(str(folder / "tour.zarr"))["dogwood"]
    image, codes = (array[at] for array, at in zip(database.whole(database["D001"]), (0, 0), strict=True))
    expected = image.astype(np.float64)[codes == 1].mean()
    assert printed(block, "float(flair.where(lesion == 1).mean())", folder) == pytest.approx(expected, rel=1e-9)


@pytest.mark.slow
def test_the_store_guide_computes_what_numpy_computes(folder: Path) -> None:
    (block,) = blocks("python", "docs/store.md")
    database = open_store(str(folder / "tour.zarr"))["cedar"]
    lines = "mean_in_lesion.values.tolist(), deviation.values.tolist(), volume_ml.values.tolist()"
    means, deviations, volumes = printed(block, lines, folder)
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
    (real,) = [block for block in blocks("bash") if "MULTISEG_DATA" in block]
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
