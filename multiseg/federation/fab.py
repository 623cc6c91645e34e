"""The app that Flower is given: a manifest that names our own installed code, byte for byte the same everywhere."""

from __future__ import annotations

import hashlib
import io
import zipfile
from importlib.metadata import version

import tomli_w

CREATED = (1980, 1, 1, 0, 0, 0)
"""The date in the archive: the earliest that a ZIP file can say."""


def app_bytes() -> bytes:
    """Flower's app bundle: no code, no dependencies, nothing compressed (compressors differ between machines)."""
    manifest = tomli_w.dumps({
        "project": {
            "name": "multiseg",
            "version": version("multiseg"),
            "description": "multiseg's federation",
            "license": "Apache-2.0",
            "dependencies": [],
        },
        "tool": {"flwr": {"app": {
            "publisher": "multiseg",
            "components": {
                "serverapp": "multiseg.federation.hosting.server:app",
                "clientapp": "multiseg.federation.bystander:app",
            },
            "config": {"settings": ""},
        }}},
    }).encode()  # fmt: skip
    content = f"pyproject.toml,{hashlib.sha256(manifest).hexdigest()},{len(manifest) * 8}".encode()
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_STORED) as archive:
        for name, text in (("pyproject.toml", manifest), (".info/CONTENT", content)):
            entry = zipfile.ZipInfo(name, CREATED)
            entry.create_system = 3  # it says the platform otherwise
            archive.writestr(entry, text)
    return data.getvalue()


def app_hash() -> str:
    """SHA-256 of the app, which sites approve."""
    return hashlib.sha256(app_bytes()).hexdigest()
