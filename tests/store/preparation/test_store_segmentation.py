"""A segmentation given as a scan is refused by its values, whatever its name; a scan of few levels is not."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from multiseg.errors import SourceError
from multiseg.store.cases import CaseFiles
from multiseg.store.preparation.prepare import prepare_case
from multiseg.store.preparation.recipe import Recipe

SHAPE = (48, 56, 46)
AFFINE = np.diag([4.0, 4.0, 4.0, 1.0])
RNG = np.random.default_rng(0)


def depth() -> np.ndarray:
    """1 in the middle of an ellipsoid, 0 on its surface, less outside."""
    at = np.moveaxis(np.indices(SHAPE), 0, -1) - (np.array(SHAPE) - 1) / 2
    return 1 - np.linalg.norm(at / np.array([18, 22, 17]), axis=-1)


def tissues() -> np.ndarray:
    """1 to 3 in folded shells."""
    folds = ndimage.gaussian_filter(np.random.default_rng(1).normal(0, 1, SHAPE), 3)
    folds /= folds.std()
    return np.where(depth() > 0, np.clip(np.floor(1 + 4 * depth() + 0.4 * folds), 1, 3), 0)


def parcels(num: int = 140) -> np.ndarray:
    """Every voxel has the number of the nearest of some seeds, in any order; codes go up to 207 with gaps."""
    rng = np.random.default_rng(2)
    seeds = rng.permutation(np.flatnonzero(depth().ravel() > 0))[:num]
    far = np.ones(SHAPE, dtype=bool)
    far.flat[seeds] = False
    numbers = np.zeros(SHAPE)
    numbers.flat[seeds] = rng.permutation(np.arange(1, 208))[:num]
    nearest = ndimage.distance_transform_edt(far, return_distances=False, return_indices=True)
    return np.where(depth() > 0, numbers[tuple(nearest)], 0)


def scan(levels: int | None = None) -> np.ndarray:
    """Tissue contrast, shading and noise; brought to so many levels."""
    image = np.where(depth() > 0, 0.3 + 0.2 * ndimage.gaussian_filter(tissues(), 0.7) + 0.1 * depth(), 0)
    image = np.where(depth() > 0, image + np.random.default_rng(3).normal(0, 0.03, SHAPE), 0).clip(0)
    return image if levels is None else np.rint(image / image.max() * (levels - 1))


def moved(image: np.ndarray) -> np.ndarray:
    """The image on another grid, by linear interpolation."""
    return ndimage.affine_transform(image, np.diag([0.9, 0.93, 0.88]), (0.3, 0.4, 0.2), order=1)


def prepare(folder: Path, image: np.ndarray, dtype: type = np.float32) -> dict[str, str]:
    """Warnings and notes by their code."""
    nib.save(nib.Nifti1Image(image.astype(dtype), AFFINE), folder / "T1.nii")
    case = prepare_case(CaseFiles("P1", {"T1": folder / "T1.nii"}), {}, Recipe((4.0,) * 3))
    return {doubt.code: doubt.message for doubt in case.doubts}


SEGMENTATIONS = {
    "tissues": (tissues, "has only the values 1, 2, 3"),
    "tumour": (lambda: np.select([depth() > 0.7, depth() > 0.6, depth() > 0.5], [1, 4, 2]), "only the values 1, 2, 4"),
    "tissues in 0 to 255": (lambda: tissues() * 85, "has only the values 85, 170, 255"),
    "tissues in 0 to 1": (lambda: tissues() / 3, "has only the values 0.333333, 0.666667, 1"),
    "with another background": (lambda: tissues() - 1, "has only the values 0, 1, 2"),
    "parcels": (parcels, r"has \d+% equal neighbouring voxels"),
    "many codes": (lambda: np.where(parcels() > 0, 11100 + parcels() * 7, 0), r"has \d+% equal neighbouring"),
    "resampled tissues": (lambda: moved(tissues()), r"has \d+% equal neighbouring voxels"),
    "resampled parcels": (lambda: moved(parcels(40)), r"has \d+% equal neighbouring voxels"),
    "resampled mask": (lambda: moved((depth() > 0.2) * 1.0), r"has \d+% equal neighbouring voxels"),
    "partial volume": (lambda: ndimage.gaussian_filter((depth() > 0.35) * 1.0, 0.9).clip(0, 1), "ranges|equal"),
}  # fmt: skip


@pytest.mark.parametrize("kind", SEGMENTATIONS)
def test_a_segmentation_is_no_scan(kind: str, tmp_path: Path) -> None:
    make, said = SEGMENTATIONS[kind]
    with pytest.raises(SourceError, match=rf"T1 \(.*T1\.nii\) .*({said}).*--modality NAME=skip") as caught:
        prepare(tmp_path, make())
    assert (caught.value.code, caught.value.file) == ("SEGMENTATION", str(tmp_path / "T1.nii"))


def test_a_small_lesion_mask_of_two_codes(tmp_path: Path) -> None:
    codes = np.zeros(SHAPE)
    codes[20:23, 20:23, 20:22] = 1
    codes[20, 20, 20] = 2
    with pytest.raises(SourceError, match="has only the values 1, 2") as caught:
        prepare(tmp_path, codes, np.uint8)
    assert caught.value.code == "SEGMENTATION"


@pytest.mark.parametrize("levels", [None, 4096, 256, 64, 32, 16])
def test_a_scan_of_few_levels_is_one(levels: int | None, tmp_path: Path) -> None:
    assert "SEGMENTATION" not in prepare(tmp_path, scan(levels), np.float32 if levels is None else np.int16)
    assert "SEGMENTATION" not in prepare(tmp_path, moved(scan(levels)))


def test_a_phantom_without_noise_is_one(tmp_path: Path) -> None:
    """Its tissues are constant, as in a label map, but few voxels jump from one to another; a person is asked."""
    smooth = 400 * (depth() > 0) + 300 * np.clip(16 * depth() - 1, 0, 1)
    doubts = prepare(tmp_path, np.rint(smooth / 16) * 16, np.int16)
    assert "equal neighbouring voxels" in doubts["SEGMENTATION"]


def test_repeated_slices_air_and_saturation_are_no_segmentation(tmp_path: Path) -> None:
    repeated = np.repeat(scan(256)[:, :, ::4], 4, axis=2)[:, :, : SHAPE[2]]
    air = np.random.default_rng(4).integers(0, 3, SHAPE)
    with_air = np.where(depth() > 0, scan(256) + 3, air)
    saturated = scan().clip(0, np.percentile(scan()[depth() > 0], 98))
    for voxels in (repeated, with_air, saturated):
        assert "SEGMENTATION" not in prepare(tmp_path, voxels)


def test_real_scans_are_scans_and_real_label_maps_are_not(data: Path) -> None:
    scans = [
        "anatomy/1000/T1.nii.gz", "brats/BraTS-GLI-90001-000/BraTS-GLI-90001-000-t2f.nii.gz", "wmh/Subj03/FLAIR.nii.gz",
        "freesurfer/bert/T1_brain.mgz", "native/TCGA-FG-6692/T2.nii.gz", "template/template/PD.nii.gz",
    ]  # fmt: skip
    for name in scans:
        prepare_case(CaseFiles("P1", {"T1": data / name}), {}, Recipe((4.0,) * 3))
    labels = [
        "anatomy/1000/tissue3.nii.gz", "anatomy/1000/parcellation.nii.gz", "wmh/Subj01/tissue_dlmuse_on_T1.nii.gz",
        "freesurfer/bert/aseg.mgz", "freesurfer/bert/aparc_aseg.mgz",
    ]  # fmt: skip
    for name in labels:
        with pytest.raises(SourceError) as caught:
            prepare_case(CaseFiles("P1", {"T1": data / name}), {}, Recipe((4.0,) * 3))
        assert caught.value.code == "SEGMENTATION"
