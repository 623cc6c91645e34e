"""Files appear whole or not at all."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from multiseg.errors import ResourceError
from multiseg.files import held_alone, write_atomically


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


OTHER = """
import sys
from pathlib import Path
from multiseg.files import held_alone
with held_alone(Path(sys.argv[1]), "it works here."):
    print("held", flush=True)
    input()
"""


def test_a_folder_is_one_process_alone(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    command = [sys.executable, "-c", OTHER, str(lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        told = re.escape(f"{tmp_path} is in use by process {process.pid}: it works here.")
        with pytest.raises(ResourceError, match=told), held_alone(lock, "it works here."):
            pass
        process.kill()
    with held_alone(lock, "it works here."):
        assert lock.read_text() == str(os.getpid())
