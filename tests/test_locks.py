"""Locks of the system, and a lock file where its file system has none; flushing where there is none."""

import errno
import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from multiseg import flushing, lease, locks
from multiseg.errors import ResourceError
from multiseg.files import lock_folder, wait_until_free, write_atomically
from multiseg.lease import Holder, InUseError, this_machine
from multiseg.locks import locked
from multiseg.store.ingest.ingest_plan import IngestOptions
from multiseg.store.ingest.ingestion import ingest
from multiseg.store.reader import open_store
from multiseg.store.sources.manifest import find_manifest

NOT_THERE = [errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF, errno.ENOSYS, errno.EINVAL]


def refuse(monkeypatch: pytest.MonkeyPatch, number: int, *names: str) -> None:
    """Let calls of the system end so."""

    def refused(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    for name in names:
        monkeypatch.setattr(*{"fsync": (os, "fsync")}.get(name, (fcntl, name)), refused)
    locks._warn_once.cache_clear()
    flushing._warn_once.cache_clear()


def another(pid: int = 4711, machine: str = "another boot/1") -> bytes:
    return json.dumps(asdict(Holder("workstation7", pid, machine, "2031-02-03T04:05", "", "token"))).encode()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "lock").touch()
    return tmp_path / "lock"


@pytest.mark.parametrize("number", NOT_THERE)
def test_a_lock_file_where_there_are_no_locks(
    place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    refuse(monkeypatch, number, "flock")
    for _ in range(2):
        with place.open() as file, locked(file, place, wait=False):
            assert lease.parse(place.with_name("lock.held").read_bytes()).is_me()
            with pytest.raises(InUseError, match=f"process {os.getpid()} on"), locked(file, place, wait=False):
                pass
        assert [path.name for path in place.parent.iterdir()] == ["lock"]
    assert caplog.text.count("has no locks") == 1
    assert os.strerror(number) in caplog.text


def test_other_errors_are_no_lack_of_locks(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, errno.EIO, "flock")
    with pytest.raises(OSError, match="Input/output"), place.open() as file, locked(file, place):
        pass
    assert not place.with_name("lock.held").exists()


def test_whoever_waits_gets_it_next(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, errno.ENOLCK, "flock")
    monkeypatch.setattr(locks, "POLL_SECONDS", 0.01)
    order: list[str] = []

    def second() -> None:
        with place.open() as file, locked(file, place):
            order.append("second")

    thread = threading.Thread(target=second)
    with place.open() as file, locked(file, place):
        thread.start()
        thread.join(0.1)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


@pytest.mark.parametrize("has_locks", [True, False])
def test_the_lock_file_of_another_computer_is_respected(
    place: Path, monkeypatch: pytest.MonkeyPatch, has_locks: bool
) -> None:
    """Of two computers that share a place one may have locks there and the other none."""
    if not has_locks:
        refuse(monkeypatch, errno.ENOLCK, "flock")
    place.with_name("lock.held").write_bytes(another())
    with (
        pytest.raises(InUseError, match=r"process 4711 on workstation7, started at 2031"),
        place.open() as file,
        locked(file, place, wait=False),
    ):
        pass
    assert place.with_name("lock.held").read_bytes() == another()


@pytest.mark.parametrize("why", ["dead", "stale", "empty"])
def test_what_the_dead_left_is_taken_over(place: Path, monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    refuse(monkeypatch, errno.ENOLCK, "flock")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = place.with_name("lock.held")
    left.write_bytes({"dead": another(dead.pid, this_machine()), "stale": another(), "empty": b""}[why])
    if why != "dead":
        os.utime(left, (0, 0))
    with place.open() as file, locked(file, place, wait=False):
        assert lease.parse(left.read_bytes()).is_me()
    assert not left.exists()


def test_of_two_that_take_over_one_gets_it(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, errno.ENOLCK, "flock")
    left = place.with_name("lock.held")
    left.write_bytes(another())
    os.utime(left, (0, 0))
    look = locks.FolderPlace.now

    def meanwhile(self: locks.FolderPlace) -> object:
        found = look(self)
        left.write_bytes(another(pid=12))
        return found

    monkeypatch.setattr(locks.FolderPlace, "now", meanwhile)
    with (
        pytest.raises(InUseError, match=r"just started writing to .*: process 12"),
        place.open() as file,
        locked(file, place, wait=False),
    ):
        pass
    assert left.read_bytes() == another(pid=12)


def test_it_is_refreshed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, errno.ENOLCK, "flock")
    monkeypatch.setattr(lease, "REFRESH_SECONDS", 0.01)
    with place.open() as file, locked(file, place):
        first = later = lease.parse(place.with_name("lock.held").read_bytes())
        for _ in range(1000):
            if later != first:
                break
            threading.Event().wait(0.01)
            later = lease.parse(place.with_name("lock.held").read_bytes())
    assert later.refreshed > first.refreshed
    assert later == replace(first, refreshed=later.refreshed), "it is the same holder's"


def test_a_place_that_is_only_read_needs_none(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, errno.ENOLCK, "flock")

    def read_only(*args: object) -> None:
        raise OSError(errno.EROFS, "read-only")

    monkeypatch.setattr(locks, "_create", read_only)
    with place.open() as file, locked(file, place, shared=True):
        pass
    with pytest.raises(OSError, match="read-only"), place.open() as file, locked(file, place):
        pass


def test_a_folder_to_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, errno.EOPNOTSUPP, "flock")
    lock, said = tmp_path / "lock", f"in use by process {os.getpid()}: it works here"
    for _ in range(2):
        with (
            lock_folder(lock, "it works here."),
            pytest.raises(ResourceError, match=said),
            lock_folder(lock, "it works here."),
        ):
            pass


