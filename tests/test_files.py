"""Files appear whole or not at all, and never in the place of an input."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from multiseg.errors import ResourceError, UsageError
from multiseg.files import check_files, check_folder, lock_folder, write_atomically


def test_a_file_is_written_with_its_folder(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a" / "b.txt", b"new")
    assert (tmp_path / "a" / "b.txt").read_bytes() == b"new"


def test_a_full_disk_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "b.txt").write_bytes(b"old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match=r"cannot write .*b\.txt: No space left on device"):
        write_atomically(tmp_path / "b.txt", b"new")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


OTHER = """
import sys
from pathlib import Path
from multiseg.files import lock_folder
with lock_folder(Path(sys.argv[1]), "it works here."):
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
        with pytest.raises(ResourceError, match=told), lock_folder(lock, "it works here."):
            pass
        process.kill()
    with lock_folder(lock, "it works here."):
        assert lock.read_text() == str(os.getpid())


def placed(path: Path, data: bytes = b"old") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_an_input_is_never_written_over_under_whatever_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = placed(tmp_path / "in" / "flair.nii.gz")
    (tmp_path / "link.nii.gz").symlink_to(scan)
    (tmp_path / "hard.nii.gz").hardlink_to(scan)
    (tmp_path / "folder").symlink_to(tmp_path / "in")
    monkeypatch.chdir(tmp_path)
    names = ("in/flair.nii.gz", "link.nii.gz", "hard.nii.gz", "folder/flair.nii.gz", "in/../in/flair.nii.gz", str(scan))
    for name in names:
        for overwrite in (False, True):
            with pytest.raises(UsageError, match=f"{re.escape(name)} is .*input.* never overwritten"):
                check_files([Path(name)], [scan], overwrite)
    # Also where the input's own name is the link.
    with pytest.raises(UsageError, match=r"flair\.nii\.gz is the same file as the input .*link\.nii\.gz"):
        check_files([scan], [tmp_path / "link.nii.gz"], overwrite=True)
    check_files([tmp_path / "in" / "lesions.nii.gz"], [scan])  # beside an input is fine
    assert scan.read_bytes() == b"old"


def test_another_file_only_when_asked_and_never_one_that_is_read_only(tmp_path: Path) -> None:
    old = placed(tmp_path / "a.png")
    with pytest.raises(UsageError, match=r"a\.png already exists\. Choose another name, or pass --overwrite"):
        check_files([tmp_path / "new.png", old])
    check_files([tmp_path / "new.png", old], overwrite=True)
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="already exists"):
        check_files([tmp_path / "dangling.png"])
    old.chmod(0o444)
    with pytest.raises(UsageError, match=r"a\.png is read-only and is not replaced"):
        check_files([old], overwrite=True)
    with pytest.raises(ResourceError, match=r"cannot write .*a\.png: it is read-only"):
        write_atomically(old, b"new")
    assert old.read_bytes() == b"old"


def test_a_file_is_named_for_its_kind_and_lies_where_a_file_can(tmp_path: Path) -> None:
    placed(tmp_path / "scan.nii.gz")
    placed(tmp_path / "brain.zarr" / "zarr.json")
    placed(tmp_path / "brain.zarr" / "ms" / "image" / "c" / "0")
    (tmp_path / "link").symlink_to(tmp_path / "brain.zarr" / "ms" / "image")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    for name, why in (
        ("scan.nii.gz", r"scan\.nii\.gz is written as png, so its name must end in \.png"),
        ("folder.png", "is a folder. Give the name of a file"),
        ("pipe.png", "is a device or a pipe"),
        ("scan.nii.gz/a.png", r"scan\.nii\.gz is a file, but must be a folder"),
        ("brain.zarr/a.png", r"is the store .*brain\.zarr, where only ingest may write"),
        ("brain.zarr/ms/new/a.png", r"is in the store .*brain\.zarr,"),
        ("link/a.png", r"is in the store .*brain\.zarr,"),
    ):
        with pytest.raises(UsageError, match=why):
            check_files([tmp_path / name], overwrite=True, kinds=(".png",))
    check_files([tmp_path / "new" / "folder" / "a.png", tmp_path / ("x" * 400 + ".png")], kinds=(".png",))


def test_a_folder_that_is_something_else_is_refused(tmp_path: Path) -> None:
    placed(tmp_path / "scans" / "patient07" / "FLAIR.nii.gz")
    placed(tmp_path / "dicom" / "1.DCM")
    placed(tmp_path / "brain.zarr" / "zarr.json")
    placed(tmp_path / "project" / "brain.zarr" / "zarr.json")
    placed(tmp_path / "project" / "brain.zarr" / "odd.nii.gz")
    for name, why in (
        ("scans", r"scans is a folder of scans \(patient07/FLAIR\.nii\.gz\)\. Choose another folder"),
        ("dicom", r"dicom is a folder of scans \(1\.DCM\)"),
        ("brain.zarr", r"is the store"),
        ("brain.zarr/run", r"is in the store"),
        ("dicom/1.DCM", r"is a file, but must be a folder"),
    ):
        with pytest.raises(UsageError, match=why):
            check_folder(tmp_path / name)
    check_folder(tmp_path / "project")  # a store in it, and scans in that, are no reason
    check_folder(tmp_path / "new" / "run")
    placed(tmp_path / "scans" / "run.toml")
    check_folder(tmp_path / "scans", own=("run.toml",))
