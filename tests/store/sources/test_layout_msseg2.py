"""MSSEG-2 is known, and refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
from looking import look

from multiseg.errors import SourceError


def write_case(head, folder: Path) -> None:
    for time in ("01", "02"):
        head.save(folder / f"flair_time{time}_on_middle_space.nii.gz")
    for name in ("ground_truth", "ground_truth_expert1"):
        head.save(folder / f"{name}.nii.gz", head.codes(1))


def test_new_lesions_are_not_all_lesions(head, tmp_path: Path) -> None:
    write_case(head, tmp_path / "training" / "013")
    with pytest.raises(
        SourceError, match="is MSSEG-2, whose labels are only the new lesions of the second visit"
    ) as caught:
        look(tmp_path / "training")
    assert caught.value.code == "NO_FULL_LESIONS"


@pytest.mark.slow
def test_the_way_that_the_error_names(head, tmp_path: Path, ingested: Callable) -> None:
    write_case(head, tmp_path / "training" / "013")
    head.save(tmp_path / "training" / "013" / "lesions.nii.gz", head.codes(1))
    done = ingested(
        tmp_path / "training", "--pattern", "{case}/{modality}.nii.gz", "--label", "{case}/lesions.nii.gz",
        "--modality", "flair_time02_on_middle_space=FLAIR", "--modality", "flair_time01_on_middle_space=skip",
    )  # fmt: skip
    assert done.code == 0, done.said
    assert done.store["training"]["013"].modalities == ("FLAIR",)
