"""What the steward does beside the SuperLink."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from made_centre import make_centre, make_site
from prometheus_client.parser import text_string_to_metric_families

from multiseg.federation.flower.control import Control, SuperLinkNode, SuperLinkRun
from multiseg.federation.flower.steward import LOSSES_AN_HOUR, Known, attend, metrics, renewed, to_take_up
from multiseg.federation.identity.enrol import revoke_site
from multiseg.federation.identity.home import read_home
from multiseg.federation.identity.registry import read_registry

NOW = datetime(2031, 5, 5, 12, tzinfo=UTC)
LOST = "No heartbeat received from the task"


class Played(Control):
    """A SuperLink's calls, remembered."""

    def __init__(self) -> None:
        self.there: list[SuperLinkNode] = []
        self.all_runs: list[SuperLinkRun] = []
        self.started: list[object] = []

    def nodes(self) -> list[SuperLinkNode]:
        return list(self.there)

    def register(self, name: str, public_key: str) -> int:
        self.there.append(SuperLinkNode(len(self.there) + 1, name, public_key, "registered", ""))
        return len(self.there)

    def unregister(self, node_id: int) -> None:
        self.there = [node for node in self.there if node.node_id != node_id]

    def runs(self, newest: int = 0) -> list[SuperLinkRun]:
        return self.all_runs[: newest or None]

    def start(self, settings: object) -> int:
        self.started.append(settings)
        return 99


def run(
    number: int, experiment: str = "lesions", outcome: str = "failed", details: str = LOST, hours: float = 0
) -> SuperLinkRun:
    when = (NOW - timedelta(hours=hours)).isoformat()
    status = "finished" if outcome else "running"
    return SuperLinkRun(number, experiment, status, outcome, details, {"experiment": experiment}, when, when, 0, 0)


def test_sites_are_let_in_and_shut_out_as_the_registry_says(tmp_path: Path) -> None:
    folder, control, known = make_centre(tmp_path), Played(), Known()
    make_site(folder, "alder")
    make_site(folder, "birch")
    server = read_home(folder)
    assert list(attend(server, control, known)) == ["alder registered.", "birch registered."]
    assert [node.public_key for node in control.there] == [
        read_registry(folder)[name].public_key for name in ("alder", "birch")
    ]
    assert list(attend(server, control, known)) == []
    revoke_site(folder, "alder")
    control.register("stranger", "a key that nobody enrolled")
    assert list(attend(server, control, known)) == ["alder removed.", "stranger removed."]
    assert [node.name for node in control.there] == ["birch"]


def test_sites_that_come_and_go_are_told(tmp_path: Path) -> None:
    folder, control, known = make_centre(tmp_path), Played(), Known()
    make_site(folder, "alder")
    server = read_home(folder)
    list(attend(server, control, known))
    (node,) = control.there
    control.there = [SuperLinkNode(1, "alder", node.public_key, "online", "2031")]
    assert list(attend(server, control, known)) == ["alder is online: 1 of 1 sites are online."]
    control.there = [node]
    assert list(attend(server, control, known)) == ["alder is offline: 0 of 1 sites are online."]


def test_a_lost_run_is_taken_up_and_no_other() -> None:
    assert to_take_up([run(1)], NOW) == [run(1)]
    assert to_take_up([run(1, outcome="stopped")], NOW) == []
    assert to_take_up([run(1, outcome="completed", details="")], NOW) == []
    assert to_take_up([run(1, details="ServerApp failed with exception: alder refused")], NOW) == []
    assert to_take_up([run(1, outcome="", details="")], NOW) == []


def test_only_the_newest_run_of_an_experiment_counts() -> None:
    assert to_take_up([run(2, outcome="stopped"), run(1, hours=1)], NOW) == []
    assert to_take_up([run(2, outcome=""), run(1)], NOW) == []
    assert to_take_up([run(3, "other", outcome="completed"), run(2), run(1)], NOW) == [run(2)]


def test_a_run_that_is_lost_again_and_again_is_left() -> None:
    often = [run(number) for number in range(LOSSES_AN_HOUR + 1)]
    assert to_take_up(often, NOW) == []
    assert to_take_up([run(9), *(run(number, hours=2) for number in range(LOSSES_AN_HOUR + 1))], NOW) == [run(9)]


