"""A store behind a URL: how to reach it, what its errors mean, and its keys as Zarr reads and writes them."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError, NotSupportedError
from obstore.store import from_url
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.abc.store import Store as ZarrStore
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import ObjectStore

from multiseg.errors import MultisegError, ResourceError, StoreError, UsageError

KEPT_OBJECTS = 8
"""Whole objects kept of a server that gives no parts: a patch reads many parts of one or two."""
READS_AT_ONCE, WEB_READS_AT_ONCE = 64, 4
"""Requests under way. A small web server lets five wait, and whom it turns away comes back a second later."""
PARTS_AT_ONCE = 4
"""Of an upload. More would run into the time limit of each on a slow line."""
FENCE_SECONDS = 30
"""How often a writer looks whether the store is still its own."""

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
_PATIENT = {"connect_timeout": "10s", "read_timeout": "2m", "timeout": "10m"}


def is_web(url: str) -> bool:
    """Whether a URL is one of a plain web server, which is read and never written."""
    return url.startswith(("http://", "https://"))


def connect(url: str, patient: bool = True) -> Any:
    """The objects below a URL; nothing is sent yet.

    Options come from the environment (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID ...). Whoever is `patient` tries
    for three minutes before a lost connection is an error, whoever is not for some seconds.

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
    seconds, retries = (180, 10) if patient else (15, 2)
    retry: Any = {"max_retries": retries, "retry_timeout": timedelta(seconds=seconds)}
    try:
        return from_url(url, client_options=options, retry_config=retry)  # type: ignore[call-overload]
    except (BaseError, ValueError) as error:
        raise UsageError(
            f"{url} cannot be a store: {_first_line(error)}. Name a folder, s3://BUCKET/NAME or http://HOST/NAME."
        ) from error


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
            return bytes(obstore.get(objects, key).bytes())
        except FileNotFoundError as error:
            if re.search(_NO_BUCKET, str(error)):
                raise
            return None


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
    for pattern, kind, meaning in _MEANINGS:
        if re.search(pattern, said):
            return kind(f"{url}: {meaning.format(**words)}")
    return ResourceError(f"{url}: {words['said']}. Check the server, and run the same command again.")


def _first_line(error: Exception) -> str:
    """What an object store's error says, without the account of its inner parts."""
    text = str(error)
    answer = re.search(r"<Code>(.*?)</Code>\s*<Message>(.*?)</Message>", text, re.DOTALL)
    if answer:
        return f"{answer[1]}: {answer[2]}".rstrip(".")
    return re.sub(r" in [\d.]+\w+s\b.*? - ", ": ", text.split("\n")[0]).strip().rstrip(".:")


class RemoteStore(ZarrStore):  # type: ignore[misc]
    """The keys and values of a store behind a URL.

    A server that answers no range requests is read a whole object at a time. Whoever writes has to hold the
    store (`multiseg.store.hold`); a writer that has lost it, since its computer slept, is stopped.
    """

    def __init__(self, url: str, read_only: bool, fence: Callable[[], None]) -> None:
        super().__init__(read_only=read_only)
        self.url = url
        self._fence = fence
        self._fenced_at = time.time()
        self._objects = connect(url)
        self._keys: ObjectStore[Any] = ObjectStore(self._objects, read_only=read_only)
        self._turns = asyncio.Semaphore(WEB_READS_AT_ONCE if is_web(url) else READS_AT_ONCE)
        self._gives_parts = True
        self._whole: OrderedDict[str, Buffer] = OrderedDict()

    def __reduce__(self) -> tuple[Any, ...]:
        # By URL, so that no credentials travel and every process has connections of its own.
        return RemoteStore, (self.url, self.read_only, self._fence)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemoteStore) and (self.url, self.read_only) == (other.url, other.read_only)

    def __str__(self) -> str:
        return self.url

    def with_read_only(self, read_only: bool = False) -> RemoteStore:
        return RemoteStore(self.url, read_only, self._fence)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        with in_words(self.url):
            async with self._turns:
                return await self._get(key, prototype, byte_range)

    async def _get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None) -> Buffer | None:
        if byte_range is None:
            return await self._keys.get(key, prototype)
        if self._gives_parts:
            try:
                return await self._keys.get(key, prototype, byte_range)
            except NotSupportedError:
                self._gives_parts = False
        whole = self._whole.get(key) or await self._keys.get(key, prototype)
        if whole is None:
            return None
        self._whole[key] = whole
        self._whole.move_to_end(key)
        while len(self._whole) > KEPT_OBJECTS:
            self._whole.popitem(last=False)
        return whole[_part(byte_range, len(whole))]

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def exists(self, key: str) -> bool:
        with in_words(self.url):
            found: bool = await self._keys.exists(key)
            return found

    async def set(self, key: str, value: Buffer) -> None:
        self._check_may_write()
        with in_words(self.url):
            await obstore.put_async(self._objects, key, value.as_buffer_like(), max_concurrency=PARTS_AT_ONCE)

    async def delete(self, key: str) -> None:
        self._check_may_write()
        with in_words(self.url):
            await self._keys.delete(key)

    def _check_may_write(self) -> None:
        self._check_writable()
        # By the clock on the wall, which goes on while a computer sleeps.
        if time.time() - self._fenced_at >= FENCE_SECONDS:
            self._fence()
            self._fenced_at = time.time()

    async def list(self) -> AsyncIterator[str]:
        async for key in self.list_prefix(""):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        with in_words(self.url):
            async for key in self._keys.list_prefix(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        with in_words(self.url):
            async for key in self._keys.list_dir(prefix):
                yield key

    @property
    def supports_writes(self) -> bool:
        return True

    @property
    def supports_deletes(self) -> bool:
        return True

    @property
    def supports_listing(self) -> bool:
        return not is_web(self.url)


def _part(request: ByteRequest, size: int) -> slice:
    if isinstance(request, RangeByteRequest):
        return slice(request.start, request.end)
    if isinstance(request, OffsetByteRequest):
        return slice(request.offset, size)
    assert isinstance(request, SuffixByteRequest)
    return slice(max(0, size - request.suffix), size)
