"""MRBrainS of 2013 and 2018: tissues with lesions among them."""

from collections.abc import Callable
from pathlib import Path

from looking import look

NAMES = (
    "cortical grey matter", "basal ganglia", "white matter", "WM lesion", "CSF", "ventricles", "cerebellum",
    "brainstem",
)  # fmt: skip
KINDS = ["tissue", "tissue", "tissue", "lesion", "tissue", "tissue", "tissue", "tissue"]


def write_2013(head, folder: Path, *codes: int) -> None:
    for name in ("T1", "T1_IR", "T2_FLAIR", "T1_1mm"):
        head.save(folder / f"{name}.nii")
    head.save(folder / "LabelsForTraining.nii", head.codes(*codes))
    head.save(folder / "LabelsForTesting.nii", head.codes(1, 2, 3))


def write_2018(head, folder: Path, *codes: int) -> None:
    for stage in ("pre", "orig"):
        for name in ("reg_T1", "reg_IR", "FLAIR"):
            head.save(folder / stage / f"{name}.nii.gz")
    head.save(folder / "segm.nii.gz", head.codes(*codes))


def test_2013(head, tmp_path: Path, ingested: Callable) -> None:
    write_2013(head, tmp_path / "TrainingData" / "1", *range(1, 9))
    write_2013(head, tmp_path / "TrainingData" / "2", 1, 2, 3, 5)
    done = ingested(tmp_path / "TrainingData")
    assert done.code == 0
    assert "(mrbrains13): 2 folders such as 1" in done.said
    assert "also be" not in done.said
    assert done.codes("warning", "error") == []
    database = done.store["TrainingData"]
    assert database.modalities == ("FLAIR", "T1", "T1IR")
    assert database.schemas["tissue"].names == NAMES
    assert [s.kind for s in database.schemas["tissue"].structures] == KINDS
    assert database.schemas["tissue"].ignore_codes == ()
    assert (database.cases[0].foreground_count[0][:8] > 0).all()
    unused = next(f["message"] for f in done.report["findings"] if f["code"] == "UNUSED_FILES")
    assert "T1_1mm" in unused
    assert "LabelsForTesting" in unused


def test_2018(head, tmp_path: Path, ingested: Callable) -> None:
    write_2018(head, tmp_path / "training" / "1", *range(1, 11))
    done = ingested(tmp_path / "training")
    assert done.code == 0
    assert "(mrbrains18): 1 folders such as 1" in done.said
    assert "also be" not in done.said
    database = done.store["training"]
    assert database.modalities == ("FLAIR", "T1", "T1IR")
    assert database.schemas["tissue"].names == NAMES
    assert database.schemas["tissue"].ignore_codes == (9, 10)
    assert "STAGE" in done.codes("note")


def test_2013_has_no_code_9(head, tmp_path: Path, ingested: Callable) -> None:
    write_2013(head, tmp_path / "TrainingData" / "1", 1, 9)
    done = ingested(tmp_path / "TrainingData")
    assert (done.code, done.codes("error")) == (3, ["LABEL_CODES"])


def test_labels_of_the_testing_kind_only(head, tmp_path: Path) -> None:
    write_2013(head, tmp_path / "TrainingData" / "1", 1)
    write_2013(head, tmp_path / "TrainingData" / "2", 1)
    (tmp_path / "TrainingData" / "2" / "LabelsForTraining.nii").unlink()
    assert look(tmp_path / "TrainingData").errors == [("MISSING_FILE", "2")]
