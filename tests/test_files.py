"""Files appear whole or not at all."""

import errno
import os
from pathlib import Path

import pytest

from multiseg.errors import ResourceError
from multiseg.files import write_atomically


def test_a_file_is_written_with_its_folder(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a" / "b.txt", b"new")
    assert (tmp_path / "a" / "b.txt").read_bytes() == b"new"


def test_a_full_disk_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "b.txt").write_bytes(b"old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match=r"b\.txt could not be written: No space left on device"):
        write_atomically(tmp_path / "b.txt", b"new")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]
