"""Detects a site's node that is running, but gets no answers any more."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from multiseg.federation.flower.forked import Forked
from multiseg.federation.flower.node import last_beat

SILENT_S = 90.0
"""A node sends a heartbeat every 25 s at the latest, and after a failure another one within 25 s."""
PROBE_EVERY_S, PROBE_LIMIT_S = 15.0, 60.0
GAP_S = 10.0
"""`is_lost` is called several times a second. After such a pause this process was suspended, as in a laptop's sleep."""


class Probe(Protocol):
    """A call to the server in progress."""

    def wait(self, seconds: float) -> bool:
        """Wait at most this long; whether it ended."""
        ...

    def result(self) -> bytes | None:
        """b"" if the server answers, else why not; None if that is unknown."""
        ...

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End it."""
        ...


class Pulse:
    """Says when a node has to be restarted: none of its calls was answered for long, though the server answers.

    If the server does not answer either, a new node would not help.

    Args:
        file: with the time of the node's last answered call, see `node.beat`.
        ask: calls the server; "" if it answers, else why not. It runs in a process of its own.
        say: gets messages for a person.
    """

    def __init__(
        self,
        file: Path,
        ask: Callable[[], str],
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        start: Callable[[Callable[[], str]], Probe] = lambda ask: Forked(lambda is_asked: ask().encode()),
    ) -> None:
        self._file, self._ask, self._say, self._clock, self._start = file, ask, say, clock, start
        self._awake_since = self._looked = self._asked = clock()
        self._probe: Probe | None = None
        self._told = ""

    def is_lost(self, running_s: float) -> bool:
        """Whether to end the node, which has run for these seconds."""
        now = self._clock()
        if now - self._looked > GAP_S:
            self._awake_since = now
        self._looked = now
        answered = last_beat(self._file)
        answered = answered if answered <= now else -float("inf")  # from before the machine was started
        silent_s = now - max(answered, now - running_s, self._awake_since)
        if silent_s < SILENT_S:
            self.forget()
            self._told = ""
            return False
        why = self._answer(now)
        if why is None:
            return False
        if not why:
            self._say(f"The node has had no answer for {silent_s:.0f} s, though the server answers: restarting it.")
        elif why != self._told:
            self._say(f"No call has been answered for {silent_s:.0f} s; retrying: {why}")
        self._told = why
        return not why

    def forget(self) -> None:
        """End the call in progress."""
        if self._probe is not None:
            self._probe.stop(signal.SIGKILL)
            self._probe.wait(1.0)
            self._probe = None

    def _answer(self, now: float) -> str | None:
        """Why the server does not answer, "" if it does; None while that is unknown."""
        if self._probe is None:
            if now - self._asked >= PROBE_EVERY_S:
                self._asked = now
                self._probe = self._start(self._ask)
            return None
        if not self._probe.wait(0.001):
            if now - self._asked > PROBE_LIMIT_S:
                self.forget()
            return None
        found = self._probe.result()
        self._probe = None
        return None if found is None else found.decode()
