import json
from dataclasses import replace

import pytest
import torch

from multiseg.errors import FederationError, ResourceError
from multiseg.federation.sites.audit_log import LOG, AuditEntry, described, record, rows, verify

ENTRY = AuditEntry(
    "out", "round", "trial", 1, 1200, "ab" * 32, {"head.weight": "float32 [1, 8]"}, {"loss": 0.25}, ("note",)
)


@pytest.fixture
def log(tmp_path):
    for number in (1, 2, 3):
        record(tmp_path / LOG, replace(ENTRY, round=number))
    return tmp_path / LOG


def test_a_log_that_nobody_touched_is_sound(log, tmp_path):
    assert verify(log) == []
    assert verify(tmp_path / "none.jsonl") == []
    assert [row["round"] for row in rows(log)] == [1, 2, 3]
    assert rows(log, "trial")[0]["metrics"] == "loss 0.25"
    assert rows(log, "other") == []
    assert rows(log)[0]["tensors"] == 1
    assert rows(log)[0]["notes"] == "note"


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_removed_line_shows(log, at):
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:at] + lines[at + 1 :]))
    assert verify(log)


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_changed_line_shows(log, at):
    lines = log.read_text().splitlines(keepends=True)
    lines[at] = lines[at].replace("1200", "1201")
    log.write_text("".join(lines))
    assert verify(log)


def test_a_line_put_in_shows(log):
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join([lines[0], lines[0], *lines[1:]]))
    assert "line 2 does not follow" in verify(log)[0]


def test_a_log_that_is_gone_shows(log):
    log.unlink()
    assert verify(log) == ["there is no audit log."]
    with pytest.raises(FederationError, match="no audit log"):
        rows(log)


def test_a_process_killed_between_its_two_writes_is_no_fault(log):
    head = log.with_suffix(".head").read_bytes()
    record(log, ENTRY)
    log.with_suffix(".head").write_bytes(head)
    assert verify(log) == []
    record(log, ENTRY)
    assert verify(log) == []


def test_half_a_line_shows_and_does_not_spoil_the_next(log):
    with log.open("ab") as file:
        file.write(b'{"time": "20')
    record(log, ENTRY)
    assert verify(log) == ["line 4 is incomplete."]
    assert json.loads(log.read_text().splitlines()[-1])["round"] == 1
    with pytest.raises(FederationError, match="line 4"):
        rows(log)


def test_long_lines_follow_each_other(tmp_path):
    long = replace(ENTRY, tensors={f"tensor{n}": "float32 [1]" for n in range(6000)})
    for _ in range(3):
        record(tmp_path / LOG, long)
    assert verify(tmp_path / LOG) == []


def test_what_cannot_be_written_down_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="nothing leaves"):
        record(tmp_path / "file" / LOG, ENTRY)


def test_tensors_are_described():
    assert described({"a": torch.zeros(2, 3, dtype=torch.float16)}) == {"a": "float16 [2, 3]"}
