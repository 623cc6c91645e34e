"""The benchmarks run: a row on tiny cases, the pause between turns, the distant server. No speed is looked at."""

import json
import sys
import time
import urllib.error
import urllib.request
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from commands import Command
from sources_to_time import at_work, fail

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import attack, cases, flood, gpu, gpu_lines, growth, loader, processor, soak
from benchmarks.remote import served
from benchmarks.sides import Side, Source
from multiseg.phantoms.hospitals import write_hospitals
from multiseg.store.ingest.ingestion import ingest
from multiseg.store.sources.manifest import find_manifest


def test_a_side_stands_still_between_its_turns(tmp_path: Path) -> None:
    side = Side(Source("busy", partial(at_work, tmp_path / "number"), ready=3))
    try:
        assert side.run(0.05).wall > 0
        time.sleep(0.05)
        number = (tmp_path / "number").read_text()
        time.sleep(0.2)
        assert (tmp_path / "number").read_text() == number
    finally:
        side.close()


def test_what_goes_wrong_in_a_side_is_told() -> None:
    with pytest.raises(RuntimeError, match="no such case 'B007'"):
        Side(Source("failing", fail))


def fetch(url: str, asked: str = "") -> bytes:
    with urllib.request.urlopen(urllib.request.Request(url, headers={"Range": asked} if asked else {})) as answer:
        body: bytes = answer.read()
        return body


def test_the_distant_server_gives_parts(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "0").write_bytes(bytes(range(100)))
    with served(tmp_path, 0.001) as url:
        assert fetch(f"{url}/c/0") == bytes(range(100))
        assert fetch(f"{url}/c/0", "bytes=3-5") == bytes([3, 4, 5])
        assert fetch(f"{url}/c/0", "bytes=-2") == bytes([98, 99])
        assert fetch(f"{url}/c/0", "bytes=97-200") == bytes([97, 98, 99])
        with pytest.raises(urllib.error.HTTPError, match="404") as missing:
            fetch(f"{url}/c/1")
        missing.value.close()


@pytest.mark.slow
def test_rows_on_tiny_cases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cases, "FOLDER", tmp_path)
    tiny = ["--cases", "2", "--spacing-mm", "5", "--edge", "16", "--rounds", "1", "--seconds", "0.01"]
    loader.main(["--only", "scaling", "nnunet", *tiny])
    said = capsys.readouterr().out
    assert "synthetic heads: 2 cases" in said
    assert "stream, 2 workers, 16^3 | stream, 1 workers, 16^3 | " in said
    assert "| nnU-Net | " in said or "nnunet, 16^3: left out: nnunetv2 is not installed" in said


def test_growth_is_from_the_first_quarter_to_the_last() -> None:
    readings = [soak.Reading(1, rss, 0, 0, 0, 2, 9, 0) for rss in (999, 10, 10, 10, 10, 10, 10, 10, 30)]
    assert "main_rss: 10.0 in the first quarter, 20.0 in the last, +10.0" in soak.growth(readings)


