"""Retrying requests that a server did not answer: one rule for every request to every store."""

from __future__ import annotations

import asyncio
import http.client
import logging
import os
import random
import re
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import urlsplit

from obstore import exceptions
from obstore.exceptions import BaseError

from multiseg.errors import UsageError

Answer = TypeVar("Answer")

SECONDS = 180.0
VARIABLE = "MULTISEG_RETRY_SECONDS"
FIRST_SECONDS = 5.0
"""The retry time at the first contact, so that a wrong address fails soon."""
WARN_SECONDS = 10.0
"""A warning is logged after waiting this long, and then every minute."""
WARN_AGAIN_SECONDS = 60.0
FIRST_DELAY_S, MOST_DELAY_S = 0.25, 15.0

_FINAL = (
    exceptions.AlreadyExistsError, exceptions.InvalidPathError, exceptions.NotFoundError, exceptions.NotModifiedError,
    exceptions.NotSupportedError, exceptions.PermissionDeniedError, exceptions.PreconditionError,
    exceptions.UnauthenticatedError, FileNotFoundError,
)  # fmt: skip
_PERMANENT = (
    r"BadScheme|InvalidCertificate|UnknownIssuer|InvalidMessage|InvalidContentType|CorruptMessage|NoSuchBucket|"
    r"ContainerNotFound|latest/api/token|latest/meta-data|169\.254\.|metadata\.google|PermanentRedirect|"
    r"AuthorizationHeaderMalformed|without LOCATION|InvalidAccessKeyId|SignatureDoesNotMatch|InvalidToken|ExpiredToken"
)
"""Errors that a retry would not change."""
_TEMPORARY = (
    r"non-2xx status code: (?:5\d\d|429|408)|\b(?:5\d\d|429|408) [A-Z]|SlowDown|InternalError|RequestTimeout|"
    r"kind: (?:Timeout|Connect|Request|Body|Decode|Interrupted)|TimedOut|dns error|"
    r"[Cc]onnection ?(?:closed|reset|refused|aborted)|IncompleteMessage|[Bb]roken ?pipe|UnexpectedEof|end of file|"
    r"error (?:reading|decoding) (?:a|response) body"
)

_REASONS = {
    "dns error": "its name is unknown",
    "[Rr]efused": "it refuses connections",
    "[Rr]eset|IncompleteMessage|UnexpectedEof|end of file|[Cc]onnection ?closed|body": "it breaks off connections",
    "[Tt]imed ?[Oo]ut|Timeout": "it does not answer in time",
}

log = logging.getLogger(__name__)


def is_temporary(error: BaseException) -> bool:
    """Whether a retry may succeed: the server was unreachable or busy, or the connection broke."""
    if isinstance(error, _FINAL) or not isinstance(error, BaseError):
        return False
    text = f"{type(error).__name__}: {error}"
    return not re.search(_PERMANENT, text) and re.search(_TEMPORARY, text) is not None


def seconds_from_environment() -> float:
    """How long to retry a request in all, in s.

    Raises:
        UsageError: $MULTISEG_RETRY_SECONDS is not a valid number of seconds.
    """
    given = os.environ.get(VARIABLE, "")
    try:
        seconds = float(given or SECONDS)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise UsageError(f"{VARIABLE} is {given!r}. Give a number of seconds, such as {SECONDS:g}.")
    return seconds


@dataclass
class Patience:
    """Retries requests that get no answer, part of an answer, or "try later". Threads and tasks may share one.

    The delays double from a quarter of a second to fifteen seconds. Each is shortened at random, so that many clients
    do not return together. If the server names a delay (Retry-After), at least that is waited.

    Attributes:
        where: the server, as the user knows it.
        seconds: how long to retry a request in all. The last try may end later, by its own timeout.
    """

    where: str
    seconds: float = SECONDS
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    sleep_async: Callable[[float], Awaitable[None]] = asyncio.sleep
    _warned_at: float = field(default=-WARN_AGAIN_SECONDS, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        self._warned_at = self.clock() - WARN_AGAIN_SECONDS

    def run(self, request: Callable[[], Answer]) -> Answer:
        """The answer to a request.

        Raises:
            BaseError: from obstore. After retries, it has a note that says for how long.
        """
        start, num_retries = self.clock(), 0
        while True:
            try:
                return request()
            except BaseError as error:
                self.sleep(self._delay(error, start, num_retries))
            num_retries += 1

    async def run_async(self, request: Callable[[], Awaitable[Answer]]) -> Answer:
        """As `run`, without blocking the event loop."""
        start, num_retries = self.clock(), 0
        while True:
            try:
                return await request()
            except BaseError as error:
                delay = await asyncio.to_thread(self._delay, error, start, num_retries)
            await self.sleep_async(delay)
            num_retries += 1

    def _delay(self, error: BaseError, start: float, num_retries: int) -> float:
        """The delay before the next try, in s; raises the error if there will be none."""
        if not is_temporary(error):
            raise error
        elapsed = self.clock() - start
        delay = min(MOST_DELAY_S, FIRST_DELAY_S * 2**num_retries) * random.uniform(0.5, 1)  # noqa: S311 (no secret)
        requested_delay = _retry_after(str(error))
        delay = max(delay, requested_delay) if requested_delay <= self.seconds - elapsed else self.seconds
        if elapsed + delay > self.seconds:
            error.add_note(f"It was tried for {elapsed:.0f} s")
            raise error
        self._warn(error, elapsed + delay)
        return delay

    def _warn(self, error: BaseError, waited: float) -> None:
        if waited < WARN_SECONDS:
            return
        with self._lock:
            now = self.clock()
            if now - self._warned_at < WARN_AGAIN_SECONDS:
                return
            self._warned_at = now
        log.warning(
            "waiting for %s for %.0f s already: %s. Giving up after %.0f s in all.",
            self.where, waited, reason(error), self.seconds,
        )  # fmt: skip


def reason(error: Exception) -> str:
    """Why a request failed, in a few words."""
    text = str(error)
    status = re.search(r"status code: (\d{3}[^:]{0,40})", text)
    if status:
        return f"it answers {status[1].strip()}"
    return next((words for pattern, words in _REASONS.items() if re.search(pattern, text)), text.split("\n")[0][:120])


def _retry_after(text: str) -> float:
    """Seconds that a busy server asks to wait (Retry-After). obstore's error lacks the header, so ask for it again."""
    busy = re.search(r"Error performing \w+ (https?://\S+) in .*status code: (?:429|503)", text)
    if not busy:
        return 0.0
    place = urlsplit(busy[1])
    kind = http.client.HTTPSConnection if place.scheme == "https" else http.client.HTTPConnection
    with suppress(OSError, http.client.HTTPException, ValueError), closing(kind(place.netloc, timeout=5)) as connection:
        connection.request("HEAD", place.path)
        answer = connection.getresponse()
        if answer.status in (429, 503):
            return max(0.0, float(answer.headers.get("Retry-After", "0")))
    return 0.0
