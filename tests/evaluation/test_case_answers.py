"""Several models, and mirror images: means and votes that can be worked by hand."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from multiseg.cli.app import run
from multiseg.errors import UsageError
from multiseg.evaluation.case_answers import AnswerOptions, Shown, labels_of, mean_by_slab, probabilities_by_slab
from multiseg.evaluation.evaluation_result import EvaluateOptions
from multiseg.evaluation.inference import predict_volume, whole
from multiseg.evaluation.model_evaluation import evaluate, load_ensemble
from multiseg.evaluation.prediction import predict
from multiseg.evaluation.prediction_inputs import PredictOptions
from multiseg.evaluation.voting import Voters
from multiseg.labels import LabelSpace, SpaceLabel
from multiseg.modalities import ModalityAxis
from multiseg.models.builders import multi_unet
from multiseg.models.learnt_scans import LearntScans
from multiseg.models.saved import Model, ModelInfo, save_model
from multiseg.store.formats.nifti import write_nifti

AXIS = ModalityAxis(("FLAIR", "T1"))
INFO = ModelInfo(
    builder="multi_unet", numbers={"widths": [4, 8], "dropout": 0.0, "norm": "instance"}, axis=AXIS,
    space=LabelSpace(), spacing_mm=(5.0, 5.0, 5.0), patch=(8, 8, 8),
    trained_on={"FLAIR": ("a",), "T1": ("a",)}, databases={},
)  # fmt: skip
SIDES = LabelSpace(tuple(SpaceLabel(name, "tissue") for name in ("left thalamus", "stem", "right thalamus")))


def model_of(seed: int, **changes: object) -> Model:
    info = replace(INFO, **changes)
    torch.manual_seed(seed)
    network = multi_unet(len(info.axis), info.space.num_logits, widths=(4, 8), dropout=0.0)
    return Model(network, info, LearntScans()).eval()


def shown_of(*size: int) -> Shown:
    images = np.random.default_rng(0).standard_normal((2, *size)).astype(np.float16)
    images[:, size[0] // 2] = 0
    return Shown(images, np.array([True, True]), AXIS)


def answer(models: list[Model], shown: Shown, tta: bool = False) -> np.ndarray:
    # One window at a time, so that the slabs of models with other patches end at other planes.
    options = AnswerOptions(tta=tta, windows_at_once=1)
    return whole(mean_by_slab(models, shown, options), shown.images.shape[1:])


def test_the_mean_of_models_with_other_patches_and_channels() -> None:
    shown = shown_of(21, 9, 12)
    first, second = model_of(1), model_of(2, patch=(16, 8, 8))
    turned = model_of(3, axis=ModalityAxis(("T1",)), trained_on={"T1": ("a",)})
    alone = [
        predict_volume(first, shown.images, shown.present, (8, 8, 8)),
        predict_volume(second, shown.images, shown.present, (16, 8, 8)),
        predict_volume(turned, shown.images[[1]], shown.present[[1]], (8, 8, 8)),
    ]
    np.testing.assert_allclose(answer([first, second, turned], shown), np.mean(alone, axis=0), atol=1e-6)
    brain = np.ones((21, 9, 12), bool)
    voted = labels_of([first, second, turned], "vote", shown, AnswerOptions(windows_at_once=1), brain)
    np.testing.assert_array_equal(voted, np.sum([one[0] >= 0.5 for one in alone], axis=0) >= 2)
    meant = labels_of([first, second, turned], "mean", shown, AnswerOptions(), brain)
    np.testing.assert_array_equal(meant, np.mean(alone, axis=0)[0] >= 0.5)


def test_a_mirror_image_is_averaged_and_left_is_right_in_it() -> None:
    """A network that finds the stem by its brightness, and one side by the place of the voxel in its window."""

    class Sides(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, images: Tensor, present: Tensor) -> Tensor:
            bright = images[:, :1]
            ramp = torch.linspace(0, 3, images.shape[2])[None, None, :, None, None].expand_as(bright)
            return torch.cat([0 * bright, ramp * bright, 2 * bright, -bright], dim=1) * self.weight

    model = Model(Sides(), replace(INFO, space=SIDES)).eval()
    shown = shown_of(8, 8, 8)
    plain = predict_volume(model, shown.images, shown.present, (8, 8, 8))
    other = predict_volume(model, shown.images[:, ::-1], shown.present, (8, 8, 8))[:, ::-1]
    expected = (plain + other[[2, 1, 0]]) / 2
    found = whole(probabilities_by_slab(model, shown, AnswerOptions(tta=True)), (8, 8, 8))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(found - (plain + other) / 2).max() > 0.1, "the sides do not matter here"


def test_an_image_and_its_mirror_image_get_mirrored_answers() -> None:
    model, shown = model_of(1), shown_of(24, 8, 9)
    mirrored = Shown(shown.images[:, ::-1].copy(), shown.present, AXIS)
    np.testing.assert_allclose(answer([model], shown, True), answer([model], mirrored, True)[:, ::-1], atol=1e-5)


def test_what_cannot_be_mirrored_or_put_together_is_refused(tmp_path: Path) -> None:
    left = model_of(1, space=LabelSpace((SpaceLabel("left thalamus", "tissue"),)))
    with pytest.raises(UsageError, match="other side of left thalamus: leave out --tta"):
        answer([left], shown_of(8, 8, 8), tta=True)
    with pytest.raises(UsageError, match=r"cannot answer together: spacing_mm is \(5.0, 5.0, 5.0\) in the first"):
        Voters((model_of(1), model_of(2, spacing_mm=(1.0, 1.0, 1.0))), "mean")
    with pytest.raises(UsageError, match="cannot answer together: space"):
        Voters((model_of(1), left), "mean")
    with pytest.raises(UsageError, match="there is no ensemble 'median': give mean or vote"):
        Voters((model_of(1), model_of(2)), "median")
    with pytest.raises(UsageError, match="2 models are given"):
        Voters((model_of(1), model_of(2)))
    save_model(tmp_path / "model.safetensors", left.network, left.info)
    with pytest.raises(UsageError, match="twice: name each model once"):
        load_ensemble([tmp_path, tmp_path / "model.safetensors"], "mean")


def test_an_ensemble_has_learnt_from_all_and_uses_what_all_know() -> None:
    first, second = model_of(1), model_of(2, trained_on={"FLAIR": (), "T1": ("b",)})
    first.learnt, second.learnt = LearntScans.of(["1" * 64]), LearntScans.of(["2" * 64])
    voters = Voters((first, second), "mean")
    assert voters.info.usable(("FLAIR", "T1")) == ("T1",)
    assert voters.learnt == LearntScans.of(["1" * 64, "2" * 64])
    second.learnt = None
    assert Voters((first, second), "mean").learnt is None


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three run folders of fresh networks, whose windows are large, so that few cover a case."""
    folder = tmp_path_factory.mktemp("models")
    for seed in range(3):
        model = model_of(seed, patch=(16, 16, 16))
        save_model(folder / f"{seed}" / "model.safetensors", model.network, model.info, model.learnt)
    return [folder / f"{seed}" for seed in range(3)]


