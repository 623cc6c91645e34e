"""Evaluate the runs of all folds as one: each person by the run that has not learnt from any of their scans."""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from multiseg.errors import CheckpointError, DataError, UsageError, few
from multiseg.evaluation.comparison import summary_of
from multiseg.evaluation.evaluation_result import MONTAGE_CASES, EvaluateOptions, Evaluation
from multiseg.evaluation.model_evaluation import evaluate
from multiseg.evaluation.own_metrics import Metrics
from multiseg.evaluation.reliability import joined_tables
from multiseg.evaluation.result_folder import FOLDS, check_room, key_of
from multiseg.evaluation.slice_panel import SlicePanel
from multiseg.models.learnt_scans import NOT_KNOWN, TRAIN, VAL, how_learnt
from multiseg.models.saved import model_path, read_learnt
from multiseg.store.catalogue import select
from multiseg.store.folds import Fold, people_of, read_fold, take_fold
from multiseg.store.reader import Store, open_store

RUN_FILE = "run.toml"


@dataclass(frozen=True)
class FoldRun:
    """A run that was trained without one fold of its store."""

    folder: Path
    fold: Fold
    store: str


def evaluate_folds(
    runs: Sequence[Path | str],
    store: str = "",
    options: EvaluateOptions | None = None,
    device: str = "cpu",
    folder: Path | str | None = None,
    on_case: Callable[[int, int, str], None] = lambda done, total, case: None,
    metrics: Metrics = (),
    overwrite: bool = False,
) -> Evaluation:
    """Evaluate every run on the fold that it was trained without, and put all cases into one evaluation.

    Every case of the store is tested once; the column `fold` of its rows says in which fold.

    Args:
        runs: the run folders of all folds, in any order.
        store: "" takes the one that they were trained from.
        options: of `evaluate`; the split stays "test", which is the fold.
        folder: where the results will be saved. Done cases are kept there, those of fold 0 in the folder fold-0.

    Raises:
        UsageError: a run is of no fold, or twice; the runs are of other folds, seeds or stores; a fold is missing; the
            options name another split; or the folder holds something else.
        DataError: a run has learnt from a person of its fold, or from no case of the store.
    """
    options = options or EvaluateOptions()
    if options.split != "test":
        raise UsageError(f"the cases of a fold are tested, so the split {options.split or 'all'!r} cannot be chosen.")
    fold_runs = checked_fold_runs([Path(run) for run in runs], store)
    opened = open_store(store or fold_runs[0].store)
    for run in fold_runs:
        take_fold(opened, run.fold)
        _check_held_out(run, opened)
    folder = None if folder is None else Path(folder)
    done, tested = [], []
    for run in fold_runs:
        take_fold(opened, run.fold)
        if options.databases and not select(opened, options.databases, split=options.split):
            continue  # a database with fewer people than folds is missing in some of them
        tested.append(run)
        place = folder / f"fold-{run.fold.index}" if folder else None
        done.append(evaluate(run.folder, opened, options, device, place, on_case, metrics, overwrite))
    if not done:
        raise DataError(f"no fold has a case of {', '.join(options.databases)}.")
    whole = _joined(done, tested)
    if folder:
        check_room(folder, whole.key, overwrite)
    return whole


def checked_fold_runs(folders: Sequence[Path], store: str = "") -> tuple[FoldRun, ...]:
    """The runs in the order of their folds, which are all folds of one store, number and seed.

    Args:
        store: if given, the runs may have been trained from other ones, since a store may have moved.

    Raises:
        UsageError: see `evaluate_folds`.
    """
    if not folders:
        raise UsageError("name the run folders of all folds, such as runs/fold-0 runs/fold-1 runs/fold-2.")
    runs = sorted((_fold_run(folder) for folder in folders), key=lambda run: run.fold.index)
    first = runs[0]
    for what, values in (
        ("numbers of folds", [str(run.fold.number) for run in runs]),
        ("seeds of folds", [str(run.fold.seed) for run in runs]),
        ("stores", [store or run.store for run in runs]),
    ):
        if len(set(values)) > 1:
            listed = ", ".join(f"{run.folder}: {value}" for run, value in zip(runs, values, strict=True))
            raise UsageError(f"the runs have different {what} ({listed}): name the runs of one cross-validation.")
    counts = Counter(run.fold.index for run in runs)
    if twice := [run for run in runs if counts[run.fold.index] > 1]:
        listed = ", ".join(f"{run.folder}: {run.fold}" for run in twice)
        raise UsageError(f"a fold is given twice ({listed}): name one run for each fold.")
    if missing := [Fold(index, first.fold.number) for index in range(first.fold.number) if not counts[index]]:
        listed = ", ".join(map(str, missing))
        seed = f" --fold-seed {first.fold.seed}" if first.fold.seed else ""
        raise UsageError(
            f"there is no run of the fold {listed}, so its people would not be tested: name it, or train it with "
            f"multiseg train {store or first.store} --fold {missing[0]}{seed}."
        )
    return tuple(runs)


