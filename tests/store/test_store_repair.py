"""Whatever is damaged of metadata and coordinates: the rest opens, the file is named, and repair makes it again."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from multiseg.cli.app import run
from multiseg.errors import StoreError
from multiseg.store.catalogue import select
from multiseg.store.checks.verify import verify_store
from multiseg.store.durable import DurableStore
from multiseg.store.findings import Severity
from multiseg.store.ingest import ingest
from multiseg.store.intake import IngestOptions
from multiseg.store.reader import open_store
from multiseg.store.repairs.repair import repair
from multiseg.store.sources.manifest import find_manifest

SPACING_MM = (5.0, 5.0, 5.0)


class KilledError(BaseException):
    """The process ended."""


@pytest.fixture(scope="module")
def sound(hospitals: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two databases; of one case it holds an older version, too. Only for copies."""
    url = tmp_path_factory.mktemp("sound") / "brain.zarr"
    first, second = find_manifest(hospitals / "manifest.toml")[:2]
    databases = [replace(first, cases=first.cases[:2]), replace(second, cases=second.cases[:1])]
    options = IngestOptions(SPACING_MM)
    ingest(databases, url, options)
    ingest(databases[:1], url, replace(options, redo=[first.cases[0].case]))
    assert [case.row for case in open_store(url).cases] == [1, 2, 0]
    return url


@pytest.fixture
def store(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "brain.zarr"))


def contents(url: Path) -> dict[str, tuple[Any, ...]]:
    """All that a store says of its cases."""
    store, found = open_store(url), {}
    for case in store.cases:
        database = store[case.database]
        image, codes = database.whole(case)
        grid, header = database.native(case)
        said = case.subject, case.split, case.modalities, str(case.participant), str(case.intensity), str(case.content)
        numbers = grid.affine.tobytes(), case.grid.affine.tobytes(), case.foreground_count.tobytes()
        points, sources = database.foreground(case).tobytes(), json.dumps(database.sources(case))
        found[f"{case.database}/{case.name}"] = (
            *said,
            *numbers,
            header,
            points,
            sources,
            image.tobytes(),
            codes.tobytes(),
        )
    return found


def errors(url: Path) -> list[str]:
    return [f"{one.code} {one.file}" for one in verify_store(str(url)) if one.severity is Severity.ERROR]


