"""`multiseg fed join` and `multiseg fed audit` at the command line."""

import errno
from pathlib import Path

import pytest
import torch
from json_documents import checked

from multiseg.cli.app import run
from multiseg.errors import FederationError
from multiseg.federation.flower import joining as joining
from multiseg.federation.flower import preflight as looking
from multiseg.federation.flower.preflight import Check
from multiseg.federation.messages import ROUND
from multiseg.federation.plan import FederationOptions
from multiseg.federation.sites import approvals, audit_log
from multiseg.federation.sites.audit_log import AuditEntry, record

GOOD = Check("key", "ok", "mode 600")
AWAY = Check(looking.LINE, "error", "nothing listens at [::1], port 9")
BAD = Check("disk", "error", "make room")


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    path = tmp_path / "site.toml"
    path.write_text('site = "alder"\nserver = "127.0.0.1:9"\nstore = "alder.zarr"\n')
    return path


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    names: list[str] = []
    monkeypatch.setattr(joining, "become", lambda site, path: names.append(site.site))
    return names


def look(monkeypatch: pytest.MonkeyPatch, *checks: Check) -> None:
    monkeypatch.setattr(looking, "preflight_apart", lambda site: checks)


@pytest.mark.parametrize(
    ("found", "flags", "code", "joins"),
    [
        ([GOOD], [], 0, True),
        ([GOOD], ["--check"], 0, False),
        ([GOOD, AWAY], [], 0, True),
        ([GOOD, AWAY], ["--check"], 3, False),
        ([BAD], [], 3, False),
    ],
)
def test_who_joins(
    settings: Path,
    joined: list[str],
    monkeypatch: pytest.MonkeyPatch,
    found: list[Check],
    flags: list[str],
    code: int,
    joins: bool,
) -> None:
    look(monkeypatch, *found)
    assert run(["fed", "join", str(settings), *flags]) == code
    assert joined == (["alder"] if joins else [])


def test_what_is_amiss_is_shown(
    settings: Path, joined: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    look(monkeypatch, GOOD, AWAY)
    run(["fed", "join", str(settings)])
    told = capsys.readouterr().out
    assert "nothing listens at [::1], port 9" in told
    assert "mode 600" not in told
    run(["fed", "join", str(settings), "--check", "--json"])
    assert checked(capsys.readouterr().out, "fed-join")[0] == {"what": "key", "level": "ok", "said": "mode 600"}


def test_one_document_is_printed_even_if_joining_fails(
    settings: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(site: object, path: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "python")

    look(monkeypatch, GOOD)
    monkeypatch.setattr(joining, "become", fail)
    assert run(["fed", "join", str(settings), "--json"]) == 5
    told = capsys.readouterr()
    assert checked(told.out, "fed-join") == [vars(GOOD)]
    assert "No space left on device" in told.err


def test_a_submitted_run_whose_log_cannot_be_followed_is_one_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: object) -> None:
        raise FederationError("the server has stopped.")

    monkeypatch.setattr("multiseg.federation.flower.submit.submit", lambda *args: (7, []))
    monkeypatch.setattr("multiseg.federation.flower.submit.show", fail)
    assert run(["fed", "run", str(tmp_path), "run.toml", "--follow", "--json"]) == FederationError.exit_code
    told = capsys.readouterr()
    assert checked(told.out, "fed-run") == {"run": "7"}
    assert "the server has stopped" in told.err


def test_checks_that_are_real(settings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fed", "join", str(settings), "--check", "--json"]) == 3
    found = {check["what"]: check for check in checked(capsys.readouterr().out, "fed-join")}
    assert found["key"]["level"] == found["store"]["level"] == found["app"]["level"] == "error"
    assert found["state"]["level"] == "ok"


def test_settings_that_are_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fed", "join", str(tmp_path / "site.toml")]) == 2
    assert "multiseg fed enrol site" in capsys.readouterr().err


@pytest.fixture
def log(settings: Path) -> Path:
    path = settings.parent / "state" / audit_log.LOG
    tensors = audit_log.described({"head.weight": torch.zeros(2, 3)})
    for number, experiment in enumerate(("first", "second", "second")):
        record(
            path,
            AuditEntry("out", ROUND, experiment, number, 120, "ab" * 32, tensors, {"loss": 0.5}, ("left out: [x]",)),
        )
    return path


def test_the_log_is_shown(settings: Path, log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place in (settings, log.parent):
        assert run(["fed", "audit", str(place)]) == 0
        told = capsys.readouterr().out
        assert told.count("second") == 2
        assert "left out: [x]" in told
    assert run(["fed", "audit", str(settings), "--experiment", "first", "--json"]) == 0
    (row,) = checked(capsys.readouterr().out, "fed-audit")["entries"]
    assert (row["experiment"], row["bytes"], row["metrics"]) == ("first", 120, "loss 0.5")


def test_a_log_that_was_changed(settings: Path, log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fed", "audit", str(settings), "--verify"]) == 0
    assert "3 lines, none changed or removed" in capsys.readouterr().err
    lines = log.read_text().splitlines()
    log.write_text("\n".join([lines[0], lines[1].replace("120", "121"), lines[2]]) + "\n")
    assert run(["fed", "audit", str(settings), "--verify"]) == 3
    assert "line 3 does not follow" in capsys.readouterr().err
    assert run(["fed", "audit", str(settings), "--verify", "--json"]) == 3
    assert checked(capsys.readouterr().out, "fed-audit")["faults"]


def test_runs_that_wait_for_an_approval(settings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = FederationOptions(experiment="trial", sites=("alder",))
    approvals.note_waiting(settings.parent / "state", options)
    assert run(["fed", "approve", str(settings), "--json"]) == 0
    (asked,) = checked(capsys.readouterr().out, "fed-approve")
    assert (asked["digest"], asked["answer"]) == (approvals.digest_of(options), "waits")
    assert run(["fed", "approve", str(settings), asked["digest"][:8], "--json"]) == 0
    assert checked(capsys.readouterr().out, "fed-approve")[0]["answer"] == "approved"


def test_no_log(settings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fed", "audit", str(settings)]) == 3
    assert "there is no audit log" in capsys.readouterr().err
