"""A cohort is segmented case by case: resumable, one bad case stops no other, and its tables are what its masks are."""

import csv
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from commands import Command
from distributed import LocalCluster
from json_documents import checked
from scipy import ndimage

from multiseg.cli.app import run
from multiseg.errors import ResourceError
from multiseg.evaluation import cohort
from multiseg.evaluation.cohort_call import CohortCall, digests_of, in_place_of
from multiseg.evaluation.cohort_records import RECORDS, RUN, CohortFolder
from multiseg.evaluation.prediction_inputs import PredictOptions
from multiseg.labels import LabelSpace
from multiseg.modalities import ModalityAxis
from multiseg.models.builders import multi_unet
from multiseg.models.saved import ModelInfo, save_model

SPACING_MM = (5.0, 5.0, 5.0)


def save(folder: Path, seed: int, axis: tuple[str, ...] = ("FLAIR", "T1")) -> Path:
    """A model of FLAIR and T1 with weights as they are drawn: its answer has many parts."""
    torch.manual_seed(seed)
    info = ModelInfo(
        builder="multi_unet", numbers={"widths": [4, 8], "dropout": 0.0, "norm": "instance"},
        axis=ModalityAxis(axis), space=LabelSpace(), spacing_mm=SPACING_MM, patch=(16, 16, 16),
        trained_on=dict.fromkeys(axis, ("alder",)), databases={},
    )  # fmt: skip
    network = multi_unet(len(axis), 1, widths=(4, 8), dropout=0.0)
    torch.nn.init.normal_(network.head.weight, std=3)
    save_model(folder / "model.safetensors", network, info)
    return folder / "model.safetensors"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("model"), seed=0)


