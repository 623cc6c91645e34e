"""What the README tells a user to type works, word for word."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

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


def test_the_tour_leaves_what_it_promises(folder: Path) -> None:
    for name in ("tour.zarr", "runs/tour/model.safetensors", "runs/tour/evaluation-test/montage.png", "lesions.nii.gz"):
        assert (folder / name).exists(), name


def test_the_python_runs(folder: Path) -> None:
    found = blocks("python") + blocks("python", "docs/stream.md") + blocks("python", "docs/finetune.md")
    assert len(found) >= 4
    for block in found:
        done = subprocess.run([sys.executable, "-c", block], cwd=folder, capture_output=True, encoding="utf-8")
        assert done.returncode == 0, done.stderr
        assert done.stdout


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


def test_the_commands_of_the_ingest_guide_on_real_data(data: Path, tmp_path: Path) -> None:
    (commands,) = blocks("bash", "docs/ingest.md")
    shell(commands, tmp_path)
    names = {path.stem for path in (tmp_path / "pictures").glob("*.png")}
    assert names == {"ms", "tumour", "wmh", "anatomy", "freesurfer", "native", "stroke", "brats", "template"}


def test_the_ingest_guide_names_every_layout() -> None:
    guide = (ROOT / "docs" / "ingest.md").read_text(encoding="utf-8")
    named = {
        name for row in re.findall(r"^\| (`.*?) \|", guide, flags=re.MULTILINE) for name in re.findall(r"`(\w+)`", row)
    }
    assert named == {layout.name for layout in LAYOUTS}


def test_every_file_that_is_linked_is_there() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), (page, link)
