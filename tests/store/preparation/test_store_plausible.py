"""What cannot be a brain is told, with numbers and what to do: heads, slabs, halves, blobs, lost voxel sizes."""

import math
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from multiseg.store.cases import CaseFiles
from multiseg.store.preparation import plausible
from multiseg.store.preparation.grids import Grid
from multiseg.store.preparation.prepare import PreparedCase, prepare_case
from multiseg.store.preparation.recipe import Recipe

SHAPE = (56, 64, 56)
MM = 4.0


def far(radii: tuple[float, float, float], centre: tuple[float, float, float] = (0, 0, 0)) -> np.ndarray:
    """1 on the surface of an ellipsoid in voxels about the middle of the image."""
    at = np.moveaxis(np.indices(SHAPE), 0, -1) - (np.array(SHAPE) - 1) / 2 - np.array(centre)
    return np.linalg.norm(at / np.array(radii), axis=-1)


BRAIN = far((17, 21, 16)) < 1
"""1,530 ml."""
HEAD = (far((22, 27, 21)) < 1) | (far((13, 15, 40), (0, 0, -20)) < 1)


def image(where: np.ndarray, seed: int = 0) -> np.ndarray:
    return np.where(where, np.random.default_rng(seed).normal(300, 60, SHAPE), 0).astype(np.float32)


def save(folder: Path, name: str, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    nib.save(nib.Nifti1Image(array, np.diag([MM, MM, MM, 1]) if affine is None else affine), folder / name)
    return folder / name


def prepared(folder: Path, rule: str = "nonzero", mm: float = MM, **files: np.ndarray) -> PreparedCase:
    """A case of these arrays; "mask" is its brain mask."""
    paths = {name: save(folder, f"{name}.nii", array) for name, array in files.items()}
    mask = paths.pop("mask", None)
    return prepare_case(CaseFiles("P1", paths, brain_mask=mask), {}, Recipe((mm,) * 3, brain_mask=rule))


def doubts(case: PreparedCase) -> dict[str, str]:
    assert {doubt.severity for doubt in case.doubts} <= {"warning"}
    return {doubt.code: doubt.message for doubt in case.doubts}


@pytest.mark.parametrize("rule", ["nonzero", "file", "otsu", "command"])
def test_a_brain_is_one_and_a_head_is_none_by_every_rule(rule: str, tmp_path: Path) -> None:
    for where, codes in ((BRAIN, set()), (HEAD, {"BRAIN_SIZE", "BRAIN_CUT"})):
        mask = save(tmp_path, "made.nii", where.astype(np.uint8))
        by = f"command cp {mask} {{mask}} --no-target-directory --suffix={{image}}" if rule == "command" else rule
        files = {"T1": image(where), "T2": image(where, 1)} | (
            {"mask": where.astype(np.uint8)} if rule == "file" else {}
        )
        case = prepared(tmp_path, by, **files)
        assert set(doubts(case)) == codes
        if codes:
            liters = np.count_nonzero(where) * MM**3 / 1e6
            assert case.brain_ml == pytest.approx(1000 * liters, rel=0.02)
            assert 3.4 < liters < 6
            said = doubts(case)
            assert f"T1, T2: the brain has {case.brain_ml / 1000:.2g} l" in said["BRAIN_SIZE"]
            assert "brains have 500 ml to 2.2 l. It includes skull, neck or air." in said["BRAIN_SIZE"]
            assert all("--brain-mask" in text for text in said.values())
            assert "cm2 at the bottom)" in said["BRAIN_CUT"]


@pytest.mark.parametrize("rows", [20, 1])
def test_a_slab_is_cut_at_both_faces(rows: int, tmp_path: Path) -> None:
    """A slab of 20 slices of 1 mm, and a single slice."""
    middle = SHAPE[2] // 2
    slab = np.zeros((*SHAPE[:2], rows), dtype=np.float32)
    slab[...] = image(BRAIN)[:, :, middle : middle + 1]
    slab += (slab != 0) * np.random.default_rng(2).normal(0, 5, slab.shape).astype(np.float32)
    affine = np.diag([MM, MM, 1.0, 1.0])
    path = save(tmp_path, "T1.nii", slab, affine)
    for mm in (1.0, 4.0):
        case = prepare_case(CaseFiles("P1", {"T1": path}), {}, Recipe((4.0, 4.0, mm)))
        said = doubts(case)
        assert set(said) == {"BRAIN_SIZE", "BRAIN_CUT"}
        area = np.count_nonzero(slab[:, :, 0]) * MM**2 / 100
        assert area == pytest.approx(180, rel=0.1)
        assert f"({area:.0f} cm2 at the bottom, {area:.0f} cm2 at the top)" in said["BRAIN_CUT"]


def test_halves_and_blobs(tmp_path: Path) -> None:
    halves = BRAIN.copy()
    halves[27:29] = False
    said = doubts(prepared(tmp_path, T1=image(halves)))
    assert set(said) == {"BRAIN_PARTS"}
    assert "has several parts, the largest with 50.0% of it" in said["BRAIN_PARTS"]
    blob = BRAIN.copy()
    blob[1:8, 1:8, 48:55] = True  # 22 ml beside 1,530
    said = doubts(prepared(tmp_path, "file", T1=image(blob), mask=blob.astype(np.uint8)))
    assert "the largest with 98.6% of it" in said["BRAIN_PARTS"]
    speck = BRAIN.copy()
    speck[1, 1, 1] = True
    assert not doubts(prepared(tmp_path, T1=image(speck)))


def test_sequences_of_one_case_agree_on_the_brain(tmp_path: Path) -> None:
    """Where both were scanned: a scan that ends sooner is no disagreement, one with its skull is."""
    smaller = far((16.5, 20.5, 15.5)) < 1
    assert not doubts(prepared(tmp_path, T1=image(BRAIN), T2=image(smaller, 1)))
    head = far((20, 24, 19)) < 1
    said = doubts(prepared(tmp_path, FLAIR=image(BRAIN), T1=image(BRAIN, 1), T2=image(head, 2)))
    assert set(said) == {"BRAINS_DIFFER", "BRAIN_SIZE"}
    dice = 2 * BRAIN.sum() / (BRAIN.sum() + head.sum())
    assert (
        f"the brains of FLAIR, T1 and T2 agree with a Dice of {math.floor(dice * 1000) / 1000:.3f} where both were "
        "scanned (usually at least 0.900)" in said["BRAINS_DIFFER"]
    )
    assert said["BRAIN_SIZE"].startswith("T2: the brain has 2.4 l")


def test_a_dice_just_below_the_limit_does_not_read_as_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plausible, "agreement", lambda *arguments: 0.8998)
    grid = Grid(np.eye(4), (4, 4, 4))
    masks = (np.ones((2, 2, 2), bool), np.zeros((2, 2, 2), bool))
    regions = {str(n): plausible.Region((slice(1, 3),) * 3, mask, grid) for n, mask in enumerate(masks)}
    said = dict(plausible.find_implausible(regions, grid, "file"))
    assert "agree with a Dice of 0.899 where" in said["BRAINS_DIFFER"]


