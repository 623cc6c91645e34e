"""nnU-Net raw, versions 2 and 1."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

CHANNELS = {"0": "T1gd", "1": "T2_FLAIR"}


def write_v2(head, folder: Path, labels: dict, *codes: int, number: int = 2, **more) -> Path:
    for at in range(number):
        for channel in range(len(CHANNELS)):
            head.save(folder / "imagesTr" / f"pat_{at:03d}_{channel:04d}.nii.gz")
        head.save(folder / "labelsTr" / f"pat_{at:03d}.nii.gz", head.codes(*codes))
    data = {"channel_names": CHANNELS, "labels": labels, "numTraining": number, "file_ending": ".nii.gz", **more}
    (folder / "dataset.json").write_text(json.dumps(data))
    return folder


@pytest.fixture
def plain(head, tmp_path: Path) -> Path:
    labels = {"background": 0, "edema": 1, "core": 2, "ignore": 3}
    return write_v2(head, tmp_path / "Dataset042_Brain", labels, 1, 2, 3, license="CC-BY")


def test_version_2(plain: Path, ingested: Callable) -> None:
    done = ingested(plain)
    assert done.code == 0
    assert "(nnunet)" in done.said
    database = done.store["Dataset042_Brain"]
    assert [case.name for case in database.cases] == ["pat_000", "pat_001"]
    assert database.modalities == ("FLAIR", "T1c")
    assert database.attributes["licence"] == "CC-BY"
    schema = database.schemas["lesion"]
    assert [(s.name, s.kind, s.source_codes) for s in schema.structures] == [
        ("edema", "lesion", (1,)),
        ("core", "lesion", (2,)),
    ]
    for case in database.cases:
        assert case.annotated.all()
        assert (case.foreground_count == 8).all()
        codes = database.whole(case)[1]
        assert np.count_nonzero(codes == 255) == 8
    assert done.codes("error", "warning") == []


def test_test_set_is_the_test_split(head, plain: Path, ingested: Callable) -> None:
    for channel in range(2):
        head.save(plain / "imagesTs" / f"new_{channel:04d}.nii.gz")
    database = ingested(plain).store["Dataset042_Brain"]
    assert {
        case.name: (case.split == "test", case.annotated.any()) for case in database.cases if case.name == "new"
    } == {"new": (True, False)}
    head.save(plain / "labelsTs" / "new.nii.gz", head.codes(1))
    database = ingested(plain).store["Dataset042_Brain"]
    assert database["new"].split == "test"
    assert database["new"].annotated.any()


def test_half_labelled_test_set(head, plain: Path, ingested: Callable) -> None:
    for name in ("new", "newer"):
        for channel in range(2):
            head.save(plain / "imagesTs" / f"{name}_{channel:04d}.nii.gz")
    head.save(plain / "labelsTs" / "new.nii.gz", head.codes(1))
    done = ingested(plain)
    assert done.code == 4
    assert done.report["failed"] == ["newer"]


def test_regions(head, tmp_path: Path, ingested: Callable) -> None:
    labels = {"background": 0, "whole tumor": [1, 2, 3], "core": [2, 3], "enhancing": 3}
    done = ingested(write_v2(head, tmp_path / "Dataset1_R", labels, 1, 2, 3, number=1, regions_class_order=[1, 2, 3]))
    assert done.code == 0
    database = done.store["Dataset1_R"]
    assert {s.name: s.source_codes for s in database.schemas["lesion"].structures} == {
        "whole tumor without core": (1,),
        "core without enhancing": (2,),
        "enhancing": (3,),
    }
    assert (database.cases[0].foreground_count == 8).all()
    assert "REGIONS" in done.codes("note")


@pytest.mark.parametrize(
    ("labels", "structures"),
    [
        ({"a": [1, 2], "b": [3]}, {"a": (1, 2), "b": (3,)}),
        ({"a": [1, 2], "b": [2, 3]}, {"a without b": (1,), "a and b": (2,), "b without a": (3,)}),
        ({"lesion": [1, 2, 3], "enhancing": [3]}, {"lesion without enhancing": (1, 2), "enhancing": (3,)}),
    ],
)
def test_regions_that_meet_otherwise(head, tmp_path: Path, ingested: Callable, labels, structures) -> None:
    done = ingested(write_v2(head, tmp_path / "Dataset1_R", {"background": 0, **labels}, 1, 2, 3, number=1))
    assert {s.name: s.source_codes for s in done.store["Dataset1_R"].schemas["lesion"].structures} == structures
    assert ("REGIONS" in done.codes("note")) == (structures.keys() != labels.keys())


def test_tissue_is_told_by_its_name(head, tmp_path: Path, ingested: Callable) -> None:
    labels = {"background": 0, "white matter": 1, "CSF": 2}
    done = ingested(write_v2(head, tmp_path / "Dataset1_T", labels, 1, 2, number=1))
    (schema,) = done.store["Dataset1_T"].schemas.values()
    assert [structure.kind for structure in schema.structures] == ["tissue", "tissue"]
    assert "LABEL_KINDS" in done.codes("note")


def test_labels_of_the_user(plain: Path, ingested: Callable) -> None:
    done = ingested(plain, "--labels", "tissue:1=GM,2=lesion:infarct,3=background")
    (annotation, schema), *_ = done.store["Dataset042_Brain"].schemas.items()
    assert annotation == "tissue"
    assert [(s.name, s.kind) for s in schema.structures] == [("GM", "tissue"), ("infarct", "lesion")]


def test_missing_channel(plain: Path, ingested: Callable) -> None:
    (plain / "imagesTr" / "pat_001_0001.nii.gz").unlink()
    done = ingested(plain)
    assert done.code == 4
    assert done.report["failed"] == ["pat_001"]
    (error,) = [f for f in done.report["findings"] if f["severity"] == "error"]
    assert (error["code"], error["case"]) == ("MISSING_FILE", "pat_001")
    assert "pat_001_0001 (T2_FLAIR)" in error["message"]
    assert ingested(plain, "--modality", "T2_FLAIR=skip").code == 0


def test_unknown_and_surplus_channels(head, plain: Path, ingested: Callable) -> None:
    data = json.loads((plain / "dataset.json").read_text())
    (plain / "dataset.json").write_text(json.dumps(data | {"channel_names": {"0": "T1gd", "1": "magic contrast"}}))
    head.save(plain / "imagesTr" / "pat_000_0002.nii.gz")
    done = ingested(plain)
    assert done.code == 0
    assert done.codes("warning") == ["UNKNOWN_SEQUENCE", "UNKNOWN_SEQUENCE"]
    said = " ".join(f["message"] for f in done.report["findings"])
    assert "'magic contrast'" in said
    assert "'0002'" in said
    named = ingested(plain, "--modality", "magic contrast=T2", "--modality", "0=T1")
    assert named.store["Dataset042_Brain"].modalities == ("T1", "T2")


def test_channels_of_one_name_are_told_by_number(plain: Path, ingested: Callable) -> None:
    data = json.loads((plain / "dataset.json").read_text())
    (plain / "dataset.json").write_text(json.dumps(data | {"channel_names": {"0": "T1", "1": "T1"}}))
    asked = ingested(plain)
    assert asked.code == 3
    said = [f["message"] for f in asked.report["findings"] if f["code"] == "UNKNOWN_SEQUENCE"]
    assert [text[:3] for text in said] == ["'0'", "'1'"]
    done = ingested(plain, "--modality", "0=T1", "--modality", "1=T2")
    assert done.store["Dataset042_Brain"].modalities == ("T1", "T2")


def test_fewer_cases_than_promised(plain: Path, ingested: Callable) -> None:
    data = json.loads((plain / "dataset.json").read_text())
    (plain / "dataset.json").write_text(json.dumps(data | {"numTraining": 5}))
    assert ingested(plain).codes("warning") == ["COUNT_DIFFERS"]


def test_files_listed_elsewhere(head, tmp_path: Path, ingested: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    scans, folder = tmp_path / "scans", tmp_path / "Dataset007_Listed"
    for name in ("a", "b", "c"):
        head.save(scans / f"{name}_t1.nii.gz")
        head.save(scans / f"{name}_flair.nii.gz")
        head.save(scans / f"{name}_seg.nii.gz", head.codes(1))
    monkeypatch.setenv("SCANS", str(scans))
    folder.mkdir()
    rows = {
        "a": {"images": [f"{scans}/a_t1.nii.gz", f"{scans}/a_flair.nii.gz"], "label": f"{scans}/a_seg.nii.gz"},
        "b": {"images": ["../scans/b_t1.nii.gz", "$SCANS/b_flair.nii.gz"], "label": "$SCANS/b_seg.nii.gz"},
        "c": {"images": [f"{scans}/c_t1.nii.gz"], "label": f"{scans}/c_seg.nii.gz"},
    }
    data = {"channel_names": CHANNELS, "labels": {"background": 0, "lesion": 1}, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(data | {"numTraining": 3, "dataset": rows}))
    done = ingested(folder)
    assert done.report["written"] == ["a", "b"]
    assert done.report["failed"] == ["c"]
    assert done.store["Dataset007_Listed"].modalities == ("FLAIR", "T1c")
    (folder / "dataset.json").write_text(json.dumps(data | {"dataset": {"a": {"image": "x"}}}))
    assert "is not of the form" in ingested(folder).said


def write_v1(head, folder: Path) -> Path:
    for channel in range(2):
        head.save(folder / "imagesTr" / f"pat_{channel:04d}.nii.gz")
    head.save(folder / "labelsTr" / "pat.nii.gz", head.codes(1, 2))
    rows = [{"image": "./imagesTr/pat.nii.gz", "label": "./labelsTr/pat.nii.gz"}]
    data = {"modality": CHANNELS, "labels": {"0": "background", "1": "edema", "2": "core"}, "training": rows}
    (folder / "dataset.json").write_text(json.dumps(data | {"numTraining": 1}))
    return folder


def test_version_1(head, tmp_path: Path, ingested: Callable) -> None:
    done = ingested(write_v1(head, tmp_path / "Task501_Brain"))
    assert done.code == 0
    assert "(nnunet)" in done.said
    assert "could also be" not in done.said
    database = done.store["Task501_Brain"]
    assert database.modalities == ("FLAIR", "T1c")
    assert database.schemas["lesion"].names == ("edema", "core")
    assert (database.cases[0].foreground_count == 8).all()
    assert done.codes("error", "warning") == []


def test_version_1_lists_what_is_not_there(head, tmp_path: Path, ingested: Callable) -> None:
    folder = write_v1(head, tmp_path / "Task501_Brain")
    data = json.loads((folder / "dataset.json").read_text())
    data["training"] = [{"image": "./imagesTr/other.nii.gz", "label": "./labelsTr/other.nii.gz"}]
    (folder / "dataset.json").write_text(json.dumps(data))
    assert ingested(folder).codes("warning") == ["NOT_THERE", "NOT_LISTED"]


def test_a_folder_around_it(plain: Path, head, ingested: Callable) -> None:
    done = ingested(plain.parent)
    assert done.code == 0
    assert list(done.store) == ["Dataset042_Brain"]
    write_v1(head, plain.parent / "Task501_Brain")
    two = ingested(plain.parent)
    assert two.code == 3
    assert "Dataset042_Brain, Task501_Brain" in two.said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("{", "is no JSON"),
        ("[]", "holds a JSON list"),
        ({"channel_names": {}}, "does not name its channels"),
        ({"labels": {}}, 'has no "labels"'),
        ({"labels": {"background": 0, "lesion": "one"}}, "no whole number"),
        (
            {"labels": {"background": 0, "a": 1, "b": 1, "c": [0, 1]}, "file_ending": ".png"},
            "no format of brain volumes",
        ),
        ({"file_ending": ".nrrd"}, "says that files end in '.nrrd'"),
    ],
)
def test_broken_description(plain: Path, ingested: Callable, change, said: str) -> None:
    data = json.loads((plain / "dataset.json").read_text())
    (plain / "dataset.json").write_text(change if isinstance(change, str) else json.dumps(data | change))
    done = ingested(plain)
    assert done.code == 3
    assert said in done.said
