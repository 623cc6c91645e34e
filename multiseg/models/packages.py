"""Read a model package: one zip file with the model file, its description and the SHA-256 of each.

`multiseg.export.model_package` writes it. All members are stored uncompressed, and `manifest.json` lists them.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from pathlib import Path

from multiseg.errors import CheckpointError

PACKAGE = ".multiseg"
MANIFEST = "manifest.json"
FORMAT = 1


def is_package(path: Path) -> bool:
    """Whether a path is a model package, by its name."""
    return path.name.endswith(PACKAGE) and not path.is_dir()


def read_package(path: Path) -> dict[str, bytes]:
    """The members of a package by name, without the manifest.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is not a package, or a member is missing, damaged or not listed.
    """
    again = "Copy or pack the model again."
    try:
        with zipfile.ZipFile(path) as archive:
            listed = _listed(path, archive)
            names = archive.namelist()
            if sorted(names) != sorted([*listed, MANIFEST]):
                raise CheckpointError(
                    f"{path} holds {', '.join(sorted(names))}, but its {MANIFEST} lists {', '.join(sorted(listed))}. "
                    f"{again}"
                )
            return {name: _member(path, archive, name, listed[name]) for name in listed}
    except CheckpointError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path} is not a complete model package: {error}. {again}") from error


def _listed(path: Path, archive: zipfile.ZipFile) -> dict[str, str]:
    """The SHA-256 of each member by name."""
    try:
        manifest = json.loads(archive.read(MANIFEST))
        members = {str(name): str(member["sha256"]) for name, member in manifest["members"].items()}
        number = manifest["format"]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f"{path} is no model package: its {MANIFEST} is missing or invalid ({error}).") from error
    if number != FORMAT:
        raise CheckpointError(f"{path} has package format {number!r}; this multiseg reads {FORMAT}.")
    return members


def _member(path: Path, archive: zipfile.ZipFile, name: str, sha256: str) -> bytes:
    try:
        data = archive.read(name)
    except (zipfile.BadZipFile, zlib.error, EOFError):  # its checksum, or its place in the file, is damaged
        data = b""
    if hashlib.sha256(data).hexdigest() != sha256:
        raise CheckpointError(
            f"{name} in {path} is damaged: its SHA-256 is not the one in {MANIFEST}. Copy or pack the model again."
        )
    return data
