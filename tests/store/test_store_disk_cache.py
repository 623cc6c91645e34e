"""Copies of a server's objects on the local disk: what is kept, for whom, and what happens when the disk fails."""

import errno
import logging
import os
import pickle
import signal
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import obstore
import pytest
from servers import Line, far_from

from multiseg.errors import ResourceError, StoreError
from multiseg.store.remote import disk_cache
from multiseg.store.remote.connection import connect
from multiseg.store.remote.disk_cache import DiskCache, name_of
from multiseg.store.remote.range_requests import RemoteParts

SIZE = 1000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def line() -> Line:
    return Line(latency_s=0.005)


@pytest.fixture
def far(bucket: str, server: str, line: Line, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket that is far away, with objects named a to d."""
    for key in "abcd":
        obstore.put(connect(bucket), key, content(key))
    with far_from(server, line) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        yield bucket


def content(key: str) -> bytes:
    return np.random.default_rng(ord(key)).bytes(SIZE)


def copies(folder: Path) -> set[str]:
    return {path.name for path in (folder / "objects").iterdir()}


def fill(cache: DiskCache, *names: str, size: int = SIZE) -> list[bool]:
    return [cache.fill(name, size, [bytes(size - 1), b"."]) for name in names]


def make_old(folder: Path, *names: str) -> None:
    """As an earlier run left them, the first name first."""
    for number, name in enumerate(names):
        os.utime(folder / "objects" / name, ns=(number, number))


def test_a_run_takes_in_what_fits_and_keeps_it(folder: Path) -> None:
    cache = DiskCache(folder, 2 * SIZE)
    assert fill(cache, "a", "b", "c") == [True, True, False]
    assert copies(folder) == {"a", "b"}
    assert (folder / "objects" / "a").read_bytes() == bytes(SIZE - 1) + b"."
    assert cache.find("a", SIZE)
    assert not cache.find("c", SIZE)


def test_a_copy_of_another_size_is_none(folder: Path) -> None:
    fill(DiskCache(folder, 2 * SIZE), "a")
    (folder / "objects" / "a").write_bytes(bytes(5))
    cache = DiskCache(folder, 2 * SIZE)
    assert not cache.find("a", SIZE)
    assert fill(cache, "a") == [True]


def test_what_is_too_large_does_not_keep_what_is_small_out(folder: Path) -> None:
    cache = DiskCache(folder, 2 * SIZE)
    assert not cache.fill("a", 3 * SIZE, [])
    assert not cache.fill("a", 2 * SIZE + 1, [])
    assert fill(cache, "b", "c") == [True, True]


def test_an_earlier_run_makes_room_the_oldest_first(folder: Path) -> None:
    assert fill(DiskCache(folder, 3 * SIZE), "a", "b", "c") == [True, True, True]
    make_old(folder, "c", "a", "b")
    cache = DiskCache(folder, 3 * SIZE)
    assert cache.find("c", SIZE)  # which this run uses now
    assert fill(cache, "d") == [True]
    assert copies(folder) == {"b", "c", "d"}
    assert fill(cache, "e", "f") == [True, False]
    assert copies(folder) == {"c", "d", "e"}


def test_a_clock_may_be_set_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What this run has used is not old, whatever time it is by then."""
    fill(DiskCache(folder, 2 * SIZE), "a", "b")
    make_old(folder, "a", "b")
    ahead = time.time_ns() + 10**9
    with monkeypatch.context() as patch:
        patch.setattr(time, "time_ns", lambda: ahead)
        cache = DiskCache(folder, 2 * SIZE)
    assert cache.find("a", SIZE)
    assert fill(cache, "c", "d") == [True, False]
    assert copies(folder) == {"a", "c"}


def test_nothing_is_removed_where_that_makes_too_little_room(folder: Path) -> None:
    fill(DiskCache(folder, 3 * SIZE), "a")
    make_old(folder, "a")
    cache = DiskCache(folder, 2 * SIZE)
    assert fill(cache, "b") == [True]
    assert not fill(cache, "c", size=2 * SIZE)[0]
    assert copies(folder) == {"a", "b"}


def test_a_run_that_is_alive_keeps_what_it_used(folder: Path) -> None:
    other = DiskCache(folder, 2 * SIZE)
    worker = pickle.loads(pickle.dumps(other))
    assert fill(other, "a", "b") == [True, True]
    cache = DiskCache(folder, 2 * SIZE)
    assert fill(cache, "c") == [False]
    del other
    assert fill(DiskCache(folder, 2 * SIZE), "c") == [False]  # its worker is alive
    del worker
    assert fill(DiskCache(folder, 2 * SIZE), "c") == [True]
    assert len(copies(folder)) == 2


def test_runs_that_are_over_leave_nothing_behind(folder: Path) -> None:
    for name in "abc":
        fill(DiskCache(folder, SIZE), name)
        make_old(folder, *copies(folder))
    assert copies(folder) == {"c"}
    assert len(list((folder / "runs").iterdir())) == 1  # the last one's own


def test_another_version_of_an_object_is_the_first_to_go(folder: Path) -> None:
    old, new, other = name_of("s3://x", "a", "1"), name_of("s3://x", "a", "2"), name_of("s3://x", "b", "1")
    fill(DiskCache(folder, 2 * SIZE), old, other)
    make_old(folder, other, old)
    assert fill(DiskCache(folder, 2 * SIZE), new) == [True]
    assert copies(folder) == {new, other}


def test_no_two_objects_share_a_name() -> None:
    told = [("s3://x", "y/a", "1"), ("s3://x/y", "a", "1"), ("gs://x", "y/a", "1"), ("s3://x", "y/a", "2")]
    assert len({name_of(*one) for one in told}) == len(told)


def test_an_object_is_one_copy_and_no_more_than_its_tail_is_asked_for_again(far: str, folder: Path, line: Line) -> None:
    for first in (True, False):
        parts = RemoteParts(far, DiskCache(folder, 10 * SIZE))
        line.asked.clear()
        assert parts.tail("a", 10) == content("a")[-10:]
        assert line.num("/a") == 1
        for start in range(5):
            (part,) = parts.read("a", [(start, 900)], is_first=start == 0)
            assert bytes(part) == content("a")[start:900]
        assert line.num("/a") == (2 if first else 1)


def test_what_is_not_taken_in_is_read_by_parts(far: str, folder: Path, line: Line) -> None:
    parts = RemoteParts(far, DiskCache(folder, 2 * SIZE))
    for key in "abcd" * 2:
        parts.tail(key, 10)
        (part,) = parts.read(key, [(10, 20)], is_first=True)
        assert bytes(part) == content(key)[10:20]
    assert len(copies(folder)) == 2
    assert sum(path.stat().st_size for path in (folder / "objects").iterdir()) == 2 * SIZE
    ranges = [part for _, path, part in line.asked if path.endswith(("/c", "/d")) and "=-" not in part]
    assert ranges == ["bytes=10-19"] * 4


@pytest.mark.parametrize("lost", ["tail", "range"])
def test_servers_that_give_no_parts_give_an_object_once(far: str, folder: Path, line: Line, lost: str) -> None:
    line.lost = lost
    url = far.replace("s3:/", os.environ["AWS_ENDPOINT_URL"])
    for first in (True, False):
        parts = RemoteParts(url, DiskCache(folder, 10 * SIZE))
        parts.tail("b", 10)  # by which it learns what the server knows
        line.asked.clear()
        assert parts.tail("a", 10) == content("a")[-10:]
        assert bytes(parts.read("a", [(0, 30)], is_first=True)[0]) == content("a")[:30]
        assert line.num("/a", "HEAD") == 1
        assert line.num("/a") == first


def test_a_changed_object_is_copied_anew(far: str, folder: Path) -> None:
    for _ in range(2):  # once for each of two processes
        parts = RemoteParts(far, DiskCache(folder, 10 * SIZE))
        for key in "az":
            obstore.put(connect(far), "a", content(key))
            assert parts.tail("a", 10) == content(key)[-10:]
            assert bytes(parts.read("a", [(0, 10)], is_first=True)[0]) == content(key)[:10]
    assert len(copies(folder)) == 2


def test_an_object_that_changes_meanwhile_is_told(far: str, folder: Path) -> None:
    parts = RemoteParts(far, DiskCache(folder, 10 * SIZE))
    parts.tail("a", 10)
    obstore.put(connect(far), "a", content("z"))
    with pytest.raises(StoreError, match=rf"{far}/a was overwritten while it was read. Start again"):
        parts.read("a", [(0, 10)], is_first=True)
    assert copies(folder) == set()


@pytest.mark.parametrize("budget", [0, 10 * SIZE])
def test_a_changed_object_of_a_server_without_parts(far: str, folder: Path, line: Line, budget: int) -> None:
    line.lost = "range"
    parts = RemoteParts(far.replace("s3:/", os.environ["AWS_ENDPOINT_URL"]), DiskCache(folder, budget))
    for key in "azaz":
        obstore.put(connect(far), "a", content(key))
        assert parts.tail("a", 10) == content(key)[-10:]
        assert bytes(parts.read("a", [(0, 10)], is_first=True)[0]) == content(key)[:10]


def test_a_server_that_tells_no_version_has_nothing_copied(
    far: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = RemoteParts(far, DiskCache(folder, 10 * SIZE))
    monkeypatch.setattr("multiseg.store.remote.range_requests._version", lambda meta: "")
    parts.tail("a", 10)
    assert bytes(parts.read("a", [(0, 10)], is_first=True)[0]) == content("a")[:10]
    assert copies(folder) == set()


def test_a_lost_connection_leaves_nothing(folder: Path) -> None:
    cache = DiskCache(folder, 10 * SIZE)

    def pieces() -> Iterator[bytes]:
        yield bytes(10)
        raise ResourceError("the line is cut")

    with pytest.raises(ResourceError, match="the line is cut"):
        cache.fill("a", SIZE, pieces())
    assert not cache.fill("a", SIZE, [b"too short"])
    assert copies(folder) == set()
    assert fill(cache, "a") == [True]


def test_a_damaged_copy_is_dropped_and_the_object_read(far: str, folder: Path, line: Line) -> None:
    parts = RemoteParts(far, DiskCache(folder, 10 * SIZE))
    assert not parts.forget("a")
    for key in "ab":
        parts.tail(key, 10)
        parts.read(key, [(0, 10)], is_first=True)
        assert bytes(parts.read(key, [(0, 10)], is_first=False)[0]) == content(key)[:10]
    (name,) = [name for name in copies(folder) if (folder / "objects" / name).read_bytes() == content("a")]
    (folder / "objects" / name).write_bytes(bytes(SIZE))
    assert bytes(parts.read("a", [(0, 10)], is_first=True)[0]) == bytes(10)
    assert parts.forget("a")
    assert not parts.forget("a")
    assert bytes(parts.read("a", [(0, 10)], is_first=True)[0]) == content("a")[:10]
    assert len(copies(folder)) == 1
    again = RemoteParts(far, DiskCache(folder, 10 * SIZE))
    again.tail("a", 10)
    assert bytes(again.read("a", [(0, 10)], is_first=True)[0]) == content("a")[:10]
    assert len(copies(folder)) == 2


@pytest.mark.parametrize("size", [None, 5])
def test_a_copy_that_somebody_removed_or_cut_is_done_without(far: str, folder: Path, size: int | None) -> None:
    parts = RemoteParts(far, DiskCache(folder, 10 * SIZE))
    parts.tail("a", 10)
    parts.read("a", [(0, 10)], is_first=True)
    (path,) = (folder / "objects").iterdir()
    path.unlink()
    if size:
        path.write_bytes(bytes(size))
    for is_first in (True, False):
        assert bytes(parts.read("a", [(0, 10)], is_first=is_first)[0]) == content("a")[:10]
    again = RemoteParts(far, DiskCache(folder, 10 * SIZE))
    again.tail("a", 10)
    assert bytes(again.read("a", [(0, 10)], is_first=True)[0]) == content("a")[:10]
    assert path.stat().st_size == SIZE


def filling(cache: DiskCache) -> subprocess.Popen[bytes]:
    """Another process of the run, in the middle of taking in "a"."""
    script = (
        "import pickle, sys\n"
        "cache = pickle.loads(bytes.fromhex(sys.argv[1]))\n"
        "def pieces():\n"
        "    yield bytes(10)\n"
        "    print(flush=True)\n"
        "    sys.stdin.readline()\n"
        f"    yield bytes({SIZE - 10})\n"
        f"assert cache.fill('a', {SIZE}, pieces())"
    )
    command = [sys.executable, "-c", script, pickle.dumps(cache).hex()]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_two_processes_make_one_copy_and_neither_waits(folder: Path) -> None:
    cache = DiskCache(folder, 2 * SIZE)
    with filling(cache) as other:
        assert fill(cache, "a") == [False]
        assert not cache.find("a", SIZE)
        assert fill(cache, "b", "c") == [True, False]  # what comes is counted
        assert other.stdin is not None
        other.communicate(b"\n")
    assert other.returncode == 0
    assert cache.find("a", SIZE)
    assert copies(folder) == {"a", "b"}


def test_what_a_killed_process_left_is_removed(folder: Path) -> None:
    cache = DiskCache(folder, 2 * SIZE)
    with filling(cache) as other:
        other.send_signal(signal.SIGKILL)
    assert copies(folder) == {"a.part"}
    assert fill(cache, "b", "a") == [True, True]
    assert copies(folder) == {"a", "b"}


def test_a_folder_that_cannot_be_is_told_once(far: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = DiskCache(tmp_path / "file" / "cache", 10 * SIZE)
    for parts in (RemoteParts(far, cache), pickle.loads(pickle.dumps(RemoteParts(far, cache)))):
        for key in "ab":
            assert parts.tail(key, 10) == content(key)[-10:]
            assert bytes(parts.read(key, [(0, 10)], is_first=True)[0]) == content(key)[:10]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert (
        f"cannot keep more shards in {tmp_path / 'file' / 'cache'} (Not a directory). Continuing without" in caplog.text
    )


def test_a_full_disk_is_told_once_and_copies_stay_in_use(
    far: str, folder: Path, line: Line, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    parts = RemoteParts(far, DiskCache(folder, 10 * SIZE))
    parts.tail("a", 10)
    parts.read("a", [(0, 10)], is_first=True)

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    for key in "bcb":
        parts.tail(key, 10)
        assert bytes(parts.read(key, [(0, 10)], is_first=True)[0]) == content(key)[:10]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert f"cannot keep more shards in {folder} (No space left on device)" in caplog.text
    assert len(copies(folder)) == 1
    line.asked.clear()
    assert bytes(parts.read("a", [(0, 10)], is_first=False)[0]) == content("a")[:10]
    assert line.asked == []


def test_some_of_the_disk_is_left_to_others(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache = DiskCache(folder, 10 * SIZE)
    status = namedtuple("status", "f_bavail f_frsize")
    monkeypatch.setattr(disk_cache, "FREE_BYTES", 3 * SIZE)
    monkeypatch.setattr(os, "statvfs", lambda path: status(4 * SIZE, 1))
    assert fill(cache, "a") == [True]
    monkeypatch.setattr(os, "statvfs", lambda path: status(4 * SIZE - 1, 1))
    assert fill(cache, "b", "c") == [False, False]
    assert caplog.text.count("too little space is left on the disk") == 1
