"""Sequences that do not lie on each other: brought together, with what is drawn on them, and said."""

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from multiseg.labels import LabelSchema
from multiseg.store.cases import CaseFiles
from multiseg.store.formats.read_volume import read_volume
from multiseg.store.formats.volumes import to_ras
from multiseg.store.preparation.grids import Grid, resample
from multiseg.store.preparation.places import grid_of
from multiseg.store.preparation.prepare import PreparedCase, prepare_case
from multiseg.store.preparation.recipe import Recipe
from multiseg.store.preparation.registration import register_affine, register_rigid
from multiseg.store.preparation.similarity import normalised_mutual_information

SHAPE = (40, 44, 36)
GRID = Grid(np.diag([3.0, 3.0, 3.0, 1.0]), SHAPE)
RECIPE = Recipe((3.0, 3.0, 3.0), reference="FLAIR", register="rigid")
SCHEMAS = {"lesion": LabelSchema.parse("1=lesion", "lesion")}


def contrasts() -> tuple[np.ndarray, np.ndarray]:
    """Two contrasts of one head: structures of about a centimetre in an ellipsoid, each in its own greys."""
    anatomy = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=SHAPE), 1.6)
    at = (np.moveaxis(np.indices(SHAPE), 0, -1) - (np.array(SHAPE) - 1) / 2) / (np.array(SHAPE) * 0.36)
    inside = np.linalg.norm(at, axis=-1) < 1
    one, two = 300 + 900 * anatomy, 700 - 1200 * anatomy + 4000 * anatomy**2
    return (one * inside).astype(np.float32), (two * inside).astype(np.float32)


def rigid(degrees: tuple[float, float, float], mm: tuple[float, float, float]) -> np.ndarray:
    """A turn about the middle of `GRID` and a shift."""
    turn = nib.eulerangles.euler2mat(*np.radians(degrees))
    return nib.affines.from_matvec(turn, GRID.centre - turn @ GRID.centre + mm)


def farthest_mm(move: np.ndarray) -> float:
    """How far a move takes the corners of the head's box, at most."""
    corners = GRID.centre + np.array([[i, j, k] for i in (-45, 45) for j in (-45, 45) for k in (-40, 40)])
    return float(np.linalg.norm(corners @ (move[:3, :3] - np.eye(3)).T + move[:3, 3], axis=1).max())


MOVE = rigid((6.0, -4.0, 5.0), (7.0, -5.0, 4.0))


def test_similarity_by_hand() -> None:
    """Two values in equal parts tell nothing (1), all (2) or part of the other."""
    a = np.tile([0, 0, 1, 1], 200)
    assert normalised_mutual_information(a, np.tile([0, 1, 0, 1], 200)) == pytest.approx(1)
    assert normalised_mutual_information(a, 5 - 3 * a) == pytest.approx(2)
    assert normalised_mutual_information(a, np.zeros(800)) == pytest.approx(1)
    partly = np.tile([0, 0, 1, 0], 200)
    entropies = np.log(2) + (0.75 * np.log(4 / 3) + 0.25 * np.log(4))
    pairs = 0.5 * np.log(2) + 0.5 * np.log(4)
    assert normalised_mutual_information(a, partly) == pytest.approx(entropies / pairs)


@pytest.mark.slow
def test_a_moved_copy_comes_back_within_half_a_voxel() -> None:
    one, two = contrasts()
    moved = Grid(MOVE @ GRID.affine, SHAPE)
    move = register_rigid(one, GRID, two, moved)
    assert farthest_mm(MOVE) > 10
    assert farthest_mm(move.matrix @ MOVE) < 1.5
    assert move.after > move.before + 0.05
    assert move.mm(GRID.centre) == pytest.approx(np.linalg.norm([7, 5, 4]), abs=1)
    angle = np.degrees(np.arccos((np.trace(MOVE[:3, :3]) - 1) / 2))
    assert move.degrees == pytest.approx(angle, abs=1)
    again = register_rigid(one, GRID, two, moved)
    np.testing.assert_array_equal(move.matrix, again.matrix)


def save(folder: Path, name: str, array: np.ndarray, affine: np.ndarray = GRID.affine) -> Path:
    nib.save(nib.Nifti1Image(array, affine), folder / name)
    return folder / name


def prepared(recipe: Recipe, images: dict[str, Path], **labels: Path) -> PreparedCase:
    return prepare_case(CaseFiles("P1", images, labels), SCHEMAS, recipe)


def said(case: PreparedCase) -> dict[str, str]:
    return {doubt.code: doubt.message for doubt in case.doubts}


