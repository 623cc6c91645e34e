"""What a case will take, told from headers alone."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from multiseg.errors import SourceError
from multiseg.labels import LabelSchema
from multiseg.store.cases import CaseFiles
from multiseg.store.estimate import FIXED_BYTES, estimate
from multiseg.store.formats.nifti import write_nifti
from multiseg.store.preparation.prepare import prepare_case
from multiseg.store.preparation.recipe import Recipe


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


@pytest.mark.parametrize("spacing_mm", [1.0, 2.0, 4.0])
def test_preparing_a_case_stays_within_its_estimate(spacing_mm: float, tmp_path: Path) -> None:
    case = full_head(tmp_path, (60, 70, 50), 2.0)
    recipe = Recipe((spacing_mm,) * 3)
    schemas = {"lesion": LabelSchema.parse("1=lesion", "lesion")}
    prepare_case(case, schemas, recipe)  # libraries are loaded
    tracemalloc.start()
    prepared = prepare_case(case, schemas, recipe)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    told = estimate(case, recipe)
    assert peak < told.memory_bytes - FIXED_BYTES < 8 * peak
    assert prepared.images.size == pytest.approx(told.voxels, rel=0.1)


def test_a_case_without_a_header(tmp_path: Path) -> None:
    (tmp_path / "T1.nii").write_bytes(b"no")
    with pytest.raises(SourceError, match=r"T1\.nii"):
        estimate(CaseFiles("P1", {"T1": tmp_path / "T1.nii"}), Recipe())
