"""What a case will take, told from headers alone."""

import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from multiseg.errors import SourceError
from multiseg.labels import LabelSchema
from multiseg.store.cases import CaseFiles, Channel, Majority
from multiseg.store.formats.nifti import write_nifti
from multiseg.store.ingest.estimate import FIXED_BYTES, SIMPLEITK_BYTES, estimate
from multiseg.store.preparation.prepare import prepare_case
from multiseg.store.preparation.recipe import PERCENTILES, Recipe


def full_head(folder: Path, shape: tuple[int, int, int], spacing_mm: float) -> CaseFiles:
    """Three sequences without a zero in them, so that nothing can be cropped; one of them tilted."""
    rng = np.random.default_rng(0)
    affine = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
    tilted = affine @ np.array([[0.98, -0.199, 0, 0], [0.199, 0.98, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    images = {}
    for name, place in (("T1", affine), ("T2", affine), ("FLAIR", tilted)):
        images[name] = folder / f"{name}.nii.gz"
        write_nifti(images[name], rng.normal(100, 10, shape).astype(np.float32), place)
    label = np.zeros(shape, dtype=np.uint8)
    label[5:9, 5:9, 5:9] = 1
    write_nifti(folder / "lesion.nii.gz", label, affine)
    return CaseFiles("P1", images, {"lesion": folder / "lesion.nii.gz"})


SCHEMAS = {"lesion": LabelSchema.parse("1=lesion", "lesion")}
SCALE = tuple(float(p) for p in np.linspace(0, 100, len(PERCENTILES)))


def peak_and_estimate(case: CaseFiles, recipe: Recipe) -> tuple[int, int]:
    """Bytes that preparing a case takes at its height, and those that are told; without what libraries take."""
    schemas = {name: SCHEMAS[name] for name in case.labels}
    prepare_case(case, schemas, recipe)  # libraries are loaded
    tracemalloc.start()
    prepare_case(case, schemas, recipe)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    fixed = FIXED_BYTES + (SIMPLEITK_BYTES if recipe.register else 0)
    return peak, estimate(case, recipe).memory_bytes - fixed


@pytest.mark.parametrize("name", ["dwi.nii", "dwi.nii.gz", "dwi.mgz", "dwi.nrrd"])
def test_one_volume_of_a_4d_file_costs_the_whole_file(name: str, tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(100, 10, (30, 32, 28, 40)).astype(np.float32)
    if name == "dwi.nrrd":
        head = "NRRD0004\ntype: float\ndimension: 4\nspace: RAS\nsizes: 30 32 28 40\nendian: little\nencoding: raw\n"
        place = "space directions: (1,0,0) (0,1,0) (0,0,1) none\nspace origin: (0,0,0)\n\n"
        (tmp_path / name).write_bytes((head + place).encode() + values.tobytes("F"))
    else:
        kind = nib.MGHImage if name == "dwi.mgz" else nib.Nifti1Image
        nib.save(kind(values, np.eye(4, dtype=np.float32)), tmp_path / name)
    peak, told = peak_and_estimate(CaseFiles("P1", {"DWI": Channel(tmp_path / name, 3)}), Recipe())
    assert values.nbytes < peak < told < 4 * peak


@pytest.mark.slow
def test_many_raters_are_one_volume_and_their_codes(tmp_path: Path) -> None:
    case = full_head(tmp_path, (60, 70, 50), 1.0)
    write_nifti(tmp_path / "r.nii", np.ones((60, 70, 50), dtype=np.uint8), np.eye(4))
    voted = replace(case, images={"T1": case.images["T1"]}, labels={"lesion": Majority((tmp_path / "r.nii",) * 30)})
    peak, told = peak_and_estimate(voted, Recipe())
    assert peak < told < 2.5 * peak


@pytest.mark.slow
@pytest.mark.parametrize("choice", [{"normalise": "histogram"}, {"register": "rigid", "spacing_mm": (4.0,) * 3}])
@pytest.mark.parametrize("names", ["T1", "T1 T2"])
def test_steps_that_take_memory_are_counted(choice: dict[str, Any], names: str, tmp_path: Path) -> None:
    case = full_head(tmp_path, (60, 70, 50), 1.0)
    case = replace(case, images={name: case.images[name] for name in names.split()}, labels={})
    landmarks = dict.fromkeys(case.images, SCALE) if "normalise" in choice else {}
    peak, told = peak_and_estimate(case, Recipe(landmarks=landmarks, **choice))
    assert peak < told < 4 * peak


def test_registration_takes_more_than_none(tmp_path: Path) -> None:
    """Its library, whose memory is not traced, and the image that is smoothed, whatever the store's voxels."""
    case = full_head(tmp_path, (60, 70, 50), 1.0)
    coarse = Recipe((4.0,) * 3)
    more = estimate(case, replace(coarse, register="rigid")).memory_bytes - estimate(case, coarse).memory_bytes
    assert more > SIMPLEITK_BYTES + 8 * 60 * 70 * 50
    assert estimate(case, replace(coarse, n4=True)).memory_bytes > estimate(case, coarse).memory_bytes


@pytest.mark.slow
@pytest.mark.parametrize("spacing_mm", [1.0, 2.0, 4.0])
def test_preparing_a_case_stays_within_its_estimate(spacing_mm: float, tmp_path: Path) -> None:
    case = full_head(tmp_path, (60, 70, 50), 2.0)
    recipe = Recipe((spacing_mm,) * 3)
    prepare_case(case, SCHEMAS, recipe)  # libraries are loaded
    tracemalloc.start()
    prepared = prepare_case(case, SCHEMAS, recipe)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    told = estimate(case, recipe)
    assert peak < told.memory_bytes - FIXED_BYTES < 8 * peak
    assert prepared.images.size == pytest.approx(told.voxels, rel=0.1)


def test_a_case_without_a_header(tmp_path: Path) -> None:
    (tmp_path / "T1.nii").write_bytes(b"no")
    with pytest.raises(SourceError, match=r"T1\.nii"):
        estimate(CaseFiles("P1", {"T1": tmp_path / "T1.nii"}), Recipe())
