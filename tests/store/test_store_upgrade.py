"""From format 2 to 3 in place: the same contents, whatever moment it dies at, and no loss is ever taken for empty."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import obstore
import pytest
import zarr
from json_documents import checked
from stores import (
    KilledError,
    alone,
    case,
    chunks_of,
    contents,
    count_writes,
    edit_root,
    kill_at,
    make_store,
    take,
    to_format_2,
)
from sweeps import sample

from multiseg.cli.app import run
from multiseg.errors import StoreError, UsageError
from multiseg.store.checks.verification import verify_store
from multiseg.store.findings import Severity
from multiseg.store.reader import open_store
from multiseg.store.remote.connection import connect
from multiseg.store.upkeep.format_upgrade import upgrade_store


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("sound"))


@pytest.fixture(scope="module")
def old(sound: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same store in format 2."""
    url = shutil.copytree(sound, tmp_path_factory.mktemp("old") / "brain.zarr")
    to_format_2(url)
    return url


@pytest.fixture
def copy(old: Path, tmp_path: Path) -> Path:
    return shutil.copytree(old, tmp_path / "brain.zarr")


def errors(url: Path | str) -> list[tuple[str, str]]:
    return [(one.code, one.file) for one in verify_store(str(url)) if one.severity is Severity.ERROR]


def format_of(url: Path) -> int:
    return json.loads((url / "zarr.json").read_text())["attributes"]["multiseg"]["format"]


