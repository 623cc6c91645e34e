"""Folders whose labels nobody needs, as in `multiseg predict`: what they would mean is not asked."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from multiseg.cli.source_flags import FolderFlags, confirmed_databases
from multiseg.errors import LabelError
from multiseg.store.sources.recognise import find_source
from multiseg.store.sources.source_types import SourceOptions


def plain(head, folder: Path) -> None:
    for name in ("T1", "FLAIR"):
        head.save(folder / "pat1" / f"{name}.nii.gz")
    head.save(folder / "pat1" / "tissue.nii.gz", head.codes(1, 2, 3))


def brats(head, folder: Path) -> None:
    name = "BraTS-PED-00001-000"
    for sequence in ("t1n", "t1c", "t2w", "t2f"):
        head.save(folder / name / f"{name}-{sequence}.nii.gz")
    head.save(folder / name / f"{name}-seg.nii.gz", head.codes(1, 2, 3, 4))


def older_brats(head, folder: Path) -> None:
    name = "BraTS20_Training_001"
    for sequence in ("t1", "t1ce", "t2", "t2f"):
        head.save(folder / name / f"{name}_{sequence}.nii.gz")
    head.save(folder / name / f"{name}_seg.nii.gz", head.codes(1, 3, 4))


def msd(head, folder: Path) -> None:
    for part in ("imagesTr", "labelsTr"):
        head.save(folder / part / "brain_001.nii.gz", None if part == "imagesTr" else head.codes(1))
    about = {
        "modality": {"0": "FLAIR"}, "labels": ["background", "lesion"], "numTraining": 1, "numTest": 0,
        "training": [{"image": "./imagesTr/brain_001.nii.gz", "label": "./labelsTr/brain_001.nii.gz"}], "test": [],
        "tensorImageSize": "3D", "name": "brains",
    }  # fmt: skip
    (folder / "dataset.json").write_text(json.dumps(about))


@pytest.mark.parametrize("write", [plain, brats, older_brats, msd])
def test_codes_without_a_meaning_are_no_error_if_only_images_are_needed(head, tmp_path: Path, write: Callable) -> None:
    folder = tmp_path / "study"
    write(head, folder)
    with pytest.raises(LabelError):
        find_source(folder)
    found = find_source(folder, SourceOptions(only_images=True))
    (case,) = found.cases
    assert case.images
    assert not case.labels
    assert not [finding for finding in found.findings if finding.severity == "error"]


def test_two_labels_that_may_be_the_same_are_no_error_if_only_images_are_needed(head, tmp_path: Path) -> None:
    plain(head, tmp_path)
    for name in ("gt", "seg"):
        head.save(tmp_path / "pat1" / f"{name}.nii.gz", head.codes(1))
    found = find_source(tmp_path, SourceOptions(only_images=True))
    assert sorted(found.cases[0].images) == ["FLAIR", "T1"]
    assert not [finding for finding in found.findings if finding.severity == "error"]


def csv_manifest(folder: Path) -> Path:
    """Rows that give the codes of the lesions two meanings, and those of the tissues none that can be read."""
    rows = [
        "database,case,FLAIR,label,codes,label:tissue,codes:tissue",
        "a,one,pat1/FLAIR.nii.gz,pat1/tissue.nii.gz,1=lesion,pat1/tissue.nii.gz,what=ever",
        "a,two,pat1/T1.nii.gz,pat1/tissue.nii.gz,2=lesion,pat1/tissue.nii.gz,what=ever",
    ]
    (folder / "study.csv").write_text("\n".join(rows) + "\n")
    return folder / "study.csv"


def toml_manifest(folder: Path) -> Path:
    text = (
        '[[database]]\nname = "a"\nroot = "."\npattern = "{case}/{modality}.nii.gz"\n'
        'labels = {tissue = "{case}/tissue.nii.gz"}\ncodes = {tissue = "what=ever"}\n'
    )
    (folder / "study.toml").write_text(text)
    return folder / "study.toml"


@pytest.mark.parametrize("write", [csv_manifest, toml_manifest])
def test_codes_of_a_manifest_are_no_error_if_only_images_are_needed(head, tmp_path: Path, write: Callable) -> None:
    plain(head, tmp_path)
    manifest = write(tmp_path)
    with pytest.raises(LabelError):
        confirmed_databases(manifest, SourceOptions(), as_json=True)
    (found,) = confirmed_databases(manifest, FolderFlags().options(), as_json=True)
    assert {name for case in found.cases for name in case.images} <= {"FLAIR", "T1"}
    assert {case.case for case in found.cases} & {"one", "pat1"}
    assert not found.schemas
    assert not any(case.labels or case.participant for case in found.cases)
    assert not [finding for finding in found.findings if finding.severity == "error"]
