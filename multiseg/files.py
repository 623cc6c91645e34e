"""Check where output may be written, write files atomically, and lock folders.

Output never replaces an input, under any name. It replaces another file only with `overwrite`, and never one that is
read-only. Only ingest writes into a store.
"""

from __future__ import annotations

import os
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from multiseg.errors import ResourceError, UsageError
from multiseg.faults import remedy
from multiseg.flushing import flush, flush_folders, make_folder
from multiseg.locks import locked

STORE_MARK = "zarr.json"
ZARR_SCAN = ".nii.zarr"
"""The ending of a scan that is a folder."""
SCANS = (".nii", ".nii.gz", ".mgh", ".mgz", ".nrrd", ".nhdr", ".mha", ".mhd", ".dcm", ".ima")
LONGEST_NAME = 255
"""The longest name of a file on most disks, in bytes."""
MAX_EXAMINED = 2000
"""The number of files and folders that are examined to find out whether a folder has scans."""


def files_below(folder: Path | str) -> Iterator[os.DirEntry[str]]:
    """All files below a folder, in any order. A store has tens of thousands, for which pathlib is slow.

    Folders that disappear meanwhile are skipped, since a writer removes its temporary ones.
    """
    try:
        with os.scandir(folder) as entries:
            listed = list(entries)
    except FileNotFoundError:
        return
    for entry in listed:
        if entry.is_dir(follow_symlinks=False):
            yield from files_below(entry.path)
        else:
            yield entry


def check_files(
    outs: Iterable[Path], inputs: Iterable[Path] = (), overwrite: bool = False, kinds: tuple[str, ...] = ()
) -> None:
    """Check that these files may be written, without changing anything.

    Args:
        inputs: the files that the output is made from, recognised through links, hard links and other spellings.
        overwrite: whether other existing files may be replaced.
        kinds: the allowed endings of the names, such as (".nii.gz", ".nii").

    Raises:
        UsageError: a file may not be written.
    """
    input_files = tuple(inputs)
    for out in outs:
        _check_file(out, input_files, overwrite, kinds)


def _check_file(out: Path, inputs: Iterable[Path], overwrite: bool, kinds: tuple[str, ...]) -> None:
    status = _status(out)
    for path in inputs:
        if status and (input_status := _status(path)) and os.path.samestat(status, input_status):
            same = "is an input" if path == out else f"is the same file as the input {path}"
            raise UsageError(f"{out} {same}, which is never overwritten. Choose another name.")
    if kinds and not out.name.endswith(kinds):
        raise UsageError(f"{out} is written as {kinds[0][1:]}, so its name must end in {' or '.join(kinds)}.")
    _check_location(out.parent)
    if status and stat.S_ISDIR(status.st_mode):
        raise UsageError(f"{out} is a folder. Give the name of a file.")
    if not (status or _status(out, follow=False)):
        return
    if status and not stat.S_ISREG(status.st_mode):
        raise UsageError(f"{out} is a device or a pipe. Give the name of a file.")
    if not overwrite:
        raise UsageError(f"{out} already exists. Choose another name, or pass --overwrite.")
    if is_read_only(out):
        raise UsageError(f"{out} is read-only and is not replaced, even with --overwrite. Choose another name.")


def check_folder(folder: Path, own: Iterable[str] = ()) -> None:
    """Check that a command may write into this folder: it is not in a store, and is not a folder of scans.

    Args:
        own: name patterns of the command's own output. If the folder has such a file, it may have scans too.

    Raises:
        UsageError: the command may not write there.
    """
    _check_location(folder)
    if not folder.is_dir() or any(True for pattern in own for _ in folder.glob(pattern)):
        return
    scan = _first_scan(folder)
    if scan is not None:
        raise UsageError(f"{folder} is a folder of scans ({scan.relative_to(folder)}). Choose another folder.")


def _check_location(folder: Path) -> None:
    """Check that a folder can be created or written to, and is not in a store.

    Raises:
        UsageError, ResourceError: it cannot, or is.
    """
    try:
        location = folder.resolve()
    except (OSError, RuntimeError):  # a cycle of links
        location = folder.absolute()
    for above in (location, *location.parents):
        status = _status(above)
        if status and not stat.S_ISDIR(status.st_mode):
            raise UsageError(f"{above} is a file, but must be a folder. Choose another place.")
        if _status(above / STORE_MARK):
            where = "is" if above == location else "is in"
            raise UsageError(f"{folder} {where} the store {above}, where only ingest may write. Choose another place.")
    _check_writable(location)


def _check_writable(folder: Path) -> None:
    """Try to write to the nearest existing folder: file modes do not show a full or read-only disk, or /proc.

    Raises:
        UsageError: a name in the path is too long.
        ResourceError: nothing can be written there.
    """
    if long := [part for part in folder.parts if len(os.fsencode(part)) > LONGEST_NAME]:
        raise UsageError(f"the name {long[0][:40]}... is longer than {LONGEST_NAME} bytes. Choose a shorter one.")
    existing = next(above for above in (folder, *folder.parents) if _status(above))
    probe = existing / f".{os.getpid()}.{time.monotonic_ns()}.tmp"
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        message = f"cannot write into {existing} ({error.strerror}). {remedy(error, 'Choose another place.')}"
        raise ResourceError(message) from error


