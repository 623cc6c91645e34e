"""A site's checks before it joins: key, certificates, server, clock, data, disk, device; each says what to do."""

from __future__ import annotations

import json
import os
import shutil
import ssl
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import version

import httpx
from cryptography import x509

from multiseg.errors import FederationError, MultisegError
from multiseg.federation.fab import app_hash
from multiseg.federation.flower.flower_words import VERSION
from multiseg.federation.flower.forked import Forked
from multiseg.federation.flower.reaching import BROKEN, CENTRE, SHOWN, explained, is_on_the_way
from multiseg.federation.identity.signing import PROBE, UNKNOWN_KEY, connection, private_key, signed
from multiseg.federation.sites import audit_log
from multiseg.federation.sites.site_settings import SiteSettings

OK, WARNING, ERROR = "ok", "warning", "error"
CLOCK_WARNS_S, CLOCK_FAILS_S = 4.0, 300.0
"""The server refuses signatures that are 5 s ahead of its clock or 305 s behind."""
AHEAD_S = 5.0
DAYS_WARN = 30.0
LINE = "line"
"""The check of the connection to the server. If it fails the site can join anyway, and waits for the connection."""


@dataclass(frozen=True)
class Check:
    """The result of a check, with what to do if it is not ok."""

    what: str
    level: str
    said: str


def preflight_apart(settings: SiteSettings) -> tuple[Check, ...]:
    """`preflight` in a process of its own, whose memory and threads end with it; FederationError if it died."""
    child = Forked(lambda is_asked: json.dumps([asdict(check) for check in preflight(settings)]).encode())
    while not child.wait(1.0):
        pass
    data = child.result()
    if data is None:
        raise FederationError("the checks before joining died; see their output above.")
    return tuple(Check(**check) for check in json.loads(data))


def preflight(settings: SiteSettings) -> tuple[Check, ...]:
    """All checks before joining, in the order in which to fix problems."""
    looks = (_versions, _app, _account, _key, _authority, _state, _audit, _disk, _store, _device)
    checks = [_checked(look, settings) for look in looks]
    unusable = [check.what for check in checks if check.what in ("key", "authority") and check.level == ERROR]
    if unusable:
        return (*checks, Check("server", WARNING, f"not checked, since the {unusable[0]} cannot be used."))
    return (*checks, *_server(settings))


def hinders(check: Check) -> bool:
    """Whether a site cannot join before this is fixed."""
    return check.level == ERROR and check.what != LINE


def _checked(look: Callable[[SiteSettings], tuple[str, str]], settings: SiteSettings) -> Check:
    """The result of one of the functions below; the check has the function's name, without its underscore."""
    what = look.__name__.removeprefix("_")
    try:
        return Check(what, *look(settings))
    except (MultisegError, OSError) as error:
        return Check(what, ERROR, str(error))


def _versions(settings: SiteSettings) -> tuple[str, str]:
    flower = version("flwr")
    if flower != VERSION:
        return ERROR, f"flwr is {flower}, but server and sites need {VERSION}: pip install flwr=={VERSION}."
    return OK, f"multiseg {version('multiseg')}, flwr {flower}, torch {version('torch')}"


def _app(settings: SiteSettings) -> tuple[str, str]:
    own = app_hash()
    if own not in settings.approved:
        return ERROR, (
            f"`approved` does not hold the app of this multiseg, {own}. Compare it with the coordinating centre's, and "
            "write it there."
        )
    return OK, f"{own[:12]}... is approved, and nothing else runs"


def _account(settings: SiteSettings) -> tuple[str, str]:
    if os.geteuid() == 0:
        return WARNING, "this runs as root: give it an account of its own that can only read the store."
    return OK, f"user {os.geteuid()}"


def _key(settings: SiteSettings) -> tuple[str, str]:
    mode = settings.key.stat().st_mode & 0o777
    if mode & 0o077:
        return ERROR, f"{settings.key} can be read by others (mode {mode:03o}): chmod 600 {settings.key}"
    private_key(settings.key)
    return OK, f"mode {mode:03o}, elliptic curve"


def _authority(settings: SiteSettings) -> tuple[str, str]:
    try:
        certificates = x509.load_pem_x509_certificates(settings.ca.read_bytes())
    except ValueError as error:
        raise FederationError(f"{settings.ca} is not a PEM certificate: use that of the start-up kit.") from error
    # The file may hold an old authority and its successor.
    certificate = max(certificates, key=lambda certificate: certificate.not_valid_after_utc)
    return _validity(certificate.not_valid_before_utc, certificate.not_valid_after_utc, str(settings.ca))


def _validity(begins: datetime, ends: datetime, what: str) -> tuple[str, str]:
    now = datetime.now(UTC)
    if now < begins:
        return ERROR, f"{what} is only valid from {begins:%Y-%m-%d %H:%M} UTC: is this machine's clock behind?"
    days = (ends - now).total_seconds() / 86400
    if days <= 0:
        return ERROR, f"{what} expired on {ends:%Y-%m-%d}: {CENTRE} for a new one."
    if days < DAYS_WARN:
        return WARNING, f"{what} expires in {days:.0f} days, on {ends:%Y-%m-%d}: {CENTRE} for a new one."
    return OK, f"valid until {ends:%Y-%m-%d}"


