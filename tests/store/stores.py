"""Small stores for tests of what has to be there: made quickly, rich in kinds of files, and in the older format."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import zarr

from multiseg.labels import LabelSchema
from multiseg.store import schema
from multiseg.store.cases import CaseFiles
from multiseg.store.durable import DurableStore
from multiseg.store.ingest.ingest_plan import IngestOptions
from multiseg.store.ingest.ingestion import IngestReport, ingest
from multiseg.store.reader import open_store
from multiseg.store.sources.source_types import DatabaseFiles

SMALL, LONG = (14, 12, 12), (300, 12, 12)
SCHEMAS = {
    "lesion": LabelSchema.parse("1=core,2=oedema", "lesion"),
    "tissue": LabelSchema.parse("1=WM,2=GM,3=CSF", "tissue"),
}


class KilledError(Exception):
    """The writer's death."""


def case(
    folder: Path, name: str, seed: int, labels: tuple[str, ...] = ("lesion",), shape: Any = SMALL, **described: Any
) -> CaseFiles:
    """A case of two sequences; a shape of more than 256 voxels along an axis takes two shards."""
    rng = np.random.default_rng(seed)
    inner = tuple(slice(2, -2) for _ in shape)
    volumes = {}
    for what in ("T1", "FLAIR"):
        volumes[what] = np.zeros(shape, dtype=np.float32)
        volumes[what][inner] = rng.normal(100, 10, [n - 4 for n in shape])
    for what in labels:
        volumes[what] = np.zeros(shape, dtype=np.uint8)
        volumes[what][3:5, 3:5, 3:5] = 1
        volumes[what][-6:-4, 3:5, 3:5] = 2
    paths = {}
    for what, volume in volumes.items():
        paths[what] = folder / f"{name}_{seed}_{what}.nii"
        nib.save(nib.Nifti1Image(volume, np.diag([2.0, 2.0, 2.0, 1.0])), paths[what])
    images = {what: paths.pop(what) for what in ("T1", "FLAIR")}
    return CaseFiles(name, images, paths, **described)


def take(url: Path, *cases: CaseFiles, name: str = "alpha", labels: tuple[str, ...] = ("lesion",)) -> IngestReport:
    """Ingest cases into a database; changed ones replace those that are there."""
    files = DatabaseFiles(name, "sclerosis", cases, {label: SCHEMAS[label] for label in labels})
    report, *_ = ingest([files], str(url), IngestOptions(spacing_mm=(2.0,) * 3, replace=True))
    assert not report.failed, report
    return report


def make_store(folder: Path) -> Path:
    """Two databases: sessions, sites, ages, two annotations, a case of two shards, one that replaced another."""
    url, first = folder / "brain.zarr", {"subject": "S1", "session": "v1", "site": "north", "split": "train"}
    own = {"participant": {"age": 31.0, "sex": "F"}}
    long = case(folder, "P2", 2, ("lesion", "tissue"), LONG, subject="S2", split="test", participant={"age": 62.0})
    take(url, case(folder, "P1", 1, **first, **own), long, labels=("lesion", "tissue"))
    take(url, case(folder, "P1", 9, **first, **own), long, labels=("lesion", "tissue"))
    take(url, case(folder, "Q1", 3, split="train"), case(folder, "Q2", 4, (), split="val"), name="beta")
    return url


def alone(url: Path, name: str, folder: Path) -> Path:
    """A copy of a store with one of its databases, which is opened and checked in a part of the time."""
    copy = shutil.copytree(url, folder / f"{name}.zarr")
    for path in copy.glob("*/zarr.json"):
        if path.parent.name != name:
            shutil.rmtree(path.parent)
    edit_root(copy, databases=[name])
    return copy


def count_writes(act: Callable[[], object]) -> int:
    """How many objects an act writes, and so the number of moments at which `kill_at` can end it."""
    with pytest.MonkeyPatch.context() as patch:
        written = kill_at(patch, -1)
        act()
    return len(written)


def chunks_of(url: Path) -> list[str]:
    """The files of a store but its metadata."""
    paths = [path for path in url.rglob("*") if path.is_file() and path.name != "zarr.json"]
    return sorted(str(path.relative_to(url)) for path in paths)


def contents(url: Path | str, within: str = "") -> dict[tuple[str, str], Any]:
    """All that can be read of each case, and through xarray: of all databases, or of one."""
    store, held = open_store(str(url)), {}
    for one in store.cases:
        if within not in ("", one.database):
            continue
        database = store[one.database]
        native, header = database.native(one)
        held[one.database, one.name] = repr(
            (
                one.row, one.subject, one.session, one.site, one.split, one.modalities, one.annotated.tolist(),
                one.foreground_count.tolist(), one.grid.affine.tolist(), dict(one.participant), dict(one.intensity),
                dict(one.content), one.source_sha256, [volume.tobytes() for volume in database.whole(one)],
                database.foreground(one).tolist(), database.sources(one), native.affine.tolist(), native.shape, header,
            )
        )  # fmt: skip
    for name in [within] if within else store:
        held[name, ""] = repr({key: value.values.tolist() for key, value in store.dataset(name).coords.items()})
    return held


def kill_at(monkeypatch: pytest.MonkeyPatch, at: int) -> list[str]:
    """The process ends at this write (from 0) of an object. The keys that are written come into the list."""
    write, written = DurableStore._write, list[str]()

    def dying(store: DurableStore, key: str, value: Any) -> None:
        if len(written) == at:
            raise KilledError
        written.append(key)
        write(store, key, value)

    monkeypatch.setattr(DurableStore, "_write", dying)
    return written


def to_format_2(url: Path) -> None:
    """Make a store one of format 2: without records, names of files and chunks of fill values alone."""
    for group in (path.parent for path in url.glob("*/zarr.json")):
        for name in schema.BOOKKEEPING:
            shutil.rmtree(group / name)
        head = json.loads((group / "zarr.json").read_text())
        for name in (*schema.NAMED_AXES.values(), schema.NUM_STRUCTURES):
            del head["attributes"][name]
        coordinates = [name for name in head["attributes"]["coordinates"].split() if name not in schema.BOOKKEEPING]
        head["attributes"]["coordinates"] = " ".join(coordinates)
        (group / "zarr.json").write_text(json.dumps(head))
        for array in (zarr.open_array(path.parent, mode="r+") for path in group.glob("*/zarr.json")):
            if array.basename not in schema.BY_CASE:
                array[...] = array[...]  # which leaves out what holds only fill values
    edit_root(url, format=2)


def edit_root(url: Path, **said: Any) -> None:
    root = json.loads((url / "zarr.json").read_text())
    root["attributes"]["multiseg"] |= said
    (url / "zarr.json").write_text(json.dumps(root))
