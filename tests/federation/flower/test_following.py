"""A run that is followed to its end."""

from collections.abc import Iterator

import pytest

from multiseg.errors import FederationError
from multiseg.federation.flower.control import Control, SuperLinkRun
from multiseg.federation.flower.submit import TIMES, Sieve, follow

LOST = "No heartbeat received from the task"


def run(number: int, outcome: str = "completed", details: str = "") -> SuperLinkRun:
    return SuperLinkRun(number, "lesions", "finished", outcome, details, {}, f"2031-05-05T1{number}", "", 0, 0)


class Played(Control):
    """A server with runs, and what each says; an error in the place of words is raised."""

    def __init__(self, runs: list[SuperLinkRun], said: dict[int, list[str | FederationError]]) -> None:
        self.all_runs, self.said = runs, said
        self.asked: list[tuple[int, float]] = []

    def runs(self) -> list[SuperLinkRun]:
        return sorted(self.all_runs, key=lambda run: run.submitted, reverse=True)

    def log(self, run_id: int, after: float = 0.0) -> Iterator[tuple[str, float]]:
        self.asked.append((run_id, after))
        for at, words in enumerate(list(self.said[run_id]), start=1):
            if at <= after:
                continue
            if isinstance(words, FederationError):
                self.said[run_id].remove(words)
                raise words
            yield words, float(at)


def followed(control: Played, first: SuperLinkRun) -> tuple[SuperLinkRun, list[str], list[float]]:
    heard: list[str] = []
    slept: list[float] = []
    return follow(control, first, heard.append, slept.append), heard, slept


def test_a_run_is_followed_to_its_end() -> None:
    assert followed(Played([run(1)], {1: ["a\n", "b\n"]}), run(1)) == (run(1), ["a\n", "b\n"], [])


def test_a_server_that_is_started_anew_says_nothing_twice() -> None:
    control = Played([run(1)], {1: ["a\n", FederationError("away"), "b\n"]})
    ended, heard, slept = followed(control, run(1))
    assert (ended, heard, len(slept)) == (run(1), ["a\n", "b\n"], 1)
    assert control.asked == [(1, 0.0), (1, 1.0)]


def test_a_server_that_stays_away_is_an_error() -> None:
    control = Played([run(1)], {1: [FederationError(f"away {number}") for number in range(TIMES + 1)]})
    with pytest.raises(FederationError, match=f"away {TIMES}"):
        followed(control, run(1))


def test_a_run_that_is_taken_up_again_is_followed_on() -> None:
    lost = run(1, "failed", LOST)
    control = Played([lost, run(2)], {1: ["a\n"], 2: ["b\n"]})
    assert followed(control, lost) == (run(2), ["a\n", "b\n"], [])


def test_a_lost_run_that_nobody_takes_up_ends_as_it_is() -> None:
    lost = run(1, "failed", LOST)
    ended, heard, slept = followed(Played([lost], {1: ["a\n"]}), lost)
    assert (ended, heard, len(slept)) == (lost, ["a\n"], TIMES)


def test_a_run_that_failed_by_itself_is_not_waited_for() -> None:
    failed = run(1, "failed", "ServerApp failed with exception: alder")
    assert followed(Played([failed, run(2)], {1: [], 2: []}), failed) == (failed, [], [])


def test_what_flower_says_around_a_run_is_left_out() -> None:
    heard: list[str] = []
    sieve = Sieve(heard.append)
    for piece in (
        "\x1b[92mINFO \x1b[0m:      Start `flwr-serverapp`\nSuccessfully inst", "alled multiseg to x\nround 1: ",
        "asked\nround 1: ERROR of alder\n", "ERROR :     ServerApp raised an exception\nTraceback (most recent",
        " call last):\n  File x\n",
    ):  # fmt: skip
        sieve(piece)
    assert heard == ["round 1: asked\n", "round 1: ERROR of alder\n"]


def test_a_failure_that_was_none_does_not_hide_what_follows() -> None:
    """A library's error, or a site's words where lines were not cleaned: the run speaks on, and is heard."""
    heard: list[str] = []
    sieve = Sieve(heard.append)
    sieve("round 1: asked\nTraceback (most recent call last):\n  File x\nERROR : y\nround 2/9 done.\n")
    sieve("round 3: elm FAILED\n")
    sieve("Traceback (most recent call last):\n  more\nall 9 rounds done\n")
    assert heard == ["round 1: asked\n", "round 2/9 done.\n", "round 3: elm FAILED\n", "all 9 rounds done\n"]


def test_what_a_terminal_would_obey_is_seen_in_a_log() -> None:
    heard: list[str] = []
    Sieve(heard.append)("round 1: elm: \x1b]0;title\x07\x1b[2J\x9b1A\u202e\r\n")
    assert heard == ["round 1: elm: \\x1b]0;title\\x07\\x1b[2J\\x9b1A\\u202e\\r\n"]
