"""What grows with the number of cases, and how: python -m benchmarks.growth [--cases 5000 10000 20000]

Stores of tiny cases, each with names, digests and files of its own: one case goes through a whole ingest, and its row
is written again under other names. Every line tells the seconds (of processor time) of an operation for each size, and
how much longer it takes for each doubling: 2 is linear, 4 quadratic.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import nibabel as nib
import numpy as np
import zarr

from multiseg.cli.info import info_command
from multiseg.labels import LabelSchema, LabelSpace
from multiseg.loaders.batches import PatchStream, StreamOptions
from multiseg.loaders.draw import DrawOptions
from multiseg.modalities import ModalityAxis
from multiseg.store import schema
from multiseg.store.arrays import DatabaseArrays
from multiseg.store.cases import CaseFiles
from multiseg.store.catalogue import select, table
from multiseg.store.checks.verification import verify_store
from multiseg.store.ingest.duplicates import reconcile_duplicates
from multiseg.store.ingest.ingest_plan import IngestOptions
from multiseg.store.ingest.ingestion import ingest
from multiseg.store.ingest.parallel import Workers
from multiseg.store.reader import open_store
from multiseg.store.root import existing_root
from multiseg.store.rows import digest_of_sources
from multiseg.store.sources.source_types import DatabaseFiles
from multiseg.training.run_data import changes, data_of

FOLDER = Path(gettempdir()) / "multiseg-benchmarks" / "growth"
SPACING_MM = (2.0, 2.0, 2.0)
DATABASE = "clinic"
FIRST = "case00000"


def new_case(name: str, folder: Path = FOLDER) -> CaseFiles:
    """Two sequences and a lesion of 12 x 12 x 12 voxels, with voxels of their own."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(int(name[4:]))
    images = {}
    for sequence in ("FLAIR", "T1"):
        image = np.zeros((12, 12, 12), dtype=np.float32)
        image[1:-1, 1:-1, 1:-1] = draw.normal(100, 10, (10, 10, 10))
        images[sequence] = folder / f"{name}_{sequence}.nii"
        nib.save(nib.Nifti1Image(image, np.diag([*SPACING_MM, 1.0])), images[sequence])
    codes = np.zeros((12, 12, 12), dtype=np.uint8)
    codes[4:7, 4:7, 4:7] = draw.integers(0, 2, (3, 3, 3))
    label = folder / f"{name}_label.nii"
    nib.save(nib.Nifti1Image(codes, np.diag([*SPACING_MM, 1.0])), label)
    return CaseFiles(name, images, {"lesion": label}, subject=name, participant={"age": 50.0, "sex": "F"})


def add(url: str, case: CaseFiles) -> None:
    """Ingest one case."""
    files = DatabaseFiles(DATABASE, "", (case,), {"lesion": LabelSchema.parse("1=lesion", "lesion")})
    options = IngestOptions(SPACING_MM, split={"train": 1.0}, workers=Workers(1))
    (report,) = ingest([files], url, options)
    assert report.written == (case.case,), report


def grown_store(num: int) -> str:
    """A store with this many cases, made once."""
    url = FOLDER / f"{schema.FORMAT}-{num}.zarr"
    if url.is_dir():
        return str(url)
    part = url.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    add(str(part), new_case(FIRST))
    _multiply(zarr.open_group(part / DATABASE, mode="r+"), part / DATABASE, num)
    part.rename(url)
    return str(url)


def _multiply(group: zarr.Group, folder: Path, num: int) -> None:
    """The first row in all rows, under other names and with other digests."""
    names = [f"case{at:05d}" for at in range(num)]
    sources = json.loads(str(group["sources"][0]))
    digests = [source["sha256"] for source in sources] + [str(one) for one in group["content"][0] if one]
    renamed = [_Renamed(case, sources, digests) for case in names]
    for name in [name for name, _ in group.arrays()]:
        array = DatabaseArrays(group)[name]  # which leaves no chunk out
        axes = array.metadata.dimension_names
        if not axes or axes[0] != "case":
            continue
        size = (array.shards or array.chunks)[0]
        first = array[:1]
        array.resize((num, *array.shape[1:]))
        if array.dtype.kind not in "iufb":
            texts = [[one.text(str(text)) for text in np.ravel(first)] for one in renamed]
            array[:] = np.array(texts, dtype=object).reshape(num, *first.shape[1:])
        elif size == 1:
            for row in range(1, num):
                shutil.copytree(folder / name / "c" / "0", folder / name / "c" / str(row), copy_function=os.link)
        else:
            array[:] = np.repeat(first, num, axis=0)


