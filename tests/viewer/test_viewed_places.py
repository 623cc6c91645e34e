"""What `multiseg view` shows of predictions and of a run, and which flags belong to what."""

import csv
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from multiseg.cli.app import run
from multiseg.errors import DataError, SourceError, UsageError
from multiseg.evaluation.cohort_records import (
    RECORDS,
    RUN,
    CaseRecord,
    CohortFolder,
    digest_of_stored,
)
from multiseg.evaluation.structure_tables import LesionRow, StructureRow
from multiseg.labels import LabelSpace
from multiseg.store.cases import CaseFiles
from multiseg.store.findings import Doubt, Severity
from multiseg.store.native import native_label
from multiseg.store.reader import Store, open_store
from multiseg.viewer.case_view import OUTSIDE, Answering, window_bytes
from multiseg.viewer.evaluated_cases import EvaluatedCases, newest_evaluation, read_evaluation
from multiseg.viewer.page_server import Page
from multiseg.viewer.predicted_cases import (
    CHANGED,
    OTHER_SCANS,
    PredictedCases,
    ScansOfFiles,
    ScansOfStore,
)
from multiseg.viewer.stored_cases import StoredCases


@pytest.fixture(scope="module")
def store(store_url: str) -> Store:
    return open_store(store_url)


@pytest.fixture
def stored(store: Store) -> StoredCases:
    return StoredCases(store, sorted(store.cases, key=lambda case: (case.database, case.name)))


@pytest.fixture
def predicted(store: Store, tmp_path: Path) -> Path:
    """A folder as `predict` leaves it: the truth of two cases as their predictions, and a case that failed."""
    root = tmp_path / "predicted"
    folder = CohortFolder(root)
    (root / RECORDS / "cases" / "cedar").mkdir(parents=True)
    (root / RECORDS / RUN).write_text("{}")
    (root / "cedar").mkdir()
    database = store["cedar"]
    for name in ("C001", "C002"):
        case = database[name]
        native, _ = database.native(case)
        file = root / "cedar" / f"{name}.nii.gz"
        nib.save(nib.Nifti1Image(native_label(database, case, next(iter(database.schemas))), native.affine), file)
        x, y, z = case.grid.centre
        lesion = LesionRow("lesion", 1, 2.5, x, y, z, 0, 1, 0, 1, 0, 1, mean_probability=0.75)
        record = CaseRecord(
            "cedar", name, name, "", "done", "key", digest_of_stored(database, case), folder.digests([file]),
            used=("FLAIR",), reference="FLAIR", learnt={"FLAIR": "train" if name == "C001" else ""},
            doubts=(Doubt(Severity.WARNING, "BRAIN_CUT", "the brain is cut."),),
            structures=(StructureRow("lesion", "lesion", 2.5, 1),), lesions=(lesion,),
        )  # fmt: skip
        folder.write(f"cedar/{name}", record)
    failed = CaseRecord("cedar", "C003", "C003", "", "failed", "key", reason="its file is damaged")
    folder.write("cedar/C003", failed)
    return root


def test_predictions_lie_over_the_scans_of_the_store(stored: StoredCases, predicted: Path) -> None:
    cases = PredictedCases(predicted, ScansOfStore(stored))
    assert cases.dice_word == ""
    lines = {line.name: line for line in cases.listed}
    assert lines["cedar/C001"].flags == ("BRAIN_CUT", "learnt from (train)")
    assert lines["cedar/C002"].flags == ("BRAIN_CUT",)
    assert lines["cedar/C002"].pathology == "ischaemic stroke"
    assert lines["cedar/C003"].problem == "its file is damaged"
    view = cases.view("cedar/C001")
    assert [(overlay.name, overlay.is_prediction) for overlay in view.overlays] == [
        ("lesion", False),
        ("prediction", True),
    ]
    assert view.notes == ()
    _, codes = view.planes(0, view.grid.shape[2])
    assert np.array_equal(codes[0], codes[1])  # at the store's voxels, the truth that was written comes back
    assert codes[1][view.start]
    findings, (place,) = cases.findings("cedar/C001")
    assert [finding.code for finding in findings] == ["BRAIN_CUT"]
    assert (place.ml, place.probability) == (2.5, 0.75)
    assert codes[1][place.voxel]
    with pytest.raises(DataError, match="its file is damaged"):
        cases.view("cedar/C003")


