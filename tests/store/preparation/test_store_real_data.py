"""Real scans through the whole preparation: numbers that a radiologist would believe.

Needs $MULTISEG_DATA with the folders ms, tumour and wmh.
"""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from multiseg.store.formats.volumes import axis_codes
from multiseg.store.preparation.prepare import PreparedCase, prepare_case
from multiseg.store.preparation.recipe import Recipe
from multiseg.store.sources.pattern_source import PatternSource, find_database

RECIPE = Recipe(spacing_mm=(2.0, 2.0, 2.0))
ML = 0.008
PATTERN = "{case}/{modality}.nii.gz"


def first_case(data: Path, name: str, label: str, codes: str, **kw: str) -> tuple[PreparedCase, Path]:
    annotation = Path(label).name.split(".")[0]
    source = PatternSource(name, data / name, PATTERN, labels={annotation: label}, codes={annotation: codes}, **kw)
    files = find_database(source)
    assert len(files.cases) >= 3
    assert not [finding for finding in files.findings if finding.severity == "error"]
    case = files.cases[0]
    recipe = Recipe(RECIPE.spacing_mm, brain_mask=files.brain_mask)
    return prepare_case(case, files.schemas, recipe), case.labels[annotation]


def assert_sane(case: PreparedCase) -> None:
    assert axis_codes(case.grid.affine) == "RAS"
    assert case.grid.spacing_mm == pytest.approx(RECIPE.spacing_mm)
    assert case.images.dtype == np.float16
    extent_mm = np.array(case.grid.shape) * 2.0
    assert (extent_mm > 100).all()
    assert (extent_mm < 260).all()
    for image in case.images.astype(np.float64):
        inside = image[image != 0]
        assert abs(inside.mean()) < 0.01
        assert abs(inside.std() - 1) < 0.01
        assert 700 < inside.size * ML < 2500  # millilitres


def volume_ml(path: Path, *codes: int) -> float:
    image = nib.load(path)
    return np.isin(np.rint(image.get_fdata()), codes).sum() * np.prod(image.header.get_zooms()[:3]) / 1000


def test_tumours(data: Path) -> None:
    codes = "1=necrosis,2=oedema,3=non-enhancing,4=enhancing"
    case, label = first_case(data, "tumour", "{case}/seg.nii.gz", codes, brain_mask="{case}/brainmask.nii.gz")
    assert_sane(case)
    assert case.modalities == ("FLAIR", "T1c")
    for code in (1, 2, 3, 4):
        before = volume_ml(label, code)
        if before > 1:
            assert np.count_nonzero(case.labels["seg"] == code) * ML == pytest.approx(before, rel=0.1)
    # Enhancing tumour is bright in T1c, oedema in FLAIR.
    assert case.images[1][case.labels["seg"] == 4].mean() > 1
    assert case.images[0][case.labels["seg"] == 2].mean() > 0.5


def test_white_matter_hyperintensities(data: Path) -> None:
    case, label = first_case(
        data, "wmh", "{case}/lesion_on_FLAIR.nii.gz", "1=lesion", brain_mask="{case}/tissue_dlmuse_on_T1.nii.gz"
    )
    assert_sane(case)
    assert case.modalities == ("FLAIR", "T1")
    lesion = case.labels["lesion_on_FLAIR"] == 1
    # The label lies on the FLAIR, so this is the reference and no lesion is lost.
    assert case.native.shape == nib.load(label.with_name("FLAIR.nii.gz")).shape
    assert lesion.sum() * ML == pytest.approx(volume_ml(label, 1), rel=0.15)
    if lesion.any():
        assert case.images[0][lesion].mean() > 0.5


def test_multiple_sclerosis(data: Path) -> None:
    case, label = first_case(data, "ms", "{case}/lesion.nii.gz", "1=lesion")
    assert case.modalities == ("FLAIR", "T1", "T1c", "T2")
    assert_sane(case)
    lesion = case.labels["lesion"] == 1
    # Lesions of one or two voxels are half lost on a grid twice as coarse, and a person is told.
    assert lesion.sum() * ML == pytest.approx(volume_ml(label, 1), rel=0.3)
    assert "STRUCTURE_CHANGED" in {doubt.code for doubt in case.doubts}
    assert case.images[0][lesion].mean() > 1
