"""A sequence that no training database had is left out with a word of warning, and its channel is never fed."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from json_documents import checked

from multiseg.cli.app import run
from multiseg.labels import LabelSpace
from multiseg.modalities import ModalityAxis
from multiseg.models.builders import multi_unet
from multiseg.models.saved import ModelInfo, save_model

AXIS = ModalityAxis(("PD", "FLAIR", "T1", "T2"))
UNTRAINED = ("PD", "T2")
INFO = ModelInfo(
    builder="multi_unet", numbers={"widths": [4, 8], "dropout": 0.0, "norm": "instance"}, axis=AXIS, space=LabelSpace(),
    spacing_mm=(5.0, 5.0, 5.0), patch=(24, 24, 24),
    trained_on={name: () if name in UNTRAINED else ("dogwood",) for name in AXIS}, databases={},
)  # fmt: skip


@pytest.fixture
def models(tmp_path: Path) -> tuple[Path, Path]:
    """A model, and the same with such weights at its untrained channels that the least thing fed to them shows.

    No NaN, since NaN x 0 is NaN in every convolution.
    """
    torch.manual_seed(0)
    network = multi_unet(4, 1, widths=(4, 8), dropout=0.0)
    save_model(tmp_path / "sane" / "model.safetensors", network, INFO)
    weight = network.get_parameter("encoder.0.first.conv.weight")
    with torch.no_grad():
        weight[:, AXIS.channels(UNTRAINED)] = 1e30 * torch.randn(4, 2, 3, 3, 3)
    save_model(tmp_path / "wild" / "model.safetensors", network, INFO)
    return tmp_path / "sane", tmp_path / "wild"


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("subsets", ["all", "full"])
def test_evaluate_warns_and_never_feeds_it(
    subsets: str, models: tuple[Path, Path], store_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--store", store_url, "--split", "test", "--database", "alder", "--subsets", subsets, "--overlap", "0"]
    sane, wild = models
    assert run(["evaluate", str(sane), *flags]) == 0
    assert "alder: PD, T2 left out: the model has no trained channel for it." in " ".join(
        capsys.readouterr().err.split()
    )
    assert run(["evaluate", str(wild), *flags, "--json"]) == 0
    said = checked(capsys.readouterr().out, "evaluate")
    assert said["left_out"] == {"alder": ["PD", "T2"]}
    assert {"PD", "T2"}.isdisjoint("+".join(row["modalities"] for row in said["summary"]).split("+"))
    assert all(0 <= row["dice"] <= 1 and row["sensitivity"] > 0 for row in said["summary"])
    tables = [(model / "evaluation-test-brain-alder" / "cases.csv").read_text() for model in models]
    assert tables[0] == tables[1]


@pytest.mark.slow
def test_predict_warns_and_never_feeds_it(
    models: tuple[Path, Path], hospitals: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = hospitals / "alder" / "A001"
    answers = []
    for model in models:
        for number, names in enumerate((("T2", "FLAIR", "PD"), ("FLAIR", "T2"), ("FLAIR",))):
            out = model / f"answer{number}.nii.gz"
            images = [f"{name}={folder / name}.nii.gz" for name in names]
            assert run(["predict", str(model), *images, "--reference", "FLAIR", "-o", str(out)]) == 0
            shown = " ".join(capsys.readouterr().err.split())
            left_out = ", ".join(name for name in names if name in UNTRAINED)
            assert (f"{left_out} left out: the model has no trained channel for it." in shown) == bool(left_out)
            answers.append(np.asarray(nib.load(out).dataobj))
    assert 0 < answers[0].sum() < answers[0].size
    for other in answers[1:]:
        np.testing.assert_array_equal(answers[0], other)


def test_predict_from_untrained_sequences_alone_is_refused(
    models: tuple[Path, Path], hospitals: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [f"{name}={hospitals / 'alder' / 'A001' / name}.nii.gz" for name in UNTRAINED]
    assert run(["predict", str(models[0]), *images, "-o", str(tmp_path / "out.nii.gz")]) == 3
    said = " ".join(capsys.readouterr().err.split())
    assert "the model learnt from FLAIR, T1, but was given PD, T2. Give at least one of those." in said
    assert not (tmp_path / "out.nii.gz").exists()


@pytest.mark.slow
def test_evaluate_where_every_sequence_is_untrained_is_refused(
    models: tuple[Path, Path], store_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    info = ModelInfo(**{**vars(INFO), "trained_on": {name: ("x",) if name == "PD" else () for name in AXIS}})
    save_model(tmp_path / "pd" / "model.safetensors", multi_unet(4, 1, widths=(4, 8), dropout=0.0), info)
    assert run(["evaluate", str(tmp_path / "pd"), "--store", store_url, "--database", "dogwood"]) == 3
    assert "has no case of the split 'test' that can be evaluated" in " ".join(capsys.readouterr().err.split())
