"""The notebooks in docs/notebooks run from the first cell to the last, and compute what they say."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import numpy as np
import pytest
from jupyter_client import KernelManager
from nbclient import NotebookClient

from multiseg.models.saved import read_info
from multiseg.store.reader import open_store

NOTEBOOKS = Path(__file__).parents[1] / "docs" / "notebooks"


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KernelManager]:
    """One kernel for all notebooks, which imports torch once. Jupyter keeps its files in a folder of the tests."""
    folder = tmp_path_factory.mktemp("jupyter")
    with pytest.MonkeyPatch.context() as environment:
        for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
            environment.setenv(name, str(folder / name.lower()))
        manager = KernelManager()
        manager.start_kernel()
        yield manager
        manager.shutdown_kernel(now=True)


def value_after(notebook: str, expression: str, folder: Path, kernel: KernelManager) -> Any:
    """Run a notebook in a folder; returns the value that an expression has after its last cell, as JSON keeps it."""
    cells = jupytext.read(NOTEBOOKS / f"{notebook}.py")
    forget = f"%reset -f\nimport os\nos.chdir({str(folder)!r})\ndel os"
    # A test's folder is deleted after it, and no process can start from a folder that is gone: the kernel leaves it.
    question = f"import json, os\nprint(json.dumps({expression}))\nos.chdir(os.sep)"
    cells.cells = [nbformat.v4.new_code_cell(forget), *cells.cells, nbformat.v4.new_code_cell(question)]
    client = NotebookClient(cells, km=kernel, timeout=300)
    client.execute()
    client.kc.stop_channels()
    # What a cell prints may come in several parts.
    return json.loads("".join(output.text for output in cells.cells[-1].outputs))


def test_every_notebook_is_run_here() -> None:
    run_here = re.findall(r'value_after\(\s*"(\w+)"', Path(__file__).read_text(encoding="utf-8"))
    assert sorted(run_here) == sorted(path.stem for path in NOTEBOOKS.glob("*.py"))


@pytest.mark.slow(seconds=8)
def test_the_store(tmp_path: Path, kernel: KernelManager) -> None:
    expression = "[by_scanner.lesion_ml.to_pandas().to_dict(), float(frequency.sum()), float(frequency.max())]"
    volumes, total, largest = value_after("store", expression, tmp_path, kernel)
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


@pytest.mark.slow(seconds=8)
def test_training(tmp_path: Path, kernel: KernelManager) -> None:
    volume, names, num_rows = value_after(
        "training", "[answer.volumes_ml['lesion'], sorted(set(batch.database)), len(result.summary)]", tmp_path, kernel
    )
    assert volume > 0
    assert names == ["birch", "dogwood"]
    assert num_rows == 2**4 - 1 + 2**2 - 1
    assert (tmp_path / "lesions.nii.gz").is_file()


@pytest.mark.slow(seconds=8)
def test_a_federation(tmp_path: Path, kernel: KernelManager) -> None:
    finished, num_rounds = value_after("federation", "[result.finished, len(result.history)]", tmp_path, kernel)
    assert (finished, num_rounds) == (True, 3)
    trained_on = read_info(tmp_path / "runs" / "federation" / "model.safetensors").trained_on
    assert trained_on["PD"] == ("alder/alder",)
    assert len(trained_on["FLAIR"]) == 2


@pytest.mark.slow(seconds=8)
def test_own_parts(tmp_path: Path, kernel: KernelManager) -> None:
    dice, errors = value_after(
        "own_parts", "[result.summary.dice.tolist(), result.summary.volume_error_ml.tolist()]", tmp_path, kernel
    )
    assert 0 < dice[0] <= 1
    assert errors[0] >= 0
    assert read_info(tmp_path / "runs" / "own" / "model.safetensors").builder == "mine:Small"
