"""The app that Flower is given: a manifest that names our own installed code, byte for byte the same everywhere.

The manifest holds the version and a SHA-256 over the sources, so the app's own SHA-256 is another one as soon as a line
of multiseg is. All is computed once in a process. The executor of a site does so at its start, when it has imported
nearly all that it runs: files that are replaced under it later do not change its hash, and it goes on refusing other
apps until it is started anew. The centre does so when it submits a run, and the run's own process does so again when it
starts: it ends where the files are others by then.
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
"""The date in the archive: the earliest that a ZIP file can say."""
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
            entry.create_system = 3  # it says the platform otherwise
            archive.writestr(entry, text)
    return data.getvalue()


@cache
def app_hash() -> str:
    """SHA-256 of the app, which sites approve."""
    return hashlib.sha256(app_bytes()).hexdigest()


@cache
def sources_hash(package: Path = PACKAGE) -> str:
    """SHA-256 over the files of a package: the same for a checkout, a wheel and any machine.

    It is taken over "path NUL size NUL content" of each, in the order of their paths from the package on. What Python
    compiles, hidden files and an editor's copies (`name~`) are none of it; any other file is.

    Raises:
        FederationError: there is no source file.
    """
    files = {
        path.relative_to(package).as_posix(): path
        for path in package.rglob("*")
        if path.is_file() and _is_source(path.relative_to(package))
    }
    if not any(name.endswith(".py") for name in files):
        raise FederationError(f"{package} holds no source file, so its hash would say nothing: install it as a folder.")
    found = hashlib.sha256()
    for name in sorted(files):
        data = files[name].read_bytes()
        found.update(f"{name}\0{len(data)}\0".encode())
        found.update(data)
    return found.hexdigest()


def _is_source(path: PurePath) -> bool:
    is_kept = not any(part.startswith(".") or part == "__pycache__" for part in path.parts)
    return is_kept and path.suffix != ".pyc" and not path.name.endswith("~")
