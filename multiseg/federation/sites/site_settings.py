"""A site's own settings, `site.toml`: only the site writes and reads them."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from multiseg.config import checked, read_settings
from multiseg.errors import UsageError
from multiseg.federation import addresses
from multiseg.federation.sites.limits import Limits
from multiseg.federation.sites.policy import Leaves
from multiseg.federation.sites.site import Site
from multiseg.sizes import num_bytes

HINT = "The coordinating centre makes one with: multiseg fed enrol site NAME"


@dataclass(frozen=True)
class SiteSettings:
    """The settings of a site.

    Attributes:
        site: its name, as in the run's roster.
        server: "host:port" of the coordinating centre's gate.
        store: the store of the site's cases, a path or a URL.
        ca: certificate of the authority that signed the server's certificate.
        key: private key of the site.
        databases: those of the store that take part; empty for all.
        hide: annotations and sequences that do not take part, as "DATABASE/NAME".
        state: folder of what the site keeps: audit log, personal layers, answers, models.
        device: auto, cpu, cuda or cuda:N.
        workers: processes that read patches.
        cache: memory for decoded cases, such as "4GiB".
        trains: whether others may train on its data; if not, the site only evaluates.
        approved: SHA-256 of the apps that may run here.
        min_free_gib: with less free disk under `state` the site does not join.
        max_damaged: the largest share of the cases of a task that may be damaged, and are then left out.
        approve_runs: whether a person has to approve every run, by its settings, before the site answers.
        leaves: what may leave the site.
        limits: on the cost of a run.
    """

    site: str
    server: str
    store: str
    ca: Path = Path("ca.crt")
    key: Path = Path("site.key")
    databases: tuple[str, ...] = ()
    hide: tuple[str, ...] = ()
    state: Path = Path("state")
    device: str = "auto"
    workers: int = 1
    cache: str = "0"
    trains: bool = True
    approved: tuple[str, ...] = ()
    min_free_gib: float = 5.0
    max_damaged: float = 0.05
    approve_runs: bool = False
    leaves: Leaves = Leaves()
    limits: Limits = Limits()

    def address(self) -> tuple[str, int]:
        """Host and port of the server."""
        return addresses.server(self.server)


def read_site(path: Path) -> SiteSettings:
    """The settings of a site; relative paths start at the file's folder.

    Raises:
        UsageError: the file is missing, not valid TOML, or has an unknown key or an invalid value.
    """
    settings = checked(read_settings(path, SiteSettings, HINT), SiteSettings)
    check(settings)
    folder = path.resolve().parent
    store = settings.store if "://" in settings.store else str(folder / Path(settings.store).expanduser())
    paths = {name: folder / getattr(settings, name).expanduser() for name in ("ca", "key", "state")}
    return replace(settings, store=store, **paths)


def to_site(settings: SiteSettings) -> Site:
    """The site as it answers tasks."""
    same = Site.__dataclass_fields__.keys() - {"name"}
    return Site(settings.site, **{name: getattr(settings, name) for name in same})


def check(settings: SiteSettings) -> None:
    """Raises UsageError for invalid settings."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", settings.site):
        raise UsageError(f"site is {settings.site!r}: give letters, digits, '.', '_' and '-', at most 64.")
    addresses.server(settings.server)
    if not settings.store:
        raise UsageError('store is empty: give the store that `multiseg ingest` wrote, as "/data/site.zarr".')
    if settings.state == Path():
        raise UsageError('state is empty or ".": give it a folder of its own, as "state".')
    for digest in settings.approved:
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise UsageError(f"approved holds {digest!r}: give SHA-256 digests, 64 hexadecimal digits in lower case.")
    if settings.workers < 0 or settings.min_free_gib < 0:
        raise UsageError(f"workers is {settings.workers}, min_free_gib {settings.min_free_gib}: give 0 or more.")
    if not 0 <= settings.max_damaged <= 1:
        raise UsageError(f"max_damaged is {settings.max_damaged}: give a share from 0 to 1.")
    leaves = settings.leaves
    if leaves.least < 1 or min(leaves.noise, leaves.clip, leaves.cases) < 0:
        raise UsageError(
            f"[leaves] has least {leaves.least}, noise {leaves.noise}, clip {leaves.clip} and cases {leaves.cases}: "
            "give 1 or more for least, 0 or more for the others."
        )
    for name, value in vars(settings.limits).items():
        if not value >= 0:
            raise UsageError(f"[limits] has {name} = {value}: give 0 for none, or more.")
    num_bytes(settings.cache, "cache")
