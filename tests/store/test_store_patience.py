"""One rule for what a server does not answer: it is asked again, for a time that is told, and then it is an error."""

import asyncio
import http.server
import itertools
import logging
import re
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing import Pipe, Process
from pathlib import Path
from threading import Lock

import numpy as np
import obstore
import pytest
from servers import Line, break_off, far_from, free_port, serving

from multiseg.errors import MultisegError, ResourceError, UsageError
from multiseg.loaders import reader_processes as processes
from multiseg.loaders import serving as worker
from multiseg.store.ingest.ingest_plan import IngestOptions
from multiseg.store.ingest.ingestion import ingest
from multiseg.store.reader import open_store
from multiseg.store.remote import connection
from multiseg.store.remote.connection import connect, read_small, translating_errors
from multiseg.store.remote.patience import Patience, seconds_from_environment
from multiseg.store.remote.range_requests import RemoteParts
from multiseg.store.sources.manifest import find_manifest

TROUBLES = ("500", "503", "429", "reset", "cut", "408")
VOXELS = bytes(range(256)) * 40


class Clock:
    """Time passes only in sleep."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    async def sleep_async(self, seconds: float) -> None:
        self.sleep(seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of every request of the test."""
    clock = Clock()
    slow = partial(Patience, clock=clock, sleep=clock.sleep, sleep_async=clock.sleep_async)
    monkeypatch.setattr(connection, "Patience", slow)
    return clock


