"""What goes wrong while a stream runs: a death is mended or told, damage is told, and nothing ever hangs."""

import faulthandler
import logging
import multiprocessing
import os
import random
import re
import shutil
import signal
import textwrap
import threading
import time
from collections import deque
from pathlib import Path

import pytest
from commands import Command
from streams import digests, stream_of
from sweeps import sample

from multiseg.cli.app import run
from multiseg.errors import ResourceError, StoreError
from multiseg.loaders import serving
from multiseg.loaders.patches import PatchReader
from multiseg.store.reader import open_store

NUM = 10
CREWS = [{"workers": 0}, {"workers": 1, "start": "thread"}, {"workers": 2}]
SCRIPT = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from multiseg import processes
processes.ORPHAN_SECONDS = 0.2
if __name__ == "__main__":
    import streams
    from multiseg.store.reader import open_store
    from streams import digests, stream_of
"""


@pytest.fixture(scope="module")
def store(store_url):
    return open_store(store_url)


@pytest.fixture(scope="module")
def hashed(store):
    return digests(stream_of(store).batches(0, NUM))


@pytest.fixture
def copied(store_url, tmp_path):
    return shutil.copytree(store_url, tmp_path / "brain.zarr")


def readers():
    return [one for one in multiprocessing.active_children() if one.name.startswith("multiseg-reader")]


def faulty(monkeypatch, fault):
    """Have a fault happen in a worker when it reads its n-th patch: `fault(n, task)`."""
    fill, read = PatchReader.fill, []

    def fill_or_fail(self, task, images, target):
        read.append(task)
        fault(len(read), task)
        fill(self, task, images, target)

    monkeypatch.setattr(PatchReader, "fill", fill_or_fail)


def end_by(number):
    faulthandler.disable()  # of pytest, which would print all about it
    os.kill(os.getpid(), number)


@pytest.mark.slow
def test_kill_9_at_random_moments_changes_no_batch(store, hashed, caplog):
    moments, killed = sample(range(20), 5), 0
    for moment in moments:
        rng = random.Random(moment)
        seen, at = [], rng.randrange(NUM)
        for number, batch in enumerate(stream_of(store, workers=2).batches(0, NUM)):
            seen += digests([batch])
            if number == at:
                time.sleep(rng.random() * 0.002)
                os.kill(rng.choice(readers()).pid, signal.SIGKILL)
        assert seen == hashed
        killed += len(caplog.records)
        for record in caplog.records:
            assert record.levelno == logging.WARNING
            assert "was ended by SIGKILL (mostly since memory ran out) while it read" in record.getMessage()
        assert len(caplog.records) <= 1
        caplog.clear()
        assert readers() == []
    assert killed > len(moments) // 4, "deaths after the last patch was read are not found, and need not be"


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV", "SIGBUS"])
def test_a_death_is_told_once_and_changes_no_batch(store, hashed, monkeypatch, caplog, tmp_path, name):
    def die_once(n, task):
        if n == 3 and not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            end_by(signal.Signals[name])

    faulty(monkeypatch, die_once)
    assert digests(stream_of(store, workers=1).batches(0, NUM)) == hashed
    (record,) = caplog.records
    cases = {f"{case.database}/{case.name}" for case in store.cases}
    said = record.getMessage()
    assert f"was ended by {name}" in said
    assert "reader process 0 (pid " in said
    assert any(f"while it read {case}. Another one reads its" in said for case in cases)


def test_a_death_ends_the_stream_by_choice(store, monkeypatch, caplog):
    faulty(monkeypatch, lambda n, task: n == 2 and end_by(signal.SIGKILL))
    with pytest.raises(ResourceError, match=r"reader process \d .* was ended by SIGKILL.* while it read \w+/\w+\. "):
        list(stream_of(store, workers=2, on_death="stop").batches(0, NUM))
    assert readers() == []
    assert not caplog.records


def test_a_patch_that_kills_whoever_reads_it_ends_the_stream(store, monkeypatch, caplog):
    hit = stream_of(store).batches(0, 1)
    case = next(hit).case[1]
    number = next(n for n, one in enumerate(stream_of(store)._sources.cases) if one.name.endswith(f"/{case}"))
    faulty(monkeypatch, lambda n, task: task.case == number and end_by(signal.SIGSEGV))
    with pytest.raises(ResourceError, match=rf"SIGSEGV while it read \w+/{case}, as others before it"):
        list(stream_of(store, workers=2).batches(0, NUM))
    assert 2 <= len(caplog.records) <= 4
    assert readers() == []


@pytest.mark.parametrize("fault", ["exit", "kill"])
def test_workers_that_die_as_they_begin_end_the_stream(store, monkeypatch, fault):
    begin = (lambda *given: os._exit(7)) if fault == "exit" else (lambda *given: os.kill(os.getpid(), signal.SIGKILL))
    monkeypatch.setattr(serving, "serve", begin)
    with pytest.raises(ResourceError, match="exit code 7" if fault == "exit" else "SIGKILL"):
        list(stream_of(store, workers=2).batches(0, NUM))
    assert readers() == []


@pytest.mark.parametrize("crew", CREWS[1:])
def test_a_bug_in_a_worker_shows_where_it_is(store, monkeypatch, crew):
    def fail(n, task):
        raise KeyError("ours")

    faulty(monkeypatch, fail)
    with pytest.raises((RuntimeError, KeyError), match="ours") as caught:
        list(stream_of(store, **crew).batches(0, NUM))
    if crew["workers"] == 2:
        assert "Traceback" in str(caught.value)
        assert "raise KeyError" in str(caught.value)
    assert readers() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_workers_leave_signals_to_their_parent(store, hashed, monkeypatch, number):
    faulty(monkeypatch, lambda n, task: end_by(number))
    assert digests(stream_of(store, workers=1).batches(0, NUM)) == hashed


@pytest.mark.parametrize("start", ["fork", "forkserver"])
def test_a_signal_from_outside_ends_no_worker(store, hashed, caplog, start):
    batches = stream_of(store, workers=1, start=start).batches(0, NUM)
    seen = digests([next(batches)])
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(readers()[0].pid, number)
    assert seen + digests(batches) == hashed
    assert not caplog.records


def test_a_stopped_worker_is_not_dead(store, hashed, caplog):
    batches = stream_of(store, workers=1).batches(0, NUM)
    seen = digests([next(batches)])
    (worker,) = readers()
    os.kill(worker.pid, signal.SIGSTOP)
    threading.Timer(0.3, os.kill, (worker.pid, signal.SIGCONT)).start()
    assert seen + digests(batches) == hashed
    assert not caplog.records


@pytest.mark.slow
def test_workers_go_with_whatever_ends_the_loop(store):
    batches = stream_of(store, workers=2).batches(0, NUM)
    next(batches)
    assert sorted(one.name for one in readers()) == ["multiseg-reader-0", "multiseg-reader-1"]
    assert all(one.daemon for one in readers())
    batches.close()
    assert readers() == []
    with pytest.raises(ZeroDivisionError):
        deque(1 / 0 for _ in stream_of(store, workers=2).batches(0, NUM))
    assert readers() == []
    for _ in stream_of(store, workers=2):
        break
    assert readers() == []


def forked(folder, code, *arguments):
    """A program that runs this code, and the file of what it says. A process that it spawns imports the file, too."""
    script, said = folder / "script.py", folder / "said.txt"
    script.write_text(SCRIPT + textwrap.indent(code, "    "))
    said.touch()
    return Command(list(map(str, arguments)), said, script=script), said


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("start", ["fork", "spawn", "forkserver"])
def test_workers_go_when_their_parent_is_killed(store_url, tmp_path, start):
    num = 2 if start == "fork" else 1  # each of the others imports all again
    code = f"""
