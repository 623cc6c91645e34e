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
from multiseg.experiments.pictures import draw_arms
from multiseg.experiments.runner import Progress, execute
from multiseg.experiments.runs import Arm, Exam, in_order
from multiseg.experiments.worker import RunTask, cases_file, is_finished, read_cases, read_done
from multiseg.files import write_atomically

TABLE, TABLE_CSV, CASES, RECORD, MONTAGE = "table.md", "table.csv", "cases.csv", "runs.json", "montage.png"


@dataclass(frozen=True)
class Machine:
    """Where experiments are computed. It does not change their results."""

    jobs: int = 2
    device: str = "cpu"


@dataclass(frozen=True, eq=False)
class Result:
    """The result of an experiment.

    Attributes:
        text: the tables as Markdown.
        failures: the reasons of failed runs, by name of the run.
    """

    name: str
    folder: Path
    text: str
    failures: Mapping[str, str]


def tasks_of(arms: Sequence[Arm], ground: Ground, folder: Path, device: str) -> list[RunTask]:
    """A task for every run, with the exams of all its arms."""
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
    """Do all trainings and tests that are missing, then write table.md, table.csv, cases.csv and runs.json.

    Experiments with a picture also write montage.png, see `pictures.draw_arms`.

    The tables are written into `folder / NAME`; the runs, which experiments share, into `folder / "runs"`. If there are
    tables of the same plan already, nothing is computed. If some runs fail, the tables show the others.

    Raises:
        DataError: every run failed.
        UsageError: the runs in the folder are of the same store, but of other cases.
    """
    claim(folder / RUNS, ground)
    out = folder / experiment.name
    arms = experiment.plan(ground)
    plan = plan_key(arms)
    if _is_done(out, plan):
        return Result(experiment.name, out, (out / TABLE).read_text(encoding="utf-8"), {})
    tasks = tasks_of(arms, ground, folder, machine.device)
    failures = execute(tasks, machine.jobs, on_progress)
    names = {task.run.key: task.run.name for task in tasks}
    reasons = {names[key]: reason for key, reason in failures.items()}
    cases = read_all_cases(arms, folder / RUNS)
    if cases.empty:
        name, reason = next(iter(reasons.items()), ("", ""))
        raise DataError(f"{experiment.name}: every run failed; {name}: {reason}")
    tables = experiment.tables(cases, ground)
    text = _markdown(experiment, ground, tables, reasons)
    write_table(out / CASES, cases)
    all_tables = pd.concat([table.frame.assign(table=table.title) for table in tables], ignore_index=True)
    write_table(out / TABLE_CSV, all_tables)
    write_atomically(out / TABLE, text.encode())
    pictured = [arm for arm in experiment.pictured(ground) if arm.run.key not in failures]
    if pictured:
        draw_arms(out / MONTAGE, pictured, folder / RUNS, ground, machine.device)
    record = {"plan": "" if failures else plan, "store": ground.store, "scale": str(ground.scale), "failures": reasons}
    runs = [_run_json(task) for task in tasks if is_finished(task)]
    write_atomically(out / RECORD, json.dumps({**record, "runs": runs}, indent=1).encode())
    return Result(experiment.name, out, text, reasons)


def plan_key(arms: Sequence[Arm]) -> str:
    """The digest of all runs and exams of a plan."""
    text = json.dumps([[arm.name, arm.run.key, arm.exam.key] for arm in arms])
    return hashlib.sha256(text.encode()).hexdigest()


def _is_done(out: Path, plan: str) -> bool:
    if not (out / RECORD).is_file():
        return False
    return bool(json.loads((out / RECORD).read_text(encoding="utf-8"))["plan"] == plan)


def read_all_cases(arms: Sequence[Arm], runs: Path) -> pd.DataFrame:
    """The rows of all finished tests, with their arm and seed."""
    frames = [
        read_cases(runs, arm.run, arm.exam).assign(arm=arm.name, seed=arm.run.seed)
        for arm in arms
        if cases_file(runs, arm.run, arm.exam).is_file()
    ]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _run_json(task: RunTask) -> dict[str, Any]:
    parent = task.run.parent.key if task.run.parent else ""
    fused = {"fused": [run.key for run in task.run.fused]} if task.run.fused else {}
    labels = {"pseudo_labels": task.run.pseudo_labels.key} if task.run.pseudo_labels else {}
    record = {"key": task.run.key, "parent": parent, **fused, **labels, "settings": task.run.settings}
    return {**record, **read_done(task.folder, task.run)}


def _markdown(experiment: Experiment, ground: Ground, tables: Sequence[Table], failures: Mapping[str, str]) -> str:
    source = f"synthetic hospitals, {ground.scale.num_cases} cases each, voxels of {ground.scale.spacing_mm} mm"
    lines = [
        f"## {experiment.name}: {experiment.question}",
        "",
        f"{experiment.authors}: {experiment.paper}. Data: {source if ground.synthetic else ground.store}. "
        f"{ground.num_seeds} seeds; {ground.scale}.",
        "",
        *(f"FAILED, and missing below: {name}: {reason}" for name, reason in failures.items()),
    ]
    return "\n".join([*lines, *(table.to_markdown() for table in tables if not table.frame.empty)])
