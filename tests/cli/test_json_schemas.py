"""What verbs print with --json fits the schemas in docs/schemas, and so do their errors."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

from multiseg.cli.app import run
from multiseg.labels import LabelSpace
from multiseg.modalities import ModalityAxis
from multiseg.models.builders import build
from multiseg.models.saved import BEST, ModelInfo, save_model

SCHEMAS = Path(__file__).parents[2] / "docs" / "schemas"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model with the voxels of the shared store, which nobody trained."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    axis, numbers = ModalityAxis(("FLAIR", "T1")), {"widths": [2, 3], "dropout": 0.0}
    info = ModelInfo(
        "multi_unet", numbers, axis, LabelSpace(), (5.0, 5.0, 5.0), (16, 16, 16), dict.fromkeys(axis, ("cedar",)), {}
    )
    save_model(folder / BEST, build("multi_unet", 2, 1, **numbers), info)
    return folder


def checked(text: str, name: str) -> Any:
    schema = json.loads((SCHEMAS / f"{name}.json").read_text(encoding="utf-8"))
    jsonschema.validate(content := json.loads(text), schema)
    return content


@pytest.mark.parametrize("path", sorted(SCHEMAS.glob("*.json")), ids=lambda path: path.stem)
def test_every_schema_is_one(path: Path) -> None:
    schema = json.loads(path.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    assert not jsonschema.Draft202012Validator(schema).is_valid({})
    assert f"[schemas/{path.name}](schemas/{path.name})" in (SCHEMAS.parent / "export.md").read_text(encoding="utf-8")


def test_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["info", str(tmp_path / "none.multiseg"), "--json"]) == 3
    assert "none.multiseg" in checked(capsys.readouterr().out, "error")["message"]


@pytest.mark.slow
def test_info(model: Path, store_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["info", store_url, "--cases", "--json"]) == 0
    assert len(checked(capsys.readouterr().out, "info")["databases"]) == 4
    for flags in ([], ["--store", store_url]):
        assert run(["info", str(model / BEST), *flags, "--json"]) == 0
        assert checked(capsys.readouterr().out, "info")["sequences"] == ["FLAIR", "T1"]


@pytest.mark.slow
def test_predict(model: Path, hospitals: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flair = next((hospitals / "cedar").glob("*_flair.nii.gz"))
    command = ["predict", str(model), f"FLAIR={flair}", "-o", str(tmp_path / "a.nii.gz"), "--device", "cpu", "--json"]
    assert run(command) == 0
    assert checked(capsys.readouterr().out, "predict")["used"] == ["FLAIR"]
    assert run(command) == 2
    checked(capsys.readouterr().out, "error")


@pytest.mark.slow
def test_evaluate(model: Path, store_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "evaluation"
    command = ["evaluate", str(model), "--store", store_url, "--subsets", "full", "--database", "cedar"]
    assert run([*command, "--out", str(out), "--device", "cpu", "--json"]) == 0
    assert checked(capsys.readouterr().out, "evaluate")["folder"] == str(out)
    written = checked((out / "summary.json").read_text(encoding="utf-8"), "evaluate")
    assert written["summary"][0]["database"] == "cedar"
