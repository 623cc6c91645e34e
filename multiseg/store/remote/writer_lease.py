"""One writer at a time on a store whose place has no locks: an object beside its groups says who it is."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import obstore
from obstore.exceptions import AlreadyExistsError, NotSupportedError, PreconditionError

from multiseg import lease
from multiseg.errors import ResourceError
from multiseg.lease import ConflictError, Holder, Lease, check_mine, parse
from multiseg.store.remote.connection import connect, in_words, is_no_bucket, is_web, patience, read_small

KEY = ".multiseg-writer"

log = logging.getLogger(__name__)


@contextmanager
def hold(url: str) -> Iterator[None]:
    """Hold a remote store for this process. A hold that its process left behind is taken over.

    Raises:
        ResourceError: another process holds it, or the place cannot be written.
        StoreError: there is no such bucket.
    """
    check_not_web(url)
    with lease.hold(Bucket(url)):
        yield


def check_not_web(url: str) -> None:
    """Whether a remote store can be written, at least by somebody.

    Raises:
        ResourceError: it lies behind a plain web server.
    """
    if is_web(url):
        raise ResourceError(
            f"{url} can be read, not written. Name the folder or the bucket (s3://BUCKET/NAME) that the server shows."
        )


def check_held(url: str) -> None:
    """Whether this process still holds a store.

    Raises:
        ResourceError: it does not, or never did.
    """
    check_mine(url, Bucket(url, patient=True).look())


def holder_of(url: str, patient: bool = False) -> Holder | None:
    """Who holds a store now."""
    data = read_small(url, KEY, patient)
    return None if data is None else parse(data)


class Bucket:
    """The objects of a store on a server, one of which says who holds it."""

    def __init__(self, url: str, patient: bool = False) -> None:
        self.name = url
        self._objects = connect(url, patient)
        self._run = patience(url, patient).run

    def look(self) -> Lease | None:
        with in_words(self.name):
            try:
                found, data = self._run(self._get)
            except FileNotFoundError as error:
                if is_no_bucket(error):
                    raise
                return None
            return Lease(parse(data), _version(found), found["last_modified"])

    def _get(self) -> tuple[Any, bytes]:
        found = obstore.get(self._objects, KEY)
        return found.meta, bytes(found.bytes())

    def put(self, data: bytes, version: Any) -> Any:
        mode: Any = "create" if version is None else version or "overwrite"
        with in_words(self.name):
            try:
                return _version(self._run(lambda: obstore.put(self._objects, KEY, data, mode=mode)))
            except NotSupportedError:
                log.warning("%s cannot keep two writers apart: see that only one ingests into it at a time.", self.name)
                return _version(self._run(lambda: obstore.put(self._objects, KEY, data)))
            except (AlreadyExistsError, PreconditionError) as error:
                raise ConflictError from error

    def remove(self) -> None:
        with in_words(self.name):
            self._run(lambda: obstore.delete(self._objects, KEY))

    def now(self) -> datetime:
        key = f"{KEY}.{uuid.uuid4().hex}"
        with in_words(self.name):
            self._run(lambda: obstore.put(self._objects, key, b""))
            try:
                return self._run(lambda: obstore.head(self._objects, key))["last_modified"]
            finally:
                obstore.delete(self._objects, key)


def _version(put: Any) -> dict[str, str]:
    return {name: put[name] for name in ("e_tag", "version") if put[name]}
