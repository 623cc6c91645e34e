"""nnU-Net raw, versions 2 and 1."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from looking import look

from multiseg.errors import DataError, SourceError

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


def test_test_set_is_the_test_split(head, plain: Path) -> None:
    for channel in range(2):
        head.save(plain / "imagesTs" / f"new_{channel:04d}.nii.gz")
    new = look(plain).cases["new"]
    assert (new.split, new.labels) == ("test", {})
    head.save(plain / "labelsTs" / "new.nii.gz", head.codes(1))
    new = look(plain).cases["new"]
    assert (new.split, list(new.labels)) == ("test", ["lesion"])


def test_half_labelled_test_set(head, plain: Path) -> None:
    for name in ("new", "newer"):
        for channel in range(2):
            head.save(plain / "imagesTs" / f"{name}_{channel:04d}.nii.gz")
    head.save(plain / "labelsTs" / "new.nii.gz", head.codes(1))
    found = look(plain)
    assert {case for _, case in found.errors} == {"newer"}
    assert list(found.cases) == ["new", "pat_000", "pat_001"]


@pytest.mark.slow
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
def test_regions_that_meet_otherwise(head, tmp_path: Path, labels, structures) -> None:
    found = look(write_v2(head, tmp_path / "Dataset1_R", {"background": 0, **labels}, 1, 2, 3, number=1))
    assert {s.name: s.source_codes for s in found.files.schemas["lesion"].structures} == structures
    assert ("REGIONS" in found.codes("note")) == (structures.keys() != labels.keys())


def test_tissue_is_told_by_its_name(head, tmp_path: Path) -> None:
    labels = {"background": 0, "white matter": 1, "CSF": 2}
    found = look(write_v2(head, tmp_path / "Dataset1_T", labels, 1, 2, number=1))
    (schema,) = found.files.schemas.values()
    assert [structure.kind for structure in schema.structures] == ["tissue", "tissue"]
    assert "LABEL_KINDS" in found.codes("note")


def test_labels_of_the_user(plain: Path) -> None:
    found = look(plain, codes={"tissue": "1=GM,2=lesion:infarct,3=background"})
    assert set(map(tuple, found.annotations.values())) == {("tissue",)}
    schema = found.files.schemas["tissue"]
    assert [(s.name, s.kind) for s in schema.structures] == [("GM", "tissue"), ("infarct", "lesion")]


def test_missing_channel(plain: Path) -> None:
    (plain / "imagesTr" / "pat_001_0001.nii.gz").unlink()
    found = look(plain)
    assert found.errors == [("MISSING_FILE", "pat_001")]
    assert "pat_001_0001 (T2_FLAIR)" in found.messages("MISSING_FILE")[0]
    skipped = look(plain, modalities={"T2_FLAIR": "skip"})
    assert (len(skipped.cases), skipped.errors) == (2, [])


def test_unknown_and_surplus_channels(head, plain: Path) -> None:
    data = json.loads((plain / "dataset.json").read_text())
    (plain / "dataset.json").write_text(json.dumps(data | {"channel_names": {"0": "T1gd", "1": "magic contrast"}}))
    head.save(plain / "imagesTr" / "pat_000_0002.nii.gz")
    found = look(plain)
    assert found.errors == []
    assert found.codes("warning") == ["UNKNOWN_SEQUENCE", "UNKNOWN_SEQUENCE"]
    said = " ".join(found.messages("UNKNOWN_SEQUENCE"))
    assert "'magic contrast'" in said
    assert "'0002'" in said
    named = look(plain, modalities={"magic contrast": "T2", "0": "T1"})
    assert set(named.modalities.values()) == {("T1", "T2")}


def test_channels_of_one_name_are_told_by_number(plain: Path) -> None:
    data = json.loads((plain / "dataset.json").read_text())
    (plain / "dataset.json").write_text(json.dumps(data | {"channel_names": {"0": "T1", "1": "T1"}}))
    asked = look(plain)
    assert asked.cases == {}
    assert [text[:3] for text in asked.messages("UNKNOWN_SEQUENCE")] == ["'0'", "'1'"]
    named = look(plain, modalities={"0": "T1", "1": "T2"})
    assert set(named.modalities.values()) == {("T1", "T2")}


def test_fewer_cases_than_promised(plain: Path) -> None:
    data = json.loads((plain / "dataset.json").read_text())
    (plain / "dataset.json").write_text(json.dumps(data | {"numTraining": 5}))
    assert look(plain).codes("warning") == ["COUNT_DIFFERS"]


def test_files_listed_elsewhere(head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    found = look(folder)
    assert found.modalities == {"a": ("FLAIR", "T1c"), "b": ("FLAIR", "T1c")}
    assert {case for _, case in found.errors} == {"c"}
    (folder / "dataset.json").write_text(json.dumps(data | {"dataset": {"a": {"image": "x"}}}))
    with pytest.raises(SourceError, match="is not in the form"):
        look(folder)


def write_v1(head, folder: Path) -> Path:
    for channel in range(2):
        head.save(folder / "imagesTr" / f"pat_{channel:04d}.nii.gz")
    head.save(folder / "labelsTr" / "pat.nii.gz", head.codes(1, 2))
    rows = [{"image": "./imagesTr/pat.nii.gz", "label": "./labelsTr/pat.nii.gz"}]
    data = {"modality": CHANNELS, "labels": {"0": "background", "1": "edema", "2": "core"}, "training": rows}
    (folder / "dataset.json").write_text(json.dumps(data | {"numTraining": 1}))
    return folder


@pytest.mark.slow
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


def test_version_1_lists_what_is_not_there(head, tmp_path: Path) -> None:
    folder = write_v1(head, tmp_path / "Task501_Brain")
    data = json.loads((folder / "dataset.json").read_text())
    data["training"] = [{"image": "./imagesTr/other.nii.gz", "label": "./labelsTr/other.nii.gz"}]
    (folder / "dataset.json").write_text(json.dumps(data))
    assert look(folder).codes("warning") == ["NOT_THERE", "NOT_LISTED"]


def test_a_folder_around_it(plain: Path, head) -> None:
    found = look(plain.parent)
    assert (found.files.name, len(found.cases), found.errors) == ("Dataset042_Brain", 2, [])
    write_v1(head, plain.parent / "Task501_Brain")
    with pytest.raises(SourceError, match="Dataset042_Brain, Task501_Brain"):
        look(plain.parent)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("{", "is not valid JSON"),
        ("[]", "has a JSON list"),
        ({"channel_names": {}}, "does not name its channels"),
        ({"labels": {}}, 'has no "labels"'),
        ({"labels": {"background": 0, "lesion": "one"}}, "not a whole number"),
        (
            {"labels": {"background": 0, "a": 1, "b": 1, "c": [0, 1]}, "file_ending": ".png"},
            "not a format of volumes",
        ),
        ({"file_ending": ".nrrd"}, "says that files end in '.nrrd'"),
    ],
)
def test_broken_description(plain: Path, change, said: str) -> None:
    data = json.loads((plain / "dataset.json").read_text())
    (plain / "dataset.json").write_text(change if isinstance(change, str) else json.dumps(data | change))
    with pytest.raises(DataError, match=said):
        look(plain)