def _state(settings: SiteSettings) -> tuple[str, str]:
    if not settings.state.exists() and os.geteuid() == 0:  # root's folder would shut out the site's account
        return OK, f"{settings.state} does not exist yet: joining creates it"
    settings.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=settings.state) as file:
        file.write(b"multiseg")
    mode = settings.state.stat().st_mode & 0o777
    if mode & 0o077:
        return WARNING, (
            f"{settings.state} can be read by others (mode {mode:03o}), and its logs may name cases: chmod -R go= "
            f"{settings.state}"
        )
    return OK, f"{settings.state} can be written, mode {mode:03o}"


def _audit(settings: SiteSettings) -> tuple[str, str]:
    log = settings.state / audit_log.LOG
    faults = audit_log.verify(log)
    if faults:
        return WARNING, f"{log}: {faults[0]} See multiseg fed audit {settings.state} --verify."
    return OK, "no line of the log was changed or removed" if log.is_file() else "no message came or left yet"


def _disk(settings: SiteSettings) -> tuple[str, str]:
    existing = next(folder for folder in (settings.state, *settings.state.parents) if folder.exists())
    free = shutil.disk_usage(existing).free / 2**30
    if free < settings.min_free_gib:
        return ERROR, (
            f"{free:.1f} GiB are free at {settings.state}, less than min_free_gib = {settings.min_free_gib:g}: free "
            "some space, or set state to another disk."
        )
    return OK, f"{free:.0f} GiB free"


def _store(settings: SiteSettings) -> tuple[str, str]:
    from multiseg.store.catalogue import SPLITS, select
    from multiseg.store.reader import open_store
    from multiseg.store.structures import hide

    store = open_store(settings.store)
    hide(store, settings.hide)
    names = settings.databases or tuple(store)
    counts = {split: len(select(store, names, split=split)) for split in SPLITS}
    listed = ", ".join(f"{number} {split}" for split, number in counts.items())
    spacing = " x ".join(f"{edge:g}" for edge in store.spacing_mm)
    if not sum(counts.values()):
        return ERROR, f"{settings.store} holds no case of {', '.join(names) or 'any database'}: multiseg ingest."
    if not counts["train"] or not counts["val"]:
        return WARNING, f"{', '.join(names)}: cases {listed}. A site that trains needs training and validation cases."
    return OK, f"{', '.join(names)}: cases {listed}; voxels {spacing} mm (the run's have to be the same)"


def _device(settings: SiteSettings) -> tuple[str, str]:
    import torch

    from multiseg.models.devices import resolve_device

    device = resolve_device(settings.device)
    if device.type == "cpu" and settings.device == "auto":
        return WARNING, "torch finds no GPU: rounds take long on a CPU."
    if device.type == "cuda":
        free, total = (size / 2**30 for size in torch.cuda.mem_get_info(device))
        return OK, f"{torch.cuda.get_device_name(device)}, {free:.0f} of {total:.0f} GiB free"
    return OK, str(device)


def _server(settings: SiteSettings) -> Iterator[Check]:
    """Call the gate as Flower's node does (including the environment's proxy), signed with the site's key."""
    try:
        with connection(settings) as client:
            before = datetime.now(UTC)
            with client.stream("POST", PROBE, headers=signed(settings.key)) as response:
                certificate = response.extensions["network_stream"].get_extra_info("ssl_object").getpeercert()
                response.read()
            between = before + (datetime.now(UTC) - before) / 2
    except BROKEN as error:
        what = LINE if is_on_the_way(error) else "server"
        yield Check(what, ERROR, explained(settings.server, settings.ca, error))
        return
    yield Check("server", *_reached(settings, response))
    times = (ssl.cert_time_to_seconds(certificate[name]) for name in ("notBefore", "notAfter"))
    begins, ends = (datetime.fromtimestamp(time, UTC) for time in times)
    yield Check("certificate", *_validity(begins, ends, "the server's certificate"))
    for date in response.headers.get_list("date")[:1]:
        yield Check("clock", *_clock((between - parsedate_to_datetime(date)).total_seconds()))


def _reached(settings: SiteSettings, response: httpx.Response) -> tuple[str, str]:
    text = response.text[:SHOWN]
    if f'"code": {UNKNOWN_KEY}' in text:  # another 401 is the SuperLink's, which knows only nodes that have joined
        return ERROR, f"{settings.server} does not know this site's key, or it was revoked: {CENTRE}."
    if response.status_code == 429:
        return WARNING, f"{settings.server} got too many calls from this address: wait a minute."
    if response.status_code in (502, 503, 504):
        return WARNING, f"{settings.server} answers, but not for Flower: {text}. Joining waits until it does."
    return OK, f"{settings.server} answers and knows the key"


def _clock(off_s: float) -> tuple[str, str]:
    """Check how far this machine's clock is ahead of the server's, whose header has whole seconds."""
    text = f"this clock is {abs(off_s):.0f} s {'ahead of' if off_s > 0 else 'behind'} the server's"
    if off_s > AHEAD_S or off_s < -CLOCK_FAILS_S:
        return ERROR, f"{text}, so the server refuses signatures: set it by NTP (timedatectl set-ntp true)."
    if abs(off_s) > CLOCK_WARNS_S:
        return WARNING, f"{text}: set it by NTP (timedatectl set-ntp true)."
    return OK, "within seconds of the server's"
