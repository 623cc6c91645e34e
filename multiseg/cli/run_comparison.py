"""`evaluate --compare`: several runs on the same cases, and what is printed of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from multiseg.cli.console import messages, output, print_json, print_table
from multiseg.cli.evaluation_tables import evaluation_progress, learnt_warnings
from multiseg.errors import UsageError, few
from multiseg.evaluation.evaluation_result import EvaluateOptions, Evaluation
from multiseg.evaluation.model_evaluation import evaluate, store_of_run
from multiseg.evaluation.paired_runs import NOTE, Comparison, check_comparison_room, compare, names_of

WIDTH = 80
LONGEST = 18
"""Of a database's name, before it is folded."""


@dataclass(frozen=True)
class ComparePlan:
    """Which runs are compared, on what, and where the results are written.

    Attributes:
        store: "" takes the one that all runs were trained from.
        folder: for the comparison, with a folder for the evaluation of each run.
    """

    runs: tuple[Path, ...]
    store: str
    options: EvaluateOptions
    folder: Path
    metrics: tuple[str, ...]
    overwrite: bool


def compare_command(plan: ComparePlan, device: str, as_json: bool) -> int:
    """Evaluate each run, compare them, save and print. An interrupted comparison resumes: no evaluation is saved, and
    its progress removed, before all are done.

    Raises:
        UsageError: the runs cannot be told apart, were trained from several stores, or the folder holds other results.
    """
    names, store = names_of(plan.runs), plan.store or _common_store(plan.runs)
    check_comparison_room(plan.folder, names, plan.overwrite)
    evaluations: dict[str, Evaluation] = {}
    for name, run in zip(names, plan.runs, strict=True):
        if not as_json:
            messages().print(f"{name}:", soft_wrap=True, markup=False)
        with evaluation_progress(as_json) as on_case:
            folder = plan.folder / name
            evaluations[name] = evaluate(
                run, store, plan.options, device, folder, on_case, plan.metrics, plan.overwrite
            )
    result = compare(evaluations)
    for name, one in evaluations.items():
        one.save(plan.folder / name, plan.overwrite)
    result.save(plan.folder, plan.overwrite)
    if as_json:
        print_json({"folder": str(plan.folder), **result.to_json()})
        return 0
    print_comparison(result)
    for name, one in evaluations.items():
        for warning in learnt_warnings(one.learnt):
            messages().print(f"{name}: {warning}", soft_wrap=True, markup=False)
    output().print(
        f"Written to {plan.folder}: comparison.csv, subsets.csv, differences.csv, comparison.json; and the evaluation "
        "of each run",
        soft_wrap=True,
    )
    return 0


def print_comparison(result: Comparison) -> None:
    """Print the Dice of each pair of runs by database, what is worst, and which rows only one of them has."""
    dice = result.by_database[result.by_database["metric"] == "dice"]
    for (run, learnt, label), rows in dice.groupby(["run", "learnt", "label"], sort=False):
        title = f"Dice of {label}: {run} minus {result.names[0]}{_learnt_words(str(learnt))}"
        columns = ["database", "cases", "first", "other", "diff.", "95% interval", "p Holm"]
        print_table(title, columns, map(_cells, rows.to_dict("records")), right=columns[1:], width=WIDTH)
    console = output()
    for record in result.worst:
        console.print(_worst_line(record, result.names[0]), width=WIDTH, markup=False)
    for name, cases in result.missing_cases.items():
        messages().print(f"left out, since {name} has no row of them: {few(cases, 20)}.", soft_wrap=True, markup=False)
        for case in cases:
            if reason := result.skipped[name].get(case):
                messages().print(f"  {case}: {reason}.", soft_wrap=True, markup=False)
    for name, texts in result.missing_rows.items():
        messages().print(f"left out, since {name} has no such row: {few(texts, 20)}.", soft_wrap=True, markup=False)
    console.print(f"{result.policy} {NOTE}", width=WIDTH, markup=False)


def _common_store(runs: Sequence[Path]) -> str:
    stores = {store_of_run(run): run for run in runs}
    if len(stores) > 1:
        listed = ", ".join(f"{run} from {store}" for store, run in stores.items())
        raise UsageError(f"the runs were trained from several stores: {listed}. Name the one to compare on: --store.")
    return next(iter(stores))


def _learnt_words(learnt: str) -> str:
    words = {
        "train": ", cases that one was TRAINED ON",
        "val": ", cases by which one was CHOSEN",
        "not known": ", not known whether one learnt from them",
    }
    return words.get(learnt, "")


def _cells(row: Mapping[Any, Any]) -> list[str]:
    interval = "-" if math.isnan(row["low"]) else f"{row['low']:+.3f} {row['high']:+.3f}"
    cases = f"{row['num_cases']}" + (f" of {row['num_cases'] + row['num_undefined']}" if row["num_undefined"] else "")
    values = (_number(row["baseline_mean"]), _number(row["mean"]), _number(row["difference"], "+.3f"))
    return [_folded(str(row["database"])), cases, *values, interval, _number(row["p_holm"])]


def _folded(name: str) -> str:
    return "\n".join(name[start : start + LONGEST] for start in range(0, len(name), LONGEST))


def _number(value: float, form: str = ".3f") -> str:
    return "-" if pd.isna(value) else format(value, form)


def _worst_line(record: Mapping[str, Any], baseline: str) -> str:
    place = " ".join(str(record[key]) for key in ("database", "label", "modalities") if key in record)
    cases = f"{record['num_cases']} cases{_learnt_words(record['learnt'])}"
    if record["value_of"] == "dice":
        return f"{record['run']}: worst {record['what']} {place}, Dice {record['value']:.3f} ({cases})"
    return (
        f"{record['run']} minus {baseline}: worst {record['what']} {place}, difference {record['value']:+.3f} ({cases})"
    )