def test_a_run_that_is_lost_often_is_taken_up_after_a_pause_that_grows() -> None:
    minutes = {}
    for times in (5, 6, 7, 8, 12, 50):
        often = [run(number) for number in range(times)]
        minutes[times] = next(
            wait for wait in range(61) if to_take_up(often, NOW + timedelta(minutes=wait)) == often[:1]
        )
    assert minutes == {5: 0, 6: 1, 7: 2, 8: 4, 12: 30, 50: 30}
    assert to_take_up([run(number) for number in range(6)], NOW - timedelta(days=3)), "the clock was set back"


def test_a_lost_run_with_many_newer_ones_is_taken_up(tmp_path: Path) -> None:
    server, control, known = read_home(make_centre(tmp_path)), Played(), Known()
    newer = [run(number, f"other-{number}", outcome="completed", details="") for number in range(100, 140)]
    control.all_runs = [*newer, run(7, hours=1)]
    assert list(attend(server, control, known)) == ["Run 7 (lesions) was lost and continues as run 99."]
    control.all_runs = [run(99, outcome="", details=""), *control.all_runs]
    assert list(attend(server, control, known)) == []
    assert len(known.runs) == 42, "the older ones are remembered"


def test_a_run_that_a_signal_ended_is_lost_and_one_that_was_stopped_is_not() -> None:
    assert to_take_up([run(1, details="Task failed with unknown error.")], NOW) == [
        run(1, details="Task failed with unknown error.")
    ]
    assert to_take_up([run(1, outcome="stopped", details="Task failed with unknown error.")], NOW) == []


def test_a_lost_run_is_submitted_with_its_own_settings(tmp_path: Path) -> None:
    server, control, known = read_home(make_centre(tmp_path)), Played(), Known()
    control.all_runs = [run(7)]
    assert list(attend(server, control, known)) == ["Run 7 (lesions) was lost and continues as run 99."]
    assert control.started == [{"experiment": "lesions"}]


def test_the_end_of_a_run_is_told_once(tmp_path: Path) -> None:
    server, control, known = read_home(make_centre(tmp_path)), Played(), Known()
    control.all_runs = [run(7, outcome="", details="")]
    assert list(attend(server, control, known)) == []
    control.all_runs = [run(7, outcome="completed", details="")]
    assert list(attend(server, control, known)) == ["Run 7 (lesions) completed."]
    assert list(attend(server, control, known)) == []


def test_a_certificate_that_ends_while_the_server_runs_is_renewed_or_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = read_home(make_centre(tmp_path))
    assert renewed(server) == ""
    monkeypatch.setattr("multiseg.federation.identity.certificates.days_left", lambda path: -2.0)
    assert "is renewed" in renewed(server)
    server.at("ca.key").unlink()
    assert "ended 2 days ago: restore" in renewed(server)


def test_numbers_for_prometheus(tmp_path: Path) -> None:
    folder = make_centre(tmp_path)
    make_site(folder, "alder")
    (folder / "gate.json").write_text(
        '{"sites": {"alder": {"requests": 2, "up": 3, "down": 4123456789, "last": 1.0}}, "refused": {"clock": 5}}'
    )
    (folder / "runs" / "lesions").mkdir(parents=True)
    (folder / "runs" / "lesions" / "metrics.prom").write_text("multiseg_federation_round 6\n")
    node = SuperLinkNode(1, "alder", "key", "online", "2031")
    known = Known(read_registry(folder), (node,), (run(1, outcome=""),), answers=True)
    text = metrics(read_home(folder), known)
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    for name, value in (
        (("multiseg_up", "superlink"), 1),
        (("multiseg_up", "gate"), 0),
        (("multiseg_site_online", "alder"), 1),
        (("multiseg_gate_bytes_total", "up", "alder"), 3),
        (("multiseg_gate_bytes_total", "down", "alder"), 4_123_456_789),
        (("multiseg_gate_refused_total", "clock"), 5),
        (("multiseg_run_active", "lesions"), 1),
        (("multiseg_federation_round",), 6),
    ):
        assert found[name] == value
    assert 300 < found[("multiseg_certificate_days",)] < 500
    lines = text.splitlines()
    assert 'multiseg_site_online{site="alder"} 1.0' in lines
    assert "# TYPE multiseg_gate_bytes_total counter" in lines
    types = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert len(types) == len(set(types))
