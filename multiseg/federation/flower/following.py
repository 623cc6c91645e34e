"""What a run says, followed to its end, over a server that is started anew and a run that is taken up again."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from multiseg import shown
from multiseg.errors import FederationError
from multiseg.federation.flower.control import Control, SuperLinkRun
from multiseg.federation.flower.flower_words import COLOURS, FAILURE, OWN_LINE

PAUSE_S, TIMES = 5.0, 18
"""So often a server that is away is tried again, and the run looked for that takes up a lost one."""
OURS = re.compile(r"round \d+[:/]|all \d+ rounds done")
"""Begins a line of a run that still says something: what looked like its end was none."""


class Sieve:
    """Lets through what a run says, line by line, without what Flower says around it."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write, self._rest, self._has_failed = write, "", False

    def __call__(self, piece: str) -> None:
        """Take in more of the log."""
        *lines, self._rest = (self._rest + COLOURS.sub("", piece)).split("\n")
        for line in lines:
            self._has_failed = bool(FAILURE.match(line)) or (self._has_failed and not OURS.match(line))
            if not self._has_failed and not OWN_LINE.match(line):
                self._write(shown.line(line, shown.TEXT) + "\n")


def follow(
    control: Control, run: SuperLinkRun, write: Callable[[str], object], sleep: Callable[[float], None] = time.sleep
) -> SuperLinkRun:
    """Hand what a run says to `write` until it ends; the run that came to the end, with its outcome.

    Raises:
        FederationError: the server stays away.
    """
    while True:
        ended = _to_its_end(control, run, Sieve(write), sleep)
        later = _taken_up(control, ended, sleep) if ended.lost else None
        if later is None:
            return ended
        run = later


def _to_its_end(
    control: Control, run: SuperLinkRun, write: Callable[[str], object], sleep: Callable[[float], None]
) -> SuperLinkRun:
    after, misses = 0.0, 0
    while True:
        try:
            for piece, at in control.log(run.run_id, after):
                write(piece)
                after, misses = at, 0
            return next(one for one in control.runs() if one.run_id == run.run_id)
        except FederationError:
            misses += 1
            if misses > TIMES:
                raise
            sleep(PAUSE_S)


def _taken_up(control: Control, lost: SuperLinkRun, sleep: Callable[[float], None]) -> SuperLinkRun | None:
    for _ in range(TIMES):
        for one in control.runs():
            if one.experiment == lost.experiment and one.submitted > lost.submitted:
                return one
        sleep(PAUSE_S)
    return None