@pytest.mark.slow
def test_lines_of_a_card_run_on_the_processor_and_a_failed_one_ends_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each line in a process of its own, as on a card: here for the lines that say how one ends."""
    names = ["card", "waiting, 2 patches"]
    out = tmp_path / "gpu.json"
    monkeypatch.setitem(gpu_lines.LINES, "card", replace(gpu_lines.LINES["card"], budget_s=600))
    monkeypatch.setitem(gpu_lines.LINES, "waiting, 2 patches", gpu_lines.Line(gpu_lines.card, 0.01))
    assert gpu.main(["--device", "cpu", "--small", "--minutes", "60", "--only", *names, "--out", str(out)]) == 1
    found = json.loads(out.read_text())
    assert found["card"]["found"]["torch"] == torch.__version__
    assert found["waiting, 2 patches"]["failed"] == "not done after 0 s"
    assert "1 of 2 lines have something to show" in capsys.readouterr().out


def test_a_line_that_this_machine_cannot_show_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    """What the process of a line does, and how the other one reads it."""
    assert gpu.main(["--device", "cpu", "--small", "--line", "page-locked ring"]) == 0
    said = capsys.readouterr().out
    outcome = gpu._outcome(["echo", said], 60)
    assert outcome["found"] == {"left out": "memory is page-locked for a card"}
    assert gpu._row("page-locked ring", outcome).startswith("page-locked ring | left out memory is page-locked")


def test_a_line_that_crashes_or_says_nothing_tells_why() -> None:
    crashed = gpu._outcome([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], 60)
    assert crashed["failed"] == "exit code -9: it said nothing"
    failed = gpu._outcome([sys.executable, "-c", "raise MemoryError('CUDA out of memory')"], 60)
    assert failed["failed"] == "exit code 1: MemoryError: CUDA out of memory"
    assert gpu._outcome([sys.executable, "-c", ""], -1)["failed"] == "no time was left"


@pytest.mark.slow
def test_what_a_card_computes_is_computed_on_the_processor() -> None:
    setup = gpu_lines.Setup(torch.device("cpu"), is_small=True)
    assert gpu_lines.twice(setup)["largest difference of weights, deterministic"] == 0.0
    assert set(gpu_lines.augmentation(setup)) == {"published, ms", "standard, ms"}


@pytest.mark.slow
def test_growth_is_measured_on_a_store_without_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its cases are made up, so that every operation, and `verify` above all, has to find them sound."""
    monkeypatch.setattr(growth, "FOLDER", tmp_path)
    growth.main(["--cases", "3", "6", "--rounds", "1"])
    said = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in said[1:]] == list(growth.OPERATIONS)


@pytest.mark.slow
def test_a_gate_is_flooded_while_a_site_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flood, "AFTER_S", 2.0)
    with flood.standing(tmp_path) as (server, process, pipe):
        peak, (name, *_, calls, failed, _) = flood.measured("refused", 0.01, server, process, pipe)
    assert name == "refused x50"
    assert 0 < peak < flood.LIMIT_MB
    assert int(calls) > 0
    assert failed == "0"
    assert '"why": "unknown key"' in (tmp_path / "gate.log").read_text()


def check_measured(found: dict[str, float]) -> None:
    assert found["wall s"] > 0
    assert found["user s"] > 0
    assert found["peak MB"] > 100


@pytest.mark.slow
def test_a_processor_is_measured_in_a_process_of_its_own() -> None:
    check_measured(processor.in_a_process("a volume of eight windows", "memory kept", is_small=True))


@pytest.mark.slow  # where it is the first that starts a command
def test_training_is_measured_too(tmp_path: Path) -> None:
    flags = ["--work", "three training steps", "--side", "memory kept", "--small"]
    script, root = tmp_path / "measure.py", str(Path(processor.__file__).parents[1])
    script.write_text(
        f"import runpy, sys\nsys.path.insert(0, {root!r})\n"
        "runpy.run_module('benchmarks.processor', run_name='__main__', alter_sys=True)\n"
    )
    command = Command(flags, tmp_path / "said.txt", script=script)
    assert command.wait() == 0, (tmp_path / "said.txt").read_text()
    check_measured(json.loads((tmp_path / "said.txt").read_text().splitlines()[-1]))


@pytest.mark.slow
def test_an_attack_tells_a_wrong_store_from_an_error(tmp_path: Path) -> None:
    url = tmp_path / "brain.zarr"
    hospitals = write_hospitals(tmp_path / "hospitals", num_cases=2, coarseness=4.0, names=["birch"])
    ingest(find_manifest(hospitals), str(url), attack.OPTIONS)
    reference, key = attack.contents_of(url), "birch/extent/c/0/0"
    assert attack.after_reading(url, key, reference) == "unnoticed"
    assert attack.after_repair(url, key, reference) == "whole"
    other = reference | {"birch/B001": "another digest"}
    assert attack.after_reading(url, key, other) == "wrong"
    assert attack.after_repair(url, key, other) == "wrong"
    (url / key).unlink()
    assert attack.after_reading(url, key, reference) == "named"
    assert attack.after_repair(url, key, reference) == "whole"


@pytest.mark.slow
def test_writers_are_killed_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    attack.main(["--only", "kills", "--num", "1", "--cases", "2"])
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0] for row in rows] == ["| ingest", "| remove", "| compact", "| repair"]
    assert all(int(row[1]) >= 1 and row[2:] == ["0", "0", "0 |"] for row in rows)