GONE = None
DAMAGES: dict[str, tuple[str, bytes | Callable[[bytes], bytes] | None]] = {
    "root": ("zarr.json", b"{"),
    "root of wrong types": ("zarr.json", lambda held: held.replace(b'"databases": [', b'"databases": [7, ')),
    "group": ("alder/zarr.json", b""),
    "attributes wiped": ("alder/zarr.json", b'{"attributes": {}, "zarr_format": 3, "node_type": "group"}'),
    "a code": ("alder/zarr.json", lambda held: held.replace(b'"lesion"', b'"lesios"')),
    "array": ("alder/extent/zarr.json", b"[" * 20000),
    "array gone": ("alder/subject/zarr.json", GONE),
    "image": ("alder/image/zarr.json", lambda held: held[: len(held) // 2]),
    "shape": ("alder/status/zarr.json", lambda held: json.dumps(json.loads(held) | {"shape": [10**15]}).encode()),
    "copy": ("alder/record/zarr.json", b"null"),
    "status": ("alder/status/c/0", b"no states"),
    "status gone": ("alder/status/c/0", GONE),
    "names": ("alder/modality/c/0", b""),
    "coordinate": ("alder/split/c/0", lambda held: held[:-1] + bytes([held[-1] ^ 1])),
    "coordinate gone": ("alder/affine/c/0/0/0", GONE),
    "participant": ("alder/source_sha256/c/0", GONE),
    "record": ("alder/record/c/1", GONE),
}


def damage(store: Path, what: str) -> str:
    file, how = DAMAGES[what]
    if how is None:
        (store / file).unlink()
    else:
        (store / file).write_bytes(how((store / file).read_bytes()) if callable(how) else how)
    return file


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_file_is_made_again(what: str, store: Path, sound: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = damage(store, what)
    assert any(file in one for one in errors(store)) or what == "a code"
    assert run(["repair", str(store)]) == 0
    assert file in capsys.readouterr().out.replace("\n", "")
    assert errors(store) == []
    assert contents(store) == contents(sound)
    assert repair(str(store)).files == []
    kept = [path for path in Path(f"{store}.multiseg-damaged").rglob("*") if path.is_file()]
    assert len(kept) == (DAMAGES[what][1] not in (GONE, b""))


def test_a_dry_run_changes_nothing(store: Path) -> None:
    for what in ("group", "record", "coordinate gone"):
        damage(store, what)
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    said = repair(str(store), dry_run=True)
    assert {path: path.read_bytes() for path in store.rglob("*") if path.is_file()} == before
    assert not Path(f"{store}.multiseg-damaged").exists()
    assert said == repair(str(store))


def test_of_both_a_record_and_its_coordinates_only_a_new_ingest_brings_the_case_back(
    store: Path, sound: Path, hospitals: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = open_store(store)["birch"].cases[0].name
    (store / "birch/record/c/0").write_bytes(b"")
    (store / "birch/subject/c/0").write_bytes(b"x")
    assert run(["repair", str(store), "--json"]) == 3
    (lost,) = json.loads(capsys.readouterr().out)["lost"]
    assert (lost["database"], lost["case"]) == ("birch", name)
    assert [case.name for case in open_store(store)["birch"].cases] == []
    again = find_manifest(hospitals / "manifest.toml")[1]
    (done,) = ingest([replace(again, cases=again.cases[:1])], store, IngestOptions(SPACING_MM, redo=[name]))
    assert done.written == (name,)
    assert contents(store) == contents(sound)


@pytest.mark.parametrize("kill", range(0, 12, 3))
def test_a_repair_that_is_killed_is_completed_by_the_next(
    kill: int, store: Path, sound: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for what in ("root", "group", "array", "status", "names", "coordinate gone"):
        damage(store, what)
    (store / "birch/record/c/0").unlink()
    write, done = DurableStore._write, []

    def dying(self: DurableStore, key: str, value: Any) -> None:
        if len(done) == kill:
            raise KilledError
        done.append(key)
        write(self, key, value)

    with monkeypatch.context() as patch:
        patch.setattr(DurableStore, "_write", dying)
        with pytest.raises(KilledError):
            repair(str(store))
    repair(str(store))
    assert errors(store) == []
    assert contents(store) == contents(sound)


@pytest.mark.parametrize("what", ["group", "array", "status", "coordinate", "coordinate gone"])
def test_a_damaged_database_does_not_lock_the_others_out(
    what: str, store: Path, hospitals: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is named with its file; and nobody works on the rest as if that were all."""
    file = damage(store, what)
    held = open_store(store)
    assert list(held.damaged) == ["alder"]
    assert list(held) == ["alder", "birch"]
    assert held.damaged["alder"].file == file
    assert [case.database for case in select(held, "birch")] == ["birch"]
    for ask in (
        lambda: held["alder"],
        lambda: held.cases,
        lambda: select(held),
        lambda: select(held, ["birch", "alder"]),
    ):
        with pytest.raises(StoreError, match=rf"{file}.*multiseg repair"):
            ask()
    assert run(["info", str(store), "--json"]) == 3
    told = json.loads(capsys.readouterr().out)
    assert [one["database"] for one in told["databases"]] == ["birch"]
    assert told["damaged"]["alder"]["file"] == file
    assert run(["info", str(store), "--database", "birch"]) == 0
    command = ["ingest", str(hospitals / "manifest.toml"), "--store", str(store), "--spacing", "5", "--workers", "1"]
    assert run(command) in (3, 4)  # 4 where cases of this database alone failed
    shown = capsys.readouterr()
    said = " ".join((shown.out + shown.err).split())
    if what == "coordinate gone":  # each case of the database has a finding, whose text the table folds
        assert said.count("MISSING_FILE") >= 2
    else:
        assert file in said
        assert "multiseg repair" in said
    assert "bug" not in said


@pytest.mark.parametrize("what", ["root", "root of wrong types"])
def test_a_damaged_root_is_named(what: str, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage(store, what)
    with pytest.raises(StoreError, match=r"the root of .* is damaged: zarr\.json: .*multiseg repair") as caught:
        open_store(store)
    assert caught.value.code == "DAMAGED"
    assert run(["info", str(store)]) == 3
    assert "zarr.json" in capsys.readouterr().err