@pytest.mark.parametrize("number", NOT_THERE)
def test_what_cannot_be_flushed_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    refuse(monkeypatch, number, "fsync")
    for n in range(2):
        write_atomically(tmp_path / "file", bytes([n]))
        assert (tmp_path / "file").read_bytes() == bytes([n])
    assert caplog.text.count("cannot flush") == 1


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.ENODEV])
def test_a_disk_that_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    refuse(monkeypatch, number, "fsync")
    with pytest.raises(ResourceError, match=os.strerror(number)):
        write_atomically(tmp_path / "file", b"1")


@pytest.mark.slow
def test_an_ingest_where_there_is_neither(
    hospitals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refuse(monkeypatch, errno.EINVAL, "fsync", "flock")
    url, seen = tmp_path / "brain.zarr", []
    files, options = find_manifest(hospitals / "manifest.toml")[:1], IngestOptions(spacing_mm=(6.0, 6.0, 6.0))

    def look(database: str, case: str, outcome: str) -> None:
        seen.append(lease.parse((url / ".multiseg-writer").read_bytes()).pid)
        with pytest.raises(ResourceError, match=f"another process is writing to {url}: process {os.getpid()}"):
            ingest(files, url, options)

    ingest(files, url, options, look)
    assert seen == [os.getpid()] * 4
    assert len(open_store(url).cases) == 4
    assert not (url / ".multiseg-writer").exists()
    warnings = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    assert len([said for said in warnings if "no locks" in said or "cannot flush" in said]) == 2


@pytest.mark.slow
def test_a_writer_that_lost_its_lock_file_stops(
    hospitals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, errno.ENOLCK, "flock")
    url = tmp_path / "brain.zarr"
    files, options = find_manifest(hospitals / "manifest.toml")[:1], IngestOptions(spacing_mm=(6.0, 6.0, 6.0))

    def lose(database: str, case: str, outcome: str) -> None:
        (url / ".multiseg-writer").write_bytes(another())

    with pytest.raises(
        ResourceError, match=r"this process has lost its lock of .*, which process 4711 on workstation7"
    ):
        ingest(files, url, options, lose)
    assert len(open_store(url).cases) == 1


def test_a_lock_ends_with_its_process_though_a_forked_child_lives(place: Path, tmp_path: Path) -> None:
    script = (
        "import os, sys, time\nfrom pathlib import Path\nfrom multiseg.locks import locked\n"
        "place = Path(sys.argv[1])\n"
        "with place.open() as file, locked(file, place):\n"
        "    child = os.fork()\n"
        "    if not child:\n        time.sleep(600)\n"
        "    Path(sys.argv[2]).write_text(str(child))\n"
        "    time.sleep(600)\n"
    )
    told = tmp_path / "child"
    with subprocess.Popen([sys.executable, "-c", script, str(place), str(told)]) as parent:
        end = time.monotonic() + 60
        while not (told.exists() and told.read_text()):
            assert time.monotonic() < end
            time.sleep(0.02)
        with place.open() as file, pytest.raises(BlockingIOError), locked(file, place, wait=False):
            pass
        parent.kill()
    try:
        with place.open() as file, locked(file, place, wait=False):
            pass
    finally:
        os.kill(int(told.read_text()), signal.SIGKILL)


def test_waiting_for_a_lock_that_nobody_has_made(tmp_path: Path) -> None:
    wait_until_free(tmp_path / "new" / "lock", 60.0)
    assert list(tmp_path.iterdir()) == []


def test_whoever_waits_may_give_up(place: Path) -> None:
    asked: list[int] = []

    def wait() -> bool:
        asked.append(1)
        return len(asked) < 3

    with (
        place.open() as file,
        place.open() as another,
        locked(file, place),
        pytest.raises(BlockingIOError),
        locked(another, place, wait=wait),
    ):
        pass
    assert len(asked) == 3
