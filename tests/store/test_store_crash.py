"""A writer is killed at random moments: no case is ever half visible, and the next run ends as an undisturbed one."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import zarr
from commands import Command
from sweeps import sample

from multiseg.errors import StoreError
from multiseg.store import schema
from multiseg.store.reader import Database, open_store

KILLS = sample(range(20), 5, always=[0])
"""Those with the processes' scheduler are 0, 5, 10 and 15."""


def start(hospitals: Path, url: Path, scheduler: str = "threads") -> Command:
    arguments = ["ingest", str(hospitals / "manifest.toml"), "--store", str(url), "--spacing", "10", "--workers", "4"]
    return Command([*arguments, "--scheduler", scheduler])


def whole_cases(url: str) -> dict[tuple[str, str], dict[str, np.ndarray]]:
    """Every array of every committed row, by database and case."""
    held = {}
    for name, database in open_store(url).databases.items():
        for case in database.cases:
            held[name, case.name] = arrays_of(database, case.row)
    return held


def arrays_of(database: Database, row: int) -> dict[str, np.ndarray]:
    arrays = {}
    for name, array in database.group.arrays():
        # Revisions tell in which order the cases came.
        if array.metadata.dimension_names[0] == "case" and name not in ("revision", "record"):
            arrays[name] = np.asarray(array[row])
        if name in ("modality", "annotation"):
            arrays[name] = np.asarray(array[:])
    return arrays


def assert_same(a: dict[str, np.ndarray], b: dict[str, np.ndarray], what: object) -> None:
    assert a.keys() == b.keys(), what
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=f"{what}: {name}")


def visible(url: str) -> set[tuple[str, str]]:
    """What open_store shows; each of them must be committed, of its right size and with contents."""
    try:
        store = open_store(url)
    except StoreError as error:
        if error.code != "NO_STORE":
            raise
        return set()
    for case in store.cases:
        database = store[case.database]
        assert zarr.open_group(url, mode="r")[f"{case.database}/status"][case.row] == schema.COMMITTED
        image, codes = database.whole(case)
        assert case.name
        assert image.shape[1:] == codes.shape[1:] == case.extent
        assert all(image[database.modalities.index(name)].any() for name in case.modalities)
    return {(case.database, case.name) for case in store.cases}


@pytest.mark.slow
def test_kill_9_at_random_moments(few_hospitals: Path, few_url: str, tmp_path: Path) -> None:
    url = tmp_path / "brain.zarr"
    seen: set[tuple[str, str]] = set()
    undisturbed = whole_cases(few_url)
    for kill in KILLS:
        process = start(few_hospitals, url, "processes" if kill % 5 == 0 else "threads")
        deadline = time.monotonic() + 30
        # Preparing takes longest; the interesting moments begin when something new is written.
        before = modified(url)
        while modified(url) == before and process.poll() is None and time.monotonic() < deadline:
            visible(str(url))
            time.sleep(0.05)  # looking all the time would take the processor from the writer
        time.sleep(random.Random(kill).uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.wait()
        now = visible(str(url))
        assert seen <= now <= undisturbed.keys()
        seen = now
        for name, arrays in whole_cases(str(url)).items():
            for array in ("image", "label", "extent", "affine", "source_sha256", "split", "foreground_count"):
                np.testing.assert_array_equal(cut(arrays[array], undisturbed[name][array]), cut(
                    undisturbed[name][array], arrays[array]), err_msg=f"{name} {array}")  # fmt: skip
    assert start(few_hospitals, url).wait() == 0
    ended = whole_cases(str(url))
    assert ended.keys() == undisturbed.keys()
    for name, arrays in ended.items():
        assert_same(arrays, undisturbed[name], name)
    assert not list(url.rglob("*.partial"))


def modified(url: Path) -> float:
    """When the newest file of a store was written."""
    return max((path.stat().st_mtime for path in list(url.rglob("status/c/0"))), default=0.0)


def cut(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The part of `a` that `b` has room for: axes grow while cases come in."""
    return a[tuple(slice(0, min(n, m)) for n, m in zip(a.shape, b.shape, strict=True))]


FULL_DISK = """
import subprocess, sys
from contextlib import redirect_stderr, redirect_stdout
from multiseg.cli.app import run

def said(name, *arguments):
    with open("{out}/" + name, "w") as out, redirect_stdout(out), redirect_stderr(out):
        print("\\nexit code", run(list(arguments)))

mount = lambda *arguments: subprocess.run(["mount", *arguments, "{disk}"], check=True)
taking = ["ingest", "{manifest}", "--store", "{disk}/brain.zarr", "--spacing", "10"]
mount("-t", "tmpfs", "-o", "size={size}", "tmpfs")
said("first", *taking, "--workers", "4", "--scheduler", "threads")
said("verified", "verify", "{disk}/brain.zarr")
mount("-o", "remount,size=100m")
said("second", *taking)
subprocess.run(["cp", "-r", "{disk}/brain.zarr", "{out}"], check=True)
"""


@pytest.mark.slow
def test_a_full_disk(few_hospitals: Path, few_url: str, tmp_path: Path) -> None:
    """A real one, small, in a mount of this test's own; then it is made larger, and the same command goes on."""
    disk, out = tmp_path / "disk", tmp_path / "out"
    disk.mkdir()
    out.mkdir()
    # A file takes whole pages.
    size = sum(-(-path.stat().st_size // 4096) * 4096 for path in Path(few_url).rglob("*") if path.is_file()) * 3 // 4
    script = FULL_DISK.format(size=size, disk=disk, out=out, manifest=few_hospitals / "manifest.toml")
    alone = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*alone, "mount", "-t", "tmpfs", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("needs the right to mount a small disk (unshare --user --mount)")
    done = subprocess.run([*alone, sys.executable, "-c", script], capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    said = (out / "first").read_text()
    assert said.endswith("exit code 5\n"), said
    assert "No space left on device" in said
    assert "Free some disk space. Then run the same command again." in said
    assert "Traceback" not in said
    assert 0 < said.count("written ") < 6
    for name in ("verified", "second"):
        assert (out / name).read_text().endswith("exit code 0\n")
    ended, undisturbed = whole_cases(str(out / "brain.zarr")), whole_cases(few_url)
    assert ended.keys() == undisturbed.keys()
    for name, arrays in ended.items():
        assert_same(arrays, undisturbed[name], name)
