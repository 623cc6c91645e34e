"""Follows a run's log to its end, across restarts of the server and of the run."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from multiseg import shown
from multiseg.errors import FederationError
from multiseg.federation.flower.control import Control, SuperLinkRun
from multiseg.federation.flower.flower_words import COLOURS, FAILURE, OWN_LINE

PAUSE_S, TIMES = 5.0, 18
"""How often to retry a server that does not answer, and to look for the run that continues a lost one."""
OURS = re.compile(r"round \d+[:/]|all \d+ rounds done")
"""Starts a line of a run that still continues: what looked like its failure was none."""


class Sieve:
    """Passes on the lines of a run, without Flower's own."""

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
    """Write a run's log until it ends; the final run, with its outcome. FederationError if the server stays away."""
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
            return next(listed for listed in control.runs() if listed.run_id == run.run_id)
        except FederationError:
            misses += 1
            if misses > TIMES:
                raise
            sleep(PAUSE_S)


def _taken_up(control: Control, lost: SuperLinkRun, sleep: Callable[[float], None]) -> SuperLinkRun | None:
    for _ in range(TIMES):
        for run in control.runs():
            if run.experiment == lost.experiment and run.submitted > lost.submitted:
                return run
        sleep(PAUSE_S)
    return None
