"""What `evaluate` prints: its progress, tables and warnings."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.progress import TaskID

from multiseg.cli.console import messages, output, print_table, progress_bar
from multiseg.errors import few
from multiseg.evaluation.evaluation_result import Evaluation
from multiseg.evaluation.lesions import SIZES
from multiseg.evaluation.reliability import error_changes, expected_and_true
from multiseg.store.reader import Store

Row = Mapping[Hashable, Any]
COUNTS = {
    "with lesion": "num_with_lesion",
    "missed": "num_missed",
    "lesion-free": "num_lesion_free",
    "false alarms": "num_false_alarms",
}


@contextmanager
def evaluation_progress(is_quiet: bool, what: str = "evaluate") -> Iterator[Callable[[int, int, str], None]]:
    """A progress bar; where none can be drawn, a line for each case."""
    with progress_bar(what, 1) as bar:

        def on_case(done: int, total: int, case: str) -> None:
            bar.update(TaskID(0), completed=done, total=total, details=case)
            if bar.disable and not is_quiet:
                messages().print(f"{done + 1}/{total} {case}", soft_wrap=True)

        yield on_case


def print_evaluation(result: Evaluation, folder: Path) -> None:
    """Print the tables of an evaluation, how its numbers are meant, and what was left out."""
    keys = ["database", "label", "modalities"] if result.summary["label"].nunique() > 1 else ["database", "modalities"]
    for learnt, group in result.summary.groupby("learnt", sort=True):  # "", the held-out cases, comes first
        rows = group.to_dict("records")
        title = result.title_of(str(learnt))
        _print_rows(f"{title}, mean by subset of sequences", keys, rows, _means(result.own_metrics))
        _print_rows(f"{title}: lesions, surfaces, volumes and pooled voxels", keys, rows, _trust())
        if len(result.reliability):
            _print_rows(f"{title}: probabilities", keys, rows, _probabilities(result.is_calibrated))
    scoring, rule = result.scoring, result.scoring.rule
    least = "more than" if rule.more_than else "at least"
    output().print(
        f"Lesions by the rule {scoring.lesion_rule}: {least} {rule.volume_mm3:g} mm3, dilation {rule.dilation}; found "
        f"of each size in mm3. Surface Dice within {scoring.tolerance_mm:g} mm. Pooled: the voxels of all cases."
    )
    output().print(result.policy)
    _print_confidence(result)
    _print_left_out(result)
    more = ", reliability.csv, reliability.png" if len(result.reliability) else ""
    output().print(f"Written to {folder}: cases.csv, summary.csv, summary.json, montage.png{more}", soft_wrap=True)


def _print_confidence(result: Evaluation) -> None:
    """Whether the calibration has helped, and whether the expected Dice orders the cases as the true one does."""
    if not len(result.reliability):
        return
    if not result.is_calibrated:
        output().print("The model is not calibrated: multiseg calibrate.")
    for change in error_changes(result.summary) if result.is_calibrated else []:
        output().print(
            f"{result.title_of(change['learnt'])}: the calibration lowers the error of the pooled voxels in "
            f"{change['num_lower']} of {change['num_cells']} cells (database, structure, subset)."
        )
    for row in expected_and_true(result.cases):
        rho = "-" if math.isnan(row["spearman"]) else f"{row['spearman']:.2f}"
        if not row["database"]:
            output().print(
                f"{result.title_of(row['learnt'])}: Spearman's rho of the expected and the true Dice of {row['label']} "
                f"{rho} over {row['num_rows']} cases and subsets; to look at: "
                f"{row['num_look_at_this']}.",
                markup=False,
            )


def learnt_warnings(learnt: Mapping[str, Sequence[str]]) -> list[str]:
    """A warning for each kind of cases that are not held out, with their number and the first few names."""
    num_cases = sum(map(len, learnt.values()))
    warnings = {
        "train": "the model was TRAINED ON {}: their results do not hold for new patients.",
        "val": "the model was CHOSEN BY {} (validation): their results are too optimistic.",
        "not known": "it is not known whether the model learnt from {}: its file does not list all its scans.",
    }
    return [
        text.format(f"{len(learnt[use])} of the {num_cases} cases ({few(learnt[use])})")
        for use, text in warnings.items()
        if learnt[use]
    ]


def untested(names: Iterable[str], store: Store, split: str) -> list[str]:
    """One line for each of these databases that is in the store, but has no case of the split."""
    found = []
    for name in names:
        cases = store.databases[name].cases if name in store.databases else ()
        counts = Counter(case.split for case in cases)
        if cases and split and not counts[split]:
            others = ", ".join(f"{num} in {other or 'no split'}" for other, num in counts.items())
            found.append(
                f"{name}: not evaluated, since no case of it is in the split {split} ({others}). Ingest it with a "
                "share for it (--split train=0.7,val=0.1,test=0.2) and train again, or cross-validate: train --fold, "
                "evaluate --folds."
            )
    return found


def _print_rows(
    title: str, keys: Sequence[str], rows: Sequence[Row], columns: Mapping[str, Callable[[Row], str]]
) -> None:
    cells = [[row[key] for key in keys] + [text(row) for text in columns.values()] for row in rows]
    names = ["sequences" if key == "modalities" else key for key in keys]
    print_table(title, [*names, *columns], cells, right=list(columns))


def _means(own_metrics: Sequence[str]) -> dict[str, Callable[[Row], str]]:
    """The columns of means and counts, by title."""
    columns: dict[str, Callable[[Row], str]] = {
        "Dice": lambda row: number(row, "dice"),
        "SD": lambda row: number(row, "dice_sd"),
        "sens.": lambda row: number(row, "sensitivity"),
        "prec.": lambda row: number(row, "precision"),
        "ASSD mm": lambda row: number(row, "assd_mm"),
        "HD95 mm": lambda row: number(row, "hd95_mm"),
    }
    columns |= {name: _shown(name) for name in own_metrics}
    return columns | {title: _counted(name) for title, name in COUNTS.items()}


def _trust() -> dict[str, Callable[[Row], str]]:
    """The columns of lesions, surfaces, volumes and pooled voxels, by title."""
    sizes = [size.removesuffix("_mm3").replace("_to_", "-") for size in SIZES]
    titles = [size.replace("under_", "<").replace("over_", ">") for size in sizes]
    return {
        "pooled Dice": _shown("dice_pooled"),
        "pooled sens.": _shown("sensitivity_pooled"),
        "pooled prec.": _shown("precision_pooled"),
        "surface Dice": _shown("surface_dice"),
        "volume %": lambda row: number(row, "volume_difference_percent", "+.0f"),
        "lesion F1": _shown("lesion_f1"),
        "lesion Dice": _shown("lesion_dice"),
        "lesion HD95 mm": _shown("lesion_hd95_mm"),
        "false": _counted("num_lesions_false"),
        **{title: _found(size) for title, size in zip(titles, SIZES, strict=True)},
    }


def _probabilities(is_calibrated: bool) -> dict[str, Callable[[Row], str]]:
    """The columns of calibration and of the expected Dice, by title."""
    uncalibrated = {"uncalibrated": _shown("ece_uncalibrated_pooled")} if is_calibrated else {}
    return {
        "pooled ECE": _shown("ece_pooled"),
        **uncalibrated,
        "ECE": _shown("ece"),
        "Brier": lambda row: number(row, "brier", ".5f"),
        "expected Dice": _shown("expected_dice"),
        "true Dice": _shown("dice"),
        "look at": _counted("num_look_at_this"),
    }


def _shown(name: str) -> Callable[[Row], str]:
    return lambda row: number(row, name)


def _counted(name: str) -> Callable[[Row], str]:
    return lambda row: number(row, name, ".0f")


def _found(size: str) -> Callable[[Row], str]:
    """How many lesions of a size were found, of how many."""
    found, lesions = f"num_found_{size}", f"num_lesions_{size}"
    return lambda row: f"{number(row, found, '.0f')}/{number(row, lesions, '.0f')}" if row[lesions] > 0 else "-"


def number(row: Row, name: str, form: str = "") -> str:
    """A number with three decimals, or one if it is a distance; a dash if it is undefined."""
    return "-" if math.isnan(row[name]) else format(row[name], form or (".1f" if name.endswith("mm") else ".3f"))


def _print_left_out(result: Evaluation) -> None:
    for database, names in result.left_out.items():
        messages().print(f"{database}: {', '.join(names)} left out: the model has no trained channel for it.")
    for database, text in result.unlisted.items():
        messages().print(f"{database}: {text}.", soft_wrap=True)
    for case, text in result.doubts.items():
        messages().print(f"{case}: {text}", soft_wrap=True, markup=False)
    for reason in dict.fromkeys(result.skipped.values()):
        cases = [case for case, why in result.skipped.items() if why == reason]
        messages().print(f"not evaluated: {few(cases)}: {reason}.", soft_wrap=True)
