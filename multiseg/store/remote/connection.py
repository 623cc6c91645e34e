"""A connection to objects behind a URL, and what its errors mean; without zarr, for those who only read bytes."""

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
"""Whole objects kept of a server that gives no parts: a patch reads many parts of one or two."""
WEB_READS_AT_ONCE = 4
"""Requests under way. A small web server lets five wait, and whom it turns away comes back a second later."""

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
"""What is tried again, and how long, `Patience` says."""


def is_web(url: str) -> bool:
    """Whether a URL is one of a plain web server, which is read and never written."""
    return url.startswith(("http://", "https://"))


def connect(url: str, patient: bool = True) -> Any:
    """The objects below a URL; nothing is sent yet.

    Options come from the environment (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID ...). A request is made once, and whoever
    is `patient` gives it more time; `patience` tries it again.

    Raises:
        UsageError: the URL or the endpoint in the environment is none.
    """
    scheme = urlsplit(url).scheme.lower()
    prefix = _PREFIXES.get(scheme, "")
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT") if prefix == "AWS_" else ():
        endpoint = os.environ.get(name)
        if endpoint and not re.match(r"https?://[^/]", endpoint):
            raise UsageError(f"{name} is {endpoint!r}. Write it with http:// or https:// before it.")
    given = {name: os.environ.get(prefix + name.upper(), "") for name in _CLIENT_OPTIONS} if prefix else {}
    options = (_PATIENT if patient else _QUICK) | {name: value for name, value in given.items() if value}
    if scheme == "http":  # whoever writes such a URL means it
        options["allow_http"] = "true"
    try:
        return from_url(url, client_options=options, retry_config=_ONCE)  # type: ignore[call-overload]
    except (BaseError, ValueError) as error:
        raise UsageError(
            f"{url} cannot be a store: {_first_line(error)}. Name a folder, s3://BUCKET/NAME or http://HOST/NAME."
        ) from error


def patience(url: str, patient: bool = True) -> Patience:
    """How long requests to the objects below a URL are made again.

    Raises:
        UsageError: the environment names no such time.
    """
    seconds = seconds_from_environment()
    return Patience(url, seconds if patient else min(seconds, FIRST_SECONDS))


@contextmanager
def in_words(url: str) -> Iterator[None]:
    """Turn what goes wrong with objects below a URL into our own errors."""
    try:
        yield
    except (BaseError, FileNotFoundError) as error:
        raise _explained(url, error) from error


def read_small(url: str, key: str, patient: bool = False) -> bytes | None:
    """A small object, or None without one; with little patience, so that a wrong address is told at once.

    Raises:
        StoreError: the bucket is not there.
        ResourceError: the server cannot be reached, or refuses.
    """
    objects = connect(url, patient)
    with in_words(url):
        try:
            return patience(url, patient).run(lambda: bytes(obstore.get(objects, key).bytes()))
        except FileNotFoundError as error:
            if is_no_bucket(error):
                raise
            return None


def is_no_bucket(error: FileNotFoundError) -> bool:
    """Whether not only the object is missing, but all of the place where it was looked for."""
    return re.search(_NO_BUCKET, str(error)) is not None


_NO_BUCKET = "NoSuchBucket|ContainerNotFound|specified bucket does not exist"
_MEANINGS: tuple[tuple[str, type[MultisegError], str], ...] = (
    (_NO_BUCKET, StoreError, "there is no such bucket at {server}. Make it, or check its name and {where}."),
    (r"latest/api/token|latest/meta-data|169\.254\.|metadata\.google", ResourceError,
     "no credentials are given. Set {credentials}."),
    ("BadScheme", UsageError,
     "{server} is not encrypted. Use https://, or set {prefix}ALLOW_HTTP=true if that is meant."),
    ("dns error", ResourceError, "the name of {server} is not known. Check {where} and the network."),
    ("ConnectionRefused|Connection refused", ResourceError, "nothing answers at {server}. Check {where}."),
    ("InvalidCertificate|UnknownIssuer", ResourceError, "the certificate of {server} is not trusted. Check {where}."),
    ("InvalidMessage|InvalidContentType|CorruptMessage", ResourceError,
     "{server} does not speak https. Check {where}."),
    ("kind: Timeout|TimedOut|kind: Connect", ResourceError,
     "{server} cannot be reached. Check {where} and the network."),
    ("InvalidAccessKeyId|SignatureDoesNotMatch|InvalidToken|ExpiredToken", ResourceError,
     "{server} does not accept the credentials ({said}). Check {credentials}."),
    (r"^PermissionDenied|^Unauthenticated|\b40[13] ", ResourceError,
     "{server} denies access ({said}). Ask for the right to read, list and, to ingest, write and delete there, "
     "or check {credentials}."),
    ("PermanentRedirect|AuthorizationHeaderMalformed|without LOCATION", ResourceError,
     "the bucket is in another region ({said}). Check {prefix}REGION."),
)  # fmt: skip


def _explained(url: str, error: Exception) -> MultisegError:
    said = f"{type(error).__name__.removesuffix('Error')}: {error}"
    prefix = _PREFIXES.get(urlsplit(url).scheme.lower(), "")
    asked = re.search(r"Error performing \w+ (\w+://[^/\s]+)", said)
    words = {
        "server": asked[1] if asked else "the server",
        "said": _first_line(error),
        "prefix": prefix,
        "credentials": _CREDENTIALS.get(prefix, "the credentials"),
        "where": f"{prefix}ENDPOINT_URL" if prefix else "the URL",
    }
    tried = "".join(f" {note}." for note in getattr(error, "__notes__", ()))
    for pattern, kind, meaning in _MEANINGS:
        if re.search(pattern, said):
            return kind(f"{url}: {meaning.format(**words)}{tried}")
    return ResourceError(f"{url}: {words['said']}. Check the server, and run the same command again.{tried}")


def _first_line(error: Exception) -> str:
    """What an object store's error says, without the account of its inner parts."""
    text = str(error)
    answer = re.search(r"<Code>(.*?)</Code>\s*<Message>(.*?)</Message>", text, re.DOTALL)
    if answer:
        return f"{answer[1]}: {answer[2]}".rstrip(".")
    return re.sub(r" in [\d.]+\w+s\b.*? - ", ": ", text.split("\n")[0]).strip().rstrip(".:")
