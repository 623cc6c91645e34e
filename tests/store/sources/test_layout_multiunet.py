"""Folders preprocessed for the published Multi-Unet."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from looking import look

from multiseg.errors import SourceError, UsageError

NAMED = {"0": "FLAIR", "1": "T1", "2": "SWI"}


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
    done = ingested(folder, *(text for number, name in NAMED.items() for text in ("--modality", f"{number}={name}")))
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


def test_volumes_are_not_guessed(folder: Path) -> None:
    with pytest.raises(UsageError, match="--modality 1=NAME --modality 2=NAME"):
        look(folder, modalities={"0": "FLAIR"})
    assert set(look(folder, modalities=NAMED | {"2": "skip"}).modalities.values()) == {("FLAIR", "T1")}


def test_a_file_of_other_volumes(head, folder: Path) -> None:
    for case in ("c", "d"):
        head.save(folder / "Images" / f"{case}.nii.gz", np.stack([head.image() for _ in range(2)], axis=-1))
        head.save(folder / "Labels" / f"{case}.nii.gz", head.codes(1))
    (folder / "Images" / "d.nii.gz").unlink()
    assert look(folder, modalities=NAMED).errors == [("NUM_VOLUMES", "c"), ("NO_MODALITY", "d")]


@pytest.mark.slow
def test_one_sequence(head, tmp_path: Path, ingested: Callable) -> None:
    done = ingested(write(head, tmp_path / "ATLAS", 1), "--modality", "0=T1")
    assert done.code == 0
    assert done.store["ATLAS"].modalities == ("T1",)


def test_a_folder_around_it(head, folder: Path) -> None:
    assert set(look(folder.parent, modalities=NAMED).cases) == {"a", "b"}
    write(head, folder.parent / "WMH", 2)
    with pytest.raises(SourceError, match="TBI, WMH"):
        look(folder.parent, modalities=NAMED)
