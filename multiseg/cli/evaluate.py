"""Verb: evaluate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from multiseg.cli.shared_flags import (
    Adapt,
    AnsweringBranch,
    AsJson,
    Device,
    Ensemble,
    Fuse,
    Memory,
    Overwrite,
    Tta,
    checked_adapt,
    checked_ensemble,
)
from multiseg.errors import UsageError

if TYPE_CHECKING:
    from multiseg.evaluation.comparison import ScoringOptions
    from multiseg.evaluation.evaluation_result import EvaluateOptions
    from multiseg.evaluation.voting import Voters
    from multiseg.models.saved import Model
    from multiseg.store.reader import Store


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
    adapt_to: Annotated[
        str,
        typer.Option(
            help="The lesion for --adapt: found (by the model), half or quarter (of it), or true (the annotated one, "
            "so that the numbers are no held-out performance)."
        ),
    ] = "found"
    branch: AnsweringBranch = ""
    tta: Tta = False
    memory: Memory = ""

    def options(self, scoring: ScoringFlags) -> EvaluateOptions:
        from multiseg.evaluation.evaluation_result import EvaluateOptions

        split, databases = "" if self.split == "all" else self.split, tuple(self.database or ())
        is_adapted = checked_adapt(self.adapt)
        return EvaluateOptions(
            split=split,
            databases=databases,
            subsets=self.subsets,
            overlap=self.overlap,
            lesion_assumed=self.lesion_assumed,
            zones=self.zones,
            adapt=is_adapted,
            adapt_to=self.adapt_to,
            branch=self.branch,
            scoring=scoring.options(),
            tta=self.tta,
            memory=self.memory,
        )


@dataclass(frozen=True)
class ScoringFlags:
    """How predictions are scored."""

    tolerance: Annotated[float, typer.Option(help="Of the surface Dice, in mm.", min=0)] = 1.0
    lesion_rule: Annotated[
        str,
        typer.Option(
            help="What is one lesion, and which count: ours, brats-gli, brats-ssa, brats-ped, brats-men or brats-met."
        ),
    ] = "ours"
    empty: Annotated[
        str,
        typer.Option(help="A case where truth and prediction are empty: undefined, or brats, which counts it as 1."),
    ] = "undefined"

    def options(self) -> ScoringOptions:
        from multiseg.evaluation.comparison import ScoringOptions

        return ScoringOptions(self.tolerance, self.lesion_rule, self.empty)


@dataclass(frozen=True)
class SeveralFlags:
    """What several runs are to each other: at most one of these."""

    fuse: Fuse = ""
    ensemble: Ensemble = ""
    is_compared: Annotated[
        bool, typer.Option("--compare", help="Evaluate each run on the same cases, and compare them with the first.")
    ] = False
    is_folds: Annotated[
        bool,
        typer.Option(
            "--folds", help="The runs are those of all folds (train --fold): each is tested on its own, in one table."
        ),
    ] = False

    @property
    def given(self) -> list[str]:
        """The names of the flags that are set."""
        ensemble = checked_ensemble(self.ensemble)
        flags = {"--fuse": self.fuse, "--ensemble": ensemble, "--compare": self.is_compared, "--folds": self.is_folds}
        return [flag for flag, value in flags.items() if value]


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
        typer.Argument(
            help="A run folder or a model file; two with --fuse; several with --ensemble or --compare; those of all "
            "folds with --folds; none with --predictions."
        ),
    ] = None,
    *,
    cases: CaseFlags,
    scoring: ScoringFlags,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the results (default: RUN/evaluation-SPLIT, with --store and --database in its name)."
        ),
    ] = None,
    metric: Annotated[
        list[str] | None, typer.Option(help="Add your own metric, MODULE:NAME; see docs/extending.md.")
    ] = None,
    several: SeveralFlags,
    files: FileFlags,
    overwrite: Overwrite = False,
    device: Device = "auto",
    as_json: AsJson = False,
) -> int:
    """Measure overlap, surface distances, volumes and lesions of held-out cases for every subset of their sequences.

    Cases that the model was trained on are recognised by their voxels, and shown in a separate table.
    docs/evaluation.md defines every number.

    Examples:

    multiseg evaluate runs/joint

    multiseg evaluate runs/joint --store other.zarr --split all

    multiseg evaluate runs/joint --lesion-rule brats-gli --empty brats --tolerance 2

    multiseg evaluate runs/joint runs/plain --compare

    multiseg evaluate runs/fold-0 runs/fold-1 runs/fold-2 --folds

    multiseg evaluate runs/seed1 runs/seed2 --ensemble mean --tta

    multiseg evaluate runs/tissue runs/lesion --fuse lesion-over-tissue

    multiseg evaluate runs/two --branch anatomy --zones --adapt on

    multiseg evaluate runs/two --branch anatomy --zones --adapt on --adapt-to half

    multiseg evaluate --predictions "out/{case}.nii.gz" --labels "2=tissue:WM,7=lesion" --name SAMSEG --store all.zarr
    """
    from multiseg.cli.command_note import note_command
    from multiseg.cli.console import messages, print_json
    from multiseg.cli.evaluation_tables import evaluation_progress, learnt_warnings, print_evaluation
    from multiseg.cli.run_comparison import ComparePlan, compare_command
    from multiseg.evaluation.cross_validation import evaluate_folds
    from multiseg.evaluation.file_evaluation import PredictionFiles, evaluate_files
    from multiseg.evaluation.model_evaluation import evaluate
    from multiseg.models.devices import resolve_device
    from multiseg.store.reader import open_store

    models, metrics, options = runs or [], metric or (), cases.options(scoring)
    _check_flags(models, several, cases, files)
    folder = out or _default_folder(models, files.name, cases, several)
    if several.is_compared:
        plan = ComparePlan(tuple(models), cases.store, options, folder, tuple(metrics), overwrite)
        done = compare_command(plan, str(resolve_device(device)), as_json)
        _tell_of_scans(models, cases)
        return done
    with evaluation_progress(as_json) as on_case:
        if files.predictions:
            program, store = PredictionFiles(files.predictions, files.labels, files.name), open_store(cases.store)
            result = evaluate_files(program, store, options, folder, on_case, metrics, overwrite)
        elif several.is_folds:
            resolved = str(resolve_device(device))
            result = evaluate_folds(models, cases.store, options, resolved, folder, on_case, metrics, overwrite)
        else:
            resolved = str(resolve_device(device))
            model, evaluated = _model_and_store(models, several, cases.store, resolved, cases.branch)
            result = evaluate(model, evaluated, options, resolved, folder, on_case, metrics, overwrite)
    result.save(folder, overwrite)
    note_command(folder, device, keep=False)
    if as_json:
        print_json({"folder": str(folder), **result.to_json()})
    else:
        print_evaluation(result, folder)
        for warning in learnt_warnings(result.learnt) if models else []:
            messages().print(warning, soft_wrap=True, markup=False)
    _tell_of_scans(models, cases, are_all_tested=several.is_folds)
    return 0


def _check_flags(runs: Sequence[Path], several: SeveralFlags, cases: CaseFlags, files: FileFlags) -> None:
    """Raises UsageError if a flag is missing, or would have no effect beside another."""
    given = [*several.given, *(["--predictions"] if files.predictions else [])]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} exclude each other: leave all but one of them out.")
    if several.is_folds and cases.split != CaseFlags.split:
        raise UsageError("--folds tests every case of the store once: leave out --split.")
    if not files.predictions:
        if files.labels or files.name:
            raise UsageError("--labels and --name belong to --predictions: name its files, too.")
        if not runs:
            raise UsageError("name a run folder or a model file, or files to evaluate: --predictions.")
        if len(runs) > 1 and not given:
            raise UsageError(
                f"{len(runs)} models are given: say how they answer together, --fuse lesion-over-tissue or --ensemble "
                "mean, or compare them: --compare. The runs of a cross-validation are evaluated as one with --folds."
            )
        return
    needed = {"--labels": files.labels, "--name": files.name, "--store": cases.store}
    if missing := [flag for flag, value in needed.items() if not value]:
        raise UsageError(f"--predictions needs {', '.join(missing)}, too.")
    if runs:
        raise UsageError(f"evaluate either {runs[0]} or the files of --predictions, not both.")
    names = ("adapt", "adapt_to", "branch", "tta", "memory", "subsets", "overlap")
    if any(getattr(cases, name) != getattr(CaseFlags, name) for name in names):
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in names)
        raise UsageError(f"{flags} are for models: leave them out with --predictions.")


def _model_and_store(
    runs: Sequence[Path], several: SeveralFlags, store: str, device: str, branch: str
) -> tuple[Path | Model | Voters, str | None]:
    """What to evaluate, and on which store: None takes the one of the training."""
    from multiseg.evaluation.model_evaluation import load_ensemble, store_of_run
    from multiseg.models.fused import load_fused

    if several.ensemble:
        return load_ensemble(runs, several.ensemble, device, branch), store or store_of_run(runs[0])
    if not several.fuse and len(runs) == 1:
        return runs[0], store or None
    return load_fused(runs, several.fuse, device), store or store_of_run(runs[0])


def _tell_of_scans(runs: Sequence[Path], cases: CaseFlags, are_all_tested: bool = False) -> None:
    """Print what the learnt scans and the databases of the models say about the evaluated store, as it is now."""
    from multiseg.evaluation.model_evaluation import store_of_run
    from multiseg.store.reader import open_store

    if not runs:  # files of another program
        return
    store = open_store(cases.store or store_of_run(runs[0]))  # again: cases may have been removed in the meantime
    _warn_of_removed(runs, store)
    if not are_all_tested:
        _name_untested(runs, cases, store)


def _warn_of_removed(runs: Sequence[Path], store: Store) -> None:
    """Print a warning for each model that has learnt from scans which the evaluated store no longer has."""
    from multiseg.cli.model import warn_of_removed
    from multiseg.models.saved import model_path, read_learnt

    for run in runs:
        warn_of_removed(store, read_learnt(model_path(run)))


def _name_untested(runs: Sequence[Path], cases: CaseFlags, store: Store) -> None:
    """Print which databases that the models learnt from have no case to evaluate."""
    from multiseg.cli.console import messages
    from multiseg.cli.evaluation_tables import untested
    from multiseg.models.saved import model_path, read_info

    known = dict.fromkeys(name for run in runs for name in read_info(model_path(run)).databases)
    names = [name for name in known if not cases.database or name in cases.database]
    if not names or cases.split == "all":
        return
    for text in untested(names, store, cases.split):
        messages().print(text, soft_wrap=True, markup=False)


def _default_folder(runs: Sequence[Path], name: str, cases: CaseFlags, several: SeveralFlags) -> Path:
    """Beside the first model; for files of a program beside the current folder's other results."""
    what = "comparison" if several.is_compared else "cross-validation" if several.is_folds else "evaluation"
    ways = {"adapted": checked_adapt(cases.adapt), "tta": cases.tta, several.ensemble: several.ensemble}
    lesion = "" if cases.adapt_to == CaseFlags.adapt_to else f"to-{cases.adapt_to}"
    taken = [way for way, is_taken in {**ways, lesion: lesion, cases.branch: cases.branch}.items() if is_taken]
    databases = [*(cases.database or []), *taken]
    if not runs:
        return Path(f"{_folder_name(what, cases.split, cases.store, databases)}-{name}")
    first, *others = runs
    names = [] if several.is_folds else [run.name if run.is_dir() else run.stem for run in others]
    return (first if first.is_dir() else first.parent) / _folder_name(
        what, cases.split, cases.store, [*databases, *names]
    )


def _folder_name(what: str, split: str, store: str, databases: Sequence[str]) -> str:
    """A name for each selection of cases, so that evaluations do not overwrite each other."""
    return "-".join([what, split, *([Path(store).stem] if store else []), *databases])
