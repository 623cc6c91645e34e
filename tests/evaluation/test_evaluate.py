"""Evaluation over subsets, and prediction in the patient's own space, with networks whose answer is known."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
import zarr
from torch import Tensor, nn

from multiseg.cli.app import run
from multiseg.errors import DataError, ModalityError, SourceError, UsageError
from multiseg.evaluation import model_evaluation
from multiseg.evaluation.comparison import ScoringOptions
from multiseg.evaluation.evaluation_result import EvaluateOptions
from multiseg.evaluation.model_evaluation import evaluate
from multiseg.evaluation.prediction import predict
from multiseg.evaluation.prediction_inputs import PredictOptions, name_images
from multiseg.evaluation.subsets import all_subsets
from multiseg.labels import LabelSpace
from multiseg.modalities import ModalityAxis
from multiseg.models.builders import NETWORKS
from multiseg.models.learnt_scans import LearntScans
from multiseg.models.saved import Model, ModelInfo, save_model
from multiseg.store.catalogue import select
from multiseg.store.formats.nifti import write_nifti
from multiseg.store.reader import open_store
from multiseg.store.sources.manifest import find_manifest

AXIS = ModalityAxis(("PD", "FLAIR", "T1", "T2"))


class Threshold(nn.Module):
    """Says lesion where the mean of the present channels is above a level: its answer can be worked by hand."""

    def __init__(self, level: float) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor(level))

    def forward(self, images: Tensor, present: Tensor) -> Tensor:
        count = present.sum(1).clamp(min=1)[:, None, None, None]
        return 50 * (images.sum(1) / count - self.level)[:, None]


def info(spacing: float = 5.0, trained_on: tuple[str, ...] = AXIS.names) -> ModelInfo:
    return ModelInfo(
        builder="multi_unet",
        numbers={"widths": [4, 8], "dropout": 0.0},
        axis=AXIS,
        space=LabelSpace(),
        spacing_mm=(spacing, spacing, spacing),
        patch=(32, 32, 32),
        trained_on={name: ("alder",) if name in trained_on else () for name in AXIS},
        databases={},
    )


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A model file whose network is a threshold."""
    monkeypatch.setitem(NETWORKS, "multi_unet", _builder)
    path = tmp_path / "model.safetensors"
    save_model(path, Threshold(1.5), info())
    return path


def _builder(num_modalities: int, num_logits: int, **numbers: object) -> nn.Module:
    return Threshold(0.0)


def test_all_subsets_of_three() -> None:
    found = all_subsets(["FLAIR", "T1", "T2"])
    assert found[0] == ("FLAIR", "T1", "T2")
    assert found[1:4] == [("FLAIR", "T1"), ("FLAIR", "T2"), ("T1", "T2")]
    assert len(set(found)) == 7


@pytest.mark.slow
def test_every_subset_of_every_case_is_a_row_and_worked_from_that_subset_alone(saved: Path, store_url: str) -> None:
    result = evaluate(saved, store_url, EvaluateOptions(split="test", databases=("alder", "dogwood")))
    store = open_store(store_url)
    assert len(result.cases) == 15 + 3
    assert set(result.cases.query("database == 'dogwood'")["modalities"]) == {"FLAIR+T1", "FLAIR", "T1"}
    (case,) = select(store, ["alder"], split="test")
    images, codes = store["alder"].whole(case)
    truth = codes[list(store["alder"].schemas).index("lesion")] == 1
    for subset in ("FLAIR", "FLAIR+T2"):
        at = [store["alder"].modalities.index(name) for name in subset.split("+")]
        mean = images[at].astype(np.float32).mean(axis=0)
        predicted = mean >= 1.5
        expected = 2 * (predicted & truth).sum() / (predicted.sum() + truth.sum())
        row = result.cases.query("database == 'alder' and case == @case.name and modalities == @subset")
        assert float(row["dice"].iloc[0]) == pytest.approx(float(expected), abs=0.02)