def save_scan(path: Path, seed: int, affine: np.ndarray) -> None:
    rng = np.random.default_rng(seed)
    voxels = np.zeros((14, 15, 16), dtype=np.float32)
    voxels[2:-2, 2:-2, 2:-2] = ndimage.gaussian_filter(rng.normal(size=(10, 11, 12)), 1) * 300 + 500
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, affine), path)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Three patients with FLAIR and T1, two with a label, which is neither needed nor read."""
    affine = np.array([[0, -4, 0, 30], [-5.0, 0, 0, 20], [0, 0, 6, -40], [0, 0, 0, 1]])
    for number, case in enumerate(("A1", "A2", "A3")):
        for sequence in ("FLAIR", "T1"):
            save_scan(tmp_path / "study" / case / f"{sequence}.nii.gz", 2 * number + (sequence == "T1"), affine)
    for case in ("A1", "A2"):
        (tmp_path / "study" / case / "label.nii.gz").write_bytes(b"not even an image")
    return tmp_path / "study"


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def stamps(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in out.rglob("*.nii.gz")}


@pytest.mark.slow
def test_the_tables_are_what_the_masks_are(model: Path, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(["predict", str(model), str(source), "-o", str(out), "--probabilities"]) == 0
    rows, lesions = table(out / "cases.csv"), table(out / "lesions.csv")
    assert [row["case"] for row in rows] == ["A1", "A2", "A3"]
    num_lesions = 0
    for row in rows:
        image = nib.load(out / row["file"])
        mask, scan = np.asarray(image.dataobj) == 1, nib.load(source / row["case"] / "FLAIR.nii.gz")
        assert mask.shape == scan.shape
        np.testing.assert_array_equal(image.affine, scan.affine)
        parts, num = ndimage.label(mask, np.ones((3, 3, 3)))
        assert (int(row["lesions"]), row["sequences"], row["reference"]) == (num, "FLAIR+T1", "FLAIR")
        assert float(row["ml"]) == pytest.approx(mask.sum() * 4 * 5 * 6 / 1000)
        probability = np.asarray(nib.load(out / f"{row['case']}_prob-lesion.nii.gz").dataobj)
        own = [lesion for lesion in lesions if lesion["case"] == row["case"]]
        assert [int(lesion["lesion"]) for lesion in own] == [*range(1, num + 1)]
        assert [float(lesion["ml"]) for lesion in own] == sorted((float(one["ml"]) for one in own), reverse=True)
        num_lesions += num
        seen = set()
        for lesion in own:
            box = [(int(lesion[f"{axis}_first"]), int(lesion[f"{axis}_last"])) for axis in "ijk"]
            found = [
                part for part in range(1, num + 1)
                if [(int(at.min()), int(at.max())) for at in np.nonzero(parts == part)] == box
                and part not in seen
                and float(lesion["ml"]) == pytest.approx((parts == part).sum() * 0.12)
            ]  # fmt: skip
            voxels = np.argwhere(parts == found[0])
            seen.add(found[0])
            centre = nib.affines.apply_affine(image.affine, voxels).mean(axis=0)
            assert [float(lesion[f"{axis}_mm"]) for axis in "xyz"] == pytest.approx(centre, abs=1e-4)
            assert float(lesion["mean_probability"]) == pytest.approx(probability[parts == found[0]].mean(), abs=1e-5)
    assert num_lesions == len(lesions) > 3


@pytest.fixture
def done(model: Path, source: Path, tmp_path: Path) -> Iterator[list[str]]:
    """The command that has segmented the three patients."""
    command = ["predict", str(model), str(source), "-o", str(tmp_path / "out")]
    assert run(command) == 0
    return command


@pytest.mark.slow
def test_only_what_has_changed_is_done_again(
    done: list[str], source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    before = stamps(out)
    save_scan(source / "A2" / "T1.nii.gz", 7, nib.load(source / "A2" / "FLAIR.nii.gz").affine)
    (out / "A3.nii.gz").unlink()
    capsys.readouterr()
    assert run([*done, "--json"]) == 0
    report = checked(capsys.readouterr().out, "predict")
    assert (report["segmented"], report["unchanged"], report["failed"]) == (["A2", "A3"], ["A1"], [])
    after = stamps(out)
    assert {name for name in after if after[name] != before[name]} == {"A2.nii.gz", "A3.nii.gz"}
    assert run([*done, "--overwrite", "--json"]) == 0
    assert checked(capsys.readouterr().out, "predict")["segmented"] == ["A1", "A2", "A3"]


@pytest.mark.slow
def test_a_bad_case_stops_no_other_and_is_listed(
    model: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = (source / "A2" / "FLAIR.nii.gz").read_bytes()
    (source / "A2" / "FLAIR.nii.gz").write_bytes(good[:-200])
    out = tmp_path / "out"
    command = ["predict", str(model), str(source), "-o", str(out)]
    assert run(command) == 4
    assert "failed A2" in capsys.readouterr().err
    rows = {row["case"]: row for row in table(out / "cases.csv")}
    assert "FLAIR.nii.gz" in rows["A2"]["error"]
    assert rows["A2"]["ml"] == rows["A1"]["error"] == rows["A3"]["error"] == ""
    assert sorted(stamps(out)) == ["A1.nii.gz", "A3.nii.gz"]
    (source / "A2" / "FLAIR.nii.gz").write_bytes(good)
    assert run(command) == 0
    assert {row["error"] for row in table(out / "cases.csv")} == {""}


def test_a_case_that_was_good_leaves_no_old_mask_when_it_turns_bad(
    done: list[str], source: Path, tmp_path: Path
) -> None:
    (source / "A2" / "FLAIR.nii.gz").write_bytes(b"lost")
    assert run(done) == 4
    assert not (tmp_path / "out" / "A2.nii.gz").exists()
    assert [row["case"] for row in table(tmp_path / "out" / "cases.csv") if row["error"]] == ["A2"]


@pytest.mark.slow
def test_what_a_person_changed_is_kept(done: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mask = tmp_path / "out" / "A1.nii.gz"
    mask.write_bytes(mask.read_bytes() + b"corrected")
    for _ in range(2):
        assert run(done) == 4
        assert "A1.nii.gz was changed after it was written" in " ".join(capsys.readouterr().err.split())
        assert mask.read_bytes().endswith(b"corrected")
    assert run([*done, "--overwrite"]) == 0
    assert not mask.read_bytes().endswith(b"corrected")


def test_a_foreign_file_is_kept(model: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "A1.tsv").write_text("mine")
    assert run(["predict", str(model), str(source), "-o", str(tmp_path / "out")]) == 4
    assert "A1.tsv was not written by this command" in " ".join(capsys.readouterr().err.split())
    assert (tmp_path / "out" / "A1.tsv").read_text() == "mine"
    assert not (tmp_path / "out" / "A1.nii.gz").exists()


@pytest.mark.slow
def test_models_and_options_are_not_mixed(
    done: list[str], source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, before = tmp_path / "out", stamps(tmp_path / "out")
    (tmp_path / "other").mkdir()
    other = [done[0], str(save(tmp_path / "other", seed=1)), *done[2:]]
    for command in (other, [*done, "--overlap", "0.25"], [*done, "--probabilities"]):
        assert run(command) == 2
        assert "by another model or with other options, such as A1" in " ".join(capsys.readouterr().err.split())
    assert stamps(out) == before
    shutil.rmtree(source / "A3")
    assert run([*other, "--overwrite"]) == 2  # A3 would stay, by the first model
    assert "such as A3. Choose another --out." in " ".join(capsys.readouterr().err.split())
    assert stamps(out) == before


@pytest.mark.slow
def test_an_interrupted_run_resumes(
    model: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C in the second case, after its mask was written but not its record."""
    from multiseg.evaluation import cohort

    real, seen = cohort._read_back, []

    def interrupted(prediction: object, space: object) -> object:
        seen.append(prediction)
        if len(seen) == 2:
            (tmp_path / "out" / ".A2.nii.gz.1.tmp").write_bytes(b"half")
            raise KeyboardInterrupt
        return real(prediction, space)

    monkeypatch.setattr(cohort, "_read_back", interrupted)
    command = ["predict", str(model), str(source), "-o", str(tmp_path / "out"), "--overwrite"]
    assert run(command) == 130
    said = " ".join(capsys.readouterr().err.split())
    assert "1 of 3 cases are segmented" in said
    assert "run the same command without --overwrite again" in said
    rows = {row["case"]: row["error"] for row in table(tmp_path / "out" / "cases.csv")}
    assert rows == {"A1": "", "A2": "not finished: give the same command again"}
    first = stamps(tmp_path / "out")["A1.nii.gz"]
    assert run(command[:-1]) == 0
    assert stamps(tmp_path / "out")["A1.nii.gz"] == first
    assert len(seen) == 4
    assert not list((tmp_path / "out").glob(".A2*"))
    assert {row["error"] for row in table(tmp_path / "out" / "cases.csv")} == {""}


