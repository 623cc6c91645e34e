"""The coordinating centre's verbs on the command line."""

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
from json_documents import checked

from multiseg.cli.app import run
from multiseg.federation.fab import app_hash, sources_hash
from multiseg.federation.flower import submit
from multiseg.federation.flower.control import SuperLinkRun


@pytest.fixture
def centre(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    assert run(["fed", "enrol", "server", "centre", "--host", "fed.example.org", "--host", "10.0.0.5"]) == 0
    return tmp_path / "centre"


def test_a_server_is_enrolled(centre: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fed", "enrol", "server", "centre", "--port", "9443"]) == 0
    said = capsys.readouterr().out
    assert "centre serves fed.example.org:9443" in said
    assert "multiseg fed enrol site centre NAME" in said


def test_a_fingerprint_is_printed_as_it_is(
    centre: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("multiseg.federation.identity.certificates.fingerprint", lambda path: "12:48:CD:82:AB:0A:VS:1A")
    capsys.readouterr()
    assert run(["fed", "enrol", "server", "centre"]) == 0
    assert "SHA256 Fingerprint=12:48:CD:82:AB:0A:VS:1A\n" in capsys.readouterr().out


def test_a_site_is_enrolled_and_revoked(centre: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fed", "enrol", "site", "centre", "alder"]) == 0
    assert "alder may connect. Its kit: alder-kit (alder-kit.tar.gz)" in capsys.readouterr().out
    assert (centre.parent / "alder-kit" / "site.key").exists()
    assert run(["fed", "enrol", "site", "centre", "alder", "-o", "again"]) == 2
    assert "alder has been enrolled since" in capsys.readouterr().err
    assert run(["fed", "revoke", "centre", "alder"]) == 0
    assert "alder removed" in capsys.readouterr().out
    assert run(["fed", "revoke", "centre", "alder"]) == 2


def test_a_status_without_a_server_that_runs(centre: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["fed", "enrol", "site", "centre", "alder"])
    settings = centre / "home.toml"
    settings.write_text(settings.read_text().replace("8000", "1"))  # where nobody listens
    capsys.readouterr()
    assert run(["fed", "status", "centre", "--json"]) == 0
    told = checked(capsys.readouterr().out, "fed-status")
    assert told["sites"] == [{"site": "alder", "status": "unknown", "since": "", "up": 0, "down": 0}]
    assert "multiseg fed serve" in told["error"]
    assert run(["fed", "status", "centre"]) == 0
    assert "alder" in capsys.readouterr().out


def test_a_run_file_is_checked_before_anything_is_sent(centre: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("run.toml").write_text('experiment = "x"\nsites = ["alder"]\nepochs = 3\n')
    assert run(["fed", "run", "centre", "run.toml"]) == 2
    assert "unknown settings ['epochs']" in capsys.readouterr().err
    Path("run.toml").write_text('experiment = "x"\nsites = ["alder"]\n[aggregate]\nstrategy = "magic"\n')
    assert run(["fed", "run", "centre", "run.toml"]) == 2
    assert "'magic'" in capsys.readouterr().err
    assert run(["fed", "run", "centre", "none.toml"]) == 2
    assert "there is no file none.toml" in capsys.readouterr().err


def test_a_submitted_run_as_json_with_its_log_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def show(folder: Path, which: str, until_end: bool, write: Callable[[str], object]) -> SuperLinkRun:
        write("round 1/1 done\n")
        return SuperLinkRun(7, "trial", "finished", "completed", "", {}, "", "", 0, 0)

    monkeypatch.setattr(submit, "submit", lambda *arguments: (7, []))
    monkeypatch.setattr(submit, "show", show)
    assert run(["fed", "run", "centre", "run.toml", "--follow", "--json"]) == 0
    printed = capsys.readouterr()
    assert checked(printed.out, "fed-run") == {"run": "7"}
    assert "round 1/1 done" in printed.err


def test_verbs_that_need_a_server_say_so(centre: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = centre / "home.toml"
    settings.write_text(settings.read_text().replace("8000", "1"))
    for verb in ("stop", "log"):
        assert run(["fed", verb, "centre"]) == 3
        assert "multiseg fed serve" in capsys.readouterr().err
    assert run(["fed", "serve", "nowhere"]) == 2
    assert "multiseg fed enrol server" in capsys.readouterr().err


def test_the_app_and_its_hash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fed", "app", "--hash"]) == 0
    assert capsys.readouterr().out.strip() == app_hash()
    assert run(["fed", "app", "--json", "-o", str(tmp_path / "app.fab")]) == 0
    told = checked(capsys.readouterr().out, "fed-app")
    assert (told["sha256"], told["sources"], told["version"]) == (app_hash(), sources_hash(), version("multiseg"))
    assert (tmp_path / "app.fab").stat().st_size < 2000
    assert run(["fed", "app"]) == 0
    said = capsys.readouterr().out
    for text in (f"multiseg {version('multiseg')}", f"sources: SHA-256 {sources_hash()}", f"app: SHA-256 {app_hash()}"):
        assert text in said
