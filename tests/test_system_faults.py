"""What an error of the system means, and what to do about it."""

import errno
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from multiseg.cli import app
from multiseg.errors import ResourceError
from multiseg.faults import check_machine, remedy
from multiseg.store.formats.read_volume import read_volume
from multiseg.store.sources import dicom_layout
from multiseg.store.sources.text_tables import read_text


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "Free some disk space."),
        (errno.EDQUOT, "Free some disk space."),
        (errno.EROFS, "It is read-only. Choose another place."),
        (errno.EACCES, "Check its permissions."),
        (errno.ENOLCK, "Its file system does not support this. Choose a place on another one."),
        (errno.EIO, "Look at the disk."),
    ],
)
def test_each_error_has_its_remedy(number: int, said: str):
    assert remedy(OSError(number, "no"), "Look at the disk.") == said


def test_the_limit_of_open_files_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (256, 4096))
    said = remedy(OSError(errno.EMFILE, "no"), "Look at the disk.")
    assert said == "Too many open files (limit 256, at most 4096): raise it with ulimit -n, or use fewer workers."
    assert "fs.file-max" in remedy(OSError(errno.ENFILE, "no"), "")


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_no_file_is_blamed_where_no_file_can_be_opened(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A DICOM file would be taken for something else, a table or a scan for damaged."""
    path = tmp_path / "scan.dcm"
    path.write_bytes(bytes(2000))

    def full(*args: object, **options: object) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr(Path, "open", full)
    monkeypatch.setattr(Path, "read_bytes", full)
    for read in (dicom_layout._class_of, read_text, read_volume):
        with pytest.raises(ResourceError, match="Too many open files"):
            read(path)


def test_other_errors_are_left_to_whoever_knows_the_file():
    check_machine(OSError(errno.EIO, "no"))
    check_machine(ValueError("no"))


def test_the_command_line_says_it_of_any_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def full(*args: object, **options: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files", "/somewhere")

    monkeypatch.setattr(app, "refuse_empty", lambda command: full)
    assert app.run(["info", "x"]) == 5
    said = capsys.readouterr().err
    assert "(limit " in said
    assert "disk" not in said


def test_the_limit_is_raised_as_far_as_it_goes():
    code = """
import resource
from multiseg.faults import raise_descriptor_limit
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 300))
print(raise_descriptor_limit(), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    assert done.stdout.split() == ["300", "300", "300"]
