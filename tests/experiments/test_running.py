"""Experiments computed, tiny: shared, gone on with, and named where they fail."""

import json
import os
import shutil
import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import zarr
from commands import Command

from multiseg.errors import DataError, UsageError
from multiseg.experiments import worker
from multiseg.experiments.by_name import EXPERIMENTS
from multiseg.experiments.ground import Ground, claim, ground_of
from multiseg.experiments.results import Machine, run_experiment
from multiseg.experiments.runner import Progress, execute
from multiseg.experiments.runs import Exam, Run, joint, single, training
from multiseg.experiments.scales import SCALES
from multiseg.experiments.worker import RunTask, is_finished, read_cases, run_folder
from multiseg.store.reader import open_store

TINY = replace(SCALES["tiny"], plus_widths=(4, 4, 8))


@pytest.fixture
def ground(store_url: str) -> Ground:
    return ground_of(store_url, TINY, num_seeds=1)


def task(run: Run, folder: Path, databases: tuple[str, ...] = ("alder",)) -> RunTask:
    return RunTask(run, (Exam(databases),), folder / "runs", overlap=0.0, device="cpu")


def test_a_users_own_store(ground: Ground) -> None:
    assert ground.training == ("alder", "birch", "cedar", "dogwood")
    assert set(ground.sequences["cedar"]) == {"FLAIR", "DWI", "ADC"}
    assert not ground.synthetic


@pytest.mark.slow
def test_runs_on_a_store_that_has_changed_are_not_taken_for_its_own(ground: Ground, tmp_path: Path) -> None:
    runs = tmp_path / "experiment" / "runs"
    claim(runs, ground)
    claim(runs, ground)
    assert ground.digest == ground_of(ground.store, TINY, num_seeds=2).digest
    with pytest.raises(UsageError, match=r"were made before the cases of .* changed. Choose another --out"):
        claim(runs, replace(ground, digest="other"))


@pytest.mark.slow
def test_a_store_of_one_database_is_refused(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    import multiseg.experiments.ground as module

    monkeypatch.setattr(module, "open_store", lambda url: {})
    with pytest.raises(UsageError, match="has 0 databases with an annotated lesion"):
        ground_of(ground.store, TINY, 1)


@pytest.mark.slow
def test_a_failing_run_and_its_child_are_named_and_the_others_go_on(ground: Ground, tmp_path: Path) -> None:
    good = joint(ground, 0)
    bad = training(ground, "bad", ["alder"], 0, {"model": {"builder": "nonesuch"}})
    child = training(ground, "child", ["alder"], 0, {"start": {"method": "finetune"}}, bad)
    told: list[Progress] = []
    failures = execute([task(run, tmp_path) for run in (bad, child, good)], jobs=1, on_progress=told.append)
    assert failures.keys() == {bad.key, child.key}
    assert "there is no network 'nonesuch'" in failures[bad.key]
    assert failures[child.key] == f"it needs {bad.name}, which failed"
    assert [one.what for one in told if one.task.run == good] == ["started", "finished"]
    rows = read_cases(tmp_path / "runs", good, Exam(("alder",)))
    assert set(rows["database"]) == {"alder"}
    assert rows["num_modalities"].tolist() == [4] * len(rows)
    again: list[Progress] = []
    assert execute([task(good, tmp_path)], jobs=1, on_progress=again.append) == {}
    assert [one.what for one in again] == ["finished before"]


@pytest.mark.slow
def test_a_test_case_whose_scan_was_learnt_from_is_no_test(store_url: str, tmp_path: Path) -> None:
    url = str(tmp_path / "copy.zarr")
    shutil.copytree(store_url, url)
    cases = {case.split: case for case in open_store(url)["alder"].cases}
    content = zarr.open_group(url, mode="r+")["alder"]["content"]
    content[cases["test"].row] = content[cases["train"].row]
    one = task(single(ground_of(url, TINY, 1), "alder", 0), tmp_path)
    why = worker.do(one).failure
    assert f"has learnt from scans of 1 of its test cases (alder/{cases['test'].name})" in why
    assert not is_finished(one)


@pytest.mark.slow
def test_a_process_that_dies_is_named_and_replaced(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import multiseg.experiments.runner as module

    good, fatal = joint(ground, 0), joint(ground, 1)
    monkeypatch.setattr(module, "serve", partial(dying, fatal.key))
    failures = execute([task(run, tmp_path) for run in (fatal, good)], jobs=1)
    assert failures.keys() == {fatal.key}
    assert "its process ended with exit code 7" in failures[fatal.key]
    assert is_finished(task(good, tmp_path))


def dying(fatal: str, pipe: object) -> None:
    """A worker whose process ends at the task of this key."""
    plain = worker.do

    def do(task: RunTask) -> worker.RunOutcome:
        if task.run.key == fatal:
            os._exit(7)
        return plain(task)

    worker.do = do
    worker.serve(pipe)  # type: ignore[arg-type]


@pytest.mark.slow
def test_tables_are_written_once_and_what_is_there_is_not_computed_again(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run_experiment(EXPERIMENTS["plus"], ground, tmp_path, Machine(jobs=2))
    assert result.failures == {}
    assert sorted(path.name for path in result.folder.iterdir()) == ["cases.csv", "runs.json", "table.csv", "table.md"]
    assert "| multi_unet_plus - multi_unet |" in result.text
    assert "patches of 8 x 8 x 8 voxels" in result.text
    cases = pd.read_csv(result.folder / "cases.csv")
    assert set(cases["arm"]) == {"multi_unet", "multi_unet_plus"}
    assert {"seed", "database", "case", "modalities", "dice", "assd_mm"} <= set(cases)
    record = json.loads((result.folder / "runs.json").read_text())
    assert [run["step"] for run in record["runs"]] == [TINY.steps] * 2
    assert record["runs"][1]["settings"]["model"]["norm"] == "instance_affine"

    monkeypatch.setattr("multiseg.experiments.results.execute", None)
    assert run_experiment(EXPERIMENTS["plus"], ground, tmp_path).text == result.text
    with pytest.raises(TypeError):  # another plan is not taken for it
        run_experiment(EXPERIMENTS["plus"], replace(ground, num_seeds=2), tmp_path)


@pytest.mark.slow
def test_nothing_but_failures_is_no_result(ground: Ground, tmp_path: Path) -> None:
    broken = replace(ground, scale=replace(TINY, widths=(1, 1), plus_widths=(1, 1)))
    with pytest.raises(DataError, match=r"plus: every run failed; multi_unet.* on all.*UsageError: widths"):
        run_experiment(EXPERIMENTS["plus"], broken, tmp_path, Machine(jobs=1))


@pytest.mark.slow
def test_an_interruption_saves_the_training_in_hand(ground: Ground, tmp_path: Path) -> None:
    """Interrupted in the middle of a long training; that a training goes on from there is tested where it is."""
    out = tmp_path / "out"
    command = [
        "experiment", "plus", "--out", str(out), "--store", ground.store, "--scale", "tiny",
        "--seeds", "1", "--jobs", "1", "--device", "cpu", "--steps",
    ]  # fmt: skip
    process = Command([*command, "3000"])
    deadline = time.monotonic() + 600
    while not list(out.glob("runs/*/log.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 130
    (folder,) = (found for found in (out / "runs").iterdir() if found.is_dir())
    assert (folder / "resume.pt").is_file()
    assert not (folder / "done.json").exists()
    steps = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert 0 < steps[-1]["step"] < 3000
    assert run_folder(out / "runs", joint(replace(ground, scale=TINY), 0)) != folder  # other steps, another run
