"""Verb: evaluate."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from multiseg.cli.shared_flags import Adapt, AsJson, Device, Fuse, Overwrite, checked_adapt
from multiseg.errors import UsageError, few

if TYPE_CHECKING:
    from multiseg.evaluation.evaluation_result import EvaluateOptions, Evaluation
    from multiseg.models.saved import Model


@dataclass(frozen=True)
class CaseFlags:
    """Which cases are evaluated, and how."""

    store: Annotated[str, typer.Option(help="A store (default: the one of the training).")] = ""
    split: Annotated[str, typer.Option(help='train, val, test, or "all".')] = "test"
    database: Annotated[list[str] | None, typer.Option(help="Only these databases.")] = None
    subsets: Annotated[str, typer.Option(help='"all", the "full" set, or a list: FLAIR,FLAIR+T1.')] = "all"
    overlap: Annotated[float, typer.Option(help="Overlap of the sliding windows.", min=0, max=0.9)] = 0.5
    lesion_assumed: Annotated[
        bool,
        typer.Option(
            "--lesion-assumed",
            help="Put the annotated lesions into every prediction first, to measure tissues where there is no lesion.",
        ),
    ] = False
    zones: Annotated[
        bool, typer.Option("--zones", help="Also the Dice of tissues under the lesion, within 10 mm, and elsewhere.")
    ] = False
    adapt: Adapt = "off"

    def options(self) -> EvaluateOptions:
        from multiseg.evaluation.evaluation_result import EvaluateOptions

        split, databases = "" if self.split == "all" else self.split, tuple(self.database or ())
        is_adapted = checked_adapt(self.adapt)
        return EvaluateOptions(
            split, databases, self.subsets, self.overlap, self.lesion_assumed, self.zones, is_adapted
        )


@dataclass(frozen=True)
class FileFlags:
    """The files of another program, which are evaluated instead of a model."""

    predictions: Annotated[
        str, typer.Option(help='Evaluate files in native space instead of a model, such as "out/{case}.nii.gz".')
    ] = ""
    labels: Annotated[
        str, typer.Option(help='The meaning of their codes, such as "1=tissue:CSF,2=tissue:GM,7=lesion".')
    ] = ""
    name: Annotated[str, typer.Option(help="The name of the program that made them, for the tables.")] = ""


def evaluate_command(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(help="A run folder or a model file; two with --fuse; none with --predictions."),
    ] = None,
    *,
    cases: CaseFlags,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the results (default: RUN/evaluation-SPLIT, with --store and --database in its name)."
        ),
    ] = None,
    metric: Annotated[
        list[str] | None, typer.Option(help="Add your own metric, MODULE:NAME; see docs/extending.md.")
    ] = None,
    fuse: Fuse = "",
    files: FileFlags,
    overwrite: Overwrite = False,
    device: Device = "auto",
    as_json: AsJson = False,
) -> int:
    """Compute Dice, sensitivity, precision, ASSD and HD95 of held-out cases for every subset of their sequences.

    Cases that the model was trained on are recognised by their voxels, and shown in a separate table.

    Examples:

    multiseg evaluate runs/joint

    multiseg evaluate runs/joint --store other.zarr --split all

    multiseg evaluate runs/tissue runs/lesion --fuse lesion-over-tissue

    multiseg evaluate --predictions "out/{case}.nii.gz" --labels "2=tissue:WM,7=lesion" --name SAMSEG --store all.zarr
    """
    from multiseg.cli.console import messages, print_json
    from multiseg.evaluation.file_evaluation import PredictionFiles, evaluate_files
    from multiseg.evaluation.model_evaluation import evaluate
    from multiseg.models.devices import resolve_device
    from multiseg.store.reader import open_store

    models, metrics = runs or [], metric or ()
    _check_flags(models, fuse, cases, files)
    folder = out or _default_folder(models, files.name, cases)
    with _progress(as_json) as on_case:
        if files.predictions:
            program, opened = PredictionFiles(files.predictions, files.labels, files.name), open_store(cases.store)
            result = evaluate_files(program, opened, cases.options(), folder, on_case, metrics, overwrite)
        else:
            resolved = str(resolve_device(device))
            model, store = _model_and_store(models, fuse, cases.store, resolved)
            result = evaluate(model, store, cases.options(), resolved, folder, on_case, metrics, overwrite)
    result.save(folder, overwrite)
    if as_json:
        print_json({"folder": str(folder), **result.to_json()})
    else:
        _print_evaluation(result, folder)
        for warning in _learnt_warnings(result.learnt) if models else []:
            messages().print(warning, soft_wrap=True, markup=False)
    _warn_of_removed(models, cases.store)
    return 0


def _check_flags(runs: Sequence[Path], fuse: str, cases: CaseFlags, files: FileFlags) -> None:
    """Raises UsageError if a flag is missing, or would have no effect beside another."""
    if not files.predictions:
        if files.labels or files.name:
            raise UsageError("--labels and --name belong to --predictions: name its files, too.")
        if not runs:
            raise UsageError("name a run folder or a model file, or files to evaluate: --predictions.")
        return
    needed = {"--labels": files.labels, "--name": files.name, "--store": cases.store}
    if missing := [flag for flag, value in needed.items() if not value]:
        raise UsageError(f"--predictions needs {', '.join(missing)}, too.")
    if runs:
        raise UsageError(f"evaluate either {runs[0]} or the files of --predictions, not both.")
    changed = any(getattr(cases, name) != getattr(CaseFlags, name) for name in ("subsets", "overlap", "adapt"))
    if fuse or changed:
        raise UsageError("--fuse, --adapt, --subsets and --overlap are for models: leave them out with --predictions.")


@contextmanager
def _progress(is_quiet: bool) -> Iterator[Callable[[int, int, str], None]]:
    """A progress bar; where none can be drawn, a line for each case."""
    from rich.progress import TaskID

    from multiseg.cli.console import messages, progress_bar

    with progress_bar("evaluate", 1) as bar:

        def on_case(done: int, total: int, case: str) -> None:
            bar.update(TaskID(0), completed=done, total=total, details=case)
            if bar.disable and not is_quiet:
                messages().print(f"{done + 1}/{total} {case}", soft_wrap=True)

        yield on_case


def _model_and_store(runs: Sequence[Path], fuse: str, store: str, device: str) -> tuple[Path | Model, str | None]:
    """What to evaluate, and on which store: None takes the one of the training."""
    from multiseg.evaluation.model_evaluation import store_of_run
    from multiseg.models.fused import load_fused

    if not fuse and len(runs) == 1:
        return runs[0], store or None
    return load_fused(runs, fuse, device), store or store_of_run(runs[0])


def _warn_of_removed(runs: Sequence[Path], store: str) -> None:
    """Print a warning for each model that has learnt from scans which the evaluated store no longer has."""
    from multiseg.cli.model import warn_of_removed
    from multiseg.evaluation.model_evaluation import store_of_run
    from multiseg.models.saved import model_path, read_learnt
    from multiseg.store.reader import open_store

    for run in runs:
        warn_of_removed(open_store(store or store_of_run(runs[0])), read_learnt(model_path(run)))


def _default_folder(runs: Sequence[Path], name: str, cases: CaseFlags) -> Path:
    """Beside the first model; for files of a program beside the current folder's other results."""
    databases = [*(cases.database or []), *(["adapted"] if checked_adapt(cases.adapt) else [])]
    if not runs:
        return Path(f"{_folder_name(cases.split, cases.store, databases)}-{name}")
    first, *others = runs
    names = [run.name if run.is_dir() else run.stem for run in others]
    return (first if first.is_dir() else first.parent) / _folder_name(cases.split, cases.store, [*databases, *names])


