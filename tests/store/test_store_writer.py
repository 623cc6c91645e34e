"""A writer that dies while it replaces a case: the next one goes on in its row, and a name stands once."""

import os
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

SHAPE = (12, 12, 12)


class KilledError(Exception):
    """The writer's death."""


def case(folder: Path, name: str, seed: int, **described: Any) -> CaseFiles:
    image = np.zeros(SHAPE, dtype=np.float32)
    image[2:-2, 2:-2, 2:-2] = np.random.default_rng(seed).normal(100, 10, (8, 8, 8))
    label = np.zeros(SHAPE, dtype=np.uint8)
    label[4:6, 4:6, 4:6] = 1
    paths = {}
    for what, array in (("T1", image), ("lesion", label)):
        paths[what] = folder / f"{name}_{seed}_{what}.nii"
        nib.save(nib.Nifti1Image(array, np.diag([2.0, 2.0, 2.0, 1.0])), paths[what])
    return CaseFiles(name, {"T1": paths["T1"]}, {"lesion": paths["lesion"]}, **described)


def take(url: Path, *cases: CaseFiles) -> IngestReport:
    files = DatabaseFiles("db", "sclerosis", cases, {"lesion": LabelSchema.parse("1=lesion", "lesion")})
    (report,) = ingest([files], str(url), IngestOptions(spacing_mm=(2.0,) * 3, replace=True))
    return report


def rows(url: Path) -> list[tuple[str, int]]:
    group = zarr.open_group(url / "db", mode="r")
    return [(str(name), int(state)) for name, state in zip(group["case"][:], group["status"][:], strict=True)]


def die_before(monkeypatch: pytest.MonkeyPatch, key: str, after: str = "") -> None:
    """The process ends instead of the first write of an object, or of the first one after that of another."""
    write, seen = DurableStore._write, [not after]

    def dying(store: DurableStore, name: str, value: Any) -> None:
        if seen[0] and name == key:
            raise KilledError
        seen[0] = seen[0] or name == after
        write(store, name, value)

    monkeypatch.setattr(DurableStore, "_write", dying)


def test_a_replacement_cut_off_before_its_commit_takes_its_own_row_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, other = tmp_path / "brain.zarr", case(tmp_path, "P2", 2)
    take(url, case(tmp_path, "P1", 1), other)
    with monkeypatch.context() as dying:
        die_before(dying, "db/status/c/0")
        with pytest.raises(KilledError):
            take(url, case(tmp_path, "P1", 3), other)
    assert rows(url) == [("P1", schema.COMMITTED), ("P2", schema.COMMITTED), ("P1", schema.PENDING)]
    assert [one.row for one in open_store(str(url)).cases] == [0, 1]
    assert take(url, case(tmp_path, "P1", 3), other).written == ("P1",)
    assert rows(url) == [("", schema.SUPERSEDED), ("P2", schema.COMMITTED), ("P1", schema.COMMITTED)]


@pytest.mark.slow
def test_a_superseded_row_loses_its_name_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, changed = tmp_path / "brain.zarr", case(tmp_path, "P1", 3)
    take(url, case(tmp_path, "P1", 1))
    with monkeypatch.context() as dying:
        die_before(dying, "db/case/c/0", after="db/status/c/0")
        with pytest.raises(KilledError):
            take(url, changed)
    assert rows(url) == [("P1", schema.SUPERSEDED), ("P1", schema.COMMITTED)]
    assert [one.row for one in open_store(str(url)).cases] == [1]
    take(url, changed, case(tmp_path, "P2", 2))
    assert rows(url) == [("", schema.SUPERSEDED), ("P1", schema.COMMITTED), ("P2", schema.COMMITTED)]


@pytest.mark.slow
def test_a_description_reaches_the_disk_and_leaves_metadata_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = tmp_path / "brain.zarr"
    take(url, case(tmp_path, "P1", 1, site="north", split="train"))
    flushed: set[str] = set()
    written: list[str] = []
    sync, write = os.fsync, DurableStore._write

    def noted_sync(handle: int) -> None:
        flushed.add(str(Path(f"/proc/self/fd/{handle}").readlink()))
        sync(handle)

    def noted_write(store: DurableStore, name: str, value: Any) -> None:
        written.append(name)
        write(store, name, value)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(DurableStore, "_write", noted_write)
    assert take(url, case(tmp_path, "P1", 1, site="south")).described == ("P1",)
    assert (open_store(str(url)).cases[0].site, open_store(str(url)).cases[0].split) == ("south", "train")
    assert zarr.open_group(url / "db", mode="r")["split_given"][0]
    # The file before it had its name, and then the name.
    assert any(path.startswith(str(url.resolve() / "db/site/c/0.")) for path in flushed)
    assert str(url.resolve() / "db/site/c") in flushed
    assert [name for name in written if name.endswith("zarr.json")] == []
