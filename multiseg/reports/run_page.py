"""The page of one run, or of several side by side: how they learnt, what they reach, and the cases to look at."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from multiseg.errors import UsageError, few
from multiseg.models.learnt_scans import NOT_LEARNT, TRAIN, VAL
from multiseg.pages.page import (
    Drawing,
    HeatCell,
    HeatMap,
    Points,
    Section,
    Table,
    Text,
    draw_lines,
    drawn,
    render,
)
from multiseg.reports.picked_cases import picked_cases
from multiseg.reports.run_doubts import doubts
from multiseg.reports.run_record import EvaluationRecord, RunRecord
from multiseg.reports.training_curves import TRAINING_NOTE, training_curves, value_of
from multiseg.types import OnStep, no_progress


def run_page(
    runs: Sequence[RunRecord], device: str = "cpu", with_cases: bool = True, on_case: OnStep = no_progress
) -> str:
    """The HTML page of runs; the first one's evaluation chooses the cases that are drawn.

    Args:
        with_cases: whether cases are drawn, for which their store is read and the models answer again.
        on_case: called after each model's answer to one of them.
    """
    names = ", ".join(run.name for run in runs)
    sections = [
        Section("In short", [_facts(runs)]),
        Section("Training", training_curves(runs), TRAINING_NOTE),
        Section("What it learnt from", [_data(run, runs) for run in runs]),
        Section("Evaluation", _evaluations(runs), _evaluation_note(runs)),
        *([picked_cases(runs, device, on_case)] if with_cases and any(run.evaluations for run in runs) else []),
        Section("What to look at", [doubts(runs)]),
        Section("How it was made", _making(runs)),
    ]
    return render(f"Training {names}" if len(runs) == 1 else f"Trainings {names}", _intro(runs), sections)


def _intro(runs: Sequence[RunRecord]) -> str:
    info = runs[0].info
    structures = few(info.space.names)
    text = f"{info.builder} segments {structures} from any set of {', '.join(info.axis)}."
    return text if len(runs) == 1 else f"{len(runs)} trainings side by side. Of the first: {text}"


def _facts(runs: Sequence[RunRecord]) -> Table:
    """A row for each property, a column for each run."""
    rows: dict[str, Callable[[RunRecord], str]] = {
        "network": lambda run: run.info.builder,
        "sequences": lambda run: ", ".join(run.info.axis),
        "structures": lambda run: few(run.info.space.names),
        "voxels": lambda run: " x ".join(f"{length:g}" for length in run.info.spacing_mm) + " mm",
        "steps": lambda run: str(run.steps[-1]["step"] if run.steps else run.info.step),
        "best model": _best,
        "held-out Dice": _held_out,
        "training cases": lambda run: str(sum(count["train"] for count in run.num_cases.values())),
        "fine-tuned from": lambda run: (
            str(run.info.ancestry[-1].get("run", "another model")) if run.info.ancestry else "-"
        ),
        "licence": lambda run: run.info.licence or "-",
    }
    columns = ["", *(run.name for run in runs)]
    return Table(columns, [[name, *map(text, runs)] for name, text in rows.items()], long=columns[1:])


def _best(run: RunRecord) -> str:
    best = [event for event in run.validations if event["is_best"]]
    if not best:
        return f"of step {run.info.step}"
    return f"of step {best[-1]['step']}, validation Dice {_number(best[-1]['score'])}"


def _held_out(run: RunRecord) -> str:
    """The mean Dice of the first evaluation of this model over cases and structures, each with its largest subset."""
    rows = next((one.held_out for one in run.evaluations if one.is_current and not one.answered), pd.DataFrame())
    if not len(rows):
        return "not evaluated"
    keys = ["database", "case"]
    rows = rows[rows["num_modalities"] == rows.groupby(keys)["num_modalities"].transform("max")]
    num_cases = len(rows[keys].drop_duplicates())
    return f"{_number(rows['dice'].mean())}, mean of {num_cases} cases with the most sequences that were evaluated"


def _data(run: RunRecord, runs: Sequence[RunRecord]) -> Table:
    rows = []
    for name, about in run.info.databases.items():
        sequences = [sequence for sequence in run.info.axis if name in run.info.trained_on.get(sequence, ())]
        counts = run.num_cases.get(name, {})
        numbers = [str(counts.get(split, "-")) for split in ("train", "val")]
        licence = str(about.get("licence") or "not stated")
        rows.append([name, str(about.get("pathology", "")), " ".join(sequences), *numbers, licence])
    columns = ["database", "pathology", "sequences", "training cases", "validation cases", "licence"]
    return Table(columns, rows, columns[3:5], long=["licence"], heading=run.name if len(runs) > 1 else "")


def _evaluations(runs: Sequence[RunRecord]) -> list[HeatMap | Table | Text | Drawing]:
    if not any(run.evaluations for run in runs):
        return [Text("\n".join(f"multiseg evaluate {run.folder}" for run in runs))]
    parts: list[HeatMap | Table | Text | Drawing] = []
    for run in runs:
        for evaluation in run.evaluations:
            heading = evaluation.name if len(runs) == 1 else f"{run.name}: {evaluation.name}"
            parts += [*_heat_maps(evaluation, heading), *_reliability(evaluation, heading), _means(evaluation, heading)]
    return [_compared(runs), *parts] if len(runs) > 1 else parts


def _evaluation_note(runs: Sequence[RunRecord]) -> str:
    if not any(run.evaluations for run in runs):
        return "Nothing is evaluated yet. This command measures held-out cases; make the report again after it."
    return (
        "Heat maps: mean Dice by database (across) and set of sequences that the model got (down). An empty field has "
        "no case. Only cases that the model has not learnt from count, unless a heading says otherwise."
    )


def _reliability(evaluation: EvaluationRecord, heading: str) -> list[Drawing]:
    """The share of true voxels by probability, of all held-out cases and sets of sequences together."""
    bins = evaluation.reliability
    if bins.empty or not len(bins := bins[(bins["learnt"] == NOT_LEARNT) & (bins["probabilities"] == "calibrated")]):
        return []
    curves = {}
    for label, rows in bins.groupby("label", sort=False):
        sums = rows.assign(
            p=rows["mean_probability"] * rows["num_voxels"], true=rows["share_true"] * rows["num_voxels"]
        )
        pooled = sums.groupby("from")[["num_voxels", "p", "true"]].sum()
        means = zip(pooled["p"] / pooled["num_voxels"], pooled["true"] / pooled["num_voxels"], strict=True)
        curves[str(label)] = [(float(p), float(share)) for p, share in means]
    return [drawn(partial(_draw_reliability, curves), f"{heading}: can the probabilities be believed?")]


def _draw_reliability(curves: Mapping[str, Points], figure: Figure) -> None:
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="#999999", lw=0.8, ls="--", label="as it should be")
    draw_lines(axes, curves, "share of true voxels", "probability")
    axes.set(xlim=(0, 1), ylim=(0, 1), xticks=[0, 0.25, 0.5, 0.75, 1])
    figure.legend(loc="outside upper center", ncols=3, frameon=False)


def _heat_maps(evaluation: EvaluationRecord, heading: str) -> list[HeatMap]:
    maps = []
    summary = evaluation.summary
    for learnt in sorted(summary["learnt"].unique()):  # "", the held-out cases, comes first
        for kind, rows in _by_kind(summary[summary["learnt"] == learnt]):
            means = rows.groupby(["modalities", "database"])["dice"].mean()
            databases = list(dict.fromkeys(rows["database"]))
            subsets = sorted(set(rows["modalities"]), key=lambda name: (name.count("+"), name))
            cells = [
                (subset, [HeatCell.of(float(means.get((subset, database), math.nan))) for database in databases])
                for subset in subsets
            ]
            if means.notna().any():
                maps.append(HeatMap("sequences", databases, cells, ", ".join([heading, *kind, *_titled(str(learnt))])))
    return maps


def _titled(learnt: str) -> list[str]:
    """What a heading says of cases that are not held out."""
    uses = {TRAIN: "cases that it was TRAINED ON", VAL: "cases that CHOSE the model (validation)"}
    return [] if learnt == NOT_LEARNT else [uses.get(learnt, f"use in training: {learnt}")]


def _by_kind(rows: pd.DataFrame) -> list[tuple[list[str], pd.DataFrame]]:
    """The rows of lesions and of tissues, if there are both."""
    is_tissue = rows["label"].str.startswith("tissue:")
    if is_tissue.all() or not is_tissue.any():
        return [([], rows)]
    return [(["lesions"], rows[~is_tissue]), (["tissues"], rows[is_tissue])]


def _means(evaluation: EvaluationRecord, heading: str) -> Table:
    """The means of each database and structure over its largest set of sequences."""
    wanted = {
        "cases": "num_cases", "Dice": "dice", "SD": "dice_sd", "sensitivity": "sensitivity", "precision": "precision",
        "HD95 mm": "hd95_mm", "lesion F1": "lesion_f1", "missed": "num_missed", "false alarms": "num_false_alarms",
    }  # fmt: skip
    found = {title: name for title, name in wanted.items() if name in evaluation.summary}
    rows = []
    for (database, label, learnt), group in evaluation.summary.groupby(["database", "label", "learnt"], sort=False):
        most = group.iloc[int(group["modalities"].str.count(r"\+").to_numpy().argmax())]
        cells = [_number(most[name], whole=name.startswith("num_")) for name in found.values()]
        rows.append([str(database), str(label), str(most["modalities"]), str(learnt) or "held out", *cells])
    columns = ["database", "structure", "sequences", "use in training", *found]
    return Table(columns, rows, list(found), heading=f"{heading}: means with the largest set of sequences")


def _compared(runs: Sequence[RunRecord]) -> Table:
    """The mean Dice of each database and structure over all sets of sequences, side by side."""
    first = {run.name: run.evaluations[0].summary for run in runs if run.evaluations}
    held_out = {name: rows[rows["learnt"] == NOT_LEARNT] for name, rows in first.items()}
    means = {name: rows.groupby(["database", "label"])["dice"].mean() for name, rows in held_out.items()}
    keys = dict.fromkeys(key for values in means.values() for key in values.index)
    rows = [[*key, *(_number(values.get(key, math.nan)) for values in means.values())] for key in keys]
    heading = (
        "Side by side: mean Dice over all sets of sequences (for tests of the difference: multiseg evaluate --compare)"
    )
    return Table(["database", "structure", *means], rows, list(means), heading=heading)


def _making(runs: Sequence[RunRecord]) -> list[Table | Text]:
    parts: list[Table | Text] = []
    for run in runs:
        heading = f"{run.name}: " if len(runs) > 1 else ""
        columns = ["time", "command", "device", "multiseg", "torch", "python", "system"]
        rows = [[entry.get(column, "") for column in columns] for entry in run.commands]
        parts.append(Table(columns, rows, long=["command", "system"], heading=f"{heading}commands"))
        parts.append(Text(run.settings, f"{heading}every setting (run.toml)"))
    return parts


def _number(value: Any, whole: bool = False) -> str:
    number = value_of(value)
    return "-" if math.isnan(number) else f"{number:.0f}" if whole else f"{number:.3f}"


def check_runs(folders: Sequence[Path]) -> None:
    """Raises UsageError if a folder is named twice, or two have one name, which would be their name on the page."""
    names = [folder.resolve().name for folder in folders]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"several runs are named {twice[0]}: the page could not tell them apart. Rename a folder.")
