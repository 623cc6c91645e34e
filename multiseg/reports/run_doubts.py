"""Whatever did not go smoothly in a run and its evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from multiseg.errors import few
from multiseg.pages.page import Table
from multiseg.reports.run_record import EvaluationRecord, RunRecord

MOST_STEPS = 20
"""Of skipped steps, the first ones."""


def doubts(runs: Sequence[RunRecord]) -> Table:
    """Whatever did not go smoothly: notices, skipped steps, cases without results, structures that were never found."""
    rows = []
    for run in runs:
        rows += [[run.name, str(note["step"]), str(note["code"]), str(note["message"])] for note in run.notes]
        rows += [
            [run.name, str(event["step"]), "SKIPPED_STEP", f"loss or gradient was not finite: {event['skipped']}"]
            for event in run.steps
            if event.get("skipped")
        ][:MOST_STEPS]
        if never := _never_found(run.validations):
            rows.append([run.name, "", "NEVER_FOUND", f"its Dice was 0 in every validation: {', '.join(never)}"])
        for evaluation in run.evaluations:
            rows += [[run.name, evaluation.name, code, text] for code, text in _evaluation_doubts(evaluation)]
    return Table(["training", "where", "code", "what"], rows, long=["what"])


def _evaluation_doubts(evaluation: EvaluationRecord) -> list[tuple[str, str]]:
    about, found = evaluation.about, []
    if not evaluation.is_current:
        found.append(("OLDER_MODEL", "this evaluation is of another model than the folder holds now: evaluate again"))
    for use, cases in about.get("learnt", {}).items():
        if use not in ("", "not learnt") and cases:
            found.append(("LEARNT", f"use in training {use}: {few(cases)}"))
    for reason in dict.fromkeys(about.get("skipped", {}).values()):
        cases = [case for case, why in about["skipped"].items() if why == reason]
        found.append(("NOT_EVALUATED", f"{few(cases)}: {reason}"))
    found += [
        ("LEFT_OUT", f"{name}: {', '.join(names)}: no channel of the model")
        for name, names in about.get("left_out", {}).items()
    ]
    found += [("UNLISTED", f"{name}: {text}") for name, text in about.get("unlisted", {}).items()]
    found += [("DOUBT", f"{name}: {text}") for name, text in about.get("doubts", {}).items()]
    return found


def _never_found(validations: Sequence[Mapping[str, Any]]) -> list[str]:
    names = dict.fromkeys(name for event in validations for name in event.get("structures") or {})
    series = {
        name: [event["structures"].get(name) for event in validations if event.get("structures")] for name in names
    }
    return [name for name, values in series.items() if all(value == 0 for value in values if value is not None)]
