"""The app for Flower: a manifest that names our own installed code, byte for byte the same everywhere.

The manifest holds the version and a SHA-256 over the sources, so the app's hash changes with every line of multiseg.
Each process computes the hash once. A site's executor does so at its start, after importing nearly all the code it
runs: files replaced later do not change its hash, and it refuses other apps until it is restarted. The centre computes
the hash when it submits a run, and the run's process again when it starts: it stops if the files have changed.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from functools import cache
from importlib.metadata import version
from pathlib import Path, PurePath

import tomli_w

from multiseg.errors import FederationError

CREATED = (1980, 1, 1, 0, 0, 0)
"""The date in the archive: the earliest that a ZIP file can hold."""
PACKAGE = Path(__file__).parents[1]


@cache
def app_bytes() -> bytes:
    """Flower's app bundle: no code, no dependencies, nothing compressed (compressors differ between machines).

    Raises:
        FederationError: see `sources_hash`.
    """
    manifest = tomli_w.dumps({
        "project": {
            "name": "multiseg",
            "version": version("multiseg"),
            "description": "multiseg's federation",
            "license": "Apache-2.0",
            "dependencies": [],
        },
        "tool": {
            "multiseg": {"sources": sources_hash()},
            "flwr": {"app": {
                "publisher": "multiseg",
                "components": {
                    "serverapp": "multiseg.federation.flower.server_app:app",
                    "clientapp": "multiseg.federation.flower.client_app:app",
                },
                "config": {"settings": "", "app": ""},
            }},
        },
    }).encode()  # fmt: skip
    content = f"pyproject.toml,{hashlib.sha256(manifest).hexdigest()},{len(manifest) * 8}".encode()
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_STORED) as archive:
        for name, text in (("pyproject.toml", manifest), (".info/CONTENT", content)):
            entry = zipfile.ZipInfo(name, CREATED)
            entry.create_system = 3  # by default it depends on the platform
            archive.writestr(entry, text)
    return data.getvalue()


@cache
def app_hash() -> str:
    """SHA-256 of the app. Sites approve an app by it."""
    return hashlib.sha256(app_bytes()).hexdigest()


@cache
def sources_hash(package: Path = PACKAGE) -> str:
    """SHA-256 over the files of a package: the same for a checkout and a wheel on any machine.

    It covers "path NUL size NUL content" of each file, sorted by path relative to the package. Compiled files, hidden
    files and editor backups (`name~`) are left out; every other file counts.

    Raises:
        FederationError: there is no source file.
    """
    files = {
        path.relative_to(package).as_posix(): path
        for path in package.rglob("*")
        if path.is_file() and _is_source(path.relative_to(package))
    }
    if not any(name.endswith(".py") for name in files):
        raise FederationError(f"{package} holds no source file to hash: install multiseg as a folder, not as a ZIP.")
    digest = hashlib.sha256()
    for name in sorted(files):
        data = files[name].read_bytes()
        digest.update(f"{name}\0{len(data)}\0".encode())
        digest.update(data)
    return digest.hexdigest()


def _is_source(path: PurePath) -> bool:
    is_hidden = any(part.startswith(".") or part == "__pycache__" for part in path.parts)
    return not is_hidden and path.suffix != ".pyc" and not path.name.endswith("~")