def _folder_name(split: str, store: str, databases: Sequence[str]) -> str:
    """A name for each selection of cases, so that evaluations do not overwrite each other."""
    return "-".join(["evaluation", split, *([Path(store).stem] if store else []), *databases])


def _print_evaluation(result: Evaluation, folder: Path) -> None:
    from multiseg.cli.console import messages, output, print_table

    numbers = ["dice", "sensitivity", "precision", "assd_mm", "hd95_mm", *result.own_metrics]
    counts = ["num_with_lesion", "num_missed", "num_lesion_free", "num_false_alarms"]
    titles = [
        *("Dice", "sens.", "prec.", "ASSD mm", "HD95 mm", *result.own_metrics),
        *("with lesion", "missed", "lesion-free", "false alarms"),
    ]
    keys = ["database", "label", "modalities"] if result.summary["label"].nunique() > 1 else ["database", "modalities"]
    columns = [*("sequences" if name == "modalities" else name for name in keys), *titles]
    for learnt, group in result.summary.groupby("learnt", sort=True):  # "", the held-out cases, comes first
        rows = [
            [row[name] for name in keys]
            + [_number(row, name) for name in numbers]
            + [str(row[name]) for name in counts]
            for row in group.to_dict("records")
        ]
        print_table(f"{result.title_of(str(learnt))}, mean by subset of sequences", columns, rows, right=titles)
    output().print(result.policy)
    for database, names in result.left_out.items():
        messages().print(f"{database}: {', '.join(names)} left out: the model has no trained channel for it.")
    for database, text in result.unlisted.items():
        messages().print(f"{database}: {text}.", soft_wrap=True)
    for case, text in result.doubts.items():
        messages().print(f"{case}: {text}", soft_wrap=True, markup=False)
    for reason in dict.fromkeys(result.skipped.values()):
        cases = [case for case, why in result.skipped.items() if why == reason]
        messages().print(f"not evaluated: {few(cases)}: {reason}.", soft_wrap=True)
    output().print(f"Written to {folder}: cases.csv, summary.csv, summary.json, montage.png", soft_wrap=True)


def _number(row: Mapping[Hashable, Any], name: str) -> str:
    return "-" if math.isnan(row[name]) else f"{row[name]:.{1 if name.endswith('mm') else 3}f}"


def _learnt_warnings(learnt: Mapping[str, Sequence[str]]) -> list[str]:
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
