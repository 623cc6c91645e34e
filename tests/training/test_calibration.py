"""A calibration is fitted on validation cases alone, is stored in the model, and changes no segmentation."""

import csv
import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from json_documents import checked
from torch import Tensor, nn

from multiseg.cli.app import run
from multiseg.commands_log import COMMANDS, add_command
from multiseg.errors import DataError, ResourceError, UsageError
from multiseg.evaluation.case_answers import AnswerOptions, Shown, answer_of
from multiseg.evaluation.cohort_records import CaseRecord
from multiseg.evaluation.evaluation_result import EvaluateOptions
from multiseg.evaluation.model_evaluation import evaluate, load_ensemble
from multiseg.evaluation.prediction import predict
from multiseg.evaluation.prediction_inputs import PredictOptions
from multiseg.evaluation.result_folder import SUMMARY
from multiseg.evaluation.structure_tables import StructureRow
from multiseg.evaluation.voting import Voters, look_doubts
from multiseg.export.model_package import handover, write_package
from multiseg.files import lock_folder
from multiseg.labels import LabelSpace
from multiseg.modalities import ModalityAxis
from multiseg.models.builders import NETWORKS
from multiseg.models.calibration_record import UNCALIBRATED, Calibration, Temperatures, look_below_of, temperatures_of
from multiseg.models.learnt_scans import LearntScans
from multiseg.models.saved import BEST, Model, ModelInfo, load_weights, read_info, read_learnt, save_model
from multiseg.store.catalogue import select
from multiseg.store.folds import Fold, splits_of_fold
from multiseg.store.reader import open_store
from multiseg.training import calibration as module
from multiseg.training.calibration import CalibrateOptions, CalibrationResult, calibrate
from multiseg.training.start import Channels, StartOptions, descended, parent_of

NUMBERS = {"widths": [2, 3], "dropout": 0.0}
ALDER = CalibrateOptions("alder", overlap=0.0)


class TooSure(nn.Module):
    """Says lesion where FLAIR is above a level, and is hardly ever in doubt; without FLAIR it sees none."""

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor(3.0))

    def forward(self, images: Tensor, present: Tensor) -> Tensor:
        has_flair = present[:, 0, None, None, None]
        return 20 * (torch.where(has_flair, images[:, 0], 0) - self.level)[:, None]


@pytest.fixture(autouse=True, scope="module")
def network() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETWORKS, "multi_unet", lambda num_modalities, num_logits, **numbers: TooSure())
        yield


def save(folder: Path, learnt: LearntScans | None = None) -> Path:
    axis = ModalityAxis(("FLAIR", "T1"))
    info = ModelInfo(
        "multi_unet", NUMBERS, axis, LabelSpace(), (5.0, 5.0, 5.0), (16, 16, 16), dict.fromkeys(axis, ("alder",)),
        {"alder": {"pathology": "ms", "num_cases": 2}},
    )  # fmt: skip
    folder.mkdir(exist_ok=True)
    save_model(folder / BEST, TooSure(), info, learnt)
    return folder / BEST


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def val_scans(store_url: str) -> list[str]:
    return [
        digest for case in select(open_store(store_url), ["alder"], split="val") for digest in case.content.values()
    ]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, store_url: str) -> Path:
    """A model that was chosen by the validation cases."""
    return save(tmp_path_factory.mktemp("plain"), LearntScans.of(["f" * 64], val_scans(store_url)))