@pytest.mark.slow
def test_a_label_moves_with_the_sequence_it_was_drawn_on(tmp_path: Path) -> None:
    one, two = contrasts()
    # Another shape than the reference's, so that the headers say nothing against each other.
    away = MOVE @ GRID.affine @ nib.affines.from_matvec(np.eye(3), [0, 0, 1])
    codes = np.zeros(SHAPE, dtype=np.uint8)
    codes[15:22, 18:25, 14:20] = 1
    images = {"FLAIR": save(tmp_path, "F.nii", one), "T1": save(tmp_path, "T1.nii", two[..., 1:], away)}
    case = prepared(RECIPE, images, lesion=save(tmp_path, "l.nii", codes[..., 1:], away))
    straight = resample(codes.astype(np.float32), GRID, case.grid, smooth=False) > 0.5
    found = case.labels["lesion"] == 1
    assert 2 * np.count_nonzero(found & straight) / (np.count_nonzero(found) + np.count_nonzero(straight)) > 0.9
    assert "T1 was moved by" in said(case)["REGISTERED"]
    assert {str(doubt.severity) for doubt in case.doubts if doubt.code == "REGISTERED"} == {"note"}
    for source in case.sources[1:]:
        assert source["steps"][0].startswith("registered to FLAIR: moved by"), source
    assert not any("registered" in step for step in case.sources[0]["steps"])


@pytest.mark.slow
def test_what_lies_right_is_left_alone(tmp_path: Path) -> None:
    """A copy of the reference's own anatomy in its place: not a bit changes."""
    one, _ = contrasts()
    images = {"FLAIR": save(tmp_path, "F.nii", one), "T1": save(tmp_path, "T1.nii", (one * 2 + 3 * (one != 0)))}
    case = prepared(RECIPE, images)
    plain = prepared(Recipe((3.0, 3.0, 3.0), reference="FLAIR"), images)
    np.testing.assert_array_equal(case.images, plain.images)
    assert "T1 keeps the position in its header" in said(case)["REGISTERED"]


@pytest.mark.slow
def test_a_far_move_is_a_warning(tmp_path: Path) -> None:
    one, two = contrasts()
    far = nib.affines.from_matvec(np.eye(3), [33.0, 0, 0]) @ GRID.affine
    images = {"FLAIR": save(tmp_path, "F.nii", one), "T1": save(tmp_path, "T1.nii", two[..., :-1], far)}
    case = prepared(RECIPE, images)
    assert "T1 was moved by 3" in said(case)["REGISTERED_FAR"]


def test_a_search_that_cannot_begin_leaves_the_header_alone(tmp_path: Path) -> None:
    """They overlap by one slice, where the coarsest level has no sample."""
    one, two = np.random.default_rng(0).uniform(1, 9, (2, *SHAPE)).astype(np.float32)
    beside = nib.affines.from_matvec(np.eye(3), [3.0 * (SHAPE[0] - 1), 0, 0]) @ GRID.affine
    images = {"FLAIR": save(tmp_path, "F.nii", one), "T1": save(tmp_path, "T1.nii", two[..., :-1], beside)}
    case = prepared(RECIPE, images)
    np.testing.assert_array_equal(case.images, prepared(replace(RECIPE, register=""), images).images)
    assert "outside moving image buffer" in said(case)["NOT_REGISTERED"]
    assert "repair its header or leave it out" in said(case)["NOT_REGISTERED"]
    assert case.sources[1]["steps"][0] == "registered to FLAIR: failed, stays"


def test_real_sequences_of_one_patient(data: Path) -> None:
    """Three contrasts on three grids, with skull: from wherever they begin they end in one place."""
    folder = data / "native/TCGA-FG-6692"
    fixed, moving = (to_ras(read_volume(folder / f"{name}.nii.gz")) for name in ("T1c", "FLAIR"))
    start = grid_of(moving)
    first = register_rigid(fixed.voxels, grid_of(fixed), moving.voxels, start)
    away = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.05, -0.03, 0.04), [4.0, -6.0, 5.0])
    second = register_rigid(fixed.voxels, grid_of(fixed), moving.voxels, Grid(away @ start.affine, start.shape))
    assert first.after > first.before + 0.05
    apart = (second.matrix @ away - first.matrix) @ np.array([*grid_of(fixed).centre, 1.0])
    assert np.linalg.norm(apart) < 0.5


@pytest.mark.slow
def test_two_brains_of_other_sizes_in_other_places_are_brought_together() -> None:
    """The affine is found wherever the headers put the two brains."""
    one, two = contrasts()
    to_one = np.array([[1.15, 0.06, 0, -90], [-0.05, 0.9, 0.04, 40], [0, 0.03, 1.05, 70], [0, 0, 0, 1.0]])
    moved = Grid(np.linalg.inv(to_one) @ GRID.affine, SHAPE)
    # On a grid of its own with right angles, as a scan would have.
    straight = moved.orthonormal()
    scan = resample(two, moved, straight)
    move = register_affine(one, GRID, scan, straight)
    assert farthest_mm(move.matrix @ np.linalg.inv(to_one)) < 3
    assert move.after > move.before
