"""Power that is lost at any moment of an ingest leaves a store that opens, with every case that was committed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from power import Recorder, recorded
from sweeps import ALL

from multiseg.errors import StoreError
from multiseg.files import write_atomically
from multiseg.store.ingest.ingest_plan import IngestOptions
from multiseg.store.ingest.ingestion import ingest
from multiseg.store.reader import open_store
from multiseg.store.sources.manifest import find_manifest
from multiseg.store.sources.source_types import DatabaseFiles

SPACING_MM = (10.0, 10.0, 10.0)
DISKS = {"keeps names": 0.0, "loses names": 1.0, "loses some names": 0.5}
MOMENTS = 2
"""Of each ingest and disk, evenly spaced, and others for each disk; an ingest has some 150, and MULTISEG_ALL_TESTS
tries them all. The disk that loses some names is tried after each commit, too."""

Held = dict[tuple[str, str], tuple[Any, ...]]


def contents(url: Path) -> Held:
    """All that a store says of each case, and its voxels."""
    store, held = open_store(url), {}
    for case in store.cases:
        database = store[case.database]
        image, codes = database.whole(case)
        said = case.subject, case.split, case.modalities, tuple(map(str, database.sources(case)))
        held[case.database, case.name] = (image.tobytes(), codes.tobytes(), *said)
    return held


def watched(databases: list[DatabaseFiles], url: Path, options: IngestOptions, patch: pytest.MonkeyPatch) -> Recorder:
    """An ingest, and what it did to the disk."""
    with recorded(url, patch) as disk:
        ingest(databases, url, options, lambda database, case, outcome: disk.note(outcome, (database, case)))
    return disk


def check_moments(disk: Recorder, before: Held, after: Held, place: Path) -> None:
    moments = disk.moments()
    step = 1 if ALL else max(1, len(moments) // MOMENTS)
    named = {moment: event[2] for moment in moments if (event := disk.events[moment - 1])[0] == "rename"}
    commits = {moment for moment, path in named.items() if "/status/c/" in path}
    for number, names_lost in enumerate(DISKS.values()):
        for moment in sorted({*moments[number * step // len(DISKS) :: step], *(commits if 0 < names_lost < 1 else ())}):
            committed = {event[1] for event in disk.events[:moment] if event[0] == "written"}
            lost = disk.lost(moment, place, names_lost)
            try:
                found = contents(lost)
            except StoreError as error:
                if error.code != "NO_STORE":
                    raise
                found = {}
            assert found.keys() >= before.keys() | committed, (moment, disk.events[moment - 1])
            for name, said in found.items():
                assert said in (before.get(name), after.get(name)), (moment, name)


@pytest.mark.slow
def test_power_lost_at_any_moment(few_hospitals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a first ingest, one that adds cases and a database, a case that is replaced, and splits that change."""
    first, second = find_manifest(few_hospitals / "manifest.toml")[:2]
    url, options = tmp_path / "brain.zarr", IngestOptions(SPACING_MM)
    one, two = (replace(first, cases=first.cases[:n]) for n in (1, 2))
    more = replace(second, cases=second.cases[:1])
    names = [case.case for case in (*two.cases, *more.cases)]
    steps: list[tuple[list[DatabaseFiles], IngestOptions]] = [
        ([one], options),
        ([two, more], options),
        ([two], replace(options, redo=[names[0]])),
        ([two, more], replace(options, given_splits=dict.fromkeys(names, "test"))),
    ]
    held: Held = {}
    for databases, asked in steps:
        disk = watched(databases, url, asked, monkeypatch)
        before, held = held, contents(url)
        assert before != held or asked.redo
        check_moments(disk, before, held, tmp_path / "lost")


def test_a_file_of_the_house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old or new while it is written, whatever the disk loses, and new for good as soon as that is said."""
    home = tmp_path / "run"
    write_atomically(home / "model.pt", b"old")
    with recorded(tmp_path, monkeypatch) as disk:
        write_atomically(home / "model.pt", b"new")
        write_atomically(home / "deep" / "er" / "state.json", b"state")
    for names_lost in DISKS.values():
        for moment in disk.moments():
            assert disk.after(moment, names_lost)["run/model.pt"] in (b"old", b"new")
        assert disk.after(len(disk.events), names_lost) == {"run/model.pt": b"new", "run/deep/er/state.json": b"state"}


def test_the_disk_that_is_modelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rename without a flush loses the content on one disk and the name on the other."""
    (tmp_path / "held").write_bytes(b"old")
    with recorded(tmp_path, monkeypatch) as disk:
        (tmp_path / "beside").write_bytes(b"new")
        (tmp_path / "beside").replace(tmp_path / "held")
    (moment,) = disk.moments()
    assert disk.after(moment, 0.0) == {"held": b""}
    assert disk.after(moment, 1.0) == {"held": b"old"}
