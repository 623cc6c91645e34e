"""Files that are there whole or not at all, and folders that one process has to itself."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from multiseg.errors import ResourceError


def write_atomically(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Write beside, flush to the disk, rename: readers see the old file or the new one, never half.

    Args:
        mode: who may read and write it, less what the user's umask forbids; 0o600 for a secret.

    Raises:
        ResourceError: the disk is full or the folder cannot be written; an old file stays as it was.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        raise ResourceError(f"{path} could not be written: {error.strerror}. Nothing there has changed.") from error
    finally:
        with suppress(OSError):  # the folder itself may be the trouble
            beside.unlink()


@contextmanager
def held_alone(lock: Path, said: str) -> Iterator[None]:
    """Have a folder to this process while the file in it is locked, which says the process's number.

    The lock goes with the process, however that ends.

    Args:
        said: what is meant, and what to do, where another process has it.

    Raises:
        ResourceError: another process has it, or the file cannot be locked.
    """
    with lock.open("a+", encoding="ascii") as file:
        try:
            # Not flock, which a child that outlives its killed parent for seconds would still hold.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            file.seek(0)
            number = file.read().strip() or "?"
            raise ResourceError(f"{lock.parent} is in use by process {number}: {said}") from error
        except OSError as error:
            raise ResourceError(f"{lock.parent} cannot be locked ({error.strerror}).") from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
