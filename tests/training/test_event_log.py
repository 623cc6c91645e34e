import json
import math

import pytest

from multiseg.errors import ResourceError
from multiseg.training.event_log import EventLog
from multiseg.training.events import StepDone, Validated


def step(number, loss=0.5):
    return StepDone(number, loss, {"dice_loss": 0.25}, 1.0, 0.001, 8.0, 0.1)


def read(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def board(folder, tag):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    held = EventAccumulator(str(folder / "tensorboard")).Reload()
    return [(event.step, event.value) for event in held.Scalars(tag)]


def test_every_event_is_a_line_of_json(tmp_path):
    with EventLog(tmp_path, 0) as logs:
        logs.write(step(1))
        logs.write(Validated(1, 0.75, {"alder": 0.75}, True))
    first, second = read(tmp_path)
    assert (first["event"], first["step"], first["loss"], first["skipped"]) == ("StepDone", 1, 0.5, "")
    assert (second["event"], second["score"], second["parts"]) == ("Validated", 0.75, {"alder": 0.75})


def test_what_is_not_finite_is_null(tmp_path):
    with EventLog(tmp_path, 0) as logs:
        logs.write(step(1, loss=math.nan))
        logs.write(Validated(1, math.nan, {"alder": math.inf}, False))
    assert "NaN" not in (tmp_path / "log.jsonl").read_text()
    first, second = read(tmp_path)
    assert first["loss"] is None
    assert second["parts"] == {"alder": None}


def test_what_was_logged_beyond_the_last_save_is_cut_off(tmp_path):
    with EventLog(tmp_path, 0) as logs:
        for number in (1, 2, 3, 4):
            logs.write(step(number))
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('5\n{"event": "StepDone", "st')  # a kill cuts a line short
    with EventLog(tmp_path, 2) as logs:
        logs.write(step(3, loss=0.25))
    assert [(entry["step"], entry["loss"]) for entry in read(tmp_path)] == [(1, 0.5), (2, 0.5), (3, 0.25)]


def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path):
    with EventLog(tmp_path, 0) as logs:
        for number in range(1, 41):
            logs.write(step(number))
    with EventLog(tmp_path, 20) as logs:
        for number in range(21, 31):
            logs.write(step(number, loss=0.25))
    assert board(tmp_path, "train/loss") == [(10, 0.5), (20, 0.5), (30, 0.25)]


def test_a_full_disk_is_no_bug_of_ours(tmp_path):
    with EventLog(tmp_path, 0) as logs:

        def full(text):
            raise OSError(28, "No space left on device")

        kept, logs.file = logs.file, type("Full", (), {"write": staticmethod(full), "close": lambda self: None})()
        with pytest.raises(ResourceError, match=r"cannot write the log of step 7: .*No space left"):
            logs.write(step(7))
        kept.close()
