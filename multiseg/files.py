"""Where may be written; files that are there whole or not at all; folders that one process has to itself.

An output never takes the place of an input, under whatever name. It takes the place of another file only where that was
asked for (`overwrite`), and never of one that is read-only. Only ingest writes into a store.
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
SCANS = (".nii", ".nii.gz", ".mgh", ".mgz", ".nrrd", ".nhdr", ".mha", ".mhd", ".dcm", ".ima")
LONGEST_NAME = 255
"""Bytes of one name, on most disks."""
LOOKED_AT = 2000
"""So many files and folders are looked at to tell whether a folder holds scans."""


def files_below(folder: Path | str) -> Iterator[os.DirEntry[str]]:
    """All files below a folder, in no order: of a store there are ten thousands, where pathlib takes long.

    What goes while it is looked for is left out, as a writer takes away its own.
    """
    try:
        with os.scandir(folder) as entries:
            held = list(entries)
    except FileNotFoundError:
        return
    for entry in held:
        if entry.is_dir(follow_symlinks=False):
            yield from files_below(entry.path)
        else:
            yield entry


def check_files(
    outs: Iterable[Path], inputs: Iterable[Path] = (), overwrite: bool = False, kinds: tuple[str, ...] = ()
) -> None:
    """Whether these files may be written; nothing is changed.

    Args:
        inputs: what the outputs are made from. Links, hard links and other spellings of a name are the same file.
        overwrite: whether other files that are there may be replaced.
        kinds: how the names have to end, such as (".nii.gz", ".nii").

    Raises:
        UsageError: one may not be written; the message says why.
    """
    known = tuple(inputs)
    for out in outs:
        _check_file(out, known, overwrite, kinds)


def _check_file(out: Path, inputs: Iterable[Path], overwrite: bool, kinds: tuple[str, ...]) -> None:
    now = _status(out)
    used = next((path for path in inputs if now and (own := _status(path)) and os.path.samestat(now, own)), None)
    if used is not None:
        same = "is an input" if used == out else f"is the same file as the input {used}"
        raise UsageError(f"{out} {same}, which is never written over. Choose another name.")
    if kinds and not out.name.endswith(kinds):
        raise UsageError(f"this file is written as {kinds[0][1:]}: end its name {str(out)!r} in {' or '.join(kinds)}.")
    _check_place(out.parent)
    if now and stat.S_ISDIR(now.st_mode):
        raise UsageError(f"{out} is a folder. Name a file.")
    if not (now or _status(out, follow=False)):
        return
    if now and not stat.S_ISREG(now.st_mode):
        raise UsageError(f"{out} is a device or a pipe. Name a file.")
    if not overwrite:
        raise UsageError(f"{out} is there already. Choose another name, or pass --overwrite.")
    if is_read_only(out):
        raise UsageError(f"{out} is read-only and stays as it is, also with --overwrite. Choose another name.")


def check_folder(folder: Path, own: Iterable[str] = ()) -> None:
    """Whether a verb may fill this folder with files of its own: not a store, a place in one, or a folder of scans.

    Args:
        own: patterns of names that the verb itself leaves in its folder: where one is there, scans may be, too.

    Raises:
        UsageError: it may not; the message says why.
    """
    _check_place(folder)
    if not folder.is_dir() or any(True for pattern in own for _ in folder.glob(pattern)):
        return
    scan = _first_scan(folder)
    if scan is not None:
        raise UsageError(f"{folder} is a folder of scans ({scan.relative_to(folder)}). Name another folder.")


def _check_place(folder: Path) -> None:
    """Raises UsageError where a folder cannot be or lies in a store."""
    try:
        place = folder.resolve()
    except (OSError, RuntimeError):  # links that lead in a circle
        place = folder.absolute()
    for above in (place, *place.parents):
        there = _status(above)
        if there and not stat.S_ISDIR(there.st_mode):
            raise UsageError(f"{above} is a file, where a folder is needed. Choose another place.")
        if _status(above / STORE_MARK):
            where = "is" if above == place else "lies in"
            raise UsageError(f"{folder} {where} the store {above}, which only ingest writes to. Choose another place.")
    _check_can_be_written(place)


def _check_can_be_written(place: Path) -> None:
    """Try it, in the folder above that is there: no file mode tells of a read-only disk, /proc, or a full one.

    Raises:
        UsageError: a name in it is too long.
        ResourceError: nothing can be made there.
    """
    if long := [part for part in place.parts if len(os.fsencode(part)) > LONGEST_NAME]:
        raise UsageError(f"the name {long[0][:40]}... has more than {LONGEST_NAME} letters. Choose another.")
    there = next(above for above in (place, *place.parents) if _status(above))
    probe = there / f".{os.getpid()}.{time.monotonic_ns()}.tmp"
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise ResourceError(
            f"nothing can be written below {there} ({error.strerror}). {remedy(error, 'Name another place.')}"
        ) from error


def _first_scan(folder: Path) -> Path | None:
    left = LOOKED_AT
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if _status(Path(place, name, STORE_MARK)) is None)
        for name in sorted(files):
            if name.lower().endswith(SCANS):
                return Path(place, name)
        left -= len(files) + len(folders)
        if left < 0:
            return None
    return None


def is_read_only(path: Path) -> bool:
    """Whether nobody may write to a file, or we may not. (For root, who may always, the file's mode decides.)"""
    there = _status(path)
    return there is not None and not (there.st_mode & 0o222 and os.access(path, os.W_OK))


def _status(path: Path, follow: bool = True) -> os.stat_result | None:
    try:
        return path.stat(follow_symlinks=follow)
    except (OSError, ValueError):  # nothing is there, or nothing of that name can be
        return None


def write_atomically(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Write beside, flush to the disk, rename, flush the folder: readers see the old file or the new one, never half,
    and after a loss of power the file is there as it was written.

    Args:
        mode: who may read and write it, less what the user's umask forbids; 0o600 for a secret.

    Raises:
        ResourceError: the disk is full, the folder cannot be written, or the file that is there is read-only; an old
            file stays as it was.
    """
    if is_read_only(path):
        raise ResourceError(f"{path} could not be written: it is read-only. Nothing there has changed.")
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        folders = {path.parent, *make_folder(path.parent)}
        with open(beside, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(data)
            file.flush()
            flush(file.fileno())
        beside.replace(path)
        flush_folders(folders)
    except OSError as error:
        raise ResourceError(f"{path} could not be written: {error.strerror}. Nothing there has changed.") from error
    finally:
        with suppress(OSError):  # the folder itself may be the trouble
            beside.unlink()


def take_place(source: Path, target: Path) -> None:
    """Give a file that is whole on the disk another name, in place of what has that name now.

    Its former name goes only once the new one is on the disk: after a loss of power it has one of the two at least.

    Raises:
        ResourceError: the disk is full, or a folder cannot be written.
    """
    beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        beside.unlink(missing_ok=True)
        add_name(source, beside)
        beside.replace(target)
        flush_folders({target.parent})
        source.unlink()
        beside.unlink(missing_ok=True)  # where the target was the same file already, a rename does nothing
    except OSError as error:
        raise ResourceError(f"{target} could not be written: {error.strerror}. {source} is kept.") from error


def take_place_of_folder(source: Path, target: Path) -> None:
    """Give a folder of files that are whole on the disk another name: with it all of them are there, or none.

    Raises:
        OSError: the target is there and has files, or a folder cannot be written.
    """
    flush_folders({source})
    source.rename(target)
    flush_folders({source.parent, target.parent})


def add_name(file: Path, name: Path) -> None:
    """Give a file one name more (a hard link); where the file system has none of these, a copy.

    Raises:
        OSError: the disk is full, the folder cannot be written, or the name is taken.
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
    """Wait until no other process holds a lock of `held_alone`, or for so long."""
    end = time.monotonic() + seconds
    with suppress(ResourceError), held_alone(lock, "", wait=lambda: time.monotonic() < end):
        pass


@contextmanager
def held_alone(lock: Path, remedy_in_use: str, wait: bool | Callable[[], bool] = False) -> Iterator[None]:
    """Hold a folder exclusively: a file in it is locked, and records the number of the process.

    The lock ends with the process, however that ends (`locks.locked` says where not).

    Args:
        remedy_in_use: what the other process does, and what to do about it.
        wait: as in `locks.locked`.

    Raises:
        ResourceError: another process has it, or the file cannot be locked.
    """
    with lock.open("a+", encoding="ascii") as file, ExitStack() as held:
        try:
            held.enter_context(locked(file, lock, wait=wait))
        except BlockingIOError as error:
            file.seek(0)
            number = file.read().strip() or "?"
            raise ResourceError(f"{lock.parent} is in use by process {number}: {remedy_in_use}") from error
        except OSError as error:
            raise ResourceError(
                f"{lock.parent} cannot be locked ({error.strerror}). {remedy(error, 'Check the disk.')}"
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