@pytest.mark.slow  # reads and writes images, and imports what that needs
def test_one_patient_gets_the_mean_or_the_vote(models: list[Path], tmp_path: Path) -> None:
    scan = tmp_path / "FLAIR.nii.gz"
    write_nifti(scan, np.random.default_rng(1).uniform(1, 2, (20, 9, 10)).astype(np.float32), np.diag([5, 5, 5, 1.0]))
    first, *others = models
    alone = [predict(one, {"FLAIR": scan}, tmp_path / f"{one.name}.nii.gz").answer for one in models]
    options = PredictOptions(others=tuple(others), together="mean")
    mean = predict(first, {"FLAIR": scan}, tmp_path / "mean.nii.gz", options).answer
    expected = np.mean([one.probabilities for one in alone], axis=0)
    np.testing.assert_allclose(mean.probabilities, expected, atol=1e-5)
    sure = np.abs(expected[0] - 0.5) > 1e-4
    np.testing.assert_array_equal(mean.labels[sure], (expected[0] > 0.5)[sure])
    vote = predict(first, {"FLAIR": scan}, tmp_path / "vote.nii.gz", replace(options, together="vote")).answer
    np.testing.assert_array_equal(vote.labels, np.sum([one.labels for one in alone], axis=0) >= 2)
    np.testing.assert_allclose(vote.probabilities, expected, atol=1e-5)
    tta = predict(first, {"FLAIR": scan}, tmp_path / "tta.nii.gz", PredictOptions(tta=True)).answer
    assert np.abs(tta.probabilities - alone[0].probabilities).max() > 1e-4


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_an_ensemble_is_evaluated(
    models: list[Path], store_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = list(map(str, models))
    flags = ["--store", store_url, "--database", "dogwood", "--subsets", "full", "--overlap", "0.25", "--device", "cpu"]
    tables = {}
    for way in (["--ensemble", "mean"], ["--ensemble", "vote"], ["--ensemble", "mean", "--tta"]):
        out = tmp_path / "-".join(way)
        assert run(["evaluate", *names, *way, *flags, "--out", str(out)]) == 0
        tables[" ".join(way)] = pd.read_csv(out / "cases.csv")["predicted_ml"].tolist()
    assert len({tuple(column) for column in tables.values()}) == 3, tables
    ensemble = load_ensemble(models, "mean")
    options = EvaluateOptions(databases=("dogwood",), subsets="full", overlap=0.25)
    assert evaluate(ensemble, store_url, options).cases["predicted_ml"].tolist() == tables["--ensemble mean"]
    with pytest.raises(UsageError, match="leave out --adapt, or the ensemble"):
        evaluate(ensemble, store_url, replace(options, adapt=True))
    capsys.readouterr()
    assert run(["evaluate", *names, *flags]) == 2
    assert "--ensemble mean, or compare them" in capsys.readouterr().err.replace("\n", " ")
    assert run(["evaluate", names[0], "--ensemble", "mean", *flags]) == 2
    assert run(["evaluate", *names, "--ensemble", "median", *flags]) == 2
    assert "--ensemble is 'median': give mean or vote" in capsys.readouterr().err
    record = json.loads((tmp_path / "--ensemble-mean" / "summary.json").read_text())
    assert record["learnt"]["not learnt"]
    assert record["answered"] == {"ensemble": "mean"}
    assert record["overlap"] == 0.25