def test_the_doubtful_come_first(stored: StoredCases, predicted: Path) -> None:
    with (predicted / "cases.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["database", "case", "structure", "expected_dice"])
        rows.writerows(
            [["cedar", "C001", "lesion", 0.9], ["cedar", "C001", "core", 0.4], ["cedar", "C002", "core", ""]]
        )
    cases = PredictedCases(predicted, ScansOfStore(stored))
    assert cases.dice_word == "expected"
    assert {line.name: line.dice for line in cases.listed} == {
        "cedar/C001": 0.4,
        "cedar/C002": None,
        "cedar/C003": None,
    }


def test_what_was_changed_since_is_said(store: Store, stored: StoredCases, predicted: Path) -> None:
    folder = CohortFolder(predicted)
    record = folder.read("cedar/C001")
    assert record is not None
    folder.write("cedar/C001", replace(record, sources="of other scans"))
    mask = predicted / "cedar" / "C001.nii.gz"
    image = nib.load(mask)
    nib.save(nib.Nifti1Image(np.zeros(image.shape, dtype=np.uint8), image.affine), mask)
    view = PredictedCases(predicted, ScansOfStore(stored)).view("cedar/C001")
    assert view.notes == (OTHER_SCANS, CHANGED)


def scan(path: Path, affine: np.ndarray, shape: tuple[int, int, int]) -> Path:
    voxels = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


def test_predictions_lie_over_files(store: Store, predicted: Path, tmp_path: Path) -> None:
    native, _ = store["cedar"].native(store["cedar"]["C001"])
    flair = scan(tmp_path / "FLAIR.nii.gz", native.affine, native.shape)
    cases = PredictedCases(predicted, ScansOfFiles({("cedar", "C001"): CaseFiles("C001", {"FLAIR": flair})}))
    assert [line.problem for line in cases.listed] == [
        "", "the source does not have this case", "its file is damaged",
    ]  # fmt: skip
    view = cases.view("cedar/C001")
    numbers, codes = view.planes(0, view.grid.shape[2])
    (sequence,) = view.sequences
    expected = nib.as_closest_canonical(nib.load(flair)).get_fdata()
    shown = numbers[0] * sequence.slope + sequence.intercept
    assert np.array_equal(numbers[0] == OUTSIDE, expected == 0)
    assert np.abs(shown - expected)[expected != 0].max() <= sequence.slope
    assert codes.shape == (1, *view.grid.shape)
    assert len(window_bytes(view.planes(0, 2))) == 3 * 2 * view.grid.shape[0] * view.grid.shape[1]


def test_another_scan_than_the_segmented_one_is_refused(store: Store, predicted: Path, tmp_path: Path) -> None:
    native, _ = store["cedar"].native(store["cedar"]["C001"])
    moved = native.affine.copy()
    moved[0, 3] += 2
    flair = scan(tmp_path / "FLAIR.nii.gz", moved, native.shape)
    cases = PredictedCases(predicted, ScansOfFiles({("cedar", "C001"): CaseFiles("C001", {"FLAIR": flair})}))
    with pytest.raises(SourceError, match="another grid than the segmentation"):
        cases.view("cedar/C001")


def evaluation(folder: Path) -> Path:
    """An evaluation's table: two subsets of one case, and a case that the store no longer has."""
    folder.mkdir(parents=True)
    rows = [
        ["cedar", "C001", "train", "lesion", 0.5, "FLAIR", 1],
        ["cedar", "C001", "train", "lesion", 0.8, "FLAIR+DWI", 2],
        ["cedar", "C001", "train", "core", 0.7, "FLAIR+DWI", 2],
        ["cedar", "C002", "", "lesion", None, "FLAIR+DWI", 2],
        ["cedar", "gone", "", "lesion", 0.1, "FLAIR+DWI", 2],
    ]
    columns = ["database", "case", "learnt", "label", "dice", "modalities", "num_modalities"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "cases.csv", index=False)
    return folder


def test_a_run_shows_the_measured_dice_and_segments_on_request(stored: StoredCases, tmp_path: Path) -> None:
    folder = evaluation(tmp_path / "run" / "evaluation-test")
    assert newest_evaluation(tmp_path / "run") == folder
    asked = []

    def segment(case: object) -> tuple[LabelSpace, np.ndarray]:
        asked.append(case)
        codes = np.zeros(stored.cases["cedar/C001"].extent, dtype=np.uint8)
        codes[2:4, 2:4, 2:4] = 1
        return LabelSpace(), codes

    cases = EvaluatedCases("run", stored, read_evaluation(folder), segment)
    assert (cases.dice_word, isinstance(cases, Answering)) == ("measured", True)
    lines = {line.name: line for line in cases.listed}
    assert [lines[name].dice for name in ("cedar/C001", "cedar/C002")] == [0.7, None]
    assert "learnt from (train)" in lines["cedar/C001"].flags
    assert lines["cedar/gone"].problem == "the store does not have this case"
    page = Page(cases)
    query = {"case": "cedar/C001"}
    named = b'"name": "prediction"'
    assert named not in page.answer("/api/case", query).body
    assert page.answer("/api/answer", query).status == 200
    assert len(asked) == 1
    view = cases.view("cedar/C001")
    assert view.overlays[-1].is_prediction
    assert view.overlays[-1].structures[0].ml == pytest.approx(8 * 0.125)
    assert named in page.answer("/api/case", query).body
    assert "prediction" in {place.overlay for place in cases.findings("cedar/C001")[1]}
    assert page.answer("/api/case", {"case": "cedar/gone"}).status == 422


def test_a_folder_without_an_evaluation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="it has no cases"):
        read_evaluation(tmp_path)
    (tmp_path / "cases.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UsageError, match="no column database, case, learnt"):
        read_evaluation(tmp_path)
    assert newest_evaluation(tmp_path) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{predicted}"], "Name what predict was given: --source"),
        (["{predicted}", "--source", "{store}", "--split", "test"], "filter on the page instead"),
        (["{predicted}", "--source", "{store}", "--pattern", "{{case}}"], "is a store: leave out --as"),
        (["{predicted}", "--source", "{store}", "--png", "x"], "--png draws the cases of a store"),
        (["{store}", "--source", "{store}"], "belongs to a run or to a folder of predictions"),
        (["{store}", "--evaluation", "x"], "--evaluation belongs to a run"),
        (["{store}", "--yes"], "say how to read the --source"),
        (["{store}", "--json"], "belong to --png"),
    ],
)
def test_flags_that_do_not_fit(
    arguments: list[str], message: str, predicted: Path, store_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["view", *(text.format(predicted=predicted, store=store_url) for text in arguments)]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
