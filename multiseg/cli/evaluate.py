"""Verb: evaluate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from multiseg.cli.shared_flags import AsJson, Device, Overwrite
from multiseg.errors import few

if TYPE_CHECKING:
    from multiseg.evaluation.model_evaluation import Evaluation


def evaluate_command(
    run: Annotated[Path, typer.Argument(help="A run folder or a model file.")],
    store: Annotated[str, typer.Option(help="Another store than the run's own.")] = "",
    split: Annotated[str, typer.Option(help='train, val, test, or "all".')] = "test",
    database: Annotated[list[str] | None, typer.Option(help="Only these databases.")] = None,
    subsets: Annotated[str, typer.Option(help='"all", the "full" set, or a list: FLAIR,FLAIR+T1.')] = "all",
    overlap: Annotated[float, typer.Option(help="Of the sliding windows.", min=0, max=0.9)] = 0.5,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the results (default: RUN/evaluation-SPLIT, with --store and --database in its name)."
        ),
    ] = None,
    metric: Annotated[
        list[str] | None, typer.Option(help="Your own as MODULE:NAME, besides; see docs/extending.md.")
    ] = None,
    overwrite: Overwrite = False,
    device: Device = "auto",
    as_json: AsJson = False,
) -> int:
    """Dice, sensitivity, precision, ASSD and HD95 of held-out cases for every subset of their sequences.

    Cases that the model has learnt from are recognised by their voxels, named, and shown apart.

    Examples:

    multiseg evaluate runs/joint

    multiseg evaluate runs/joint --store other.zarr --split all
    """
    from rich.progress import TaskID

    from multiseg.cli.console import messages, print_json, progress_bar
    from multiseg.cli.model import warn_of_removed
    from multiseg.evaluation.model_evaluation import EvaluateOptions, evaluate, store_of_run
    from multiseg.models.devices import resolve_device
    from multiseg.models.saved import model_path, read_learnt
    from multiseg.store.reader import open_store

    folder = out or (run if run.is_dir() else run.parent) / _folder_name(split, store, database or [])
    options = EvaluateOptions("" if split == "all" else split, tuple(database or ()), subsets, overlap)
    with progress_bar("evaluate", 1) as bar:

        def on_case(done: int, total: int, case: str) -> None:
            bar.update(TaskID(0), completed=done, total=total, details=case)
            if bar.disable and not as_json:
                messages().print(f"{done + 1}/{total} {case}", soft_wrap=True)

        on = str(resolve_device(device))
        result = evaluate(run, store or None, options, on, folder, on_case, metric or (), overwrite)
    result.save(folder, overwrite)
    if as_json:
        print_json({"folder": str(folder), **result.to_json()})
    else:
        _print_evaluation(result, folder)
    warn_of_removed(open_store(store or store_of_run(run)), read_learnt(model_path(run)))
    return 0


def _folder_name(split: str, store: str, databases: Sequence[str]) -> str:
    """What is evaluated, in words, so that another evaluation does not take its place."""
    return "-".join(["evaluation", split, *([Path(store).stem] if store else []), *databases])


def _print_evaluation(result: Evaluation, folder: Path) -> None:
    from multiseg.cli.console import messages, output, print_table
    from multiseg.evaluation.model_evaluation import POLICY
    from multiseg.evaluation.own_metrics import POLICY as OWN_POLICY

    numbers = ["dice", "sensitivity", "precision", "assd_mm", "hd95_mm", *result.own_metrics]
    counts = ["num_with_lesion", "num_missed", "num_lesion_free", "num_false_alarms"]
    titles = [
        "Dice",
        "sens.",
        "prec.",
        "ASSD mm",
        "HD95 mm",
        *result.own_metrics,
        "with lesion",
        "missed",
        "lesion-free",
        "false alarms",
    ]
    several = result.summary["label"].nunique() > 1
    columns = ["database", *(["label"] if several else []), "sequences", *titles]
    for learnt, group in result.summary.groupby("learnt", sort=True):  # "", and so what is held out, comes first
        rows = [
            [row["database"], *([row["label"]] if several else []), row["modalities"]]
            + ["-" if row[n] != row[n] else f"{row[n]:.{1 if n.endswith('mm') else 3}f}" for n in numbers]
            + [str(row[n]) for n in counts]
            for row in group.to_dict("records")
        ]
        print_table(f"{result.title_of(str(learnt))}, mean by subset of sequences", columns, rows, right=titles)
    output().print(f"{POLICY} {OWN_POLICY}" if result.own_metrics else POLICY)
    for warning in _learnt_warnings(result.learnt):
        messages().print(warning, soft_wrap=True, markup=False)
    for database, names in result.left_out.items():
        messages().print(f"{database}: {', '.join(names)} left out: the model has no trained channel for it.")
    for database, text in result.unlisted.items():
        messages().print(f"{database}: {text}.", soft_wrap=True)
    for reason, cases in _by_reason(result.skipped).items():
        messages().print(f"not evaluated: {cases}: {reason}.", soft_wrap=True)
    output().print(f"Written to {folder}: cases.csv, summary.csv, summary.json, montage.png", soft_wrap=True)


def _learnt_warnings(learnt: Mapping[str, Sequence[str]]) -> list[str]:
    """What has to be said of cases that are not held out, with their number and the first few by name."""
    num = sum(map(len, learnt.values()))
    said = {
        "train": "the model was TRAINED ON {}: their results say nothing of new patients.",
        "val": "the model was CHOSEN BY {} (validation): their results flatter it.",
        "not known": "whether the model learnt from {} is not known: its file does not say of all its scans.",
    }
    return [
        text.format(f"{len(learnt[how])} of the {num} cases ({few(learnt[how])})")
        for how, text in said.items()
        if learnt[how]
    ]


def _by_reason(skipped: Mapping[str, str]) -> dict[str, str]:
    """The cases that share a reason, the first few by name."""
    by_reason: dict[str, list[str]] = {}
    for case, reason in skipped.items():
        by_reason.setdefault(reason, []).append(case)
    return {reason: few(cases) for reason, cases in by_reason.items()}
