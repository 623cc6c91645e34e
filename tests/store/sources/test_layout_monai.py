"""MONAI's lists of data."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from looking import look

from multiseg.errors import SourceError, UsageError


def write(head, folder: Path, names: tuple[str, ...] = ("t1", "flair"), nested: bool = True) -> Path:
    rows = []
    for at in range(3):
        inside = f"p{at}/" if nested else ""
        images = [f"{inside}p{at}_{name}.nii.gz" for name in names]
        for image in images:
            head.save(folder / image)
        head.save(folder / f"{inside}p{at}_seg.nii.gz", head.codes(1))
        rows.append({"fold": at % 2, "image": images, "label": f"{inside}p{at}_seg.nii.gz"})
    head.save(folder / "q_t1.nii.gz")
    head.save(folder / "q_flair.nii.gz")
    data = {"training": rows[:2], "validation": rows[2:]}
    if names == ("t1", "flair"):
        data["testing"] = [{"image": ["q_t1.nii.gz", "q_flair.nii.gz"]}]
    (folder / "datalist.json").write_text(json.dumps(data))
    return folder / "datalist.json"


@pytest.mark.slow
@pytest.mark.parametrize("nested", [True, False])
def test_a_file_a_sequence(head, tmp_path: Path, ingested: Callable, nested: bool) -> None:
    done = ingested(write(head, tmp_path, nested=nested), "--split", "train=1")
    assert done.code == 0
    assert "(monai)" in done.said
    assert "could also be" not in done.said
    database = done.store["datalist"]
    assert database.modalities == ("FLAIR", "T1")
    assert {case.name: (case.split, bool(case.annotated.any())) for case in database.cases} == {
        "p0": ("train", True), "p1": ("train", True), "p2": ("val", True), "q": ("test", False),
    }  # fmt: skip
    assert (database["p0"].foreground_count == 8).all()
    assert [database[name].participant["fold"] for name in ("p0", "p1")] == [0, 1]
    assert done.codes("error", "warning") == []


def test_files_that_do_not_tell_their_sequence(head, tmp_path: Path) -> None:
    path = write(head, tmp_path, ("0000", "0001"))
    with pytest.raises(UsageError, match="--modality 0=NAME --modality 1=NAME"):
        look(path)
    told = look(path, modalities={"0": "T1c", "1": "PD"})
    assert told.modalities == dict.fromkeys(("p0", "p1", "p2"), ("PD", "T1c"))


@pytest.mark.slow
def test_4d_files_and_labels(head, tmp_path: Path, ingested: Callable) -> None:
    for name in ("a", "b"):
        head.save(tmp_path / f"{name}.nii.gz", np.stack([head.image() * (n + 1) for n in range(2)], axis=-1))
        head.save(tmp_path / f"{name}_label.nii.gz", head.codes(1, 2))
    rows = [{"image": f"{name}.nii.gz", "label": f"{name}_label.nii.gz"} for name in ("a", "b")]
    data = {"modality": {"0": "FLAIR", "1": "T1w"}, "labels": {"0": "background", "1": "edema", "2": "core"}}
    (tmp_path / "list.json").write_text(json.dumps(data | {"training": rows}))
    done = ingested(tmp_path / "list.json")
    assert done.code == 0
    database = done.store["list"]
    assert database.schemas["lesion"].names == ("edema", "core")
    means = dict(zip(database.modalities, database.group["intensity_mean"][database["a"].row], strict=False))
    assert means["T1"] > 1.5 * means["FLAIR"]
    (tmp_path / "list.json").write_text(json.dumps(data | {"modality": {"0": "FLAIR"}, "training": rows}))
    assert "but cases have 2" in ingested(tmp_path / "list.json").said


@pytest.mark.slow
def test_a_case_with_fewer_images(head, tmp_path: Path, ingested: Callable) -> None:
    path = write(head, tmp_path)
    data = json.loads(path.read_text())
    del data["training"][1]["image"][0]
    path.write_text(json.dumps(data))
    done = ingested(path)
    assert done.code == 4
    assert done.report["failed"] == ["p1"] or done.codes("error") == ["NUM_VOLUMES"]


def test_broken_lists(head, tmp_path: Path) -> None:
    path = write(head, tmp_path)
    data = json.loads(path.read_text())
    data["validation"] = [{"label": "p2/p2_seg.nii.gz"}]
    path.write_text(json.dumps(data))
    with pytest.raises(SourceError, match="not in the form"):
        look(path)