@pytest.mark.slow
def test_the_summary_is_the_mean_of_its_cases(saved: Path, store_url: str, tmp_path: Path) -> None:
    result = evaluate(saved, store_url, EvaluateOptions(split="", databases=("alder",), subsets="full"))
    assert len(result.summary) == 1
    assert result.summary["dice"].iloc[0] == pytest.approx(result.cases["dice"].mean())
    assert result.summary["num_cases"].iloc[0] == 4
    result.save(tmp_path / "out")
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "out" / "cases.csv"), result.cases)
    written = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert written["summary"][0]["dice"] == pytest.approx(result.cases["dice"].mean())
    assert "missed lesion" in written["empty_mask_policy"]
    assert (tmp_path / "out" / "montage.png").stat().st_size > 10_000


@pytest.mark.slow
def test_an_untrained_channel_is_left_out_and_said(saved: Path, store_url: str) -> None:
    save_model(saved, Threshold(1.5), info(trained_on=("FLAIR", "T1")))
    result = evaluate(saved, store_url, EvaluateOptions(split="", databases=("alder",)))
    assert set(result.cases["modalities"]) == {"FLAIR+T1", "FLAIR", "T1"}
    assert set(result.left_out["alder"]) == {"PD", "T2"}


@pytest.mark.slow
def test_a_case_without_a_usable_sequence_is_skipped_and_said(
    saved: Path, store_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(saved, Threshold(1.5), info(trained_on=("FLAIR",)))
    result = evaluate(saved, store_url, EvaluateOptions(split="", databases=("cedar",)))
    (without,) = [case for case in select(open_store(store_url), ["cedar"]) if "FLAIR" not in case.modalities]
    reason = "it has only DWI, ADC, which the model was not trained on"
    assert result.skipped == {f"cedar/{without.name}": reason}
    assert without.name not in set(result.cases["case"])
    assert run(["evaluate", str(saved), "--store", store_url, "--split", "all", "--database", "cedar"]) == 0
    assert f"not evaluated: cedar/{without.name}: {reason}." in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_what_cannot_be_evaluated_is_refused(saved: Path, store_url: str) -> None:
    with pytest.raises(UsageError, match=r"no run\.toml that names a store"):
        evaluate(saved)
    with pytest.raises(DataError, match=r"no complete subset of T2,T2\+T1 that what answers sees, only FLAIR, T1"):
        evaluate(saved, store_url, EvaluateOptions(split="", databases=("dogwood",), subsets="T2,T2+T1"))
    with pytest.raises(UsageError, match=r"subsets is 'some', but .* give one of all, full"):
        evaluate(saved, store_url, EvaluateOptions(subsets="some"))
    save_model(saved, Threshold(1.5), info(trained_on=("T2",)))
    with pytest.raises(
        DataError,
        match="no case of the split 'test' that can be evaluated: it has only FLAIR, T1, which the model was not",
    ):
        evaluate(saved, store_url, EvaluateOptions(databases=("dogwood",)))
    save_model(saved, Threshold(1.5), info(spacing=4.0))
    with pytest.raises(DataError, match=r"voxels of \[4.0, 4.0, 4.0\] mm"):
        evaluate(saved, store_url)


# --- prediction ---


def test_names_come_from_the_argument_or_the_file_name() -> None:
    named = name_images(["FLAIR=a/b.nii.gz", "x_t1ce.nii.gz", "t2gd=c.nii"])
    assert {name: str(path) for name, path in named.items()} == {
        "FLAIR": "a/b.nii.gz",
        "T1c": "x_t1ce.nii.gz",
        "t2gd": "c.nii",
    }
    with pytest.raises(ModalityError, match="does not show which sequence"):
        name_images(["P1_T1_FLAIR.nii.gz"])
    assert set(name_images(["Miller_t1_mprage_KM.nii.gz", "t2_tirm_tra_dark-fluid.nii"])) == {"T1c", "FLAIR"}
    for name in ("T1_pveseg.nii.gz", "SWI_minIP.nii.gz", "T1_mask.nii", "T1_pre_post.nii"):
        with pytest.raises(ModalityError, match=rf"{name}' does not show which sequence it is \(named \w+"):
            name_images([name])
    with pytest.raises(ModalityError, match="are both FLAIR"):
        name_images(["FLAIR=a.nii", "flair.nii"])


def blob(spacing: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A head of intensity 100 +- noise with a bright off-centre ball; and the ball; and an affine."""
    shape = tuple(int(96 / mm) for mm in spacing)
    i, j, k = np.meshgrid(*[np.arange(n) * mm - 48 for n, mm in zip(shape, spacing, strict=True)], indexing="ij")
    head = (i / 44) ** 2 + (j / 46) ** 2 + (k / 42) ** 2 < 1
    ball = (i - 12) ** 2 + (j + 8) ** 2 + (k - 10) ** 2 < 14**2
    noise = np.random.default_rng(0).normal(0, 3, shape)
    image = np.where(head, 100 + noise + 60 * ball, 0).astype(np.float32)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -48
    return image, ball, affine


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


@pytest.mark.parametrize("axes", ["RAS", "LPS", "PIR", "SAL"])
@pytest.mark.parametrize("spacing", [(2.0, 2.0, 2.0), (1.5, 1.5, 4.0)])
def test_the_answer_lies_on_the_patients_own_grid(
    axes: str, spacing: tuple[float, float, float], tmp_path: Path
) -> None:
    image, ball, affine = blob(spacing)
    turn = nib.orientations.ornt_transform(nib.io_orientation(np.eye(4)), nib.orientations.axcodes2ornt(axes))
    turned = nib.Nifti1Image(image, affine).as_reoriented(turn)
    turned.header.set_sform(turned.affine, code=2)
    turned.header.set_qform(turned.affine, code=1)
    turned.header["descrip"] = b"scanner 7"
    nib.save(turned, tmp_path / "flair.nii.gz")
    truth = np.asarray(nib.Nifti1Image(ball.astype("u1"), affine).as_reoriented(turn).dataobj) > 0

    model = Model(Threshold(1.5), info(spacing=2.0))
    result = predict(model, {"FLAIR": tmp_path / "flair.nii.gz"}, tmp_path / "out.nii.gz")

    answer = nib.load(tmp_path / "out.nii.gz")
    assert answer.shape == turned.shape
    np.testing.assert_array_equal(answer.affine, turned.affine)
    np.testing.assert_array_equal(answer.header.get_sform(coded=True)[0], turned.header.get_sform(coded=True)[0])
    assert int(answer.header["sform_code"]) == 2
    assert int(answer.header["qform_code"]) == 1
    assert bytes(answer.header["descrip"]).startswith(b"scanner 7")
    assert answer.get_data_dtype() == np.uint8
    found = np.asarray(answer.dataobj) == 1
    assert dice(found, truth) > (0.999 if spacing == (2.0, 2.0, 2.0) else 0.93)
    assert result.volumes_ml["lesion"] == pytest.approx(found.sum() * np.prod(spacing) / 1000)


def test_sequences_on_other_grids_are_brought_to_the_first(tmp_path: Path) -> None:
    fine, ball, affine = blob((2.0, 2.0, 2.0))
    coarse, _, coarse_affine = blob((3.0, 3.0, 3.0))
    write_nifti(tmp_path / "t1.nii.gz", coarse, coarse_affine)
    write_nifti(tmp_path / "flair.nii.gz", fine, affine)
    model = Model(Threshold(1.5), info(spacing=2.0))
    images = {"FLAIR": tmp_path / "flair.nii.gz", "T1": tmp_path / "t1.nii.gz"}
    result = predict(model, images, tmp_path / "a.nii.gz")
    assert result.reference == "FLAIR"
    assert nib.load(tmp_path / "a.nii.gz").shape == fine.shape
    assert dice(np.asarray(nib.load(tmp_path / "a.nii.gz").dataobj) == 1, ball) > 0.9
    assert predict(model, images, tmp_path / "b.nii.gz", PredictOptions(reference="T1")).reference == "T1"
    assert nib.load(tmp_path / "b.nii.gz").shape == coarse.shape


def test_a_sequence_the_model_never_saw_is_left_out_or_refused(tmp_path: Path) -> None:
    image, _, affine = blob((3.0, 3.0, 3.0))
    for name in ("a", "b"):
        write_nifti(tmp_path / f"{name}.nii.gz", image, affine)
    model = Model(Threshold(1.5), replace(info(spacing=3.0), trained_on={"FLAIR": ("x",)}))
    both = {"FLAIR": tmp_path / "a.nii.gz", "T1": tmp_path / "b.nii.gz"}
    assert predict(model, both, tmp_path / "o.nii.gz").left_out == ("T1",)
    with pytest.raises(ModalityError, match="the model learnt from FLAIR, but was given T1, SWI"):
        predict(model, {"T1": tmp_path / "b.nii.gz", "SWI": tmp_path / "a.nii.gz"}, tmp_path / "p.nii.gz")
    assert not (tmp_path / "p.nii.gz").exists()


def test_a_damaged_file_writes_nothing(tmp_path: Path) -> None:
    image, _, affine = blob((3.0, 3.0, 3.0))
    write_nifti(tmp_path / "a.nii.gz", image, affine)
    data = (tmp_path / "a.nii.gz").read_bytes()
    (tmp_path / "a.nii.gz").write_bytes(data[: len(data) // 2])
    with pytest.raises(SourceError, match="truncated or damaged"):
        predict(Model(Threshold(1.5), info()), {"FLAIR": tmp_path / "a.nii.gz"}, tmp_path / "o.nii.gz")
    assert not (tmp_path / "o.nii.gz").exists()


@pytest.mark.slow
def test_an_evaluation_that_was_cut_short_goes_on(saved: Path, store_url: str, tmp_path: Path) -> None:
    options = EvaluateOptions(split="", databases=("alder",), subsets="full", overlap=0.0)
    whole = evaluate(saved, store_url, options)

    class CutShortError(Exception):
        pass

    def cut(done: int, total: int, case: str) -> None:
        if done == 2:
            raise CutShortError

    folder = tmp_path / "out"
    with pytest.raises(CutShortError):
        evaluate(saved, store_url, options, folder=folder, on_case=cut)
    progress = folder / "progress.jsonl"
    lines = progress.read_text().splitlines()
    assert len(lines) == 3
    # A done case is taken from the file and not made again: a mark put there shows up in the result.
    marked = json.loads(lines[1])
    marked["rows"][0]["dice"] = 0.125
    progress.write_text("\n".join([lines[0], json.dumps(marked), lines[2][:20]]) + "\n")
    resumed = evaluate(saved, store_url, options, folder=folder)
    assert resumed.cases["dice"].tolist() == [0.125, *whole.cases["dice"].tolist()[1:]]
    assert len(resumed.panels) == len(whole.panels) == 2
    resumed.save(folder)
    assert not progress.exists()

    with pytest.raises(CutShortError):
        evaluate(saved, store_url, options, folder=folder, on_case=cut)
    save_model(saved, Threshold(1.0), info())
    with pytest.raises(UsageError, match=r"holds the cases\.csv of another evaluation"):
        evaluate(saved, store_url, options, folder=folder)
    pd.testing.assert_frame_equal(
        evaluate(saved, store_url, options, folder=folder, overwrite=True).cases,
        evaluate(saved, store_url, options).cases,
    )


@pytest.mark.slow
def test_other_rules_of_scoring_are_another_evaluation(saved: Path, store_url: str, tmp_path: Path) -> None:
    options = EvaluateOptions(split="", databases=("cedar",), subsets="full", overlap=0.0)
    plain = evaluate(saved, store_url, options, folder=tmp_path / "out")
    progress = tmp_path / "out" / "progress.jsonl"
    marked = [json.loads(line) for line in progress.read_text().splitlines()]
    for line in marked[1:]:
        line["rows"][0]["num_lesions"] = 99
    progress.write_text("".join(json.dumps(line) + "\n" for line in marked))
    for scoring in (
        ScoringOptions(lesion_rule="brats-gli"),
        ScoringOptions(tolerance_mm=9.0),
        ScoringOptions(empty="brats"),
    ):
        folder = tmp_path / f"{scoring.lesion_rule}-{scoring.empty}-{scoring.tolerance_mm:g}"
        folder.mkdir()
        shutil.copy(progress, folder)
        found = evaluate(saved, store_url, replace(options, scoring=scoring), folder=folder)
        assert 99 not in set(found.cases["num_lesions"])
    again = evaluate(saved, store_url, options, folder=tmp_path / "out")
    assert set(again.cases["num_lesions"]) == {99}
    wide = evaluate(saved, store_url, replace(options, scoring=ScoringOptions(tolerance_mm=9.0)))
    assert wide.summary["surface_dice"].iloc[0] > plain.summary["surface_dice"].iloc[0]
    assert wide.summary["assd_mm"].iloc[0] == plain.summary["assd_mm"].iloc[0]
    again.save(tmp_path / "out")
    with pytest.raises(UsageError, match=r"holds the cases\.csv of another evaluation"):
        evaluate(saved, store_url, replace(options, scoring=ScoringOptions(tolerance_mm=2.0)), folder=tmp_path / "out")


@pytest.mark.slow
def test_a_case_that_was_replaced_in_between_is_evaluated_again(saved: Path, store_url: str, tmp_path: Path) -> None:
    url, folder = str(tmp_path / "copy.zarr"), tmp_path / "out"
    shutil.copytree(store_url, url)
    options = EvaluateOptions(split="", databases=("alder",), subsets="full", overlap=0.0)
    whole = evaluate(saved, url, options, folder=folder)
    progress = folder / "progress.jsonl"
    head, *lines = progress.read_text().splitlines()
    marked = [json.loads(line) for line in lines]
    for line in marked:
        line["rows"][0]["dice"] = 0.125
    progress.write_text("\n".join([head, *map(json.dumps, marked)]) + "\n")
    first = select(open_store(url), ["alder"])[0]
    zarr.open_group(url, mode="r+")["alder"]["source_sha256"][first.row] = "0" * 64
    again = evaluate(saved, url, options, folder=folder).cases["dice"].tolist()
    assert again == [whole.cases["dice"][0], 0.125, 0.125, 0.125]


@pytest.mark.slow
def test_predict_says_that_the_model_has_learnt_from_this_scan(
    saved: Path, hospitals: Path, store_url: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    alder = next(files for files in find_manifest(hospitals / "manifest.toml") if files.name == "alder")
    files, case = alder.cases[0], open_store(store_url)["alder"][alder.cases[0].case]
    # Compressed anew, turned and under another name: the voxels are the same.
    scan = nib.load(files.images["FLAIR"])
    turn = np.diag([-1.0, 1.0, 1.0, 1.0])
    turn[0, 3] = scan.shape[0] - 1
    nib.save(nib.Nifti1Image(np.asarray(scan.dataobj)[::-1], scan.affine @ turn), tmp_path / "someone.nii")
    network = Threshold(1.5)
    save_model(saved, network, info(), LearntScans.of([case.content["FLAIR"]], [case.content["T1"]]))
    images = {"FLAIR": tmp_path / "someone.nii", "T1": files.images["T1"], "T2": files.images["T2"]}
    result = predict(saved, images, tmp_path / "answer.nii.gz", PredictOptions(brain_mask="nonzero"))
    assert dict(result.learnt) == {"FLAIR": "train", "T1": "val", "T2": ""}
    said = [doubt.message for doubt in result.doubts if doubt.code == "LEARNT_FROM"]
    assert len(said) == 2
    assert "was trained on this same scan of FLAIR" in said[0]
    assert "was chosen by validations on this same scan of T1" in said[1]

    save_model(saved, network, info())
    arguments = ["predict", str(saved), f"FLAIR={images['FLAIR']}", "-o", str(tmp_path / "two.nii.gz")]
    assert run([*arguments, "--brain-mask", "nonzero", "--device", "cpu"]) == 0
    assert "It is not known whether the model learnt from these scans" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["out.txt", "folder/", "out.nii.gz.png"])
def test_the_answer_is_a_nifti_file(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"name must end in \.nii\.gz"):
        predict(Model(Threshold(1.5), info()), {"FLAIR": tmp_path / "a.nii.gz"}, tmp_path / name)


def test_evaluations_of_other_data_lie_side_by_side(
    saved: Path, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = []

    def not_evaluated(*given: object) -> None:
        folders.append(given[4])
        raise UsageError("its folder is known by now")

    monkeypatch.setattr(model_evaluation, "evaluate", not_evaluated)
    for more in ([], ["--database", "alder"], ["--database", "alder", "--database", "birch"]):
        assert run(["evaluate", str(saved), "--store", store_url, "--split", "val", *more]) == 2
    names = ["evaluation-val-brain", "evaluation-val-brain-alder", "evaluation-val-brain-alder-birch"]
    assert folders == [saved.parent / name for name in names]
