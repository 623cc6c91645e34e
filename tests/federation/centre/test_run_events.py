"""What a run tells: in words, in a log, to TensorBoard and to Prometheus."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from multiseg.federation.centre.run_events import (
    Began,
    Came,
    Event,
    Finished,
    Noted,
    Refused,
    Resent,
    RoundDone,
    SiteRound,
    Waiting,
    clock_time,
    in_words,
)
from multiseg.federation.centre.run_logs import METRICS, RunLogs, Status, prometheus, read_status

NAN = math.nan
DONE = RoundDone(
    2,
    5,
    0.4,
    0.3,
    {"ash": SiteRound(0.5, {"ash": 0.5}, 0.75), "elm": SiteRound(NAN, {}, 0.25)},
    failed={"oak": "it is broken"},
    epsilon=1.234,
    seconds=65.0,
    seconds_left=7300.0,
)


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (Waiting(1, ("ash", "elm")), "round 1: waiting for ash, elm"),
        (Waiting(1, ()), "round 1: all sites are online"),
        (Came(1, "ash", "round", 2_000_000, 1_000_000, 3.14159), "ash answered (round) in 3.1 s, 2.0 MB sent, 1.0 MB"),
        (Refused(1, "ash", "NaN"), "round 1: ash FAILED: NaN"),
        (Resent(1, "ash", "it was away"), "asked ash again: it was away"),
        (Noted(1, "", "T2: only ash"), "round 1: T2: only ash"),
        (Noted(1, "elm", "slow"), "round 1: elm: slow"),
        (
            DONE,
            "Dice of the model after round 1: 0.400, by site ash 0.500 (loss 0.750), elm - (loss 0.250); WITHOUT oak",
        ),
        (DONE, "WITHOUT oak; epsilon 1.23 (1 min, 2 h 02 min left)"),
        (replace(DONE, single=("a", "b"), is_news=True), "WITHOUT oak; 2 parts from only one site; epsilon"),
        (replace(DONE, single=("a", "b")), "WITHOUT oak; epsilon"),
        (replace(DONE, is_news=True), "; no parts from only one site;"),
        (Finished(5, 4, 0.6, {"ash": {"ash": 0.7}, "elm": {}}), "after round 4. Test: ash ash 0.700; elm has no cases"),
    ],
)
def test_words(event: Event, words: str) -> None:
    assert words in in_words(event)


def test_times_for_people() -> None:
    assert [clock_time(s) for s in (0.04, 59.9, 60.0, 3600.0, 3660.0)] == [
        "0.0 s",
        "59.9 s",
        "1 min",
        "1 h 00 min",
        "1 h 01 min",
    ]


def test_prometheus_reads_it() -> None:
    status = Status("joint")
    for event in (
        Began(2, 5, ("ash", "elm")),
        Came(2, "ash", "round", 7, 5, 1.5),
        Came(2, "ash", "round", 7, 5, 1.5),
        DONE,
    ):
        status.take(event)
    status.take(Waiting(3, ("elm",)))
    status.take(Refused(3, "elm", "x"))
    lines = prometheus(status).splitlines()
    for line in lines:
        assert re.fullmatch(
            r'# (HELP|TYPE) \w+ .+|\w+\{experiment="joint"(,site="\w+")?\} (-?[\d.e+-]+|NaN|[+-]Inf)', line
        )
    values = {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}
    start = "multiseg_federation_"
    assert values[start + 'round{experiment="joint"}'] == 2
    assert values[start + 'site_present{experiment="joint",site="elm"}'] == 0
    assert values[start + 'site_present{experiment="joint",site="ash"}'] == 1
    assert values[start + 'site_sent_bytes_total{experiment="joint",site="ash"}'] == 14
    assert values[start + 'site_failures_total{experiment="joint",site="elm"}'] == 1
    assert math.isnan(values[start + 'site_dice{experiment="joint",site="elm"}'])


def test_each_event_is_written_down_and_passed_on(tmp_path: Path) -> None:
    heard: list[Event] = []
    (tmp_path / "log.jsonl").write_text('{"event": "cut sho')
    with RunLogs(tmp_path, "joint", 1, heard.append) as logs:
        logs.event(Began(2, 5, ("ash", "elm")))
        logs.event(DONE)
    assert heard == [Began(2, 5, ("ash", "elm")), DONE]
    torn, *lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert torn == '{"event": "cut sho'  # what was there stays
    told = [json.loads(line) for line in lines]
    assert [line["event"] for line in told] == ["Began", "RoundDone"]
    assert told[1]["sites"]["elm"]["dice"] is None
    assert 'round{experiment="joint"} 2' in (tmp_path / METRICS).read_text()


def test_a_run_says_how_it_stands(tmp_path: Path) -> None:
    assert read_status(tmp_path) == {}
    with RunLogs(tmp_path, "joint", 1, lambda event: None) as logs:
        logs.event(Began(2, 5, ("ash", "elm", "fir")))
        assert read_status(tmp_path)["working"] == ["ash", "elm", "fir"]
        logs.event(Waiting(2, ("elm",)))
        logs.event(Came(2, "ash", "round", 7, 5, 1.5))
        logs.event(Refused(2, "fir", "x"))
        told = read_status(tmp_path)
        assert (told["round"], told["rounds"], told["working"], told["awaited"]) == (1, 5, ["elm"], ["elm"])
        assert told["mean"] is None
        logs.event(DONE)
    assert (read_status(tmp_path)["round"], read_status(tmp_path)["working"]) == (2, [])


def test_tensorboard_gets_the_scores(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with RunLogs(tmp_path, "joint", 1, lambda event: None) as logs:
        logs.event(DONE)
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    (point,) = board.Scalars("dice/ash")
    assert (point.step, point.value) == (2, 0.5)
    assert "dice/elm" not in board.Tags()["scalars"]  # it has no cases to say


@pytest.mark.parametrize(("epsilon", "points"), [(3.25, [(2, 3.25)]), (math.inf, [])])
def test_tensorboard_gets_the_guarantee_of_noise_where_there_is_one(
    epsilon: float, points: list[tuple[int, float]], tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with RunLogs(tmp_path, "joint", 1, lambda event: None) as logs:
        logs.event(replace(DONE, epsilon=epsilon))
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    name = "privacy/epsilon"
    found = board.Scalars(name) if name in board.Tags()["scalars"] else []
    assert [(point.step, point.value) for point in found] == points
