"""Inputs that would be stored without a word and mean nothing."""

import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from multiseg.atlases import schema_of
from multiseg.errors import SourceError
from multiseg.labels import LabelSchema
from multiseg.store.cases import CaseFiles
from multiseg.store.preparation.prepare import prepare_case
from multiseg.store.preparation.recipe import Recipe

SHAPE = (40, 44, 38)
AFFINE = np.diag([4.0, 4.0, 4.0, 1.0])
RECIPE = Recipe((4.0, 4.0, 4.0))


def case(folder: Path, image: np.ndarray, codes: np.ndarray) -> CaseFiles:
    nib.save(nib.Nifti1Image(image.astype(np.float32), AFFINE), folder / "T1.nii")
    nib.save(nib.Nifti1Image(codes.astype(np.uint8), AFFINE), folder / "label.nii")
    return CaseFiles("P1", {"T1": folder / "T1.nii"}, {"lesion": folder / "label.nii"})


def brain() -> np.ndarray:
    image = np.zeros(SHAPE)
    image[4:-4, 4:-4, 4:-4] = np.random.default_rng(0).normal(300, 40, np.array(SHAPE) - 8)
    return image


def test_one_wild_voxel_is_refused(tmp_path: Path) -> None:
    image, codes = brain(), np.zeros(SHAPE)
    codes[10:14, 10:14, 10:14] = 1
    schema = {"lesion": LabelSchema.parse("1=lesion", "lesion")}
    image[20, 20, 20] = 5_000  # a vessel, or a clip: bright, and no error
    prepare_case(case(tmp_path, image, codes), schema, RECIPE)
    image[20, 20, 20] = 1_500
    assert far_ones(case(tmp_path, image, codes), schema) == []
    image[20, 20, 20] = 30_000  # a flipped bit
    (said,) = far_ones(case(tmp_path, image, codes), schema)
    assert re.search(r"voxels far from all others \(1\), up to 30000, while 98% are between", said)
    image[20, 20, 20] = 1e8
    with pytest.raises(
        SourceError, match=r"98% of the brain is between .* but the values range from .* to 1e\+08"
    ) as caught:
        prepare_case(case(tmp_path, image, codes), schema, RECIPE)
    assert caught.value.code == "EXTREME_VALUES"


def far_ones(files: CaseFiles, schema: dict[str, LabelSchema]) -> list[str]:
    return [doubt.message for doubt in prepare_case(files, schema, RECIPE).doubts if doubt.code == "OUTLIERS"]


def test_codes_that_all_mean_background_are_told(tmp_path: Path) -> None:
    codes = np.zeros(SHAPE)
    codes[10:14, 10:14, 10:14] = 1
    schema = {"lesion": schema_of("freesurfer", "lesion")}
    doubts = {doubt.code: doubt for doubt in prepare_case(case(tmp_path, brain(), codes), schema, RECIPE).doubts}
    assert "marks 64 voxels with 1, but all of these codes mean background" in doubts["ALL_BACKGROUND"].message
    assert doubts["ALL_BACKGROUND"].severity == "warning"