@pytest.mark.parametrize(
    ("voxel_mm", "said"),
    [
        (1.0, r"has 23.9 ml and measures 34 x 42 x 32 mm, with voxels of 1 x 1 x 1 mm by the header"),
        (8.0, r"has 12 l and measures 272 x 336 x 256 mm"),
        (0.4, r"with voxels 9\.5 times as long it would be a brain of 1\.3 l"),
        (40.0, r"with voxels 0\.095 times as long it would be a brain of 1\.3 l"),
    ],
)
def test_a_header_that_lost_its_voxel_size(voxel_mm: float, said: str, tmp_path: Path) -> None:
    path = save(tmp_path, "T1.nii", image(BRAIN), np.diag([voxel_mm] * 3 + [1.0]))
    case = prepare_case(CaseFiles("P1", {"T1": path}), {}, Recipe((voxel_mm,) * 3))
    (text,) = doubts(case).values()
    assert set(doubts(case)) == {"VOXEL_SIZE"}
    assert "The voxel size seems lost" in text
    assert re.search(said, text)
    # 5 mm slices and 0.5 mm within them, read as 1 mm: no single factor explains that.
    flat = np.repeat(np.repeat(image(BRAIN)[:, :, ::2], 6, axis=0), 6, axis=1)
    flat += (flat != 0) * np.random.default_rng(0).normal(0, 9, flat.shape).astype(np.float32)
    case = prepare_case(CaseFiles("P1", {"T1": save(tmp_path, "f.nii", flat, np.eye(4))}), {}, Recipe((4.0, 4.0, 1.0)))
    assert "No head has these sides: the voxel size seems lost." in doubts(case)["VOXEL_SIZE"]


def test_real_brains_are_ones_and_real_heads_are_none(data: Path) -> None:
    def codes(rule: str, mask: str = "", **images: str) -> set[str]:
        files = CaseFiles(
            "P1", {name: data / path for name, path in images.items()}, brain_mask=data / mask if mask else None
        )
        case = prepare_case(files, {}, Recipe((2.0,) * 3, brain_mask=rule))
        return {
            doubt.code
            for doubt in case.doubts
            if doubt.code.startswith(("BRAIN", "VOXEL")) and doubt.code != "BACKGROUND"
        }

    case = "brats/BraTS-GLI-90001-000/BraTS-GLI-90001-000-"
    assert codes("nonzero", T1=f"{case}t1n.nii.gz", FLAIR=f"{case}t2f.nii.gz") == set()
    assert codes("nonzero", T1="anatomy/1000/T1.nii.gz") == codes("nonzero", T1="freesurfer/bert/T1.mgz") == set()
    assert codes("nonzero", T1="ms/patient07/T1.nii.gz", FLAIR="ms/patient07/FLAIR.nii.gz") == set()
    native = {name: f"native/TCGA-FG-6692/{name}.nii.gz" for name in ("T1", "FLAIR")}
    assert codes("nonzero", **native) == codes("otsu", **native) == {"BRAIN_SIZE", "BRAIN_CUT"}
    template = {"T1": "template/template/T1.nii.gz"}
    assert "BRAIN_SIZE" in codes("nonzero", **template) & codes("otsu", **template)
    assert codes("file", "template/template/brainmask.nii.gz", **template) == set()
