"""A removed case is nowhere on the disk any more, also where the removal was killed; compact gives room back."""

import shutil
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest

from multiseg.cli.app import run
from multiseg.errors import StoreError
from multiseg.models.learnt_scans import LearntScans, removed_among
from multiseg.store.checks.verification import verify_store
from multiseg.store.durable import DurableStore
from multiseg.store.findings import Severity
from multiseg.store.ingest.ingest_plan import IngestOptions
from multiseg.store.ingest.ingestion import ingest
from multiseg.store.reader import open_store
from multiseg.store.repairs.store_repair import repair
from multiseg.store.sources.manifest import find_manifest
from multiseg.store.upkeep.removal import compact, remove

SPACING_MM = (5.0, 5.0, 5.0)


class KilledError(BaseException):
    """The process ended."""


@pytest.fixture(scope="module")
def sound(hospitals: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two people, of one of whom it holds an older version, too. Only for copies."""
    url = tmp_path_factory.mktemp("sound") / "brain.zarr"
    ingest([source(hospitals)], url, IngestOptions(SPACING_MM))
    ingest([source(hospitals)], url, IngestOptions(SPACING_MM, redo=["patient-one"]))
    return url


def source(hospitals: Path) -> Any:
    files = find_manifest(hospitals / "manifest.toml")[0]
    one, two = files.cases[:2]
    one = replace(one, case="patient-one", subject="person-one", site="site-one", participant={"hobby": "chess-one"})
    return replace(files, cases=(one, replace(two, case="patient-two", subject="person-two")))


@pytest.fixture
def store(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "brain.zarr"))


def traces(folder: Path, words: list[str]) -> list[tuple[str, str]]:
    """Where any of these words stands in a file, packed or not, or in its name."""
    found = []
    for path in (path for path in folder.rglob("*") if path.is_file()):
        data = path.read_bytes()
        if "/c/" in str(path) and path.parts[-3] not in ("image", "label"):
            with suppress(RuntimeError):
                data += bytes(numcodecs.Zstd().decode(data[:-4]))
        found += [(str(path), word) for word in words if word.encode() in data or word in str(path)]
    return found


def words_of(store: Path) -> list[str]:
    held = open_store(store)["alder"]
    sources = held.sources(held["patient-one"])
    return ["patient-one", "person-one", "site-one", "chess-one", *(one["sha256"] for one in sources)]


def errors(url: Path) -> list[str]:
    return [f"{one.code} {one.file}" for one in verify_store(str(url)) if one.severity is Severity.ERROR]


@pytest.mark.slow
def test_nothing_of_a_removed_case_is_left(store: Path, hospitals: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, case = words_of(store), open_store(store)["alder"]["patient-one"]
    (store / "alder/session/c/0").write_bytes(b"chess-one")
    repair(str(store))
    beside = Path(f"{store}.multiseg-damaged")
    assert {word for _, word in traces(store, words)} == set(words)
    assert traces(beside, words)
    assert run(["remove", str(store), "alder/patient-one", "--dry-run"]) == 0
    assert "patient-one" in capsys.readouterr().out
    assert len(open_store(store).cases) == 2
    assert run(["remove", str(store), "alder/patient-one", "--yes"]) == 0
    assert traces(store, words) == []
    assert not beside.exists()
    assert [path.name for path in (store / "alder/image/c").iterdir()] == ["1"]
    assert [one.name for one in open_store(store).cases] == ["patient-two"]
    assert verify_store(str(store)) == []
    removed = open_store(store).removed
    assert removed.keys() == set(case.content.values())
    learnt = LearntScans.of(["f" * 64], [*case.content.values()][:1])
    assert removed_among(learnt, removed) == (datetime.now(UTC).date().isoformat(),)
    assert removed_among(LearntScans.of(["f" * 64]), removed) == removed_among(None, removed) == ()
    assert repair(str(store)).files == []
    (again,) = ingest([source(hospitals)], store, IngestOptions(SPACING_MM))
    assert again.written == ("patient-one",)
    assert errors(store) == []


@pytest.mark.slow
def test_all_visits_of_a_person(store: Path) -> None:
    (done,) = remove(str(store), subjects=["alder/person-one"])
    assert (done.case, done.rows) == ("patient-one", (0, 2))
    remove(str(store), ["alder/patient-two"])
    held = open_store(store)
    assert (list(held), held.cases) == (["alder"], ())
    assert errors(store) == []


def test_who_is_not_there(store: Path) -> None:
    with pytest.raises(StoreError, match="'alder' has no case 'patient-nine'"):
        remove(str(store), ["alder/patient-two", "alder/patient-nine"])
    assert len(open_store(store).cases) == 2


@pytest.mark.slow
@pytest.mark.parametrize("kill", range(0, 60, 10))
def test_a_removal_that_is_killed_is_completed_by_the_next_ingest(
    kill: int, store: Path, hospitals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, done = words_of(store), []
    write, delete = DurableStore._write, DurableStore.delete_dir

    def step() -> None:
        if len(done) == kill:
            raise KilledError
        done.append(kill)

    def dying(self: DurableStore, key: str, value: Any) -> None:
        step()
        write(self, key, value)

    async def dying_too(self: DurableStore, prefix: str) -> None:
        step()
        await delete(self, prefix)

    with monkeypatch.context() as patch:
        patch.setattr(DurableStore, "_write", dying)
        patch.setattr(DurableStore, "delete_dir", dying_too)
        with pytest.raises(KilledError):
            remove(str(store), ["alder/patient-one"])
    assert errors(store) == []
    assert [one.name for one in open_store(store).cases] == ["patient-two"] if kill else ["patient-two", "patient-one"]
    two = source(hospitals)
    ingest([replace(two, cases=two.cases[1:])], store, IngestOptions(SPACING_MM))
    assert bool(traces(store, words)) == (kill == 0)
    assert errors(store) == []


@pytest.mark.slow
def test_compact_gives_back_the_room_of_replaced_versions(store: Path) -> None:
    held = open_store(store)["alder"]
    before = {case.name: held.whole(case)[0] for case in held.cases}
    size = sum(path.stat().st_size for name in ("image", "label", "foreground")
               for path in (store / "alder" / name / "c" / "0").rglob("*") if path.is_file())  # fmt: skip
    assert compact(str(store), dry_run=True) == {"alder": size}
    assert (store / "alder/image/c/0").exists()
    assert compact(str(store)) == {"alder": size}
    assert not (store / "alder/image/c/0").exists()
    assert errors(store) == []
    after = open_store(store)["alder"]
    for case in after.cases:
        np.testing.assert_array_equal(after.whole(case)[0], before[case.name])
    assert compact(str(store)) == {"alder": 0}