def _fold_run(folder: Path) -> FoldRun:
    try:
        settings = tomllib.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{folder} has no {RUN_FILE} that says which fold it is of: name a run folder.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{folder / RUN_FILE} is damaged: {error}.") from error
    fold = settings.get("fold", "")
    if not fold:
        raise UsageError(
            f"{folder} was trained on the splits of its store, and not without a fold of it: evaluate it without "
            "--folds, or train folds with multiseg train STORE --fold 0/5."
        )
    return FoldRun(folder, read_fold(fold, settings.get("fold_seed", 0)), str(settings["store"]))


def _check_held_out(run: FoldRun, store: Store) -> None:
    """Check that a run has not learnt from the people that it is to be tested on.

    Args:
        store: with the splits of the run's fold.

    Raises:
        DataError: it has learnt from one of them; or from no case of this store, which then is another one.
    """
    learnt = read_learnt(model_path(run.folder))
    uses = {case: how_learnt(learnt, case.content.values()) for case in store.cases}
    if not {TRAIN, VAL, NOT_KNOWN} & set(uses.values()):
        raise DataError(f"{run.folder} has learnt from no case of {store.url}: name the store that it was trained on.")
    known = [
        f"{case.database}/{case.name}"
        for person in people_of(store.cases)
        if person[0].split == "test" and any(uses[case] in (TRAIN, VAL) for case in person)
        for case in person
    ]
    if known:
        raise DataError(
            f"{run.folder} has learnt from people of its fold {run.fold}, so they are not held out: {few(known)}. "
            "Folds are made of all cases of a store, so it must not change between them. Train this fold again, from "
            "fresh weights or from a model that has learnt from none of these."
        )


def _joined(done: Sequence[Evaluation], runs: Sequence[FoldRun]) -> Evaluation:
    """The evaluations of all folds as one."""
    first = done[0]
    tables = [one.cases.assign(fold=run.fold.index) for one, run in zip(done, runs, strict=True)]
    cases = pd.concat(tables, ignore_index=True)
    num_shown: Counter[str] = Counter()
    panels: list[SlicePanel] = []
    for panel in (panel for one in done for panel in one.panels):
        database = panel.name.partition("/")[0]
        num_shown[database] += 1
        if num_shown[database] <= MONTAGE_CASES:
            panels.append(panel)
    left_out: dict[str, tuple[str, ...]] = {}
    for database, names in (item for one in done for item in one.left_out.items()):
        left_out[database] = tuple(dict.fromkeys((*left_out.get(database, ()), *names)))
    bins = joined_tables([one.reliability for one in done])
    return Evaluation(
        cases=cases,
        summary=summary_of(cases, first.own_metrics, bins),
        panels=tuple(panels),
        split=first.split,
        left_out=left_out,
        skipped={name: reason for one in done for name, reason in one.skipped.items()},
        own_metrics=first.own_metrics,
        unlisted={name: text for one in done for name, text in one.unlisted.items()},
        key=key_of(*(one.key for one in done), *(str(run.fold) for run in runs), *(run.fold.seed for run in runs)),
        scoring=first.scoring,
        reliability=bins,
        is_calibrated=any(one.is_calibrated for one in done),
        models=tuple(one.model for one in done),
        store=first.store,
        answered={**first.answered, FOLDS: runs[0].fold.number},
        overlap=first.overlap,
        parts={f"fold-{run.fold.index}": one for one, run in zip(done, runs, strict=True)},
    )