@pytest.fixture
def flaky() -> Iterator[Callable[..., str]]:
    """Makes a web server's URL: its first answers are these troubles, then the voxels, or the parts asked for."""
    asked: list[str] = []
    troubles: list[str] = []

    class Flaky(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked.append(f"{self.command} {self.headers.get('Range', '')}")
            trouble = troubles.pop(0) if troubles and self.command == "GET" else ""
            if trouble == "reset":
                self.close_connection = True
                break_off(self.connection)
                return
            if trouble.isdecimal() or self.command == "HEAD":
                self.send_response(int(trouble or 429))
                self.send_header("Retry-After", "7")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            part = re.match(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
            start = 0 if part is None else int(part[1]) if part[1] else len(VOXELS) - int(part[2])
            stop = int(part[2]) + 1 if part and part[1] and part[2] else len(VOXELS)
            self.send_response(206 if part else 200)
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(VOXELS)}")
            self.send_header("Content-Length", str(stop - start))
            self.end_headers()
            body = VOXELS[start:stop]
            self.wfile.write(body[: len(body) // 2] if trouble == "cut" else body)
            self.close_connection = trouble == "cut"

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            pass

    with serving(Flaky) as url:

        def begin(*some: str) -> str:
            troubles[:], asked[:] = some, []
            return url

        begin.asked = asked  # type: ignore[attr-defined]
        yield begin


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_read_is_asked_again(flaky: Callable[..., str], clock: Clock, trouble: str) -> None:
    url = flaky(trouble, trouble, trouble)
    assert read_small(url, "a", patient=True) == VOXELS
    assert len(clock.slept) == 3
    parts = RemoteParts(flaky(trouble))
    assert parts.tail("a", 100) == VOXELS[-100:]
    flaky(trouble, trouble)
    assert [bytes(part) for part in parts.read("a", [(5, 300)], True)] == [VOXELS[5:300]]


@pytest.mark.parametrize("status", ["400", "401", "403", "404"])
def test_what_will_be_the_same_next_time_is_asked_once(flaky: Callable[..., str], clock: Clock, status: str) -> None:
    url = flaky(status, status)
    try:
        found = read_small(url, "a", patient=True)
    except MultisegError:
        found = None
    assert found is None
    assert clock.slept == []


def test_a_server_may_say_when_to_come_back(flaky: Callable[..., str], clock: Clock) -> None:
    assert read_small(flaky("429"), "a", patient=True) == VOXELS
    assert clock.slept == [7.0]


def test_the_waits_grow_to_a_limit_and_the_error_says_how_long(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    url = f"http://127.0.0.1:{free_port()}/x"
    with pytest.raises(ResourceError, match=r"nothing answers at http://.* It was tried for 1[678]\d s\."):
        read_small(url, "a", patient=True)
    assert 165 <= clock.now - 100 <= 180
    most = [min(15.0, 0.25 * 2**n) for n in range(len(clock.slept))]
    assert all(limit / 2 <= slept <= limit for slept, limit in zip(clock.slept, most, strict=True))
    said = [one.getMessage() for one in caplog.records]
    assert re.search(
        rf"waiting for {url} for [12]\d s already: it refuses connections. Giving up after 180 s in all", said[0]
    )
    assert len(said) == 3, "once, and again each minute"


def test_the_waits_of_tasks_grow_as_those_of_threads_do(clock: Clock) -> None:
    patience = Patience("s3://bucket", clock=clock, sleep=clock.sleep, sleep_async=clock.sleep_async)

    async def refused() -> None:
        raise connection.BaseError("connection refused")

    with pytest.raises(connection.BaseError):
        asyncio.run(patience.run_async(refused))
    most = [min(15.0, 0.25 * 2**n) for n in range(len(clock.slept))]
    assert len(most) > 10
    assert all(limit / 2 <= slept <= limit for slept, limit in zip(clock.slept, most, strict=True))


def test_the_first_contact_is_short(clock: Clock) -> None:
    with pytest.raises(ResourceError, match="nothing answers"):
        read_small(f"http://127.0.0.1:{free_port()}/x", "a")
    assert clock.now - 100 <= 5


def test_the_environment_sets_the_time(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MULTISEG_RETRY_SECONDS", "40")
    with pytest.raises(ResourceError, match=r"tried for [234]\d s"):
        read_small(f"http://127.0.0.1:{free_port()}/x", "a", patient=True)
    for wrong in ("soon", "-1", "inf", "nan"):
        monkeypatch.setenv("MULTISEG_RETRY_SECONDS", wrong)
        with pytest.raises(UsageError, match=f"MULTISEG_RETRY_SECONDS is '{wrong}'"):
            seconds_from_environment()


def test_an_unknown_name_is_asked_again(clock: Clock) -> None:
    url = "http://nowhere.invalid/x"
    with pytest.raises(ResourceError, match=r"It was tried for"), translating_errors(url):
        connection.patience(url).run(lambda: obstore.get(connect(url), "a"))
    assert len(clock.slept) > 5


@pytest.mark.slow
def test_an_ingest_and_a_stream_outlast_troubles(
    hospitals: Path, store_url: str, bucket: str, server: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every seventh request fails, each time in another way; what comes into the bucket is what a folder holds."""
    line = Line(troubles=(trouble for one in itertools.cycle(TROUBLES) for trouble in ("", "", "", "", "", "", one)))
    with far_from(server, line) as far:
        monkeypatch.setenv("AWS_ENDPOINT_URL", far)
        ingest(find_manifest(hospitals / "manifest.toml")[:1], bucket, IngestOptions(spacing_mm=(5.0, 5.0, 5.0)))
        there, here = open_store(bucket), open_store(store_url)
        assert len(clock.slept) > 10
        (name,) = there.databases
        for case in there.cases:
            same = here[name][case.name]
            assert case.content == same.content
            for a, b in zip(there[name].whole(case), here[name].whole(same), strict=True):
                assert np.array_equal(a, b)
        before = len(clock.slept)
        parts = there.parts()
        for case in there.cases * 5:
            assert parts.tail(f"{name}/image/c/{case.row}/0/0/0/0", 100)
        assert len(clock.slept) > before


def test_the_main_process_says_what_its_workers_wait_for(caplog: pytest.LogCaptureFixture) -> None:
    ours, theirs = Pipe()
    logger = logging.getLogger("multiseg")
    before = logger.handlers[:], logger.propagate
    try:
        worker._log_to_parent(theirs, Lock())
        Patience("s3://bucket/brain.zarr", clock=lambda: 0.0)._warn(connection.BaseError("refused"), 12.0)
    finally:
        logger.handlers[:], logger.propagate = before
    assert not caplog.records
    one = processes._Worker(3, Process(), ours)
    assert processes.Processes._read_answers(object.__new__(processes.Processes), one) == []
    assert (
        "reader process 3: waiting for s3://bucket/brain.zarr for 12 s already: it refuses connections" in caplog.text
    )
