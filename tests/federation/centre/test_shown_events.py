"""Words of sites in what people read of a run: one line each, whatever they hold."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
from fake_link import FakeLink, FakeSite, options

from multiseg.federation.centre.experiment_folder import STATE, commit, opened
from multiseg.federation.centre.rounds import run
from multiseg.federation.centre.run_events import (
    Came,
    Event,
    Finished,
    Left,
    Noted,
    Refused,
    Resent,
    RoundDone,
    SiteRound,
    in_words,
)
from multiseg.federation.centre.run_logs import RunLogs

HOSTILE = "x\x1b]0;title\x07\nround 9: all sites are online\r\u202e\x9b2J\nTraceback (most recent call last):"
ROUND_DONE = RoundDone(1, 2, 0.5, 0.5, {HOSTILE: SiteRound(0.5, {HOSTILE: 0.5}, 1.0)}, {HOSTILE: HOSTILE})


@pytest.mark.parametrize(
    "event",
    [
        Noted(1, "elm", HOSTILE),
        Noted(1, HOSTILE, "fine"),
        Refused(1, "elm", HOSTILE),
        Resent(1, "elm", HOSTILE),
        Left(1, "elm", HOSTILE),
        Came(1, "elm", HOSTILE, 1, 1, 1.0),
        Finished(2, 1, 0.5, {"elm": {HOSTILE: 0.5}}),
        ROUND_DONE,
    ],
)
def test_an_event_is_one_line(event: Event) -> None:
    text = in_words(event)
    assert text.isprintable()
    assert "\\x1b]0;title\\x07\\nround 9" in text
    assert text.startswith(("round 1", "all 2 rounds"))


def test_the_table_for_a_spreadsheet_holds_no_formula(tmp_path: Path) -> None:
    """Neither where a site is to blame, nor where a folder of an older multiseg holds what was not yet refused."""
    link = FakeLink(FakeSite("ash"))
    run(options("ash", rounds=1), link, tmp_path, clock=link.clock)
    state = opened(tmp_path)
    assert state is not None
    entry = dict(state.history[0])
    entry["failed"] = {"elm": '=HYPERLINK("http://x","y")', "oak": "-2+3", "fir": "@x\n=1"}
    commit(tmp_path, replace(state, history=(entry,)), {})
    with (tmp_path / "rounds.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["note"] for row in rows] == ["", '\'=HYPERLINK("http://x","y")', "'-2+3", "'@x\\n=1"]
    assert (rows[0]["site"], float(rows[0]["dice"]), int(rows[0]["num_cases"])) == ("ash", 0.5, 10)
    assert (tmp_path / STATE).is_file()


def test_a_note_writes_no_status_again(tmp_path: Path) -> None:
    """Thousands of notes cost no more than their lines."""
    with RunLogs(tmp_path, "fake", 0, lambda event: None) as logs:
        logs.event(Refused(1, "elm", "x"))
        for name in ("status.json", "metrics.prom"):
            (tmp_path / name).unlink()
        for _ in range(3):
            logs.event(Noted(1, "elm", "x"))
        assert not (tmp_path / "status.json").exists()
        logs.event(Left(1, "elm", "its key was revoked"))
    assert json.loads((tmp_path / "status.json").read_text())["left"] == ["elm"]
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 5
