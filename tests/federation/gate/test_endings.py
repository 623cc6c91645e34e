"""Which runs have ended: a site stops what it does for one, and goes on where a run that was lost is taken up."""

from multiseg.federation.flower.control import SuperLinkRun
from multiseg.federation.flower.flower_words import RUN_IS_LOST
from multiseg.federation.flower.steward import ended
from multiseg.federation.gate.endings import how_ended, write_ended


def run(number: int, experiment: str, status: str, outcome: str = "", details: str = "") -> SuperLinkRun:
    return SuperLinkRun(number, experiment, status, outcome, details, {}, f"2026-01-0{number}", "", 0, 0)


def test_a_run_has_ended_unless_it_was_lost_and_goes_on(tmp_path):
    lost = run(1, "one", "finished", "failed", RUN_IS_LOST[0])
    stopped = run(2, "two", "finished", "stopped")
    assert ended([lost, stopped]) == {"2": "stopped"}  # it is taken up sooner or later
    assert ended([run(3, "one", "running"), lost, stopped]) == {"2": "stopped"}
    again = run(3, "one", "finished", "stopped")
    found = ended([run(4, "two", "running"), again, stopped, lost])
    assert found == {"1": "failed", "2": "stopped", "3": "stopped"}
    write_ended(tmp_path, found)
    assert how_ended(tmp_path, "2") == "stopped"
    assert how_ended(tmp_path, "4") == ""
    assert how_ended(tmp_path / "elsewhere", "2") == ""
