"""Windows through byte ranges of a server's objects: the same as from files, and in few requests."""

import functools
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import obstore
import pytest
from servers import Line, PlainFiles, far_from, free_port, serving

from multiseg.errors import ResourceError, StoreError
from multiseg.loaders.shards import ShardReader, runs_of
from multiseg.store.byte_ranges import LocalParts, Parts, Range
from multiseg.store.reader import open_store
from multiseg.store.remote import range_requests as remote_parts
from multiseg.store.remote.connection import connect
from multiseg.store.remote.range_requests import MOST_REQUESTS, NEAR_BYTES, RemoteParts, limit_ranges
from multiseg.types import Index3


@pytest.fixture
def line() -> Line:
    return Line(latency_s=0.005)


@pytest.fixture
def far(bucket: str, server: str, store_url: str, line: Line, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The shared store's shards in a bucket that is far away."""
    url = f"{bucket}/some folder/brain.zarr"
    upload(store_url, url)
    with far_from(server, line) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        yield url


@pytest.fixture
def far_web(far: str) -> str:
    """The same as a plain web server shows it."""
    return far.replace("s3:/", os.environ["AWS_ENDPOINT_URL"])


def upload(folder: str, url: str) -> None:
    objects = connect(url)
    for path in Path(folder).rglob("c/*/*/*/*/*"):
        obstore.put(objects, str(path.relative_to(folder)), path.read_bytes())


def image_key(store_url: str, case: int = 0) -> str:
    found = sorted(path.relative_to(store_url) for path in Path(store_url).rglob("image/c/*/*/*/*/*"))
    return str(found[case])


def windows(parts: Parts, store_url: str, seed: int = 0) -> list[np.ndarray]:
    """Random windows of every case's images and labels; where they lie is read from the local store."""
    rng = np.random.default_rng(seed)
    found = []
    for database in open_store(store_url).databases.values():
        for name in ("image", "label"):
            layout = database.layout(name)
            reader = ShardReader(parts, layout)
            runs = runs_of([(c, c) for c in range(layout.shape[0])], layout.chunk[0])
            for case in database.cases:
                corner: Index3 = tuple(int(rng.integers(0, n - 8)) for n in case.extent)  # type: ignore[assignment]
                size: Index3 = tuple(int(rng.integers(1, n - c + 1)) for n, c in zip(case.extent, corner, strict=True))  # type: ignore[assignment]
                out = np.full((layout.shape[0], *size), 77, layout.dtype)
                reader.read(case.row, runs, corner, size, out)
                found.append(out)
    return found


def assert_same_windows(parts: Parts, store_url: str) -> None:
    for here, there in zip(windows(LocalParts(Path(store_url)), store_url), windows(parts, store_url), strict=True):
        np.testing.assert_array_equal(here, there)


class Counted:
    """Counts what is asked of others."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.num = 0

    def tail(self, key: str, size: int) -> bytes | None:
        self.num += 1
        return self.parts.tail(key, size)

    def forget(self, key: str) -> bool:
        return self.parts.forget(key)

    def read(self, key: str, ranges: Sequence[Range], is_first: bool) -> Sequence[memoryview]:
        self.num += 1
        return self.parts.read(key, ranges, is_first)


def test_a_bucket_gives_the_same_windows_as_a_folder(far: str, store_url: str, line: Line) -> None:
    line.asked.clear()
    parts = Counted(RemoteParts(far))
    assert_same_windows(parts, store_url)
    assert line.num("/image/") >= 2 * 16
    assert len(line.asked) == parts.num  # these shards' chunks lie close together


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["", "tail", "range"])
def test_a_web_server_does_however_little_it_knows(far_web: str, store_url: str, line: Line, lost: str) -> None:
    line.lost = lost
    parts = RemoteParts(far_web)
    assert_same_windows(parts, store_url)
    key = image_key(store_url)
    assert parts.tail(key, 100) == Path(store_url, key).read_bytes()[-100:]
    assert parts.tail("ms/image/c/9/9/9/9/9", 100) is None


@pytest.mark.slow
def test_python_s_own_web_server_gives_each_object_once(store_url: str) -> None:
    asked: list[tuple[str, str]] = []
    folder = Path(store_url)
    with serving(functools.partial(PlainFiles, directory=str(folder.parent), asked=asked)) as url:
        parts = RemoteParts(f"{url}/{folder.name}")
        assert_same_windows(parts, store_url)
        asked.clear()
        key = image_key(store_url)
        assert parts.tail(key, 8) == (folder / key).read_bytes()[-8:]
        for start in range(0, 100, 10):
            (part,) = parts.read(key, [(start, start + 10)], is_first=False)
            assert bytes(part) == (folder / key).read_bytes()[start : start + 10]
    assert [path.removeprefix("/brain.zarr/") for _, path in asked] == [key]


def test_whole_objects_are_kept_and_not_for_ever(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_parts, "KEPT_OBJECTS", 2)
    asked: list[tuple[str, str]] = []
    folder = Path(store_url)
    with serving(functools.partial(PlainFiles, directory=str(folder.parent), asked=asked)) as url:
        parts = RemoteParts(f"{url}/{folder.name}")
        keys = [image_key(store_url, case) for case in range(3)]
        parts.tail(keys[0], 8)
        asked.clear()
        for case in (0, 1, 0, 2, 0, 1):
            parts.read(keys[case], [(0, 4)], is_first=False)
    assert [path.removeprefix("/brain.zarr/") for _, path in asked] == [keys[case] for case in (1, 2, 1)]


@pytest.fixture
def scattered(far: str) -> bytes:
    """A large object in the bucket."""
    data = np.random.default_rng(0).bytes(2**23)
    obstore.put(connect(far), "large", data, use_multipart=False)
    return data


def test_a_read_is_one_round_trip_whatever_it_asks_for(far: str, scattered: bytes, line: Line) -> None:
    rng = np.random.default_rng(1)
    starts = rng.permutation(2**23 // 4096)[:300] * 4096
    ranges = [(int(start), int(start + rng.integers(1, 4097))) for start in starts]
    num = len(limit_ranges(ranges))
    assert 1 < num <= MOST_REQUESTS
    line.asked.clear()
    line.expect_together(num)
    found = RemoteParts(far).read("large", ranges, is_first=True)
    assert line.num("large") == num
    assert [bytes(part) for part in found] == [scattered[start:stop] for start, stop in ranges]


def test_what_lies_far_apart_is_not_sent() -> None:
    near = [(0, 10), (10 + NEAR_BYTES, 20 + NEAR_BYTES), (2**22, 2**22 + 1)]
    assert limit_ranges(near[::-1]) == [(0, 20 + NEAR_BYTES), (2**22, 2**22 + 1)]
    assert limit_ranges([(start, start + 1) for start in range(0, 2**24, 2**21)]) == [
        (start, start + 1) for start in range(0, 2**24, 2**21)
    ]


def test_a_window_of_three_chunks_each_way_takes_what_it_needs_alone() -> None:
    """Chunks of 200 kB in 5 x 6 x 5: the nine rows of the window have two chunks, or more, between them."""
    edge = 200_000
    rows = [edge * ((i * 6 + j) * 5 + 1) for i in range(3) for j in range(3)]
    chunks = [(row + k * edge, row + (k + 1) * edge) for row in rows for k in range(3)]
    assert limit_ranges(chunks) == [(row, row + 3 * edge) for row in rows]


def test_threads_do_not_wait_for_each_other(far: str, store_url: str, line: Line) -> None:
    parts = RemoteParts(far)
    keys = [image_key(store_url, case) for case in range(8)]
    line.expect_together(8)
    with ThreadPoolExecutor(8) as threads:
        tails = list(threads.map(lambda key: parts.tail(key, 50), keys))
        line.expect_together(8)
        reads = list(threads.map(lambda key: parts.read(key, [(0, 50)], is_first=True), keys))
    for key, tail, (head,) in zip(keys, tails, reads, strict=True):
        data = Path(store_url, key).read_bytes()
        assert (tail, bytes(head)) == (data[-50:], data[:50])


def test_another_process_reads_by_url_without_zarr(far: str, store_url: str) -> None:
    parts = RemoteParts(far)
    key = image_key(store_url)
    tail = parts.tail(key, 20)
    script = (
        "import pickle, sys\n"
        "parts = pickle.loads(sys.stdin.buffer.read())\n"
        f"sys.stdout.buffer.write(parts.tail({key!r}, 20))\n"
        "assert 'zarr' not in sys.modules"
    )
    sent = pickle.dumps(parts)
    assert b"secret" not in sent
    assert subprocess.run([sys.executable, "-c", script], input=sent, check=True, capture_output=True).stdout == tail


@pytest.mark.slow
@pytest.mark.parametrize("kept", [100, 3000])
@pytest.mark.parametrize("lost", ["", "range"])
def test_an_object_that_ends_too_soon_is_named(
    far_web: str, far: str, store_url: str, line: Line, kept: int, lost: str
) -> None:
    database = open_store(store_url)["alder"]
    layout, case = database.layout("image"), database.cases[0]
    key = f"alder/image/c/{case.row}/0/0/0/0"
    whole = Path(store_url, key).read_bytes()
    index = 16 * int(np.prod([s // c for s, c in zip(layout.shard, layout.chunk, strict=True)])) + 4
    obstore.put(connect(far), key, whole[:kept] + whole[-index:])
    line.lost = lost
    urls = (far_web,) if lost else (far, far_web)
    for url in urls:
        reader = ShardReader(RemoteParts(url), layout)
        out = np.zeros((1, *case.extent), layout.dtype)
        with pytest.raises(StoreError, match=rf"{url}/{key} is truncated: it ends before its last chunk|is wrong"):
            reader.read(case.row, runs_of([(0, 0)], layout.chunk[0]), (0, 0, 0), case.extent, out)
    end = kept + index
    for url in urls:
        for wanted in ([(0, 4), (end - 2, end + 2)], [(0, 4), (end + 2**20, end + 2**20 + 4)]):
            with pytest.raises(StoreError, match=rf"{url}/{key} is truncated: it ends before its last chunk"):
                RemoteParts(url).read(key, wanted, is_first=True)


def test_what_is_wrong_is_said_in_words(far: str, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_parts, "connect", functools.partial(connect, patient=False))
    monkeypatch.setenv("MULTISEG_RETRY_SECONDS", "1")
    with pytest.raises(StoreError, match=r"no-such-bucket/brain\.zarr: there is no such bucket at"):
        RemoteParts("s3://no-such-bucket/brain.zarr").tail("key", 8)
    with pytest.raises(StoreError, match="no-such-bucket: there is no such bucket at"):
        RemoteParts("s3://no-such-bucket").read("key", [(0, 8)], is_first=True)
    parts = RemoteParts(far)
    assert parts.tail("nothing", 8) is None
    with pytest.raises(StoreError, match=rf"{far}/nothing was deleted while it was read"):
        parts.read("nothing", [(0, 8)], is_first=True)
    nobody = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", nobody)
    for ask in (lambda parts: parts.tail("key", 8), lambda parts: parts.read("key", [(0, 8)], is_first=True)):
        with pytest.raises(ResourceError, match=f"{far}: nothing answers at {nobody}. Check AWS_ENDPOINT_URL"):
            ask(RemoteParts(far))


def test_an_empty_object_has_an_empty_tail(far: str, far_web: str) -> None:
    obstore.put(connect(far), "empty", b"")
    assert RemoteParts(far_web).tail("empty", 8) == b""
