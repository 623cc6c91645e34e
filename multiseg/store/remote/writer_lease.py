"""A lease for one writer at a time on a remote store, which has no file locks: an object that names the writer."""

from __future__ import annotations

import logging
import uuid
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any

import obstore
from obstore.exceptions import AlreadyExistsError, NotSupportedError, PreconditionError

from multiseg import lease
from multiseg.errors import ResourceError
from multiseg.lease import ConflictError, Holder, Lease, check_mine, parse
from multiseg.store.remote.connection import connect, is_no_bucket, is_web, patience, read_small, translating_errors

KEY = ".multiseg-writer"

log = logging.getLogger(__name__)


def hold(url: str) -> AbstractContextManager[None]:
    """Hold the lease of a remote store. The lease of a dead process is taken over.

    Raises:
        ResourceError: another process holds it, or the store cannot be written.
        StoreError: the bucket does not exist.
    """
    check_not_web(url)
    return lease.hold(Bucket(url))


def check_not_web(url: str) -> None:
    """Check that a remote store can be written by anybody.

    Raises:
        ResourceError: it is behind a plain web server.
    """
    if is_web(url):
        message = f"{url} is read-only: it is on a web server. Name the folder or bucket (s3://BUCKET/NAME) behind it."
        raise ResourceError(message)


def check_held(url: str) -> None:
    """Check that this process still holds the lease of a store.

    Raises:
        ResourceError: it lost the lease, or never had it.
    """
    check_mine(url, Bucket(url, patient=True).look())


def holder_of(url: str, patient: bool = False) -> Holder | None:
    """The current holder of a store's lease; None if nobody holds it."""
    data = read_small(url, KEY, patient)
    return None if data is None else parse(data)


class Bucket:
    """The lease of a store on a server: the object that names the holder."""

    def __init__(self, url: str, patient: bool = False) -> None:
        self.name = url
        self._objects = connect(url, patient)
        self._run = patience(url, patient).run

    def look(self) -> Lease | None:
        with translating_errors(self.name):
            try:
                metadata, data = self._run(self._get)
            except FileNotFoundError as error:
                if is_no_bucket(error):
                    raise
                return None
            return Lease(parse(data), _version(metadata), metadata["last_modified"])

    def _get(self) -> tuple[Any, bytes]:
        answer = obstore.get(self._objects, KEY)
        return answer.meta, bytes(answer.bytes())

    def put(self, data: bytes, version: Any) -> Any:
        mode: Any = "create" if version is None else version or "overwrite"
        with translating_errors(self.name):
            try:
                return _version(self._run(lambda: obstore.put(self._objects, KEY, data, mode=mode)))
            except NotSupportedError:
                log.warning(
                    "%s cannot lock out a second writer: make sure that only one process ingests into it at a time.",
                    self.name,
                )
                return _version(self._run(lambda: obstore.put(self._objects, KEY, data)))
            except (AlreadyExistsError, PreconditionError) as error:
                raise ConflictError from error

    def remove(self) -> None:
        with translating_errors(self.name):
            self._run(lambda: obstore.delete(self._objects, KEY))

    def now(self) -> datetime:
        key = f"{KEY}.{uuid.uuid4().hex}"
        with translating_errors(self.name):
            self._run(lambda: obstore.put(self._objects, key, b""))
            try:
                return self._run(lambda: obstore.head(self._objects, key))["last_modified"]
            finally:
                obstore.delete(self._objects, key)


def _version(metadata: Any) -> dict[str, str]:
    return {name: metadata[name] for name in ("e_tag", "version") if metadata[name]}