import os, time
from multiprocessing import active_children
batches = iter(stream_of(open_store(sys.argv[1]), workers={num}, start={start!r}))
next(batches)
bystander = os.fork()  # it has the lines too, and keeps them open
if not bystander:
    time.sleep(600)
print(bystander, *[one.pid for one in active_children()], "running", flush=True)
time.sleep(600)
"""
    process, said = forked(tmp_path, code, store_url)
    while "running" not in said.read_text():
        assert process.poll() is None, said.read_text()
        time.sleep(0.02)
    bystander, *pids = [int(pid) for pid in said.read_text().split()[:-1]]
    assert len(pids) == num
    assert all(map(is_alive, pids))
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 20
    while any(map(is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(bystander, signal.SIGKILL)
    assert not any(map(is_alive, pids))


def test_a_program_ends_although_it_never_closed_its_stream(store_url, hashed, tmp_path):
    code = """
streams.kept = batches = iter(stream_of(open_store(sys.argv[1]), workers=2))  # a module's, until the interpreter ends
print(digests([next(batches)])[0])
"""
    process, said = forked(tmp_path, code, store_url)
    assert process.wait(timeout=60) == 0
    assert said.read_text().split() == hashed[:1]


TINY = """
import ctypes, os, subprocess
from pathlib import Path
libc = ctypes.CDLL(None, use_errno=True)
if libc.unshare(0x00020000) or libc.mount(b"none", b"/", None, 0x44000, None):
    sys.exit(77)
shared = Path("/dev/shm")
# The folder of the tests, where it lies there, is seen as before.
temporary = [folder for folder in Path(sys.argv[1]).parents if folder.parent == shared]
kept = [os.open(folder, os.O_RDONLY) for folder in temporary]
if libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, b"size=4k"):
    sys.exit(77)
for folder, descriptor in zip(temporary, kept):
    folder.mkdir()
    assert libc.mount(b"/proc/self/fd/%d" % descriptor, bytes(folder), None, 4096, None) == 0  # MS_BIND
with suppress(OSError), open("/dev/shm/full", "wb") as file:
    file.write(bytes(2**20))
assert os.statvfs("/dev/shm").f_bavail == 0
for start in ("fork", "spawn", "forkserver"):
    print(*digests(stream_of(open_store(sys.argv[1]), workers=1, start=start).batches(0, 3)))
