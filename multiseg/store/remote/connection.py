"""Connecting to the objects at a URL, and explaining the errors. It does not import zarr."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import from_url

from multiseg.errors import MultisegError, ResourceError, StoreError, UsageError
from multiseg.store.remote.patience import FIRST_SECONDS, Patience, seconds_from_environment

KEPT_OBJECTS = 8
"""Whole objects kept in memory for a server without range requests: a patch reads many ranges of one or two objects."""
WEB_READS_AT_ONCE = 4
"""Parallel requests to a web server. A small one queues only five, and a client that it rejects waits for a second."""

_PREFIXES = {"s3": "AWS_", "s3a": "AWS_", "gs": "GOOGLE_", "az": "AZURE_", "abfs": "AZURE_", "abfss": "AZURE_"}
_CREDENTIALS = {
    "AWS_": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (profiles in ~/.aws are not read; for a public bucket "
    "set AWS_SKIP_SIGNATURE=true)",
    "GOOGLE_": "GOOGLE_APPLICATION_CREDENTIALS",
    "AZURE_": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
_CLIENT_OPTIONS = (
    "allow_http", "allow_invalid_certificates", "connect_timeout", "timeout", "read_timeout",
    "proxy_url", "proxy_ca_certificate", "proxy_excludes",
)  # fmt: skip
_QUICK = {"connect_timeout": "5s", "timeout": "15s"}
_PATIENT = {"connect_timeout": "10s", "read_timeout": "30s", "timeout": "10m"}
_ONCE: Any = {"max_retries": 0, "retry_timeout": timedelta(0)}
"""obstore must not retry: `Patience` does, by our own rule."""


def is_web(url: str) -> bool:
    """Whether a URL is that of a plain web server, which can be read but not written."""
    return url.startswith(("http://", "https://"))


def connect(url: str, patient: bool = True) -> Any:
    """Open the objects at a URL as an obstore store; nothing is sent yet.

    Options come from the environment (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID ...). Requests are not retried; use
    `patience` for that.

    Args:
        patient: use long timeouts.

    Raises:
        UsageError: the URL, or the endpoint in the environment, is invalid.
    """
    scheme = urlsplit(url).scheme.lower()
    prefix = _PREFIXES.get(scheme, "")
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT") if prefix == "AWS_" else ():
        endpoint = os.environ.get(name)
        if endpoint and not re.match(r"https?://[^/]", endpoint):
            raise UsageError(f"{name} is {endpoint!r}. It must begin with http:// or https://.")
    from_environment = {name: os.environ.get(prefix + name.upper(), "") for name in _CLIENT_OPTIONS} if prefix else {}
    options = (_PATIENT if patient else _QUICK) | {name: value for name, value in from_environment.items() if value}
    if scheme == "http":  # a user who writes http:// wants it
        options["allow_http"] = "true"
    try:
        return from_url(url, client_options=options, retry_config=_ONCE)  # type: ignore[call-overload]
    except (BaseError, ValueError) as error:
        raise UsageError(
            f"{url} is not a valid URL of a store: {_first_line(error)}. Give a folder, s3://BUCKET/NAME or http://HOST/NAME."
        ) from error


def patience(url: str, patient: bool = True) -> Patience:
    """The rule by which failed requests to the objects at a URL are retried.

    Raises:
        UsageError: the time in the environment is invalid.
    """
    seconds = seconds_from_environment()
    return Patience(url, seconds if patient else min(seconds, FIRST_SECONDS))


@contextmanager
def translating_errors(url: str) -> Iterator[None]:
    """Turn exceptions from requests to objects at a URL into our own errors."""
    try:
        yield
    except (BaseError, FileNotFoundError) as error:
        raise _explained(url, error) from error


def read_small(url: str, key: str, patient: bool = False) -> bytes | None:
    """Read a small object; None if it does not exist. By default, a wrong address fails soon.

    Raises:
        StoreError: the bucket does not exist.
        ResourceError: the server cannot be reached, or denies access.
    """
    objects = connect(url, patient)
    with translating_errors(url):
        try:
            return patience(url, patient).run(lambda: bytes(obstore.get(objects, key).bytes()))
        except FileNotFoundError as error:
            if is_no_bucket(error):
                raise
            return None


def is_no_bucket(error: FileNotFoundError) -> bool:
    """Whether the whole bucket is missing, not only the object."""
    return re.search(_NO_BUCKET, str(error)) is not None


_NO_BUCKET = "NoSuchBucket|ContainerNotFound|specified bucket does not exist"
_MEANINGS: tuple[tuple[str, type[MultisegError], str], ...] = (
    (_NO_BUCKET, StoreError, "there is no such bucket at {server}. Make it, or check its name and {where}."),
    (r"latest/api/token|latest/meta-data|169\.254\.|metadata\.google", ResourceError,
     "there are no credentials. Set {credentials}."),
    ("BadScheme", UsageError,
     "{server} is not encrypted. Use https://, or set {prefix}ALLOW_HTTP=true to allow it."),
    ("dns error", ResourceError, "the name of {server} is unknown. Check {where} and the network."),
    ("ConnectionRefused|Connection refused", ResourceError, "nothing answers at {server}. Check {where}."),
    ("InvalidCertificate|UnknownIssuer", ResourceError, "the certificate of {server} is not trusted. Check {where}."),
    ("InvalidMessage|InvalidContentType|CorruptMessage", ResourceError,
     "{server} does not speak https. Check {where}."),
    ("kind: Timeout|TimedOut|kind: Connect", ResourceError,
     "cannot reach {server}. Check {where} and the network."),
    ("InvalidAccessKeyId|SignatureDoesNotMatch|InvalidToken|ExpiredToken", ResourceError,
     "{server} does not accept the credentials ({reason}). Check {credentials}."),
    (r"^PermissionDenied|^Unauthenticated|\b40[13] ", ResourceError,
     "{server} denies access ({reason}). Ask for permission to read and list (and, for ingest, to write and delete) "
     "there, or check {credentials}."),
    ("PermanentRedirect|AuthorizationHeaderMalformed|without LOCATION", ResourceError,
     "the bucket is in another region ({reason}). Check {prefix}REGION."),
)  # fmt: skip


def _explained(url: str, error: Exception) -> MultisegError:
    text = f"{type(error).__name__.removesuffix('Error')}: {error}"
    prefix = _PREFIXES.get(urlsplit(url).scheme.lower(), "")
    request = re.search(r"Error performing \w+ (\w+://[^/\s]+)", text)
    words = {
        "server": request[1] if request else "the server",
        "reason": _first_line(error),
        "prefix": prefix,
        "credentials": _CREDENTIALS.get(prefix, "the credentials"),
        "where": f"{prefix}ENDPOINT_URL" if prefix else "the URL",
    }
    notes = "".join(f" {note}." for note in getattr(error, "__notes__", ()))
    for pattern, kind, meaning in _MEANINGS:
        if re.search(pattern, text):
            return kind(f"{url}: {meaning.format(**words)}{notes}")
    return ResourceError(f"{url}: {words['reason']}. Check the server, and run the same command again.{notes}")


def _first_line(error: Exception) -> str:
    """The first line of an obstore error, without details of its inner errors."""
    text = str(error)
    answer = re.search(r"<Code>(.*?)</Code>\s*<Message>(.*?)</Message>", text, re.DOTALL)
    if answer:
        return f"{answer[1]}: {answer[2]}".rstrip(".")
    return re.sub(r" in [\d.]+\w+s\b.*? - ", ": ", text.split("\n")[0]).strip().rstrip(".:")
