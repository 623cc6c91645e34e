"""Enrols a server and its sites: authority, certificates, keys and start-up kits."""

from __future__ import annotations

import io
import re
import secrets
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from multiseg.errors import UsageError
from multiseg.federation.fab import app_hash
from multiseg.federation.identity import authority, certificates, home
from multiseg.federation.identity.home import Home, checked, read_home, write_home
from multiseg.federation.identity.registry import admit, allowed, expel, read_registry
from multiseg.files import check_folder, rename_folder, replace_file


def enrol_server(
    folder: Path, hosts: Sequence[str], ports: Mapping[str, Any], new_authority: bool = False, now: bool = False
) -> Home:
    """Make a server's folder: authority, certificates, secret and settings. In an existing one the authority, sites
    and keys stay, and the server's certificate is renewed; hosts and ports that are not given stay, too.

    Args:
        ports: by name as in `Home`: "port", "superlink_port", "metrics_port".
        new_authority: also make a new authority; sites that trust only the former one can connect until that ends.
        now: sites that trust only a former authority can no longer connect.

    Raises:
        UsageError: a host or port is invalid, or the folder is something else, such as a store or scans.
        FederationError: the authority's key is missing, or belongs to another authority.
    """
    exists = (folder / home.SETTINGS).exists()
    before = read_home(folder) if exists else Home(folder.absolute(), tuple(hosts))
    made = checked(replace(before, hosts=tuple(hosts) or before.hosts, **ports))
    check_folder(folder, own=(home.SETTINGS, home.SECRET))
    if folder.exists():
        home.check_account(folder)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    if not (folder / home.SECRET).exists():
        certificates.write_secret(folder / home.SECRET, secrets.token_hex(48).encode())
    if new_authority:
        authority.change(made, now)
    elif now and exists:
        authority.end_overlap(made)
    else:
        authority.renew(made)
    if not made.at(home.LINK_CERTIFICATE).exists():
        authority.renew_link(made)
    write_home(made)
    return made


def enrol_site(folder: Path, name: str, kit: Path, public_key: Path | None = None) -> tuple[Path, Path]:
    """Register a site and make its start-up kit, as a folder and as .tar.gz.

    Args:
        public_key: the site's own, if it keeps its private key to itself; otherwise the kit holds a new key.

    Raises:
        UsageError: the name or key is taken or invalid, or the kit exists already. Nothing has changed.
    """
    server = read_home(folder)
    authority.settle(folder)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise UsageError(f"{name!r} is not a valid name: use letters, digits, '.', '_' and '-', at most 64.")
    if kit.name in ("", ".."):
        raise UsageError(f"{str(kit)!r} is not a new folder for the kit: give one (-o), such as {name}-kit.")
    check_folder(kit)
    archive = kit.with_name(f"{kit.name}.tar.gz")
    for path in (kit, archive):
        if path.exists():
            raise UsageError(f"{path} exists already: give another path (-o), or delete it yourself.")
    files = _kit(server, name, "own_key.txt" if public_key else "new_key.txt")
    if public_key:
        public = certificates.read_public_key(public_key)
    else:
        files["site.key"], public = certificates.make_site_key()
    kit.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kit.parent, prefix=".kit") as beside:
        made = Path(beside) / kit.name
        for file, data in files.items():
            certificates.write_secret(made / file, data)
        made.chmod(0o700)
        certificates.write_secret(Path(beside) / archive.name, _packed(files, kit.name))
        admit(folder, name, public)
        rename_folder(made, kit)
        replace_file(Path(beside) / archive.name, archive)
    return kit, archive


def revoke_site(folder: Path, name: str) -> None:
    """Revoke a site: the gate refuses its key from now on. UsageError if there is no such site."""
    read_home(folder)
    expel(folder, name)


def sites(folder: Path) -> list[str]:
    """Names of the sites that may connect."""
    return sorted(allowed(read_registry(folder)).values())


def _kit(server: Home, name: str, key: str) -> dict[str, bytes]:
    """The files of a kit; `key` is the text about the site's key."""
    values = {"name": name, "server": server.public, "version": version("multiseg"), "app": app_hash()}
    values["torch"] = version("torch").partition("+")[0]  # without the build
    values["key"] = _filled_in(key, {}).rstrip("\n")
    files = {file: _filled_in(file, values).encode() for file in ("site.toml", "README.txt")}
    return {**files, "ca.crt": server.at(home.CA).read_bytes()}


def _filled_in(name: str, values: Mapping[str, str]) -> str:
    return Path(__file__).with_name(f"{name}.template").read_text(encoding="utf-8").format(**values)


def _packed(files: Mapping[str, bytes], folder: str) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"{folder}/{name}")
            entry.size, entry.mode = len(content), 0o600 if name.endswith(".key") else 0o644
            archive.addfile(entry, io.BytesIO(content))
    return data.getvalue()
