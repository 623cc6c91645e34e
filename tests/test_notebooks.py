"""The notebooks in docs/notebooks run from the first cell to the last, and compute what they say."""

import json
import re
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Command

from multiseg.models.saved import read_info
from multiseg.store.reader import open_store

NOTEBOOKS = Path(__file__).parents[1] / "docs" / "notebooks"


@pytest.fixture(autouse=True)
def no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jupyter keeps its files in the test's folder."""
    (tmp_path / "jupyter").mkdir()
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "jupyter" / name.lower()))


def value_after(notebook: str, expression: str, folder: Path) -> Any:
    """Run a notebook in a folder; returns the value that an expression has after its last cell, as JSON keeps it."""
    answer, output = folder / "answer.json", folder / "output.txt"
    with chdir(folder):
        arguments = [str(NOTEBOOKS / f"{notebook}.py"), expression, str(answer)]
        code = Command(arguments, output, script=Path(__file__).with_name("run_notebook.py")).wait()
    assert code == 0, output.read_text(encoding="utf-8")[-4000:]
    return json.loads(answer.read_text(encoding="utf-8"))


def test_every_notebook_is_run_here() -> None:
    run_here = re.findall(r'value_after\(\s*"(\w+)"', Path(__file__).read_text(encoding="utf-8"))
    assert sorted(run_here) == sorted(path.stem for path in NOTEBOOKS.glob("*.py"))


@pytest.mark.slow
def test_the_store(tmp_path: Path) -> None:
    expression = "[by_scanner.lesion_ml.to_pandas().to_dict(), float(frequency.sum()), float(frequency.max())]"
    volumes, total, largest = value_after("store", expression, tmp_path)
    database = open_store(tmp_path / "brain.zarr")["dogwood"]
    ml, places = np.prod(database.recipe.spacing_mm) / 1000, []
    by_scanner: dict[str, list[float]] = {}
    for case in database.cases:
        lesion = np.argwhere(database.whole(case)[1][0] == 1)
        by_scanner.setdefault(str(case.participant["scanner"]), []).append(len(lesion) * ml)
        assert case.to_template is not None
        affine = case.to_template @ case.grid.affine
        points = lesion @ affine[:3, :3].T + affine[:3, 3]
        assert np.abs(points).max() < 96
        places += [tuple(place) for place in np.unique(np.floor(points / 8).astype(int), axis=0)]
    assert volumes == pytest.approx({name: np.mean(found) for name, found in by_scanner.items()})
    assert total == pytest.approx(len(places) / len(database.cases))
    assert largest == pytest.approx(max(map(places.count, places)) / len(database.cases))


@pytest.mark.slow
def test_training(tmp_path: Path) -> None:
    volume, names, num_rows = value_after(
        "training", "[answer.volumes_ml['lesion'], sorted(set(batch.database)), len(result.summary)]", tmp_path
    )
    assert volume > 0
    assert names == ["birch", "dogwood"]
    assert num_rows == 2**4 - 1 + 2**2 - 1
    assert (tmp_path / "lesions.nii.gz").is_file()


@pytest.mark.slow
def test_a_federation(tmp_path: Path) -> None:
    finished, num_rounds = value_after("federation", "[result.finished, len(result.history)]", tmp_path)
    assert (finished, num_rounds) == (True, 3)
    trained_on = read_info(tmp_path / "runs" / "federation" / "model.safetensors").trained_on
    assert trained_on["PD"] == ("alder/alder",)
    assert len(trained_on["FLAIR"]) == 2


@pytest.mark.slow
def test_own_parts(tmp_path: Path) -> None:
    dice, errors = value_after(
        "own_parts", "[result.summary.dice.tolist(), result.summary.volume_error_ml.tolist()]", tmp_path
    )
    assert 0 < dice[0] <= 1
    assert errors[0] >= 0
    assert read_info(tmp_path / "runs" / "own" / "model.safetensors").builder == "mine:Small"