"""


def test_a_full_dev_shm_does_no_harm(store_url, hashed, tmp_path):
    process, said = forked(tmp_path, "from contextlib import suppress\n" + TINY, store_url)
    if process.wait(timeout=120) == 77:
        pytest.skip("needs root, to mount a small /dev/shm")
    assert [line.split() for line in said.read_text().splitlines()] == [hashed[:3]] * 3, said.read_text()


@pytest.mark.slow
def test_more_memory_than_there_is(store, store_url, tmp_path, capsys):
    with pytest.raises(ResourceError, match=r"need .* GiB, but this machine has .* GiB\. Choose smaller patches"):
        next(stream_of(store, batch_size=2**20, draw={"patch": (256, 256, 256)}).batches(0, 1))
    arguments = ["train", store_url, "--out", str(tmp_path / "run"), "--device", "cpu", "--workers", "0"]
    assert run([*arguments, "--patch", "2048", "--batch-size", "9999"]) == 5
    assert "ResourceError: the patches read ahead and the cache need" in " ".join(capsys.readouterr().err.split())


def files_of(copied, name):
    return [file for file in Path(copied).glob(f"*/{name}/c/*/**/*") if file.is_file()]


def damage(file, how):
    data = file.read_bytes()
    if how == "flip":  # the first byte of a packed chunk, since a shard begins with one
        file.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    elif how == "cut":
        file.write_bytes(data[: len(data) // 2])
    elif how == "empty":
        file.write_bytes(b"")
    else:
        file.unlink()


SAID = {
    "flip": "checksum of chunk",
    "cut": "truncated or damaged",
    "empty": "truncated",
    "gone": "is missing: the store",
}


@pytest.mark.slow
@pytest.mark.parametrize("crew", CREWS)
@pytest.mark.parametrize("how", SAID)
def test_a_damaged_image_is_told_with_its_case_and_file(copied, crew, how):
    for file in files_of(copied, "image"):
        damage(file, how)
    with pytest.raises(StoreError, match=rf"^\w+/\w+: \w+/image/c/\d+/0/0/0/0.*{SAID[how]}.*--redo"):
        list(stream_of(open_store(str(copied)), **crew).batches(0, NUM))
    assert readers() == []


@pytest.mark.parametrize("cache", ["0", "1GB"])
@pytest.mark.parametrize("name", ["image", "label"])
def test_a_file_that_is_gone_is_not_taken_for_zeros(copied, name, cache):
    for file in files_of(copied, name):
        file.unlink()
    with pytest.raises(StoreError, match=rf"^\w+/\w+: \w+/{name}/c/\d+/0/0/0/0 is missing: the store is damaged"):
        list(stream_of(open_store(str(copied)), cache=cache).batches(0, NUM))


@pytest.mark.slow
def test_a_label_of_background_alone_has_no_file_and_needs_none(copied, hashed):
    """As ingest leaves it: no voxel counted, no file written or named."""
    import numpy as np
    import zarr

    names = list(open_store(str(copied)))
    for file in files_of(copied, "label"):
        file.unlink()
    for name in names:
        counts = zarr.open_array(copied / name / "foreground_count", mode="r+")
        counts.with_config({"write_empty_chunks": True})[:] = 0
        shards = zarr.open_array(copied / name / "shards", mode="r+")
        shards[:] = np.array([re.search(r"image:\S+", text)[0] for text in shards[:]], dtype=object)
    stream = stream_of(open_store(str(copied)), draw={"overhang": 0})
    batches = list(stream.batches(0, NUM))
    assert not any(batch.target.any() for batch in batches)
    assert all(batch.images.any() for batch in batches)


def test_train_tells_damage_by_its_exit_code(copied, tmp_path, capsys):
    for file in files_of(copied, "image"):
        damage(file, "flip")
    arguments = ["train", str(copied), "--out", str(tmp_path / "run"), "--device", "cpu", "--patch", "16"]
    assert run([*arguments, "--workers", "1", "--steps", "2", "--batch-size", "1"]) == 3
    said = " ".join(capsys.readouterr().err.split())
    assert "StoreError: " in said
    assert "/image/c/" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_train_is_interrupted_with_its_workers(store_url, tmp_path, number):
    """As by Ctrl-C, which every process of a terminal gets."""
    arguments = [
        "--out",
        str(tmp_path / "run"),
        "--device",
        "cpu",
        "--patch",
        "16",
        "--workers",
        "2",
        "--steps",
        "9999",
    ]
    output = tmp_path / "said.txt"
    process = Command(["train", store_url, *arguments], output)
    deadline = time.monotonic() + 300
    while not (tmp_path / "run/log.jsonl").exists() or not (tmp_path / "run/log.jsonl").stat().st_size:
        assert process.poll() is None, output.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, number)
    code, said = process.wait(timeout=60), output.read_text()
    assert code == 130, said
    assert "Traceback" not in said
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # nobody of the group is left