class _Renamed:
    """Texts of the first case as those of another: its name, and the digests of its files and scans."""

    def __init__(self, case: str, sources: list[dict[str, Any]], digests: Sequence[str]) -> None:
        changed = {FIRST: case}
        if case != FIRST:
            changed |= {one: hashlib.sha256((one + case).encode()).hexdigest()[: len(one)] for one in digests}
            others = [{**source, "sha256": changed[source["sha256"]]} for source in sources]
            changed[digest_of_sources(sources)] = digest_of_sources(others)
        self._changed = changed
        self._pattern = re.compile("|".join(changed))

    def text(self, text: str) -> str:
        return self._pattern.sub(lambda found: self._changed[found[0]], text)


def open_whole(url: str) -> None:
    """The store, and all of it."""
    assert not open_store(url).damaged


def look_up(url: str) -> None:
    """Every case by its name, and the table of all."""
    store = open_store(url)
    for case in store.cases:
        assert store[case.database][case.name] is case
    assert len(table(select(store, modalities=["FLAIR"], split="train", participants={"sex": "F"}))) == len(store.cases)


def start_training(url: str) -> None:
    """What a training does before its first step: draw from all, and compare them with what it learnt before."""
    store = open_store(url)
    axis = ModalityAxis.union(database.modalities for database in store.databases.values())
    stream = PatchStream(store, axis, LabelSpace(), StreamOptions(DrawOptions((16, 16, 16)), workers=0))
    next(iter(stream.batches(0, 1)))
    data = data_of(store, store.cases, ())
    assert not changes(data, data, store)


def info(url: str) -> None:
    """The table of `multiseg info`."""
    with contextlib.redirect_stdout(io.StringIO()):
        info_command(url)


def reconcile(url: str) -> None:
    """Scans that two cases share, looked for in all of the store."""
    assert not reconcile_duplicates(existing_root(url, "r+", SPACING_MM), [DATABASE])


def verify(url: str) -> None:
    """Every chunk decoded."""
    assert not [finding for finding in verify_store(url) if finding.severity == "error"]


def add_one(url: str) -> None:
    """One more case, which stays in the store."""
    add(url, new_case(f"case{len(open_store(url)[DATABASE].cases) + 90_000:05d}"))


OPERATIONS: dict[str, Callable[[str], Any]] = {
    "open": open_whole,
    "info": info,
    "select, and every case by name": look_up,
    "start of a training": start_training,
    "reconcile": reconcile,
    "add one case": add_one,
    "verify": verify,
}


def seconds_of(operation: Callable[[str], Any], url: str, rounds: int = 3) -> float:
    """Processor time, the least of several."""
    found = []
    for _ in range(rounds):
        began = time.process_time()
        operation(url)
        found.append(time.process_time() - began)
    return min(found)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, nargs="+", default=[5000, 10000, 20000])
    parser.add_argument("--only", nargs="+", default=list(OPERATIONS), choices=list(OPERATIONS))
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args(arguments)
    urls = {num: grown_store(num) for num in chosen.cases}
    print(f"operation | {' | '.join(f'{num} cases' for num in urls)} | for each doubling")
    for name in chosen.only:
        took = [seconds_of(OPERATIONS[name], url, chosen.rounds) for url in urls.values()]
        steps = zip(took, took[1:], urls, list(urls)[1:], strict=False)
        ratios = [(after / before) ** (1 / np.log2(large / small)) for before, after, small, large in steps]
        said = ", ".join(f"x{ratio:.2f}" for ratio in ratios)
        print(f"{name} | {' | '.join(f'{seconds:.2f} s' for seconds in took)} | {said}", flush=True)


if __name__ == "__main__":
    main()
