"""BraTS: two conventions of names and codes."""

from collections.abc import Callable
from pathlib import Path

import pytest


def write_new(head, folder: Path, case: str, *codes: int) -> None:
    for name in ("t1n", "t1c", "t2w", "t2f"):
        head.save(folder / case / f"{case}-{name}.nii.gz")
    head.save(folder / case / f"{case}-seg.nii.gz", head.codes(*codes))


def test_until_2021(head, tmp_path: Path, ingested: Callable) -> None:
    folder = tmp_path / "MICCAI_BraTS2020_TrainingData"
    for name in ("flair", "t1", "t1ce", "t2"):
        head.save(folder / "BraTS20_Training_001" / f"BraTS20_Training_001_{name}.nii.gz")
    head.save(folder / "BraTS20_Training_001" / "BraTS20_Training_001_seg.nii.gz", head.codes(1, 2, 4))
    done = ingested(folder)
    assert done.code == 0
    assert "brats2021" in done.said
    database = done.store["MICCAI_BraTS2020_TrainingData"]
    assert database.modalities == ("FLAIR", "T1", "T1c", "T2")
    assert database.schemas["tumour"].names == ("necrosis", "oedema", "enhancing")
    assert (database.cases[0].foreground_count > 0).all()


@pytest.mark.parametrize(
    ("codes", "names", "warned"),
    [
        ([(1, 2, 3), (1, 2)], ("necrosis", "oedema", "enhancing"), []),
        ([(1, 2, 4), (1, 2, 3)], ("necrosis", "oedema", "enhancing"), ["LABEL_CONVENTION"]),
        ([(1, 2, 3, 4), (2, 3)], ("necrosis", "oedema", "enhancing", "resection cavity"), []),
    ],
)
def test_from_2023(head, tmp_path: Path, ingested: Callable, codes, names, warned) -> None:
    for at, own in enumerate(codes):
        write_new(head, tmp_path / "gli", f"BraTS-GLI-0000{at}-100", *own)
    done = ingested(tmp_path / "gli")
    assert done.code == 0
    database = done.store["gli"]
    assert database.schemas["tumour"].names == names
    assert done.codes("warning") == warned
    assert database.pathology == "glioma"
    assert [(c.subject, c.session) for c in database.cases] == [("BraTS-GLI-00000", "100"), ("BraTS-GLI-00001", "100")]
