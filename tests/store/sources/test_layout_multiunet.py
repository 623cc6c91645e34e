"""Folders preprocessed for the published Multi-Unet."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

NAMED = ("--modality", "0=FLAIR", "--modality", "1=T1", "--modality", "2=SWI")


@pytest.fixture
def folder(head, tmp_path: Path) -> Path:
    return write(head, tmp_path / "data" / "TBI", 3)


def write(head, folder: Path, number: int) -> Path:
    for case in ("a", "b"):
        volumes = np.stack([head.image() * (n + 1) for n in range(number)], axis=-1)
        head.save(folder / "Images" / f"{case}.nii.gz", volumes)
        head.save(folder / "Labels" / f"{case}.nii.gz", head.codes(1))
    return folder


def test_named_volumes(folder: Path, ingested: Callable) -> None:
    done = ingested(folder, *NAMED)
    assert done.code == 0
    assert "(multiunet)" in done.said
    assert "could also be" not in done.said
    database = done.store["TBI"]
    assert database.modalities == ("FLAIR", "SWI", "T1")
    means = dict(zip(database.modalities, database.group["intensity_mean"][database["a"].row], strict=False))
    assert sorted(means, key=means.get) == ["FLAIR", "T1", "SWI"]
    assert database.schemas["lesion"].names == ("lesion",)
    assert all((case.foreground_count == 8).all() for case in database.cases)
    assert done.codes() == []


def test_volumes_are_not_guessed(folder: Path, ingested: Callable) -> None:
    done = ingested(folder, "--modality", "0=FLAIR")
    assert done.code == 2
    assert "--modality 1=NAME --modality 2=NAME" in done.said
    assert ingested(folder, *NAMED[:4], "--modality", "2=skip").store["TBI"].modalities == ("FLAIR", "T1")


def test_a_file_of_other_volumes(head, folder: Path, ingested: Callable) -> None:
    for case in ("c", "d"):
        head.save(folder / "Images" / f"{case}.nii.gz", np.stack([head.image() for _ in range(2)], axis=-1))
        head.save(folder / "Labels" / f"{case}.nii.gz", head.codes(1))
    (folder / "Images" / "d.nii.gz").unlink()
    done = ingested(folder, *NAMED)
    assert done.report["failed"] == ["c", "d"]
    assert done.codes("error") == ["NUM_VOLUMES", "NO_MODALITY"]


def test_one_sequence(head, tmp_path: Path, ingested: Callable) -> None:
    done = ingested(write(head, tmp_path / "ATLAS", 1), "--modality", "0=T1")
    assert done.code == 0
    assert done.store["ATLAS"].modalities == ("T1",)


def test_a_folder_around_it(head, folder: Path, ingested: Callable) -> None:
    assert ingested(folder.parent, *NAMED).code == 0
    write(head, folder.parent / "WMH", 2)
    done = ingested(folder.parent, *NAMED)
    assert done.code == 3
    assert "TBI, WMH" in done.said
