"""Whatever is printed is seen as it is: no escape code, forged line or turned letters of a name reach a terminal."""

from pathlib import Path

import pytest
from json_documents import checked

from multiseg.cli import app
from multiseg.cli.console import messages, output, print_findings, print_table
from multiseg.federation.sites import audit_log
from multiseg.store.findings import Finding, Severity

HOSTILE = "x\x1b]0;title\x1b[2Jy\u202e\x9b1A"
SEEN = r"x\x1b]0;title\x1b[2Jy\u202e\x9b1A"


def test_what_is_printed_is_cleaned(capsys: pytest.CaptureFixture[str]) -> None:
    output().print(HOSTILE, markup=False, soft_wrap=True)
    messages().print(f"{HOSTILE} [red]", markup=False, soft_wrap=True)
    print_table(HOSTILE, ["case"], [[HOSTILE], ["[bold]kept[/]"]])
    print_findings([Finding(Severity.ERROR, "BAD", HOSTILE, HOSTILE, "", HOSTILE)])
    out, err = capsys.readouterr()
    assert err == f"{SEEN} [red]\n"
    assert out.count(SEEN) == 1 + 2 + 3
    assert "kept" in out
    assert "[bold]" not in out
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(out + err)


def test_an_error_is_cleaned(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert app.run(["info", str(tmp_path / HOSTILE)]) != 0
    err = capsys.readouterr().err
    assert "x\\x1b]0;title" in err
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(err)


def test_the_audit_log_shows_what_a_centre_sent_on_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A centre names kinds and experiments as it likes; the log keeps them as they came."""
    entry = audit_log.AuditEntry(
        "in", HOSTILE + "\nforged", HOSTILE, 1, 10, "0" * 64, notes=(f"error: {HOSTILE}\nforged",)
    )
    audit_log.record(tmp_path / audit_log.LOG, entry)
    assert app.run(["fed", "audit", str(tmp_path)]) == 0
    out = capsys.readouterr().out.replace("\u2502", "|")
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(out)
    assert "\nforged" not in out
    assert app.run(["fed", "audit", str(tmp_path), "--json"]) == 0
    (told,) = checked(capsys.readouterr().out, "fed-audit")["entries"]
    assert told["experiment"] == HOSTILE
