"""A head of a few thousand voxels to write layouts with, and the command line to take them in."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from multiseg.cli.app import run
from multiseg.store.reader import Store, open_store

SHAPE = (28, 32, 24)
SPACING_MM = 6.0


class TinyHead:
    """Writes images and labels of one synthetic head; `seed` makes other patients."""

    def __init__(self, seed: int = 0, shape: tuple[int, int, int] = SHAPE, spacing_mm: float = SPACING_MM) -> None:
        self.rng = np.random.default_rng(seed)
        self.shape = shape
        self.affine = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
        self.affine[:3, 3] = -spacing_mm * (np.array(shape) - 1) / 2
        at = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
        self.brain = (at**2).sum(axis=0) < 0.7

    def image(self) -> np.ndarray:
        """An intensity image, 0 outside the brain."""
        return np.where(self.brain, self.rng.normal(300, 40, self.shape), 0).astype(np.float32)

    def codes(self, *codes: int) -> np.ndarray:
        """Blobs in the brain, one for each code, one voxel apart."""
        label = np.zeros(self.shape, dtype=np.uint8 if max(codes, default=0) < 256 else np.int32)
        for at, code in enumerate(codes):
            i, j, k = 6 + 3 * (at % 5), 8 + 3 * (at // 5 % 5), 8 + 3 * (at // 25)
            label[i : i + 2, j : j + 2, k : k + 2] = code
        return label

    def save(self, path: Path, array: np.ndarray | None = None, affine: np.ndarray | None = None) -> Path:
        """Write an array (an image when None) as NIfTI, or as MGH where the name ends so."""
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = nib.MGHImage if path.suffix in (".mgz", ".mgh") else nib.Nifti1Image
        array = self.image() if array is None else array
        image = kind(array, self.affine if affine is None else affine)
        if kind is nib.Nifti1Image:  # no two files are alike to the last byte, as with real patients
            image.header["descrip"] = str(self.rng.integers(2**60))
        nib.save(image, path)
        return path


@dataclass(frozen=True)
class Ingested:
    """What `multiseg ingest FOLDER` said and left."""

    code: int
    report: dict[str, Any]
    said: str
    url: Path

    @property
    def store(self) -> Store:
        return open_store(str(self.url))

    def codes(self, *severities: str) -> list[str]:
        """The codes of the findings of these severities ("error", "warning", "note"), or of all."""
        return [f["code"] for f in self.report["findings"] if not severities or f["severity"] in severities]


@pytest.fixture
def head() -> TinyHead:
    return TinyHead()


@pytest.fixture
def ingested(tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ingested]:
    """Take a folder in from the command line: `ingested(folder, "--as", "bids")`."""

    def take(folder: Path, *arguments: str) -> Ingested:
        url = tmp_path_factory.mktemp("store") / "brain.zarr"
        capsys.readouterr()
        code = run(["ingest", str(folder), "--store", str(url), "--spacing", f"{SPACING_MM:g}", "--json", *arguments])
        out = capsys.readouterr()
        told = json.loads(out.out) if out.out.strip() else {}
        report = told[0] if isinstance(told, list) else {}
        return Ingested(code, report, out.err, url)

    return take
