"""A model as ONNX: onnxruntime answers as torch does, for every network, size and set of sequences."""

import builtins
import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from multiseg.errors import CheckpointError, UsageError
from multiseg.export import onnx_file
from multiseg.export.onnx_file import export_onnx
from multiseg.labels import LabelSpace
from multiseg.modalities import ModalityAxis
from multiseg.models.builders import NETWORKS, build
from multiseg.models.saved import Model, ModelInfo

AXIS = ModalityAxis(("T1", "FLAIR", "T2"))


def model_of(name: str) -> Model:
    torch.manual_seed(1)
    space = LabelSpace.of(["lesion", "tissue:CSF"])
    widths = (4, 6, 8) if name == "multi_unet_plus" else (4, 6)
    info = ModelInfo(name, {}, AXIS, space, (1.0, 1.0, 1.0), (8, 8, 8), dict.fromkeys(AXIS, ("a",)), {})
    return Model(build(name, 3, 3, widths=widths, dropout=0.1), info).eval()


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_answers_alike(name: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model = model_of(name)
    checks: list[tuple[int, int, str]] = []
    done = export_onnx(model, tmp_path / "model.onnx", on_check=lambda *check: checks.append(check))
    assert done.largest_difference < 5e-4
    assert done.subsets == 7
    assert [done for done, _, _ in checks] == list(range(1, checks[0][1] + 1))
    assert done.sizes[-1] == model.info.patch
    session = onnxruntime.InferenceSession(done.path, providers=["CPUExecutionProvider"])
    images = torch.randn(7, 3, 24, 16, 32)  # a size and a batch of which nobody knew
    present = torch.tensor(list(itertools.product((True, False), repeat=3))[:-1])
    with torch.inference_mode():
        expected = model(images, present).numpy()
    (given,) = session.run(["logits"], {"images": images.numpy(), "present": present.numpy()})
    np.testing.assert_allclose(given, expected, atol=5e-4, rtol=0)
    record = json.loads(done.record.read_text(encoding="utf-8"))
    assert record["model"]["sha256"] == hashlib.sha256(done.path.read_bytes()).hexdigest()
    assert record["sequences"] == list(AXIS)


class _Twisted(torch.nn.Module):
    """Takes another way after the trace: what data-dependent control flow does to a traced network."""

    multiple = 4

    def __init__(self) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv3d(3, 3, 1)

    def forward(self, images: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.convolution(images) + 0 * present.sum()
        return out if bool(present[0].all()) else 2 * out


def test_a_file_that_answers_otherwise_is_not_written(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model = Model(_Twisted(), model_of("multi_unet").info).eval()
    with pytest.raises(CheckpointError, match=r"does not answer as the model does: logits differ by up to \d"):
        export_onnx(model, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_without_the_packages_the_command_to_install_them_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("onnx"):
            raise ImportError(f"No module named {name!r}")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UsageError, match=r"No module named 'onnx'.*pip install '\.\[onnx\]'"):
        export_onnx(model_of("multi_unet"), tmp_path / "model.onnx")


def test_names_of_files(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model = model_of("multi_unet")
    with pytest.raises(UsageError, match=r"must end in \.onnx"):
        export_onnx(model, tmp_path / "model.pt")
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(UsageError, match=r"model\.json already exists"):
        export_onnx(model, tmp_path / "model.onnx")


def test_many_sequences_are_checked_with_few_subsets() -> None:
    assert len(onnx_file._subsets(6)) == 63
    seven = onnx_file._subsets(7)
    assert len(seven) == len(set(seven)) == 2 * (1 + 7 + 21) - 1
    assert all(any(subset) for subset in seven)
    assert (True,) * 7 in seven
