"""A prediction comes home however the patient's file was turned: on its grid, at the lesion's own voxels."""

import functools
import itertools
from pathlib import Path

import nibabel as nib
import niizarr
import numpy as np
import pytest
import torch
from nibabel.orientations import apply_orientation, inv_ornt_aff
from sweeps import sample
from torch import Tensor, nn

from multiseg.evaluation.prediction import predict
from multiseg.labels import LabelSpace
from multiseg.modalities import ModalityAxis
from multiseg.models.saved import Model, ModelInfo

SIZE_MM = (2.0, 3.0, 2.5)
SHAPE = (24, 18, 20)
TURNS = [
    np.stack([axes, signs], axis=1)
    for axes in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]
"""The 48 ways to permute and flip three axes."""


class Bright(nn.Module):
    """Says lesion where the sequence is brighter than half way between the brain and a lesion."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor, present: Tensor) -> Tensor:
        bright = images.amax() / 2 + images[images != 0].median() / 2
        return 50 * (images - bright) + self.nothing


def model(spacing_mm: tuple[float, float, float]) -> Model:
    info = ModelInfo(
        builder="multi_unet", numbers={}, axis=ModalityAxis(("FLAIR",)), space=LabelSpace(), spacing_mm=spacing_mm,
        patch=(48, 48, 48), trained_on={"FLAIR": ("somewhere",)}, databases={},
    )  # fmt: skip
    return Model(Bright().eval(), info)


def save_turned(folder: Path, turn: np.ndarray) -> tuple[Path, np.ndarray]:
    """An all but flat brain with a bright ball 24 mm wide, off every axis of symmetry, and where the ball is."""
    affine = np.diag([*SIZE_MM, 1.0])
    affine[:3, 3] = (-31, 12.5, 7)
    mm = np.stack(np.meshgrid(*[np.arange(n) * size for n, size in zip(SHAPE, SIZE_MM, strict=True)], indexing="ij"))
    brain = np.linalg.norm(mm - np.reshape((24, 27, 25), (3, 1, 1, 1)), axis=0) < 26
    lesion = np.linalg.norm(mm - np.reshape((17, 30, 23), (3, 1, 1, 1)), axis=0) < 12
    noise = np.random.default_rng(0).uniform(-1, 1, SHAPE)  # an image of two values would be a segmentation
    image = np.where(brain, np.where(lesion, 400, 200) + noise, 0).astype(np.float32)
    path = folder / "FLAIR.nii.gz"
    turned = np.ascontiguousarray(apply_orientation(image, turn))
    nib.save(nib.Nifti1Image(turned, affine @ inv_ornt_aff(turn, SHAPE)), path)
    return path, turned > 300


@functools.cache
def unturned(folder: Path, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """The answer for the file that is not turned."""
    flair, _ = save_turned(folder, TURNS[0])
    done = predict(model(spacing_mm), {"FLAIR": flair}, folder / "answer.nii.gz", overwrite=True)
    return np.asarray(nib.load(done.path).dataobj)


def test_a_nifti_zarr_gets_the_answer_of_the_file_that_it_was(tmp_path: Path) -> None:
    flair, _ = save_turned(tmp_path, TURNS[5])
    niizarr.nii2zarr(nib.load(flair), str(tmp_path / "FLAIR.nii.zarr"), nb_levels=1)
    one, other = (
        predict(model(SIZE_MM), {"FLAIR": tmp_path / name}, tmp_path / f"answer-{number}.nii.gz")
        for number, name in enumerate(("FLAIR.nii.gz", "FLAIR.nii.zarr"))
    )
    assert (tmp_path / "answer-0.nii.gz").read_bytes() == (tmp_path / "answer-1.nii.gz").read_bytes()
    # Chunks of the background are not stored, and that is said.
    assert {doubt.code for doubt in other.doubts} - {doubt.code for doubt in one.doubts} <= {"MISSING_CHUNKS"}


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("still")


@pytest.mark.parametrize(
    "turn", sample(TURNS, 8), ids=lambda turn: "".join(f"{'+-'[int(s < 0)]}{int(a)}" for a, s in turn)
)
def test_a_prediction_comes_home(turn: np.ndarray, still: Path, tmp_path: Path) -> None:
    """Voxel for voxel at the files' own voxel size; to a Dice of 0.98 through voxels of 1.6 mm; and however the file
    was turned, the same answer voxel for voxel."""
    flair, lesion = save_turned(tmp_path, turn)
    original = nib.load(flair)
    for spacing_mm, dice in ((SIZE_MM, 1.0), ((1.6, 1.6, 1.6), 0.98)):
        done = predict(model(spacing_mm), {"FLAIR": flair}, tmp_path / "answer.nii.gz", overwrite=True)
        answer = nib.load(done.path)
        found = np.asarray(answer.dataobj) == 1
        assert found.shape == lesion.shape
        np.testing.assert_array_equal(answer.affine, original.affine)
        assert 2 * (found & lesion).sum() / (found.sum() + lesion.sum()) >= dice
        np.testing.assert_array_equal(found, apply_orientation(unturned(still, spacing_mm) == 1, turn))