def test_every_reader_and_writer_names_the_command(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    match = f"store format 2, and this one reads format 3. Convert it .* multiseg upgrade {copy}"
    acts: list[Callable[[], object]] = [
        lambda: open_store(str(copy)),
        lambda: take(copy, case(tmp_path, "P7", 7, split="train")),
    ]
    for act in acts:
        with pytest.raises(StoreError, match=match):
            act()
    assert run(["verify", str(copy)]) == 3
    assert f"multiseg upgrade {copy}" in capsys.readouterr().err
    assert format_of(copy) == 2


@pytest.mark.slow
def test_from_the_command_line(copy: Path, sound: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not (copy / "beta/session/c/0").exists()
    assert run(["upgrade", str(copy), "--json"]) == 0
    told = checked(capsys.readouterr().out, "upgrade")
    assert told["is_done"]
    taken = [one["file"] for one in told["findings"] if one["code"] == "TAKEN_AS_EMPTY"]
    assert taken == ["beta/session/c/0", "beta/site/c/0"]
    assert contents(copy) == contents(sound)
    assert errors(copy) == []
    for name in ("alpha", "beta"):
        one, other = (json.loads((url / name / "zarr.json").read_text())["attributes"] for url in (copy, sound))
        assert one == other
        records = [zarr.open_array(url / name / "record")[:] for url in (copy, sound)]
        assert [json.loads(text) | {"revision": 0, "case": ""} for text in records[0]] == [
            json.loads(text) | {"revision": 0, "case": ""} for text in records[1]
        ]
    assert run(["upgrade", str(copy)]) == 0
    assert "has the newest format" in capsys.readouterr().err


@pytest.mark.slow
def test_new_cases_come_into_a_converted_database(copy: Path, tmp_path: Path) -> None:
    steps: list[tuple[int, int, str]] = []
    assert upgrade_store(str(copy), on_step=lambda *step: steps.append(step)).is_done
    assert [done for done, _, _ in steps] == list(range(1, steps[0][1] + 1))
    assert steps[-1][2].startswith("beta/")
    assert {total for _, total, _ in steps} == {len(steps)}
    more = case(tmp_path, "P7", 7, split="train", participant={"age": 50.0, "handed": "left"})
    assert take(copy, more, labels=("lesion", "tissue")).written == ("P7",)
    assert [one.name for one in open_store(str(copy))["alpha"].cases] == ["P2", "P1", "P7"]
    assert errors(copy) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("database", "undecided"),
    [
        ("alpha", ["alpha/session/c/0", "alpha/site/c/0", "alpha/split_given/c/0"]),
        ("beta", ["beta/split_given/c/0"]),
    ],
)
def test_every_file_of_the_old_store_that_is_gone_is_named(
    database: str, undecided: list[str], old: Path, tmp_path: Path
) -> None:
    """What format 2 leaves open is told: taken as empty, or refused until somebody says that it is."""
    copy = alone(old, database, tmp_path)
    taken, superseded = [], ("alpha/image/c/0/", "alpha/label/c/0/", "alpha/foreground/c/0/")
    for key in chunks_of(copy):
        (copy / key).rename(tmp_path / "aside")
        try:
            done = upgrade_store(str(copy))
            named = {one.file: one for one in done.findings if one.severity is Severity.ERROR}
            if done.is_done:
                taken.append(key)
                notes = {one.file for one in done.findings if one.code == "TAKEN_AS_EMPTY"}
                assert key in notes or key.startswith(superseded), key
        finally:
            (tmp_path / "aside").replace(copy / key)
            edit_root(copy, format=2)
        if not done.is_done:
            # A label that is gone shows by what was counted in it.
            array = "/".join(key.split("/")[:2]).replace("/label", "/foreground_count")
            assert any(file.startswith(array) for file in named), (key, list(named))
    assert [key for key in taken if not key.startswith(superseded)] == undecided


@pytest.mark.slow
def test_what_somebody_says_is_empty_is_taken_so(copy: Path) -> None:
    (copy / "alpha/age/c/0").unlink()
    refused = upgrade_store(str(copy))
    assert not refused.is_done
    (finding,) = [one for one in refused.findings if one.severity is Severity.ERROR]
    assert (finding.code, finding.file) == ("MISSING_FILE", "alpha/age/c/0")
    assert "--accept alpha/age" in finding.message
    assert format_of(copy) == 2
    assert not (copy / "alpha/record").exists()
    with pytest.raises(UsageError, match="--accept alpha/years: the store has no such array"):
        upgrade_store(str(copy), ["alpha/years"])
    assert upgrade_store(str(copy), ["alpha/age"]).is_done
    assert all(np.isnan(one.participant["age"]) for one in open_store(str(copy))["alpha"].cases)


@pytest.mark.slow
def test_states_that_are_gone_are_never_taken_as_empty(copy: Path) -> None:
    """No case would be left of the rows that are there."""
    (copy / "alpha/status/c/0").unlink()
    for accepted in ((), ("alpha/status",)):
        refused = upgrade_store(str(copy), accepted)
        found = [(one.code, one.file) for one in refused.findings if one.severity is Severity.ERROR]
        assert not refused.is_done
        assert found == [("STATUS_LOST", "alpha/status")]


@pytest.mark.slow
def test_damage_that_is_still_noticed_afterwards_does_not_stand_in_the_way(copy: Path) -> None:
    path = copy / "alpha/image/c/1/0/0/0/0"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    assert upgrade_store(str(copy)).is_done
    assert errors(copy) == [("DAMAGED_CHUNK", "alpha/image/c/1/0/0/0/0")]


@pytest.mark.slow
def test_a_converter_that_dies_is_run_again(
    old: Path, sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted, expected = shutil.copytree(old, tmp_path / "counted.zarr"), contents(sound)
    num_writes = count_writes(lambda: upgrade_store(str(counted)))
    assert num_writes > 10
    for at in sample(range(0, num_writes, 9), 6):
        url = shutil.copytree(old, tmp_path / "brain.zarr")
        with monkeypatch.context() as dying:
            kill_at(dying, at)
            with pytest.raises(KilledError):
                upgrade_store(str(url))
        assert format_of(url) == 2
        assert upgrade_store(str(url)).is_done
        assert errors(url) == []
        assert contents(url) == expected
        shutil.rmtree(url)


@pytest.mark.slow
def test_a_store_in_a_bucket(old: Path, sound: Path, bucket: str) -> None:
    url = f"{bucket}/brain.zarr"
    for path in (path for path in old.rglob("*") if path.is_file()):
        obstore.put(connect(url), str(path.relative_to(old)), path.read_bytes())
    assert upgrade_store(url).is_done
    assert errors(url) == []
    assert [one.shards for one in open_store(url).cases] == [one.shards for one in open_store(str(sound)).cases]
