"""The cases that loaders are compared on: synthetic heads, or the real scans of $MULTISEG_DATA and warped copies."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir

import nibabel as nib
import numpy as np
from scipy.ndimage import affine_transform
from scipy.spatial.transform import Rotation

from multiseg.phantoms.hospitals import write_hospitals
from multiseg.store import schema
from multiseg.store.formats.nifti import write_nifti
from multiseg.store.ingest.ingest_plan import IngestOptions
from multiseg.store.ingest.ingestion import ingest
from multiseg.store.reader import open_store
from multiseg.store.sources.manifest import find_manifest
from multiseg.store.sources.recognise import find_source
from multiseg.store.sources.source_types import DatabaseFiles

FOLDER = Path(gettempdir()) / "multiseg-benchmarks"
PACKERS = ("schema", "encoding", "packing")


@dataclass(frozen=True)
class Cases:
    """A store of cases that are all for training, and a folder beside it for what peers want of them."""

    what: str
    url: str
    folder: Path


def phantom_cases(num: int = 12, spacing_mm: float = 0.8) -> Cases:
    """One hospital of synthetic gliomas with four sequences, scanned in the voxels of the store; made once."""
    folder = FOLDER / f"phantoms-{num}-{spacing_mm:g}mm"

    def written() -> DatabaseFiles:
        native_mm = 2.0  # of that hospital's scans
        manifest = folder / "native" / "manifest.toml"
        if not manifest.exists():
            write_hospitals(folder / "native", num_cases=num, names=["birch"], coarseness=spacing_mm / native_mm)
        return find_manifest(manifest)[0]

    return _stored("synthetic heads", folder, written, spacing_mm)


def real_cases(data: Path, num: int = 12, spacing_mm: float = 1.0) -> Cases:
    """The multiple sclerosis cases of a data folder, and turned and scaled copies with noise of their own."""
    folder = FOLDER / f"real-{num}-{spacing_mm:g}mm"

    def written() -> DatabaseFiles:
        native = folder / "native"
        originals = sorted(path for path in (data / "ms").iterdir() if path.is_dir())
        for at in range(num):
            copy = native / f"patient{at:03d}"
            if not (copy / "lesion.nii.gz").exists():
                _write_copy(originals[at % len(originals)], copy, at if at >= len(originals) else 0)
        return find_source(native)

    return _stored("real multiple sclerosis and warped copies", folder, written, spacing_mm)


def _stored(what: str, folder: Path, files: Callable[[], DatabaseFiles], spacing_mm: float) -> Cases:
    url, done = folder / "store.zarr", folder / "packed-by"
    if not done.exists() or done.read_text() != _packer():
        shutil.rmtree(url, ignore_errors=True)
        print(f"making {what} in {folder}: some minutes, once", flush=True)
        options = IngestOptions((spacing_mm,) * 3, split={"train": 1.0, "val": 0.0, "test": 0.0})
        (report,) = ingest([files()], str(url), options)
        assert not report.failed, report
        done.write_text(_packer())
    cases = open_store(str(url)).cases
    extent = " x ".join(f"{round(float(np.median(n)))}" for n in zip(*(case.extent for case in cases), strict=True))
    size = sum(path.stat().st_size for path in url.rglob("*") if path.is_file()) / 1e6
    return Cases(f"{what}: {len(cases)} cases of about {extent} voxels, {size:.0f} MB", str(url), folder)


def _packer() -> str:
    """A digest of the code that packs a store: what other code has packed may be slower to read."""
    sources = sorted(path for path in Path(schema.__file__).parent.glob("*.py") if path.stem in PACKERS)
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()


def _write_copy(original: Path, copy: Path, seed: int) -> None:
    """A case as it is (seed 0), or turned, scaled and with noise within its brain."""
    copy.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    matrix = Rotation.from_euler("xyz", rng.uniform(-8, 8, 3), degrees=True).as_matrix() * rng.uniform(0.94, 1.06)
    for path in sorted(original.glob("*.nii.gz"), key=lambda path: path.name == "lesion.nii.gz"):
        scan = nib.load(path)
        voxels = np.maximum(np.asarray(scan.dataobj, np.float32), 0)
        if seed:
            centre = (np.array(voxels.shape) - 1) / 2
            order = 0 if path.name == "lesion.nii.gz" else 1
            voxels = affine_transform(voxels, matrix, centre - matrix @ centre, order=order)
            if order:
                noise = rng.normal(0, 0.03 * voxels[voxels > 0].mean(), voxels.shape)
                voxels = np.where(voxels > 0, np.maximum(voxels + noise, 1e-3), 0)
        dtype = np.uint8 if path.name == "lesion.nii.gz" else np.float32
        write_nifti(copy / path.name, voxels.astype(dtype), scan.affine)


def full_precision(images: np.ndarray, seed: int) -> np.ndarray:
    """Stored images in float32, with the digits that float16 has lost drawn anew.

    Peers keep float32, and a float32 whose last digits are all 0 would pack and unpack better than a scan's.
    Every voxel still rounds to what the store has.
    """
    step = np.spacing(np.abs(images)).astype(np.float32)
    lost = np.random.default_rng(seed).uniform(-0.24, 0.24, images.shape).astype(np.float32) * step
    return np.where(images == 0, np.float32(0), images.astype(np.float32) + lost)
