"""How long a request is made again that a server did not answer: one rule for every request of every store."""

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
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import urlsplit

from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    InvalidPathError,
    NotFoundError,
    NotModifiedError,
    NotSupportedError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)

from multiseg.errors import UsageError

Answer = TypeVar("Answer")

SECONDS = 180.0
VARIABLE = "MULTISEG_RETRY_SECONDS"
FIRST_SECONDS = 5.0
"""At the first contact, so that a wrong address is told soon."""
TELL_SECONDS = 10.0
"""Whoever waits says so after this long, and again each minute."""
TELL_AGAIN_SECONDS = 60.0
FIRST_DELAY_S, MOST_DELAY_S = 0.25, 15.0

_FINAL = (
    AlreadyExistsError, InvalidPathError, NotFoundError, NotModifiedError, NotSupportedError, PermissionDeniedError,
    PreconditionError, UnauthenticatedError, FileNotFoundError,
)  # fmt: skip
_MEANT = (
    r"BadScheme|InvalidCertificate|UnknownIssuer|InvalidMessage|InvalidContentType|CorruptMessage|NoSuchBucket|"
    r"ContainerNotFound|latest/api/token|latest/meta-data|169\.254\.|metadata\.google|PermanentRedirect|"
    r"AuthorizationHeaderMalformed|without LOCATION|InvalidAccessKeyId|SignatureDoesNotMatch|InvalidToken|ExpiredToken"
)
"""Answers that will be the same next time."""
_PASSING = (
    r"non-2xx status code: (?:5\d\d|429|408)|\b(?:5\d\d|429|408) [A-Z]|SlowDown|InternalError|RequestTimeout|"
    r"kind: (?:Timeout|Connect|Request|Body|Decode|Interrupted)|TimedOut|dns error|"
    r"[Cc]onnection ?(?:closed|reset|refused|aborted)|IncompleteMessage|[Bb]roken ?pipe|UnexpectedEof|end of file|"
    r"error (?:reading|decoding) (?:a|response) body"
)

log = logging.getLogger(__name__)


def is_passing(error: BaseException) -> bool:
    """Whether a request may succeed if it is made again: the server was away, busy, or cut off in the middle."""
    if isinstance(error, _FINAL) or not isinstance(error, BaseError):
        return False
    said = f"{type(error).__name__}: {error}"
    return not re.search(_MEANT, said) and re.search(_PASSING, said) is not None


def seconds_from_environment() -> float:
    """The whole time that a request is tried for, in s.

    Raises:
        UsageError: $MULTISEG_RETRY_SECONDS is no such time.
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
    """Tries again what is answered by no word, half a word, or "later"; threads and tasks may share one.

    The waits double from a quarter of a second to fifteen seconds, each shortened by chance, so that many who wait
    do not come back together. Where the server says when to come back (Retry-After), that counts.

    Attributes:
        where: the server, as a user knows it.
        seconds: how long a request is tried for in all. The last try may take its own limit longer.
    """

    where: str
    seconds: float = SECONDS
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    sleep_async: Callable[[float], Awaitable[None]] = asyncio.sleep
    _told: float = field(default=-TELL_AGAIN_SECONDS, repr=False)
    _own: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        self._told = self.clock() - TELL_AGAIN_SECONDS

    def run(self, request: Callable[[], Answer]) -> Answer:
        """The answer to a request.

        Raises:
            BaseError: as obstore raises it; of what was tried for long with a note that says how long.
        """
        began, num = self.clock(), 0
        while True:
            try:
                return request()
            except BaseError as error:
                self.sleep(self._delay(error, began, num))
            num += 1

    async def run_async(self, request: Callable[[], Awaitable[Answer]]) -> Answer:
        """As `run`, without holding up others."""
        began, num = self.clock(), 0
        while True:
            try:
                return await request()
            except BaseError as error:
                delay = await asyncio.to_thread(self._delay, error, began, num)
            await self.sleep_async(delay)
            num += 1

    def _delay(self, error: BaseError, began: float, num: int) -> float:
        """How long to wait before the next try; raises the error where there is none."""
        if not is_passing(error):
            raise error
        spent = self.clock() - began
        delay = min(MOST_DELAY_S, FIRST_DELAY_S * 2**num) * random.uniform(0.5, 1)  # noqa: S311 (no secret)
        asked = _asked_to_wait(str(error))
        delay = max(delay, asked) if asked <= self.seconds - spent else self.seconds
        if spent + delay > self.seconds:
            error.add_note(f"It was tried for {spent:.0f} s")
            raise error
        self._tell(error, spent + delay)
        return delay

    def _tell(self, error: BaseError, waited: float) -> None:
        if waited < TELL_SECONDS:
            return
        with self._own:
            now = self.clock()
            if now - self._told < TELL_AGAIN_SECONDS:
                return
            self._told = now
        log.warning(
            "waiting for %s since %.0f s: %s. It is tried for %.0f s in all.",
            self.where, waited, reason(error), self.seconds,
        )  # fmt: skip


def reason(error: Exception) -> str:
    """Why a request failed, in a few words."""
    said = str(error)
    status = re.search(r"status code: (\d{3}[^:]{0,40})", said)
    if status:
        return f"it answers {status[1].strip()}"
    for pattern, words in (
        ("dns error", "its name is not known"),
        ("[Rr]efused", "it refuses connections"),
        (
            "[Rr]eset|IncompleteMessage|UnexpectedEof|end of file|[Cc]onnection ?closed|body",
            "it breaks off connections",
        ),
        ("[Tt]imed ?[Oo]ut|Timeout", "it does not answer in time"),
    ):
        if re.search(pattern, said):
            return words
    return said.split("\n")[0][:120]


def _asked_to_wait(said: str) -> float:
    """Seconds that a busy server asks to wait (Retry-After); obstore does not tell, so that it is asked for them."""
    busy = re.search(r"Error performing \w+ (https?://\S+) in .*status code: (?:429|503)", said)
    if not busy:
        return 0.0
    place = urlsplit(busy[1])
    kind = http.client.HTTPSConnection if place.scheme == "https" else http.client.HTTPConnection
    with suppress(OSError, http.client.HTTPException, ValueError):
        connection = kind(place.netloc, timeout=5)
        try:
            connection.request("HEAD", place.path)
            answer = connection.getresponse()
            if answer.status in (429, 503):
                return max(0.0, float(answer.headers.get("Retry-After", "0")))
        finally:
            connection.close()
    return 0.0
