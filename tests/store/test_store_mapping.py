"""Files are mapped without a descriptor each; where there are no maps they are read."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from multiseg.errors import ResourceError
from multiseg.store import mapping
from multiseg.store.byte_ranges import LocalParts
from multiseg.store.mapping import MappedFiles

MANY = """
import os, resource, sys
from pathlib import Path
from multiseg.store.byte_ranges import LocalParts

resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
parts = LocalParts(Path(sys.argv[1]))
for is_first in (True, False, False):
    for n in range(400):
        start, stop = parts.read(f"shard{n}", [(0, 4), (4, 4 + n)], is_first)
        assert bytes(start) == n.to_bytes(4, "little") and bytes(stop) == bytes([n % 251]) * n, n
print(len(parts._maps), len(os.listdir("/proc/self/fd")))
"""


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    for n in range(400):
        (tmp_path / f"shard{n}").write_bytes(n.to_bytes(4, "little") + bytes([n % 251]) * n)
    return tmp_path


def test_more_files_are_read_than_may_be_open(shards: Path):
    done = subprocess.run([sys.executable, "-c", MANY, shards], capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    num_maps, num_open = map(int, done.stdout.split())
    assert num_maps == 400
    assert num_open < 10


def test_a_map_goes_when_nothing_looks_at_it_any_more(shards: Path):
    before = num_maps(shards)
    kept = MappedFiles(2)
    first = kept.add(shards / "shard300", "a")
    assert first is not None
    part = first[4:8]
    for n in range(301, 305):
        kept.add(shards / f"shard{n}", f"{n}")
    assert num_maps(shards) - before == 3, "the two that are kept, and the one that is looked at"
    del first
    assert bytes(part) == bytes([300 % 251]) * 4
    del part
    assert num_maps(shards) - before == 2


def num_maps(folder: Path) -> int:
    return Path("/proc/self/maps").read_text().count(str(folder))


@pytest.mark.parametrize("number", [errno.ENODEV, errno.ENOMEM, errno.EACCES])
def test_what_cannot_be_mapped_is_read(shards: Path, monkeypatch: pytest.MonkeyPatch, number: int):
    def no_map(descriptor: int, size: int) -> memoryview:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(mapping, "_map", no_map)
    parts = LocalParts(shards)
    for _ in range(2):
        (found,) = parts.read("shard7", [(2, 6)], is_first=False)
        assert bytes(found) == bytes([0, 0, 7, 7])


def test_too_many_open_files_are_not_blamed_on_the_disk(shards: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*args: object, **options: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(Path, "open", full)
    for is_first in (True, False):
        with pytest.raises(ResourceError, match=r"Too many open files \(limit \d+.*ulimit -n") as caught:
            LocalParts(shards).read("shard7", [(2, 6)], is_first)
        assert "disk" not in str(caught.value)
