"""Paired runs: the machine is shared and noisy, so only ratios within a round mean something."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import gettempdir

import torch

from multiseg.loaders.batches import Batch
from multiseg.phantoms.hospitals import write_hospitals
from multiseg.store.ingest.ingest_plan import IngestOptions
from multiseg.store.ingest.ingestion import ingest
from multiseg.store.reader import Store, open_store
from multiseg.store.sources.manifest import find_manifest


def ratios(
    ours: Callable[[], None],
    theirs: Callable[[], None],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Time of `theirs` over `ours`, a round each, the order turned every round; above 1 we are faster."""
    found = []
    for at in range(-1, rounds):
        seconds = {}
        for run in (ours, theirs) if at % 2 else (theirs, ours):
            began = clock()
            run()
            seconds[run] = clock() - began
        if at >= 0:  # the first round warms caches
            found.append(seconds[theirs] / seconds[ours])
    return found


def report(what: str, against: str, found: list[float]) -> None:
    """One line: the median ratio and its range."""
    low, high = min(found), max(found)
    print(
        f"{what} | {against} | {statistics.median(found):.2f}x ({low:.2f}-{high:.2f}, {len(found)} rounds)", flush=True
    )


def phantom_store(spacing_mm: float) -> Store:
    """Two hospitals of four synthetic patients at this voxel size, made once."""
    folder = Path(gettempdir()) / "multiseg-benchmarks" / "phantoms"
    url = str(folder / f"{spacing_mm:g}mm.zarr")
    manifest = folder / "manifest.toml"
    if not manifest.exists():
        write_hospitals(folder, num_cases=4, names=["alder", "birch"])
    ingest(find_manifest(manifest), url, IngestOptions((spacing_mm,) * 3))
    return open_store(url)


def noise_batch(images: torch.Tensor) -> Batch:
    """A batch of these images, [patch modality i j k], all sequences there, labelled where the first is bright."""
    num = len(images)
    return Batch(
        images=images,
        present=torch.ones(num, images.shape[1], dtype=torch.bool),
        target=(images[:, 0] > 2).to(torch.uint8),
        annotated=torch.ones(num, 1, dtype=torch.bool),
        database=("noise",) * num,
        case=("noise",) * num,
        corner=torch.zeros(num, 3, dtype=torch.int64),
        draws=torch.stack([torch.zeros(num, dtype=torch.int64), torch.arange(num)], dim=1),
    )
