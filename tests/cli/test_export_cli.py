"""`multiseg export` and `multiseg pack`, and that what they print with --json fits its schema."""

from pathlib import Path

import pytest
import torch
from json_documents import checked

from multiseg.cli.app import run
from multiseg.labels import LabelSpace
from multiseg.modalities import ModalityAxis
from multiseg.models.builders import build
from multiseg.models.saved import BEST, ModelInfo, save_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model that nobody trained."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    axis, space = ModalityAxis(("FLAIR", "T1")), LabelSpace.of(["lesion", "tissue:CSF"])
    numbers = {"widths": [2, 3], "dropout": 0.0}
    databases = {"ms": {"pathology": "multiple sclerosis", "num_cases": 2, "licence": "CC0"}}
    info = ModelInfo(
        "multi_unet", numbers, axis, space, (1.0, 1.0, 1.0), (8, 8, 8), dict.fromkeys(axis, ("ms",)), databases
    )
    save_model(folder / BEST, build("multi_unet", 2, 3, **numbers), info)
    return folder


@pytest.mark.slow
def test_export(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    out, colours = tmp_path / "model.onnx", tmp_path / "colours"
    command = ["export", str(model), "--onnx", "-o", str(out), "--colours", str(colours), "--json"]
    assert run(command) == 0
    content = checked(capsys.readouterr().out, "export")
    assert content["onnx"]["path"] == str(out)
    assert sorted(content["colours"]) == sorted(map(str, colours.iterdir()))
    assert len(content["colours"]) == 4
    assert run(command) == 2  # the files exist
    assert "already exists" in checked(capsys.readouterr().out, "error")["message"]
    assert run([*command[:-1], "--overwrite"]) == 0
    assert "the same logits as the model within" in " ".join(capsys.readouterr().out.split())


def test_colours_alone(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", str(model), "--colours", str(tmp_path), "--json"]) == 0
    assert checked(capsys.readouterr().out, "export")["onnx"] is None


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "say what to write"),
        (["--onnx"], "--onnx and --out belong together"),
        (["-o", "m.onnx"], "--onnx and --out belong together"),
    ],
)
def test_flags_of_export_that_do_not_fit(
    flags: list[str], said: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["export", str(model), *flags]) == 2
    assert said in capsys.readouterr().err


def test_pack(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, hub = tmp_path / "model.multiseg", tmp_path / "hub"
    assert run(["pack", str(model), "-o", str(out), "--hf", str(hub), "--json"]) == 0
    content = checked(capsys.readouterr().out, "pack")
    assert (content["path"], content["hub"]) == (str(out), str(hub))
    assert content["licence"] == {"strictest": "CC0-1.0", "conditions": [], "unknown": []}
    assert {name: (hub / name).stat().st_size for name in content["files"]} == {
        name: about["bytes"] for name, about in content["files"].items()
    }
    assert run(["info", str(out)]) == 0
    assert run(["pack", str(out), "-o", str(out), "--overwrite"]) == 2
    assert "is a package already: copy it, or unzip it" in capsys.readouterr().err
    assert run(["pack", str(model)]) == 2
    assert "say where to" in capsys.readouterr().err
    assert run(["pack", str(model), "-o", str(tmp_path / "model.zip")]) == 2
    assert "must end in .multiseg" in capsys.readouterr().err