def _first_scan(folder: Path) -> Path | None:
    remaining = MAX_EXAMINED
    for parent, folders, files in os.walk(folder):
        in_zarr = [name for name in folders if name.lower().endswith(ZARR_SCAN)]
        folders[:] = sorted(name for name in folders if _status(Path(parent, name, STORE_MARK)) is None)
        for name in sorted([*files, *in_zarr]):
            if name.lower().endswith((*SCANS, ZARR_SCAN)):
                return Path(parent, name)
        remaining -= len(files) + len(folders)
        if remaining < 0:
            return None
    return None


def is_read_only(path: Path) -> bool:
    """Whether a file may not be written by anybody or by us. (Root always may, so its mode counts too.)"""
    status = _status(path)
    return status is not None and not (status.st_mode & 0o222 and os.access(path, os.W_OK))


def _status(path: Path, follow: bool = True) -> os.stat_result | None:
    try:
        return path.stat(follow_symlinks=follow)
    except (OSError, ValueError):  # it does not exist, or its name is invalid
        return None


def write_atomically(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Write a file so that readers, even after a power loss, find the whole old file or the whole new one.

    The data are written to a temporary file and flushed; then it is renamed, and the folder is flushed.

    Args:
        mode: the permissions, reduced by the user's umask; 0o600 for a secret.

    Raises:
        ResourceError: the disk is full, the folder cannot be written, or the existing file is read-only. An existing
            file is unchanged.
    """
    if is_read_only(path):
        raise ResourceError(f"cannot write {path}: it is read-only. It was not changed.")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        folders = {path.parent, *make_folder(path.parent)}
        with open(temporary, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(data)
            file.flush()
            flush(file.fileno())
        temporary.replace(path)
        flush_folders(folders)
    except OSError as error:
        raise ResourceError(f"cannot write {path}: {error.strerror}. It was not changed.") from error
    finally:
        with suppress(OSError):  # the folder may be missing or not writable
            temporary.unlink()


def replace_file(source: Path, target: Path) -> None:
    """Rename a file that is flushed to the disk, replacing the target.

    The old name is removed only once the new one is on the disk, so after a power loss the file has at least one.

    Raises:
        ResourceError: the disk is full, or a folder cannot be written.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        add_name(source, temporary)
        temporary.replace(target)
        flush_folders({target.parent})
        source.unlink()
        temporary.unlink(missing_ok=True)  # if the target is the same file, the rename did nothing
    except OSError as error:
        raise ResourceError(f"cannot write {target}: {error.strerror}. {source} is kept.") from error


def rename_folder(source: Path, target: Path) -> None:
    """Rename a folder whose files are flushed to the disk, so that the target has all of them or none.

    Raises:
        OSError: the target exists and is not empty, or a folder cannot be written.
    """
    flush_folders({source})
    source.rename(target)
    flush_folders({source.parent, target.parent})


def add_name(file: Path, name: Path) -> None:
    """Give a file another name (a hard link), or copy it if the file system has no hard links.

    Raises:
        OSError: the disk is full, the folder cannot be written, or the name exists.
    """
    try:
        os.link(file, name)
    except FileExistsError:
        raise
    except OSError:
        mode = stat.S_IMODE(file.stat().st_mode)
        with file.open("rb") as read, open(name, "xb", opener=lambda path, flags: os.open(path, flags, mode)) as copy:
            shutil.copyfileobj(read, copy)
            copy.flush()
            flush(copy.fileno())


def wait_until_free(lock: Path, seconds: float) -> None:
    """Wait until no other process has the lock of `lock_folder`, at most for so many seconds."""
    if not lock.exists():
        return
    end = time.monotonic() + seconds
    with suppress(ResourceError), lock_folder(lock, "", wait=lambda: time.monotonic() < end):
        pass


@contextmanager
def lock_folder(lock: Path, remedy_in_use: str, wait: bool | Callable[[], bool] = False) -> Iterator[None]:
    """Lock a folder for this process, by a lock file in it that records the process number.

    The lock ends with the process, however that ends (see `locks.locked` for the exception).

    Args:
        remedy_in_use: what the other process does, and what the user can do about it.
        wait: as in `locks.locked`.

    Raises:
        ResourceError: another process has the lock, or the file cannot be locked.
    """
    with lock.open("a+", encoding="ascii") as file, ExitStack() as stack:
        try:
            stack.enter_context(locked(file, lock, wait=wait))
        except BlockingIOError as error:
            file.seek(0)
            pid = file.read().strip() or "?"
            raise ResourceError(f"{lock.parent} is in use by process {pid}: {remedy_in_use}") from error
        except OSError as error:
            message = f"cannot lock {lock.parent} ({error.strerror}). {remedy(error, 'Check the disk.')}"
            raise ResourceError(message) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
