"""The Medical Segmentation Decathlon: 4-D files."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from looking import look

from multiseg.errors import SourceError
from multiseg.modalities import CANONICAL_ORDER

MODALITY = {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}
LABELS = {"0": "background", "1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour"}


def write(head, folder: Path, modality: dict | None = None) -> Path:
    for at in (1, 2):
        volumes = [head.image() * (number + 1) for number in range(4)]
        head.save(folder / "imagesTr" / f"BRATS_{at:03d}.nii.gz", np.stack(volumes, axis=-1))
        head.save(folder / "labelsTr" / f"BRATS_{at:03d}.nii.gz", head.codes(1, 2, 3))
    (folder / "imagesTr" / "._BRATS_001.nii.gz").write_bytes(b"\0\5\26\7")
    head.save(folder / "imagesTs" / "BRATS_485.nii.gz", np.stack([head.image() for _ in range(4)], axis=-1))
    files = [{"image": f"./imagesTr/BRATS_00{at}.nii.gz", "label": f"./labelsTr/BRATS_00{at}.nii.gz"} for at in (1, 2)]
    description = {
        "name": "BRATS", "licence": "CC-BY-SA 4.0", "tensorImageSize": "4D", "modality": modality or MODALITY,
        "labels": LABELS, "numTraining": 2, "numTest": 1, "training": files, "test": ["./imagesTs/BRATS_485.nii.gz"],
    }  # fmt: skip
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


@pytest.fixture
def folder(head, tmp_path: Path) -> Path:
    return write(head, tmp_path / "Task01_BrainTumour")


def test_brain_tumours(folder: Path, ingested: Callable) -> None:
    done = ingested(folder)
    assert done.code == 0
    assert "(msd)" in done.said
    assert "could also be" not in done.said
    database = done.store["Task01_BrainTumour"]
    assert database.modalities == ("FLAIR", "T1", "T1c", "T2")
    assert [(s.name, s.source_codes) for s in database.schemas["lesion"].structures] == [
        ("edema", (1,)),
        ("non-enhancing tumor", (2,)),
        ("enhancing tumour", (3,)),
    ]
    assert (database["BRATS_001"].foreground_count == 8).all()
    assert [(case.name, case.annotated.any()) for case in database.cases] == [
        ("BRATS_001", True),
        ("BRATS_002", True),
        ("BRATS_485", False),
    ]
    assert database["BRATS_485"].split == "test"
    assert database.attributes["licence"] == "CC-BY-SA 4.0"
    assert done.codes("error", "warning") == []


@pytest.mark.slow
def test_each_volume_is_the_sequence_that_the_description_names(head, tmp_path: Path, ingested: Callable) -> None:
    done = ingested(write(head, tmp_path / "Task", {"0": "T2w", "1": "t1gd", "2": "FLAIR", "3": "T1w"}))
    database = done.store["Task"]
    means = database.group["intensity_mean"][database["BRATS_001"].row]
    by_name = dict(zip(database.modalities, means, strict=False))
    assert sorted(by_name, key=by_name.get) == ["T2", "T1c", "FLAIR", "T1"]
    assert by_name["T2"] == pytest.approx(300, rel=0.05)
    assert by_name["T1"] == pytest.approx(1200, rel=0.05)
    assert set(by_name) <= set(CANONICAL_ORDER)


def test_one_sequence_in_3d_files(head, tmp_path: Path) -> None:
    head.save(tmp_path / "Task" / "imagesTr" / "case_0001.nii.gz")
    head.save(tmp_path / "Task" / "labelsTr" / "case_0001.nii.gz", head.codes(1))
    description = {"modality": {"0": "T1w"}, "labels": {"0": "background", "1": "hippocampus"}}
    (tmp_path / "Task" / "dataset.json").write_text(json.dumps(description))
    found = look(tmp_path / "Task")
    assert (found.layout, found.errors) == ("msd", [])
    assert found.modalities == {"case_0001": ("T1",)}
    assert found.files.schemas["tissue"].structures[0].kind == "tissue"


def test_a_file_of_other_volumes(head, folder: Path) -> None:
    head.save(folder / "imagesTr" / "BRATS_002.nii.gz", np.stack([head.image() for _ in range(5)], axis=-1))
    found = look(folder)
    assert found.errors == [("NUM_VOLUMES", "BRATS_002")]
    assert "has 5 volumes, but 4 are named" in found.messages("NUM_VOLUMES")[0]


def test_what_the_description_lists_is_looked_for(folder: Path) -> None:
    (folder / "imagesTr" / "BRATS_002.nii.gz").unlink()
    (folder / "labelsTr" / "BRATS_002.nii.gz").unlink()
    found = look(folder)
    assert found.errors == []
    assert found.codes("warning") == ["NOT_THERE"]
    assert "BRATS_002" in found.messages("NOT_THERE")[0]


def test_a_label_without_its_image(folder: Path) -> None:
    (folder / "imagesTr" / "BRATS_002.nii.gz").unlink()
    found = look(folder)
    assert {case for _, case in found.errors} == {"BRATS_002"}
    assert "BRATS_002" not in found.cases


def test_an_image_without_its_label(folder: Path) -> None:
    (folder / "labelsTr" / "BRATS_002.nii.gz").unlink()
    assert {case for _, case in look(folder).errors} == {"BRATS_002"}
    found = look(folder, allow_unlabelled=True)
    assert (len(found.cases), found.errors) == (3, [])


def test_channels_that_skip_a_number(head, tmp_path: Path) -> None:
    folder = write(head, tmp_path / "Task", {"1": "FLAIR", "2": "T1w", "3": "t1gd", "4": "T2w"})
    with pytest.raises(SourceError, match=r"numbers its channels \[1, 2, 3, 4\]"):
        look(folder)


def test_test_images_alone(folder: Path) -> None:
    for part in ("imagesTr", "labelsTr"):
        shutil.rmtree(folder / part)
    found = look(folder)
    assert (found.layout, found.errors) == ("msd", [])
    assert list(found.cases) == ["BRATS_485"]
    assert found.codes("warning") == ["NOT_THERE"]
