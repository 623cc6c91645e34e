"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from multiseg.errors import ResourceError


def write_atomically(path: Path, data: bytes) -> None:
    """Write beside, flush to the disk, rename: readers see the old file or the new one, never half.

    Raises:
        ResourceError: the disk is full or the folder cannot be written; an old file stays as it was.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        raise ResourceError(f"{path} could not be written: {error.strerror}. Nothing there has changed.") from error
    finally:
        with suppress(OSError):  # the folder itself may be the trouble
            beside.unlink()
