"""What the folder of a run holds: settings, log, data, evaluations and the commands that made them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from multiseg.commands_log import read_commands
from multiseg.errors import UsageError
from multiseg.evaluation.result_folder import SUMMARY, answered_in
from multiseg.evaluation.tables import read_table
from multiseg.models.learnt_scans import NOT_LEARNT
from multiseg.models.saved import ModelInfo, model_path, read_info
from multiseg.training.run_data import DATA
from multiseg.training.run_folder import LOG, RUN_FILE

EVALUATIONS = ("evaluation-*", "cross-validation*")
"""Patterns of the folders of evaluations in that of a run."""


@dataclass(frozen=True, eq=False)
class EvaluationRecord:
    """A saved evaluation.

    Attributes:
        about: summary.json.
        reliability: the bins of probabilities, see `evaluation.reliability`; empty without any.
        is_current: whether it is of the model that the folder holds now.
    """

    folder: Path
    cases: pd.DataFrame
    summary: pd.DataFrame
    about: Mapping[str, Any]
    is_current: bool
    reliability: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def answered(self) -> Any:
        """How the model answered, see `result_folder.answered_in`; {} if alone, as `predict` does."""
        return answered_in(self.about)

    @property
    def held_out(self) -> pd.DataFrame:
        """The rows of cases that the model has not learnt from."""
        return self.cases[self.cases["learnt"] == NOT_LEARNT]


@dataclass(frozen=True, eq=False)
class RunRecord:
    """A run.

    Attributes:
        steps, validations, notes: the events of the log.
        num_cases: the number of cases by database and split, of data.json.
        commands: see `commands_log`, of the training and of its evaluations.
    """

    name: str
    folder: Path
    info: ModelInfo
    settings: str
    steps: Sequence[Mapping[str, Any]]
    validations: Sequence[Mapping[str, Any]]
    notes: Sequence[Mapping[str, Any]]
    num_cases: Mapping[str, Mapping[str, int]]
    evaluations: Sequence[EvaluationRecord]
    commands: Sequence[Mapping[str, str]]


def read_run(folder: Path) -> RunRecord:
    """Read the folder of a run.

    Raises:
        UsageError: it is not the folder of a run.
        CheckpointError: it has no model yet, or the model cannot be read.
    """
    if not (folder / RUN_FILE).is_file():
        raise UsageError(f"{folder} is not the folder of a run: it has no {RUN_FILE}. Name the --out of a training.")
    file = model_path(folder)
    events = _events(folder / LOG)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    found = evaluation_folders(folder)
    evaluations = [_read_evaluation(place, digest) for place in found]
    return RunRecord(
        name=folder.resolve().name,
        folder=folder,
        info=read_info(file),
        settings=(folder / RUN_FILE).read_text(encoding="utf-8"),
        steps=[event for event in events if event["event"] == "StepDone"],
        validations=[event for event in events if event["event"] == "Validated"],
        notes=[event for event in events if event["event"] == "Noted"],
        num_cases=_num_cases(folder / DATA),
        evaluations=evaluations,
        commands=[entry for place in (folder, *found) for entry in read_commands(place)],
    )


def evaluation_folders(run: Path) -> list[Path]:
    """The folders of the finished evaluations in that of a run."""
    return [path.parent for name in EVALUATIONS for path in sorted(run.glob(f"{name}/{SUMMARY}"))]


def _read_evaluation(folder: Path, digest: str) -> EvaluationRecord:
    about = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    cases, summary = (_read_rows(folder / name) for name in ("cases.csv", "summary.csv"))
    bins = folder / "reliability.csv"
    reliability = _read_rows(bins) if bins.is_file() else pd.DataFrame()
    is_current = digest in about.get("models", [about.get("model")])
    return EvaluationRecord(folder, cases, summary, about, is_current, reliability)


def _read_rows(path: Path) -> pd.DataFrame:
    rows = read_table(path)
    # An empty cell of a CSV file is a missing value, and a column of nothing else is one of numbers.
    return rows.assign(learnt=rows["learnt"].astype(object).fillna(NOT_LEARNT))


def _events(path: Path) -> list[dict[str, Any]]:
    """The events of a log; a line that was cut short by a kill is left out."""
    events = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and "event" in event:
            events.append(event)
    return events


def _num_cases(path: Path) -> dict[str, dict[str, int]]:
    if not path.is_file():
        return {}
    cases = json.loads(path.read_text(encoding="utf-8"))["cases"]
    counts = Counter((name.partition("/")[0], entry["split"]) for name, entry in cases.items())
    databases = dict.fromkeys(database for database, _ in counts)
    return {name: {split: counts[name, split] for split in ("train", "val")} for name in databases}
