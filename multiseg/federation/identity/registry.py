"""The registry of sites that may take part, `sites.json`: the gate and the SuperLink follow it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from multiseg.errors import FederationError, UsageError
from multiseg.federation.identity.home import SITES, check_account
from multiseg.files import write_atomically
from multiseg.locks import locked


@dataclass(frozen=True)
class EnrolledSite:
    """An enrolled site.

    Attributes:
        public_key: PEM, as Flower's nodes send it.
        enrolled, revoked: when, in ISO 8601; "" for never.
        former: its earlier public keys, which may not be used again.
    """

    public_key: str
    enrolled: str
    revoked: str = ""
    former: tuple[str, ...] = ()


def read_registry(folder: Path) -> dict[str, EnrolledSite]:
    """All sites by name; empty without a file. FederationError if the file is damaged."""
    path = folder / SITES
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {name: EnrolledSite(**{**entry, "former": tuple(entry["former"])}) for name, entry in content.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise FederationError(f"{path} is damaged: {error!r}. Restore it from a backup.") from error


def allowed(registry: Mapping[str, EnrolledSite]) -> dict[str, str]:
    """Names of the sites that may connect, by public key."""
    return {entry.public_key: name for name, entry in registry.items() if not entry.revoked}


def revoked(registry: Mapping[str, EnrolledSite]) -> tuple[str, ...]:
    """The sites whose keys are revoked."""
    return tuple(name for name, entry in registry.items() if entry.revoked)


def admit(folder: Path, name: str, public_key: str) -> EnrolledSite:
    """Register a site with its key; UsageError if the name is taken, or the key is or was that of another site."""
    with _open(folder) as registry:
        before = registry.get(name)
        if before and not before.revoked:
            raise UsageError(
                f"{name} has been enrolled since {before.enrolled}. For a new key revoke the old one first: "
                f"multiseg fed revoke {folder} {name}"
            )
        for other, entry in registry.items():
            if public_key in (entry.public_key, *entry.former):
                raise UsageError(f"this key is or was that of {other}: make a new one.")
        former = (*before.former, before.public_key) if before else ()
        registry[name] = EnrolledSite(public_key, _now(), "", former)
        return registry[name]


def expel(folder: Path, name: str) -> None:
    """Revoke the key of a site; UsageError if there is no such site, or its key is revoked already."""
    with _open(folder) as registry:
        if name not in registry or registry[name].revoked:
            known = ", ".join(allowed(registry).values()) or "none"
            raise UsageError(f"{name!r} is not an enrolled site; enrolled: {known}.")
        registry[name] = replace(registry[name], revoked=_now())


@contextmanager
def _open(folder: Path) -> Iterator[dict[str, EnrolledSite]]:
    """The registry, locked for a change and written afterwards."""
    check_account(folder)
    with (folder / f".{SITES}.lock").open("w") as lock, locked(lock, folder / f".{SITES}.lock"):
        registry = read_registry(folder)
        yield registry
        content = {name: asdict(entry) for name, entry in sorted(registry.items())}
        write_atomically(folder / SITES, (json.dumps(content, indent=1) + "\n").encode())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
