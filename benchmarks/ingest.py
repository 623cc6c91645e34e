"""CPU-seconds of an ingest against reading every file and writing its voxels once: python -m benchmarks.ingest

With $MULTISEG_DATA also on real scans at their own voxel size.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import gettempdir

import nibabel as nib
import numpy as np
import zarr
from jaxtyping import Shaped

from benchmarks.paired import ratios, report
from multiseg.phantoms.hospitals import write_hospitals
from multiseg.store.cases import paths_of
from multiseg.store.coordinate_chunks import new_array, write_metadata
from multiseg.store.ingest.encoding import ArrayPlan
from multiseg.store.ingest.ingest_plan import IngestOptions
from multiseg.store.ingest.ingestion import ingest
from multiseg.store.ingest.parallel import Workers
from multiseg.store.sources.manifest import find_manifest
from multiseg.store.sources.recognise import find_source
from multiseg.store.sources.source_types import DatabaseFiles, SourceOptions

ROUNDS = 5
FOLDER = Path(gettempdir()) / "multiseg-benchmarks"


def bare_copy(files: DatabaseFiles) -> None:
    """Read every file with nibabel, and write images as float16 and labels as bytes, packed as a store packs them."""
    folder = FOLDER / "bare.zarr"
    shutil.rmtree(folder, ignore_errors=True)
    root = zarr.create_group(folder, zarr_format=3)
    for case in files.cases:
        images = [np.asarray(nib.load(paths_of(file)[0]).dataobj, np.float32) for file in case.images.values()]
        labels = [np.asarray(nib.load(paths_of(file)[0]).dataobj) for file in case.labels.values()]
        if case.brain_mask is not None:
            np.asarray(nib.load(paths_of(case.brain_mask)[0]).dataobj)
        group = root.create_group(case.case)
        for at, image in enumerate(images):
            _write(group.create_group(f"image{at}"), "image", image.astype(np.float16))
        for at, label in enumerate(labels):
            _write(group.create_group(f"label{at}"), "label", label.astype(np.uint8))


def _write(group: zarr.Group, name: str, voxels: Shaped[np.ndarray, "i j k"]) -> None:
    plan = ArrayPlan(("one",), ("one",), {}, 1, 1, "lz4")
    array = new_array(group, name, (1, 1, *voxels.shape), plan.template(name))
    write_metadata([array])
    array[0, 0] = voxels


def full_ingest(files: DatabaseFiles, spacing_mm: tuple[float, float, float]) -> None:
    """The same cases through a whole ingest, in this process."""
    url = FOLDER / "ingest.zarr"
    shutil.rmtree(url, ignore_errors=True)
    (done,) = ingest([files], str(url), IngestOptions(spacing_mm, workers=Workers(1)))
    assert not done.failed, done


def compare(what: str, files: DatabaseFiles, spacing_mm: tuple[float, float, float]) -> None:
    ours: Callable[[], None] = lambda: full_ingest(files, spacing_mm)  # noqa: E731
    found = ratios(ours, lambda: bare_copy(files), ROUNDS, time.process_time)
    report(f"{what}: cost of an ingest in CPU time", "reading and writing once", [1 / ratio for ratio in found])


def speedup(what: str, files: DatabaseFiles, spacing_mm: tuple[float, float, float]) -> None:
    """Wall time of two workers against one."""

    def run(workers: Workers) -> None:
        shutil.rmtree(FOLDER / "many.zarr", ignore_errors=True)
        ingest([files], str(FOLDER / "many.zarr"), IngestOptions(spacing_mm, workers=workers))

    for kind in ("processes", "threads"):
        found = ratios(lambda kind=kind: run(Workers(2, kind)), lambda: run(Workers(1)), ROUNDS)
        report(f"{what}: 2 {kind}", "1 worker", found)


def main() -> None:
    manifest = FOLDER / "native" / "manifest.toml"
    if not manifest.exists():
        write_hospitals(FOLDER / "native", num_cases=4, names=["birch"], coarseness=0.5)
    (phantoms,) = find_manifest(manifest)
    compare("synthetic heads of 1 mm, 4 sequences", phantoms, (1.0, 1.0, 1.0))
    data = os.environ.get("MULTISEG_DATA")
    if data:
        ms = find_source(Path(data) / "ms")
        compare("ms, 4 sequences, 1 mm, skull-stripped", ms, (1.0, 1.0, 1.0))
        compare("ms to 2 mm", ms, (2.0, 2.0, 2.0))
        codes = {"seg": "1=necrosis,2=oedema,3=non-enhancing,4=enhancing"}
        tumour = find_source(Path(data) / "tumour", SourceOptions(codes=codes))
        compare("tumour, 2 sequences, 1 mm, brain masks", tumour, (1.0, 1.0, 1.0))
        speedup("tumour", tumour, (1.0, 1.0, 1.0))


if __name__ == "__main__":
    main()