@pytest.mark.parametrize(
    ("out", "flags", "message"),
    [
        ("study/out", [], "is in the source"),
        ("study", [], "is in the source"),
        ("study/derivatives/multiseg", [], "is in the source"),
        ("scans", [], "is a folder of scans"),
        ("out", ["--picture", "a.png"], "--picture and --lesion-mask are for one patient"),
        ("out", ["--as", "unheard"], "unknown layout 'unheard'"),
        ("out", ["--scheduler", "threads"], "'threads' is neither processes nor an address"),
    ],
)
def test_what_is_refused_before_the_work(
    out: str, flags: list[str], message: str, model: Path, source: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    shutil.copytree(source / "A1", tmp_path / "scans" / "A1")
    assert run(["predict", str(model), str(source), "-o", str(tmp_path / out), *flags]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("models", "flags", "code", "message"),
    [
        (["runs/nope"], [], 3, "there is no model at runs/nope."),
        (["nope.multiseg"], [], 3, "there is no model at nope.multiseg."),
        (["text.txt/nope"], [], 3, "there is no model at text.txt/nope."),
        (["study"], [], 3, "the folder study has no model.safetensors"),
        (["text.txt"], [], 3, "text.txt is not a complete safetensors file"),
        (["{good}", "runs/nope"], ["--fuse", "lesion-over-tissue"], 3, "there is no model at runs/nope."),
        (["{good}", "nope.safetensors"], ["--ensemble", "mean"], 3, "there is no model at nope.safetensors."),
        (["{good}", "runs/nope"], ["--ensemble", "mean"], 2, "runs/nope is neither a model"),
    ],
)
def test_a_model_that_is_not_there_is_said_before_the_work(
    models: list[str], flags: list[str], code: int, message: str, model: Path, source: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("nothing")
    named = [text.format(good=model) for text in models]
    assert run(["predict", *named, str(source), "-o", "out", *flags]) == code
    assert message in " ".join(capsys.readouterr().err.split())
    if not flags:
        assert run(["bids", str(source), "out", "participant", "--model", *named]) == code
        assert message in " ".join(capsys.readouterr().err.split())
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("FLIAR", [], "did you mean FLAIR?"),
        ("T1wce_gd", [], "did you mean T1c?"),
        ("qsm", [], "did you mean QSM?"),
        ("CT", [], "known are PD, FLAIR, SWI"),
        ("QSM", [], ""),  # the model has such a channel
        ("T2", [], ""),  # known, if not to the model
        ("CT", ["--reference", "CT"], ""),  # named twice, for its grid
    ],
)
def test_a_misspelt_sequence_is_no_note(
    name: str, flags: list[str], message: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = save(tmp_path, 0, ("FLAIR", "T1", "QSM"))
    scans = [f"{name}={source / 'A1' / 'FLAIR.nii.gz'}", f"T1={source / 'A1' / 'T1.nii.gz'}"]
    code = run(["predict", str(saved), *scans, "-o", str(tmp_path / "a.nii.gz"), *flags])
    assert (code, (tmp_path / "a.nii.gz").exists()) == ((3, False) if message else (0, True))
    assert message in capsys.readouterr().err


def test_a_misspelt_sequence_of_a_folder_is_refused(
    model: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["-o", str(tmp_path / "out")]
    for given in ("A1=FLIAR", "FLIAR"):
        assert run(["predict", str(model), str(source), *out, "--modality", given]) == 3
        assert "did you mean FLAIR?" in capsys.readouterr().err
    assert run(["predict", str(model), str(source), *out, "--modality", "never=skip"]) == 2
    assert "never" in capsys.readouterr().err


def test_flags_of_a_folder_are_refused_for_one_patient(
    model: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan = str(source / "A1" / "FLAIR.nii.gz")
    assert run(["predict", str(model), scan, "-o", str(tmp_path / "a.nii.gz"), "--workers", "2"]) == 2
    assert "are for a folder of patients" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_cases_of_a_store_come_home_as_from_their_files(
    done: list[str], source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the voxels of the files that were ingested, and voxel for voxel the answer for these files."""
    for label in source.rglob("label.nii.gz"):
        label.unlink()
    store, out = str(tmp_path / "all.zarr"), tmp_path / "from_store"
    assert run(["ingest", str(source), "--store", store, "--spacing", "5", "--allow-unlabelled"]) == 0
    command = [*done[:2], store, "-o", str(out)]
    assert run(command) == 0
    for case in ("A1", "A2", "A3"):
        ours, files = nib.load(out / "study" / f"{case}.nii.gz"), nib.load(tmp_path / "out" / f"{case}.nii.gz")
        np.testing.assert_array_equal(ours.affine, files.affine)
        np.testing.assert_array_equal(ours.dataobj, files.dataobj)
        assert np.count_nonzero(ours.dataobj) > 0
    from_files, from_store = table(tmp_path / "out" / "lesions.csv"), table(out / "lesions.csv")
    assert [row["ml"] for row in from_files] == [row["ml"] for row in from_store]
    for flags in (["--reference", "T1"], ["--as", "plain"], ["--brain-mask", "otsu"]):
        capsys.readouterr()
        assert run([*command, *flags]) == 2
        assert "is a store, whose cases are prepared already" in " ".join(capsys.readouterr().err.split())
    assert run([*command[:-1], str(tmp_path / "bids"), "--bids"]) == 0
    assert len(list((tmp_path / "bids").rglob("sub-A?_space-orig_label-lesion_mask.nii.gz"))) == 3


@pytest.mark.slow
def test_workers_give_the_same_files(done: list[str], source: Path, tmp_path: Path) -> None:
    assert run([*done[:-1], str(tmp_path / "two"), "--workers", "2"]) == 0
    for case in ("A1", "A2", "A3"):
        one, two = (np.asarray(nib.load(tmp_path / out / f"{case}.nii.gz").dataobj) for out in ("out", "two"))
        np.testing.assert_array_equal(one, two)
    assert table(tmp_path / "out" / "cases.csv") == table(tmp_path / "two" / "cases.csv")


@pytest.mark.slow
def test_a_cluster_gives_the_same_files(done: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model, source = (os.path.relpath(path) for path in done[1:3])
    with LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as cluster:
        command = ["predict", model, source, "-o", "away", "--scheduler", cluster.scheduler_address]
        assert run(command) == 0
    for path in (tmp_path / "out").rglob("*.nii.gz"):
        assert path.read_bytes() == (tmp_path / "away" / path.relative_to(tmp_path / "out")).read_bytes()


@pytest.mark.slow
def test_a_worker_that_does_not_see_what_the_call_sees_says_so(done: list[str], tmp_path: Path) -> None:
    """Otherwise it would write elsewhere, or another model would answer."""
    out, model = tmp_path / "out", Path(done[1])
    key = CohortFolder(out).key()
    task = CohortCall(
        str(model), PredictOptions(), digests_of(model, PredictOptions()), out, key, None, False, "", "call"
    )
    with in_place_of(task):
        assert Path.cwd() != tmp_path
    here = replace(task, place=str(tmp_path))
    with in_place_of(here):
        assert Path.cwd() == tmp_path
    assert Path.cwd() != tmp_path
    for unseen, what in (
        (replace(here, place=str(tmp_path / "gone")), "gone"),
        (replace(here, root=tmp_path / "elsewhere"), "elsewhere of this run"),
        (replace(here, key="of another run"), "out of this run"),
        (replace(here, digests=("another",)), "the same model"),
        (replace(here, model=str(tmp_path / "none.safetensors")), "the model .*none"),
    ):
        with pytest.raises(ResourceError, match=f"does not see .*{what}"), in_place_of(unseen):
            pass


@pytest.mark.slow
@pytest.mark.parametrize("is_done", [False, True])
def test_a_task_that_outlives_its_call_leaves_nothing_of_its_own(
    is_done: bool, done: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a cluster after Ctrl-C, when another run has taken the folder; what that one has done stays."""
    out, predicting = tmp_path / "out", cohort._predict

    def late(*arguments: Any) -> Any:
        prediction = predicting(*arguments)
        run_file = out / RECORDS / RUN
        run_file.write_text(json.dumps(json.loads(run_file.read_text()) | {"key": "another"}))
        if is_done:
            folder = CohortFolder(out)
            for name, record in folder.all_records():
                files = [out / file for file in record.outputs]
                folder.write(name, replace(record, key="another", state="done", outputs=folder.digests(files)))
        return prediction

    monkeypatch.setattr(cohort, "_predict", late)
    monkeypatch.chdir(tmp_path)
    with LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as cluster:
        assert run([*done, "--overwrite", "--scheduler", cluster.scheduler_address]) != 0
    assert (out / "A1.nii.gz").exists() == is_done


def test_cases_of_a_manifest_are_apart_by_database(model: Path, source: Path, tmp_path: Path) -> None:
    lines = ["database,case,pathology,subject,session,FLAIR,label:lesion,codes:lesion"]
    for database, case in (("one", "A1"), ("two", "A1"), ("two", "A2")):
        scan, label = source / case / "FLAIR.nii.gz", source / case / "label.nii.gz"
        lines.append(f"{database},{case},x,P{case},v1,{scan},{label},1=lesion")
    (tmp_path / "all.csv").write_text("\n".join(lines) + "\n")
    assert run(["predict", str(model), str(tmp_path / "all.csv"), "-o", str(tmp_path / "out" / "new")]) == 0
    rows = table(tmp_path / "out" / "new" / "cases.csv")
    assert [row["file"] for row in rows] == ["one/A1.nii.gz", "two/A1.nii.gz", "two/A2.nii.gz"]
    assert {(row["person"], row["visit"]) for row in rows} == {("PA1", "v1"), ("PA2", "v1")}


@pytest.mark.slow
def test_the_brain_of_a_case_is_its_mask_in_the_layout(
    model: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for case in ("A1", "A2", "A3"):
        scan = nib.load(source / case / "FLAIR.nii.gz")
        mask = np.zeros(scan.shape, dtype=np.uint8)
        mask[3:9, 3:9, 3:9] = 1
        nib.save(nib.Nifti1Image(mask, scan.affine), source / case / "brainmask.nii.gz")
    command = ["predict", str(model), str(source)]
    assert run([*command, "-o", str(tmp_path / "given")]) == 0
    assert run([*command, "-o", str(tmp_path / "whole"), "--brain-mask", "nonzero"]) == 0
    given, whole = (np.asarray(nib.load(tmp_path / out / "A1.nii.gz").dataobj) for out in ("given", "whole"))
    near = (slice(2, 10),) * 3  # the mask, and the voxels of 5 mm at its border
    assert given[near].sum() == given.sum() > 0
    assert whole[near].sum() < whole.sum()
    one = str(source / "A1" / "brainmask.nii.gz")
    assert run([*command, "-o", str(tmp_path / "one"), "--brain-mask", one]) == 2
    assert "is one file, but" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_without_a_home_and_with_a_source_that_cannot_be_written(
    model: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HOME", "USER", "LOGNAME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for path in (source, *source.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = {path: path.stat().st_mtime_ns for path in source.rglob("*")}
    command = Command(["predict", str(model), str(source), "-o", str(tmp_path / "out")], tmp_path / "said")
    assert command.wait() == 0, (tmp_path / "said").read_text()
    assert {path: path.stat().st_mtime_ns for path in source.rglob("*")} == before
    for path in (source, *source.rglob("*")):
        path.chmod(0o755)