@pytest.fixture(scope="module")
def calibrated(plain: Path, store_url: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("calibrated") / BEST
    shutil.copy(plain, file)
    assert calibrate(file, store_url, ALDER).is_new
    return file


@pytest.mark.slow
def test_the_file_gets_temperatures_and_nothing_else_changes(plain: Path, calibrated: Path) -> None:
    before, after = read_info(plain), read_info(calibrated)
    assert replace(after, calibration=None) == before
    assert after.calibration is not None
    assert list(after.calibration.temperatures) == [1, 2]
    assert after.calibration.temperatures[2].outside > 3
    assert after.calibration.cases == {"alder": 1}
    assert after.calibration.learnt == "val"
    assert list(after.calibration.look_below) == ["lesion"]
    assert read_learnt(calibrated) == read_learnt(plain)
    weights = load_weights(calibrated)
    assert all(torch.equal(weights[name], tensor) for name, tensor in load_weights(plain).items())
    assert not list(calibrated.parent.glob(".*calibration"))


@pytest.mark.slow
def test_twice_is_as_once(calibrated: Path, store_url: str, tmp_path: Path) -> None:
    again = tmp_path / BEST
    shutil.copy(calibrated, again)
    stamp = again.stat().st_mtime_ns
    result = calibrate(again, store_url, ALDER)
    assert not result.is_new
    assert result.calibration == read_info(calibrated).calibration
    assert again.stat().st_mtime_ns == stamp
    calibrate(again, store_url, replace(ALDER, poor_dice=0.3))
    assert read_info(again).calibration.poor_dice == 0.3


@pytest.mark.slow
def test_an_interrupted_calibration_resumes(
    plain: Path, calibrated: Path, store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / BEST
    shutil.copy(plain, file)

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(module, "_fitted", interrupt)
        with pytest.raises(KeyboardInterrupt):
            calibrate(file, store_url, ALDER)
    assert file.read_bytes() == plain.read_bytes()
    (held,) = file.parent.glob(f".{BEST}.calibration/*/*.npz")
    with monkeypatch.context() as broken:
        broken.setattr(module, "answers", interrupt)  # nothing is computed again
        calibrate(file, store_url, ALDER)
    assert file.read_bytes() == calibrated.read_bytes()
    assert not held.exists()


@pytest.mark.slow
def test_a_damaged_remainder_is_computed_again(plain: Path, calibrated: Path, store_url: str, tmp_path: Path) -> None:
    file = tmp_path / BEST
    shutil.copy(plain, file)
    ground = module._ground(module.load_model(file), open_store(store_url), ALDER)
    kept = module.KeptSamples(file, ground.key)
    list(module._samples(ground, kept, lambda *progress: None))
    (held,) = kept.folder.glob("*.npz")
    held.write_bytes(held.read_bytes()[:-40])
    calibrate(file, store_url, ALDER)
    assert file.read_bytes() == calibrated.read_bytes()


@pytest.mark.slow
def test_cases_that_were_trained_on_are_refused(store_url: str, tmp_path: Path) -> None:
    trained = save(tmp_path / "trained", LearntScans.of(val_scans(store_url)[:1]))
    before = trained.read_bytes()
    with pytest.raises(DataError, match="was trained on all 1 validation cases of alder"):
        calibrate(trained, store_url, ALDER)
    assert trained.read_bytes() == before


@pytest.mark.slow
def test_what_cannot_be_calibrated_is_refused(
    plain: Path, calibrated: Path, store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=r"no run\.toml that names a store"):
        calibrate(plain)
    with pytest.raises(UsageError, match=r"poor is 1\.5: give one between 0 and 1"):
        CalibrateOptions(poor_dice=1.5)
    foreign = tmp_path / "foreign"
    info = replace(read_info(plain), databases={})
    foreign.mkdir()
    save_model(foreign / BEST, TooSure(), info)
    with pytest.raises(UsageError, match=r"none of the databases that the model learnt from.*--database"):
        calibrate(foreign, store_url)
    write_package(handover(calibrated.parent), tmp_path / "m.multiseg")
    with pytest.raises(UsageError, match=r"is a package.*calibrate the run"):
        calibrate(tmp_path / "m.multiseg", store_url)
    run_folder = tmp_path / "run"
    shutil.copytree(plain.parent, run_folder)
    (run_folder / "run.toml").write_text(f'store = "{store_url}"', encoding="utf-8")
    with lock_folder(run_folder / ".lock", ""), pytest.raises(ResourceError, match="a training writes to it"):
        calibrate(run_folder)
    monkeypatch.setattr(module, "validation_cases", lambda *arguments: [])
    with pytest.raises(DataError, match=r"no validation case of alder.*--split train=0\.7"):
        calibrate(plain, store_url, ALDER)


@pytest.mark.slow
def test_masks_stay_and_probabilities_are_softer(
    plain: Path, calibrated: Path, hospitals: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan = next((hospitals / "alder").rglob("*FLAIR.nii.gz"))
    study = tmp_path / "study" / "p1"
    study.mkdir(parents=True)
    shutil.copy(scan, study / "FLAIR.nii.gz")
    for name, model in (("plain", plain), ("calibrated", calibrated)):
        command = ["predict", str(model), str(study.parent), "-o", str(tmp_path / name), "--device", "cpu"]
        assert run([*command, "--brain-mask", "nonzero", "--probabilities", "--overlap", "0"]) == 0
    masks, probabilities = (
        [np.asarray(nib.load(tmp_path / name / f"p1{end}.nii.gz").dataobj) for name in ("plain", "calibrated")]
        for end in ("", "_prob-lesion")
    )
    np.testing.assert_array_equal(*masks)
    assert 0 < masks[0].sum() < masks[0].size
    np.testing.assert_array_equal(*(one >= 0.5 for one in probabilities))
    sure = (probabilities[0] > 0.6) & (probabilities[0] < 0.99)
    assert (probabilities[1][sure] < probabilities[0][sure]).all()
    (plain_row,), (row,) = (table(tmp_path / name / "cases.csv") for name in ("plain", "calibrated"))
    assert float(row["expected_dice"]) < float(plain_row["expected_dice"])
    text = capsys.readouterr().out
    calibration = read_info(calibrated).calibration
    is_flagged = float(row["expected_dice"]) < look_below_of(calibration, "lesion")
    assert ("LOOK_AT_THIS" in row["doubts"]) == is_flagged
    assert ("LOOK_AT_THIS" in text) == (is_flagged or float(plain_row["expected_dice"]) < 0.5)
    lesions = table(tmp_path / "calibrated" / "lesions.csv")
    mean = np.average(
        [float(one["mean_probability"]) for one in lesions], weights=[float(one["ml"]) for one in lesions]
    )
    assert mean == pytest.approx(probabilities[1][masks[1] == 1].mean(), abs=1e-3)


@pytest.mark.slow
def test_an_evaluation_has_the_errors_before_and_after(
    plain: Path, calibrated: Path, store_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = EvaluateOptions("val", "alder", overlap=0.0)
    before, after = evaluate(plain, store_url, options), evaluate(calibrated, store_url, options)
    same = ["dice", "ece_uncalibrated", "predicted_ml"]
    assert after.cases[same].equals(before.cases[same])
    assert before.cases["ece"].equals(before.cases["ece_uncalibrated"].rename("ece"))
    blind = after.summary["modalities"] == "T1"
    assert (after.summary["ece_pooled"] < after.summary["ece_uncalibrated_pooled"])[~blind].all()
    assert after.summary["ece_pooled"][blind].isna().all()
    assert (after.cases["brier"] < before.cases["brier"]).all()
    sees = after.cases["modalities"] != "T1"
    assert (after.cases["expected_dice"] < before.cases["expected_dice"])[sees].all()
    # A case alone in its cell: its voxels are all voxels.
    assert after.summary["ece_pooled"].tolist() == pytest.approx(after.cases["ece"].tolist(), nan_ok=True)
    command = ["evaluate", str(calibrated), "--store", store_url, "--split", "val", "--database", "alder"]
    assert run([*command, "--overlap", "0", "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "lowers the error of the pooled voxels in 2 of 2 cells" in text
    written = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert written["calibration_errors"] == [
        {"learnt": "val", "num_cells": 2, "num_lower": 2, "num_equal": 0, "num_higher": 0}
    ]
    assert written["calibration"]["temperatures"].keys() == {"1", "2"}
    bins = table(tmp_path / "out" / "reliability.csv")
    assert {row["probabilities"] for row in bins} == {"calibrated", "uncalibrated"}
    assert (tmp_path / "out" / "reliability.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_command(plain: Path, store_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / BEST
    shutil.copy(plain, file)
    command = ["calibrate", str(file), "--store", store_url, "--database", "alder", "--overlap", "0"]
    assert run([*command, "--device", "cpu", "--json"]) == 0
    content = checked(capsys.readouterr().out, "calibrate")
    assert [fit["num_sequences"] for fit in content["fits"]] == [1, 2]
    assert all(fit["ece_after"] < fit["ece_before"] for fit in content["fits"])
    assert run([*command, "--device", "cpu"]) == 0
    assert "has this calibration already, and was not changed" in " ".join(capsys.readouterr().out.split())
    assert run([*command, "--device", "cpu", "--poor-dice", "0.4"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "lesion: look at segmentations with an expected Dice below" in text
    assert "temperatures of 2 numbers of sequences stored" in text
    assert run(["info", str(file)]) == 0
    assert "temperatures outside/inside by number of sequences" in capsys.readouterr().out


@pytest.mark.slow
def test_a_package_carries_the_temperatures(calibrated: Path, tmp_path: Path) -> None:
    handed = handover(calibrated.parent)
    write_package(handed, tmp_path / "m.multiseg")
    stored = replace(read_info(calibrated).calibration, key="")  # whoever has the cases could recognise them by it
    assert read_info(tmp_path / "m.multiseg").calibration == stored
    assert read_info(calibrated).calibration.key
    config = json.loads(handed.files["config.json"])
    assert config["preparation"]["calibration"]["temperatures"] == stored.to_json()["temperatures"]
    assert config["model"]["calibration"] == stored.to_json()
    assert "calibrated on 1 validation cases of alder" in handed.files["README.md"].decode()


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["vote", "mean"])
def test_ensembles_answer_as_before_and_average_what_is_calibrated(
    rule: str, plain: Path, calibrated: Path, hospitals: Path, tmp_path: Path
) -> None:
    scan = next((hospitals / "alder").rglob("*FLAIR.nii.gz"))
    found = {}
    for name, models in {"calibrated": (calibrated,), "plain": (plain,), "both": (plain, calibrated)}.items():
        together = {"others": models[1:], "together": rule} if len(models) > 1 else {}
        options = PredictOptions(brain_mask="nonzero", overlap=0.0, **together)
        found[name] = predict(models[0], {"FLAIR": scan}, tmp_path / f"{name}.nii.gz", options)
    labels = [one.answer.labels for one in found.values()]
    np.testing.assert_array_equal(labels[0], labels[1])
    np.testing.assert_array_equal(labels[0], labels[2])
    one, other, both = (found[name].answer.probabilities for name in found)
    assert both == pytest.approx((one + other) / 2, abs=1e-6)
    # Of the two thresholds the higher one counts.
    expected = found["both"].expected_dice["lesion"]
    for least, is_flagged in ((expected - 0.01, False), (expected + 0.01, True)):
        calibrations = [replace(CALIBRATION, look_below={"lesion": one}) for one in (0.0, least)]
        infos = [replace(read_info(plain), calibration=one) for one in calibrations]
        doubts = look_doubts(Voters(tuple(Model(TooSure(), info) for info in infos), rule), {"lesion": expected})
        assert [doubt.code for doubt in doubts] == (["LOOK_AT_THIS"] if is_flagged else [])


class Says(nn.Module):
    """Gives every voxel one probability."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.tensor(probability).logit())

    def forward(self, images: Tensor, present: Tensor) -> Tensor:
        return self.logit * torch.ones_like(images[:, :1])


def test_the_mean_of_an_ensemble_decides_before_any_calibration(plain: Path) -> None:
    soft = Temperatures(10.0, 10.0)  # of 0.6 it makes 0.51, so that the mean of what is shown is below 0.5
    info = read_info(plain)
    number = len(info.axis)
    calibration = replace(CALIBRATION, temperatures=dict.fromkeys(range(1, number + 1), soft))
    models = [Model(Says(0.45), info), Model(Says(0.6), replace(info, calibration=calibration))]
    shape = info.patch
    shown = Shown(np.ones((number, *shape), np.float32), np.ones(number, bool), info.axis)
    answer = answer_of(models, "mean", shown, AnswerOptions(0.0), np.ones(shape, bool))
    assert answer.probabilities == pytest.approx(np.full((1, *shape), 0.525), abs=1e-5)
    assert answer.calibrated == pytest.approx(np.full((1, *shape), (0.45 + 0.51013) / 2), abs=1e-4)
    assert (answer.labels == 1).all()
    uncalibrated = answer_of(models[:1], "", shown, AnswerOptions(0.0), np.ones(shape, bool))
    assert uncalibrated.calibrated is uncalibrated.probabilities


@pytest.mark.slow
def test_a_run_of_a_fold_is_fitted_on_its_validation_cases(plain: Path, store_url: str, tmp_path: Path) -> None:
    cases = open_store(store_url).cases
    own = {case.name for case in cases if (case.database, case.split) == ("alder", "val")}
    found = {}
    for index in range(4):
        splits = splits_of_fold(cases, Fold(index, 4))
        found[index] = {name for (database, name), split in splits.items() if (database, split) == ("alder", "val")}
    index, fitted = next((index, names) for index, names in found.items() if names != own)
    save_model(tmp_path / BEST, TooSure(), read_info(plain), LearntScans.of(["f" * 64], []))
    (tmp_path / "run.toml").write_text(f'store = "{store_url}"\nfold = "{index}/4"\nfold_seed = 0\n')
    seen: list[str] = []
    calibrate(tmp_path, None, ALDER, on_case=lambda done, total, case: seen.append(case))
    assert {case.removeprefix("alder/") for case in seen} == fitted


@pytest.mark.slow
def test_an_ensemble_is_calibrated_if_one_of_it_is(plain: Path, calibrated: Path, store_url: str) -> None:
    options = EvaluateOptions("val", "alder", "full", overlap=0.0)
    for models, expected in (((plain, calibrated), True), ((plain, plain.with_name("copy.safetensors")), False)):
        if not models[1].exists():
            shutil.copy(plain, models[1])
        result = evaluate(load_ensemble(models, "mean"), store_url, options)
        assert (result.is_calibrated, result.calibration) == (expected, None)
        assert bool(result.to_json()["calibration_errors"]) == expected
        assert result.models == tuple(hashlib.sha256(model.read_bytes()).hexdigest() for model in models)


@pytest.mark.slow
def test_where_lesions_are_assumed_their_probabilities_say_nothing(calibrated: Path, store_url: str) -> None:
    options = EvaluateOptions("val", "alder", "full", overlap=0.0, lesion_assumed=True)
    result = evaluate(calibrated, store_url, options)
    assert result.cases[["ece", "brier", "expected_dice", "look_at_this"]].isna().all(axis=None)
    assert not len(result.reliability)


def test_a_model_that_learns_further_has_no_calibration(calibrated: Path) -> None:
    parent = parent_of(StartOptions(str(calibrated)))
    assert parent.info.calibration is not None
    new, channels = replace(parent.info, calibration=None), Channels(parent.info.axis, {}, ())
    assert descended(new, parent, channels, StartOptions()).calibration is None


def test_a_record_of_an_older_multiseg_is_still_one() -> None:
    row = {"structure": "lesion", "kind": "lesion", "ml": 1.0, "lesions": 2}
    record = CaseRecord("ms", "a", "a", "", "done", "k", structures=(StructureRow(**row),))
    data = json.loads(json.dumps(record.to_json()))
    data["structures"] = [row]
    assert CaseRecord.from_json(data) == record


CALIBRATION = Calibration(
    {2: Temperatures(1.5, 1.0), 3: Temperatures(2.0, 1.0)}, {"lesion": 0.4}, 0.5, {"ms": 3}, "val", "k"
)


def test_the_nearest_smaller_number_stands_for_one_that_was_not_fitted() -> None:
    assert [temperatures_of(CALIBRATION, num).outside for num in (1, 2, 3, 4)] == [1.5, 1.5, 2.0, 2.0]
    assert temperatures_of(None, 3) == UNCALIBRATED
    assert look_below_of(CALIBRATION, "lesion") == 0.4
    assert look_below_of(CALIBRATION, "other") == look_below_of(None, "lesion") == 0.5


def test_a_calibration_survives_its_json() -> None:
    assert Calibration.from_json(json.loads(json.dumps(CALIBRATION.to_json()))) == CALIBRATION


@pytest.mark.parametrize("wrong", [{}, {1: Temperatures(1.0, 0.0)}, {1: Temperatures(float("nan"), 1.0)}])
def test_impossible_temperatures_are_refused(wrong: dict[int, Temperatures]) -> None:
    with pytest.raises(DataError, match="all must be above 0"):
        replace(CALIBRATION, temperatures=wrong)


def test_an_uncalibrated_model_is_described_as_ever(plain: Path) -> None:
    assert "calibration" not in read_info(plain).to_json()


def test_the_next_command_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A calibration makes the evaluations before it those of an older model."""
    calibration = Calibration({1: Temperatures(1.0, 1.0)}, {}, 0.5, {"alder": 1}, "", "key")
    monkeypatch.setattr(
        "multiseg.training.calibration.calibrate",
        lambda file, *others: CalibrationResult(file, calibration, is_new=True),
    )
    assert run(["calibrate", str(tmp_path)]) == 0
    assert capsys.readouterr().err.splitlines()[-2:] == ["Next:", f"multiseg evaluate {tmp_path}"]
    for name, words in (("evaluation-val", ["--tta"]), ("evaluation-test", []), ("evaluation-unfinished", [])):
        (tmp_path / name).mkdir()
        add_command(tmp_path / name, ["evaluate", str(tmp_path), *words])
        if name != "evaluation-unfinished":
            (tmp_path / name / SUMMARY).write_text("{}")
    (tmp_path / "evaluation-test" / COMMANDS).unlink()
    assert run(["calibrate", str(tmp_path), "--store", "a b.zarr"]) == 0
    first, *commands = capsys.readouterr().err.splitlines()[-3:]
    assert "made before it" in first
    assert commands == [
        f"multiseg evaluate {tmp_path} --store 'a b.zarr' --overwrite",
        f"multiseg evaluate {tmp_path} --tta --overwrite",
    ]
