"""Trials: write, ingest and read patches as real work does, with the code that real work uses."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from multiseg.doctor.check_record import ERROR, WARNING, Found
from multiseg.faults import NOT_SUPPORTED

if TYPE_CHECKING:
    from multiseg.labels import LabelSpace
    from multiseg.store.reader import Store
    from multiseg.types import Index3

LITTLE_ROOM_GIB, FEW_GIB = 1.0, 10.0
STORE = "trial.zarr"
TRIAL_BYTES = 16 * 2**20
SPACING_MM = (8.0, 8.0, 8.0)
HOSPITAL, NUM_CASES = "cedar", 2
TRIAL_PATCH, PATCH = (16, 16, 16), (48, 48, 48)
"""The windows that are read from the store of the trial, and from a user's store."""
NUM_BATCHES = 4
REPORT = "This should not happen: please report it with the output of multiseg doctor --json."


def disk(folder: Path) -> Found:
    """Room in the folder in which stores and runs are to lie."""
    gib = shutil.disk_usage(folder).free / 2**30
    found = f"{gib:.1f} GiB are free in {folder.resolve()}"
    advice = "Free some room, or name a folder on another disk with --folder."
    if gib < LITTLE_ROOM_GIB:
        return Found(found, ERROR, advice)
    return Found(found, WARNING, advice) if gib < FEW_GIB else Found(found)


def write(scratch: Path) -> Found:
    """Write a file as a store does, read it back, and lock it."""
    from multiseg.files import add_name, write_atomically

    path, data, started = scratch / "trial", os.urandom(TRIAL_BYTES), time.perf_counter()
    write_atomically(path, data)
    seconds = time.perf_counter() - started
    if path.read_bytes() != data:
        advice = "Do not use this disk: check it and its file system."
        return Found(f"{scratch.parent} returns other bytes than were written", ERROR, advice)
    add_name(path, scratch / "other name")
    found = f"{TRIAL_BYTES // 2**20} MiB written and flushed in {seconds:.2f} s, and read back the same"
    if not _has_locks(path):
        advice = "It works, but after a crash of the machine others wait ten minutes. A disk with flock is better."
        return Found(f"{found}; the file system has no locks, so that lock files are used", WARNING, advice)
    return Found(f"{found}; files can be locked")


def _has_locks(path: Path) -> bool:
    """Whether the file system has locks. The lock file that is used otherwise is tried, too."""
    from multiseg.locks import locked

    with path.open("r+b") as file, locked(file, path):
        pass
    with path.open("r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in NOT_SUPPORTED:
                return False
            raise
    return True


def ingest_phantoms(scratch: Path) -> Found:
    """Ingest synthetic patients by a worker process, and verify the store."""
    from multiseg.phantoms.hospitals import write_hospitals
    from multiseg.store.checks.verification import verify_store
    from multiseg.store.findings import Severity
    from multiseg.store.ingest.ingest_plan import IngestOptions
    from multiseg.store.ingest.ingestion import ingest
    from multiseg.store.sources.manifest import find_manifest

    manifest = write_hospitals(scratch / "hospitals", num_cases=NUM_CASES, coarseness=4.0, names=[HOSPITAL])
    options = IngestOptions(spacing_mm=SPACING_MM, split={"train": 1.0, "val": 0.0, "test": 0.0})
    (report,) = ingest(find_manifest(manifest), str(scratch / STORE), options)
    faults = [
        finding.message
        for finding in (*report.findings, *verify_store(str(scratch / STORE)))
        if finding.severity is Severity.ERROR
    ]
    if faults or len(report.written) != NUM_CASES:
        return Found(f"{len(report.written)} of {NUM_CASES} patients were written. {' '.join(faults)}", ERROR, REPORT)
    return Found(f"{NUM_CASES} synthetic patients written into a store, and verified")


def stream_phantoms(scratch: Path) -> Found:
    """Read patches from the store of `ingest_phantoms`, as a training does."""
    if not (scratch / STORE).is_dir():
        return Found("not tried, since there is no store to read", WARNING, "First fix the check above.")
    return _read(str(scratch / STORE), TRIAL_PATCH)


def read_store(url: str) -> Found:
    """Read patches of all training cases from a store, as a training does; the databases take turns."""
    return _read(url, PATCH)


def _read(url: str, patch: Index3) -> Found:
    """Whether a worker process reads the same patches as this process.

    Raises:
        StoreError: there is no store, or a database is damaged.
        DataError: it has no case for training.
        ResourceError: it cannot be read or reached.
    """
    from multiseg.loaders.batches import PatchStream, StreamOptions
    from multiseg.loaders.draw import DrawOptions
    from multiseg.modalities import ModalityAxis
    from multiseg.store.reader import open_store

    store = open_store(url)
    for error in store.damaged.values():
        raise error
    axis = ModalityAxis.union(database.modalities for database in store.databases.values())
    options = StreamOptions(DrawOptions(patch=patch), workers=1)
    started = time.perf_counter()
    batches = list(PatchStream(store, axis, _space(store), options).batches(0, NUM_BATCHES))
    seconds = time.perf_counter() - started
    own = PatchStream(store, axis, _space(store), replace(options, workers=0)).batches(0, NUM_BATCHES)
    size = " x ".join(map(str, patch))
    found = f"{NUM_BATCHES * options.batch_size} patches of {size} voxels, {' '.join(axis)}, in {seconds:.1f} s"
    if not all(
        one.images.equal(other.images) and one.target.equal(other.target)
        for one, other in zip(batches, own, strict=True)
    ):
        return Found(f"{found}; a worker process reads other patches than this process", ERROR, REPORT)
    return Found(f"{found}; the same by a worker process and without")


def _space(store: Store) -> LabelSpace:
    """All tissues of a store, and its lesions as one label; not a tissue that is called lesion beside these."""
    from multiseg.labels import LESION, LabelSpace, SpaceLabel

    schemas = [schema for database in store.databases.values() for schema in database.schemas.values()]
    structures = [structure for schema in schemas for structure in schema.structures]
    lesion = [LESION] if any(one.kind == "lesion" for one in structures) else []
    tissues = dict.fromkeys(SpaceLabel(one.name, one.kind) for one in structures if one.kind == "tissue")
    for one in lesion:
        tissues.pop(SpaceLabel(one.name, "tissue"), None)
    return LabelSpace((*lesion, *tissues))
