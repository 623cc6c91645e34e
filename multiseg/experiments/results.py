"""An experiment from plan to tables on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from multiseg.errors import DataError
from multiseg.evaluation.tables import write_table
from multiseg.experiments.by_name import Experiment
from multiseg.experiments.comparisons import Table
from multiseg.experiments.ground import RUNS, Ground, claim
from multiseg.experiments.runner import Progress, execute
from multiseg.experiments.runs import Arm, Exam, in_order
from multiseg.experiments.worker import RunTask, cases_file, is_finished, read_cases, read_done
from multiseg.files import write_atomically

TABLE, TABLE_CSV, CASES, RECORD = "table.md", "table.csv", "cases.csv", "runs.json"


@dataclass(frozen=True)
class Machine:
    """How experiments are computed: it does not change what they find."""

    jobs: int = 2
    device: str = "cpu"


@dataclass(frozen=True, eq=False)
class Result:
    """What an experiment left: its folder and tables as Markdown; by run's name, why it failed."""

    name: str
    folder: Path
    text: str
    failures: Mapping[str, str]


def tasks_of(arms: Sequence[Arm], ground: Ground, folder: Path, device: str) -> list[RunTask]:
    """Every run once, with all tests that some arm wants of it."""
    exams: dict[str, dict[Exam, None]] = {}
    for arm in arms:
        exams.setdefault(arm.run.key, {})[arm.exam] = None
    return [
        RunTask(run, tuple(exams.get(run.key, {})), folder / RUNS, ground.scale.overlap, device)
        for run in in_order(arms)
    ]


def run_experiment(
    experiment: Experiment,
    ground: Ground,
    folder: Path,
    machine: Machine = Machine(),
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Result:
    """Train and test what is missing, then write table.md, table.csv, cases.csv and runs.json.

    They go into `folder / NAME`; the runs, which experiments share, into `folder / "runs"`. Where the tables
    of the same plan are there already nothing is computed. Tables of what did not fail are written all the same.

    Raises:
        DataError: every run failed.
        UsageError: the folder's runs stand on other cases of the same store.
    """
    claim(folder / RUNS, ground)
    out = folder / experiment.name
    arms = experiment.plan(ground)
    plan = plan_key(arms)
    if _is_done(out, plan):
        return Result(experiment.name, out, (out / TABLE).read_text(encoding="utf-8"), {})
    tasks = tasks_of(arms, ground, folder, machine.device)
    failures = execute(tasks, machine.jobs, on_progress)
    by_key = {task.run.key: task for task in tasks}
    named = {by_key[key].run.name: why for key, why in failures.items()}
    cases = gathered(arms, folder / RUNS)
    if cases.empty:
        first = next(iter(named.items()), ("", ""))
        raise DataError(f"{experiment.name}: every run failed; {first[0]}: {first[1]}")
    made = experiment.tables(cases, ground)
    text = _markdown(experiment, ground, made, named)
    write_table(out / CASES, cases)
    write_table(out / TABLE_CSV, _together(made))
    write_atomically(out / TABLE, text.encode())
    record = {"plan": "" if failures else plan, "store": ground.store, "scale": str(ground.scale), "failures": named}
    runs = [_told(task) for task in tasks if is_finished(task)]
    write_atomically(out / RECORD, json.dumps({**record, "runs": runs}, indent=1).encode())
    return Result(experiment.name, out, text, named)


def plan_key(arms: Sequence[Arm]) -> str:
    """What is wanted, whole: another plan gives another key."""
    text = json.dumps([[arm.name, arm.run.key, arm.exam.key] for arm in arms])
    return hashlib.sha256(text.encode()).hexdigest()


def _is_done(out: Path, plan: str) -> bool:
    if not (out / RECORD).is_file():
        return False
    told: Mapping[str, Any] = json.loads((out / RECORD).read_text(encoding="utf-8"))
    return bool(told["plan"] == plan)


def gathered(arms: Sequence[Arm], runs: Path) -> pd.DataFrame:
    """The rows of all tests that there are, with their arm and seed."""
    found = [
        read_cases(runs, arm.run, arm.exam).assign(arm=arm.name, seed=arm.run.seed)
        for arm in arms
        if cases_file(runs, arm.run, arm.exam).is_file()
    ]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def _told(task: RunTask) -> dict[str, Any]:
    parent = task.run.parent.key if task.run.parent else ""
    return {"key": task.run.key, "parent": parent, "settings": task.run.settings, **read_done(task.folder, task.run)}


def _together(made: Sequence[Table]) -> pd.DataFrame:
    return pd.concat([table.frame.assign(table=table.title) for table in made], ignore_index=True)


def _markdown(experiment: Experiment, ground: Ground, made: Sequence[Table], failures: Mapping[str, str]) -> str:
    source = f"synthetic hospitals, {ground.scale.num_cases} cases each, voxels of {ground.scale.spacing_mm} mm"
    lines = [
        f"## {experiment.name}: {experiment.question}",
        "",
        f"Xu et al. 2024: {experiment.paper}. Data: {source if ground.synthetic else ground.store}. "
        f"{ground.num_seeds} seeds; {ground.scale}.",
        "",
        *(f"FAILED, and missing below: {name}: {why}" for name, why in failures.items()),
    ]
    return "\n".join([*lines, *(table.to_markdown() for table in made if not table.frame.empty)])
