"""The process that executes tasks: it trains a run, then does all its exams."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from multiseg.config import checked, merged, to_options, training_settings
from multiseg.errors import DataError, MultisegError, few
from multiseg.evaluation.model_evaluation import evaluate
from multiseg.evaluation.tables import read_table, write_table
from multiseg.experiments.runs import Exam, Run
from multiseg.federation.centre.rounds import run as federate
from multiseg.federation.plan import FederationOptions
from multiseg.federation.simulation import LocalLink
from multiseg.federation.sites.limits import NONE
from multiseg.federation.sites.policy import Leaves
from multiseg.federation.sites.site import Site
from multiseg.files import write_atomically
from multiseg.models.devices import resolve_device
from multiseg.models.fused import LESION_OVER_TISSUE, load_fused
from multiseg.models.saved import Model
from multiseg.processes import leave_signals_to_parent, stop_on_signals
from multiseg.training.run import train
from multiseg.training.staged_run import write_stage_labels
from multiseg.training.stages import PSEUDO_LABEL

DONE, CASES = "done.json", "cases.csv"


@dataclass(frozen=True)
class RunTask:
    """A run with its exams. `folder` is that of all runs of all experiments."""

    run: Run
    exams: tuple[Exam, ...]
    folder: Path
    overlap: float
    device: str


@dataclass(frozen=True)
class RunOutcome:
    """The end of a run. `failure` is the reason if it failed, else ""."""

    key: str
    seconds: float
    failure: str = ""


def run_folder(folder: Path, run: Run) -> Path:
    return folder / run.key


def cases_file(folder: Path, run: Run, exam: Exam) -> Path:
    """The table of an exam, with one row per case and subset."""
    return run_folder(folder, run) / f"test-{exam.key}" / CASES


def is_trained(folder: Path, run: Run) -> bool:
    return (run_folder(folder, run) / DONE).is_file()


def read_done(folder: Path, run: Run) -> Mapping[str, object]:
    """The record of a finished run: steps, best validation, seconds, versions."""
    record: Mapping[str, object] = json.loads((run_folder(folder, run) / DONE).read_text(encoding="utf-8"))
    return record


def is_finished(task: RunTask) -> bool:
    """Whether the run is trained and all its exams are done."""
    is_examined = all(cases_file(task.folder, task.run, exam).is_file() for exam in task.exams)
    return is_examined and is_trained(task.folder, task.run)


def serve(pipe: Connection) -> None:
    """Do each task from the pipe, until it closes.

    The parent process handles Ctrl-C, and then sends SIGTERM: a training saves after its step and ends; anything else
    ends at once.
    """
    leave_signals_to_parent()
    while True:
        try:
            task: RunTask = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(do(task))
        except BrokenPipeError:
            return


def do(task: RunTask) -> RunOutcome:
    """Do what is not done yet of a task. An error of multiseg or torch becomes the failure of the outcome."""
    began = time.monotonic()
    if task.device == "cpu":
        torch.set_num_threads(1)
    try:
        if not is_trained(task.folder, task.run):
            _train(task)
        for exam in task.exams:
            if not cases_file(task.folder, task.run, exam).is_file():
                _examine(task, exam)
    except (MultisegError, NotImplementedError, RuntimeError) as error:  # the last two from torch
        return RunOutcome(task.run.key, time.monotonic() - began, f"{type(error).__name__}: {error}")
    return RunOutcome(task.run.key, time.monotonic() - began)


def _train(task: RunTask) -> None:
    began, out = time.monotonic(), run_folder(task.folder, task.run)
    best: float | None
    if task.run.fused:
        step, best = 0, None  # its models are trained by the runs that it needs
    elif task.run.settings.get("stage") == PSEUDO_LABEL:
        step, best = 0, None
        _write_pseudo_labels(task, out)
    elif task.run.federation:
        step, best = _train_federated(task, out)
    else:
        step, best = _train_centrally(task, out)
    record = {"name": task.run.name, "step": step, "best": best, "seconds": time.monotonic() - began}
    versions = {"multiseg": version("multiseg"), "torch": torch.__version__}
    write_atomically(out / DONE, json.dumps({**record, "versions": versions}, indent=1).encode())


def _train_centrally(task: RunTask, out: Path) -> tuple[int, float]:
    """Train one model of all databases. Returns the number of steps, and the best validation Dice."""
    more: dict[str, Any] = {"device": task.device, "stream": {"workers": 0}}
    if task.run.parent:
        more["start"] = {"model": str(run_folder(task.folder, task.run.parent).resolve())}
    if task.run.pseudo_labels:
        more["meta"] = {"pseudo_labels": str(run_folder(task.folder, task.run.pseudo_labels).resolve())}
    result = train(to_options(merged(task.run.settings, more)), out)
    if not result.finished:
        raise SystemExit(0)  # stopped by a signal, and saved
    return result.step, result.best


def _write_pseudo_labels(task: RunTask, out: Path) -> None:
    """Write the soft targets of a stage pseudo_label, by the model of the run before."""
    assert task.run.parent is not None
    options = to_options(merged(task.run.settings, {"device": task.device}))
    write_stage_labels(options, run_folder(task.folder, task.run.parent), out)


def _train_federated(task: RunTask, out: Path) -> tuple[int, float]:
    """Train a federation in which every database is a site. Returns steps per site, and the best validation Dice."""
    settings = {name: value for name, value in task.run.settings.items() if name not in ("store", "databases")}
    names = tuple(task.run.settings["databases"])
    roster = {"experiment": task.run.key, "sites": names}
    options = checked(training_settings(merged(settings, {**task.run.federation, **roster})), FederationOptions)
    store, device = str(task.run.settings["store"]), task.device
    public = Leaves(least=1)  # nothing to protect: the experiment has all data
    sites = {
        name: Site(name, store, out / "sites" / name, (name,), device, workers=0, leaves=public, limits=NONE)
        for name in names
    }
    with stop_on_signals() as should_stop:
        result = federate(options, LocalLink(sites, should_stop), out, should_stop=should_stop)
    if not result.finished:
        raise SystemExit(0)  # stopped by a signal, and saved
    return result.round * options.local.steps, result.best


def _examine(task: RunTask, exam: Exam) -> None:
    file = cases_file(task.folder, task.run, exam)
    file.parent.mkdir(parents=True, exist_ok=True)
    options = exam.options(task.overlap)
    device = str(resolve_device(task.device))
    model = model_of(task.folder, task.run, device) if task.run.fused else run_folder(task.folder, task.run)
    result = evaluate(model, exam.store or str(task.run.settings["store"]), options, device, file.parent)
    learnt = [*result.learnt["train"], *result.learnt["val"]]
    if learnt and exam.split == "test":
        raise DataError(
            f"the model has learnt from scans of {len(learnt)} of its test cases ({few(learnt)}): the same scan is in "
            "two splits. Move both to one split, and train again in another folder."
        )
    write_table(file, result.cases)


def model_of(folder: Path, run: Run, device: str) -> Model:
    """The best model of a finished run, or the models of a fused one."""
    paths = [run_folder(folder, one) for one in run.fused or (run,)]
    return load_fused(paths, LESION_OVER_TISSUE if run.fused else "", device)


def read_cases(folder: Path, run: Run, exam: Exam) -> pd.DataFrame:
    return read_table(cases_file(folder, run, exam))
