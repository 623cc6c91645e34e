"""Evaluate a model on held-out cases, for every subset of their sequences; cases it learnt from are kept apart."""

from __future__ import annotations

import hashlib
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors.torch import save

from multiseg.allocator import keep_memory
from multiseg.errors import DataError, UsageError
from multiseg.evaluation.adaptation import FOUND, TRUE_LESION, check_adaptable
from multiseg.evaluation.case_answers import check_mirrored
from multiseg.evaluation.comparison import (
    COLUMNS,
    compared_rows,
    summary_of,
    why_not_comparable,
)
from multiseg.evaluation.evaluation_result import MONTAGE_CASES, EvaluateOptions, Evaluation
from multiseg.evaluation.memory_budget import check_prepared, peak_bytes
from multiseg.evaluation.own_metrics import Metric, Metrics, identity_of, named_metrics
from multiseg.evaluation.panels import compared_panel
from multiseg.evaluation.reliability import BINS, Confidence, confidence_row, reliability_table
from multiseg.evaluation.result_folder import ENSEMBLE, DoneCases, Rows, check_room, key_of
from multiseg.evaluation.slice_panel import SlicePanel, slice_of
from multiseg.evaluation.stored_answers import CaseAnswer, LoadedCase, answer_to, answers, load_case
from multiseg.evaluation.subsets import check_subsets, chosen_subsets
from multiseg.evaluation.voting import Voters, check_once
from multiseg.evaluation.zones import further_columns, zone_values
from multiseg.labels import IGNORE, LabelSpace
from multiseg.models.learnt_scans import TRAIN, VAL, how_learnt
from multiseg.models.saved import Model, ModelInfo, load_model, model_path
from multiseg.store.catalogue import select
from multiseg.store.hierarchy import is_remote, local_path
from multiseg.store.reader import Case, Store, open_store
from multiseg.types import Codes


def evaluate(
    run: Path | str | Model | Voters,
    store: Store | str | None = None,
    options: EvaluateOptions | None = None,
    device: str = "cpu",
    folder: Path | str | None = None,
    on_case: Callable[[int, int, str], None] = lambda done, total, case: None,
    metrics: Metrics = (),
    overwrite: bool = False,
) -> Evaluation:
    """Evaluate a model file or a run folder on the store it was trained from, or on another.

    Args:
        run: a model file, a run folder, a loaded model or an ensemble of them (see `load_ensemble`). What is loaded
            stays on its device and needs `store`.
        folder: where the results will be saved. Done cases are kept there, so that an interrupted evaluation
            resumes. None keeps nothing.
        on_case: called before each case with the number of done cases, the number of cases, and its name.
        metrics: your own functions, by name or in a list, or as module:name. Each is called as
            (predicted, truth, spacing_mm) with masks [i j k] for every case, subset and structure, and gets a column.
        overwrite: whether the results of another evaluation in the folder may be replaced.

    Raises:
        UsageError: a metric cannot be called, fails, or has the name of a column; or the folder holds something else,
            see `check_room`.
        CheckpointError, StoreError: the model or the store cannot be opened.
        DataError: no case fits, or the voxel sizes differ.
    """
    options = options or EvaluateOptions()
    if not options.memory:  # what is kept does not fit into a budget
        keep_memory()
    check_subsets(options.subsets)
    own = named_metrics(metrics)
    model = _voters_of(run, device, options.branch)
    if options.adapt:
        if len(model.models) > 1:
            raise UsageError("evaluate adapts one model at a time: leave out --adapt, or the ensemble.")
        check_adaptable(model.models[0])
    if options.tta:
        check_mirrored(model.space)
    if not isinstance(store, Store):
        store = open_store(store or store_of_run(run))
    check_spacing(model.info, store)
    selected = select(store, options.databases, split=options.split)
    cases, skipped = _divided(model, store, selected, options)
    folder = None if folder is None else Path(folder)
    place = store.url if is_remote(store.url) else str(local_path(store.url).resolve())
    digest = _digest(run)
    # What an older multiseg began, which had neither a branch nor a lesion to choose, is resumed.
    later = [value for value in (model.branch, adapt_to_of(options)) if value]
    identity = (digest, place, options, options.scoring.definitions, COLUMNS, identity_of(own), *later)
    if folder:
        check_room(folder, key_of(*identity), overwrite)
    done = DoneCases(folder, *identity)
    panels: list[SlicePanel] = []
    num_seen: Counter[str] = Counter()
    for index, case in enumerate(cases):
        on_case(index, len(cases), f"{case.database}/{case.name}")
        peak = peak_bytes()
        loaded, predicted = load_case(model, store, case, options), None
        check_prepared(peak, options.answer.memory)
        if case_key(case) not in done.rows:
            rows, predicted = _rows(model, loaded, options, own)
            done.add(case_key(case), rows)
        num_seen[case.database] += 1
        if num_seen[case.database] <= MONTAGE_CASES:
            panels.append(_panel(model, loaded, predicted, options))
        del loaded, predicted  # before the next case is read
    all_rows = [_with_learnt(model, case, row) for case in cases for row in done.rows[case_key(case)]]
    table = pd.DataFrame([{name: value for name, value in row.items() if name != BINS} for row in all_rows])
    bins = reliability_table(all_rows)
    return Evaluation(
        cases=table,
        summary=summary_of(table, further_columns(options.zones, own), bins),
        panels=tuple(panels),
        split=options.split,
        left_out=_left_out(model, selected),
        skipped=skipped,
        own_metrics=further_columns(options.zones, own),
        unlisted=_unlisted(model, store, cases),
        key=done.key,
        model=digest,
        scoring=options.scoring,
        reliability=bins,
        calibration=model.info.calibration,
        is_calibrated=model.is_calibrated,
        models=tuple(map(_file_digest, model.files)) if len(model.files) > 1 else (),
        store=place,
        answered={**replace(options, branch=model.branch).answered, **({ENSEMBLE: model.rule} if model.rule else {})},
        overlap=options.overlap,
    )


def _divided(
    model: Voters, store: Store, selected: Sequence[Case], options: EvaluateOptions
) -> tuple[list[Case], dict[str, str]]:
    """The cases that can be evaluated, and by name why the others cannot; raises DataError if there is none."""
    reasons = {f"{case.database}/{case.name}": _why_skipped(model, store, case, options) for case in selected}
    skipped = {name: reason for name, reason in reasons.items() if reason}
    cases = [case for case in selected if f"{case.database}/{case.name}" not in skipped]
    if not cases:
        why = "; ".join(dict.fromkeys(skipped.values()))
        raise DataError(
            f"{store.url} has no case of the split {options.split or 'any'!r} that can be evaluated"
            + (f": {why}. " if why else ". ")
            + f"The model knows {', '.join(model.info.usable(tuple(model.info.axis)))}."
        )
    return cases, skipped


def adapt_to_of(options: EvaluateOptions) -> str:
    """The lesion that a model is adapted to; "" where it is all that the model finds, as by default."""
    return "" if options.adapt_to == FOUND else options.adapt_to


def case_key(case: Case) -> str:
    """The key of a case's results: they stay valid while its files and its grid are the same."""
    return f"{case.database}/{case.name} {case.source_sha256[:16]} {'x'.join(map(str, case.extent))}"


def _with_learnt(model: Voters, case: Case, row: Mapping[str, Any]) -> dict[str, Any]:
    learnt = how_learnt(model.learnt, case.content.values())
    return {"database": row["database"], "case": row["case"], "learnt": learnt, **row}


def _voters_of(run: Path | str | Model | Voters, device: str, branch: str) -> Voters:
    if isinstance(run, Voters):
        if run.branch and branch not in ("", run.branch):
            raise UsageError(f"these models were loaded for the branch {run.branch}, not for {branch}: name one.")
        return replace(run, branch=branch or run.branch)
    return Voters((run if isinstance(run, Model) else load_model(run, device),), branch=branch)


def load_ensemble(runs: Sequence[Path | str], rule: str, device: str = "cpu", branch: str = "") -> Voters:
    """Several models that answer together: by "mean" of their probabilities or by "vote".

    Args:
        branch: what of each answers, as in `EvaluateOptions`.

    Raises:
        UsageError: they do not fit together, are only one, or one is given twice; or there is no such rule or branch.
        CheckpointError: a model cannot be opened.
    """
    check_once(runs)
    models = tuple(load_model(run, device) for run in runs)
    return Voters(models, rule, files=tuple(map(Path, runs)), branch=branch)


def _digest(run: Path | str | Model | Voters) -> str:
    """A digest of the evaluated model; of an ensemble one of them all."""
    if isinstance(run, Voters):
        digests = sorted(map(_digest, run.models))
        return hashlib.sha256(repr((run.rule, digests)).encode()).hexdigest() if run.rule else digests[0]
    if not isinstance(run, Model):
        return _file_digest(Path(run))
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in run.state_dict().items()}
    return hashlib.sha256(repr(run.info).encode() + save(weights)).hexdigest()


def _file_digest(run: Path) -> str:
    return hashlib.sha256(model_path(run).read_bytes()).hexdigest()


def store_of_run(run: Path | str | Model | Voters) -> str:
    """The store that a run folder was trained from, from its run.toml.

    Raises:
        UsageError: there is no run.toml, so the user must name the store.
    """
    if isinstance(run, Model | Voters):
        raise UsageError("a loaded model does not name the store it was trained from: use evaluate(model, store).")
    folder = Path(run) if Path(run).is_dir() else Path(run).parent
    try:
        settings = tomllib.loads((folder / "run.toml").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{folder} has no run.toml that names a store. Name it: --store brain.zarr.") from None
    return str(settings["store"])


def check_spacing(info: ModelInfo, store: Store) -> None:
    """Raises DataError if the store's voxel size is not that of the model."""
    if store.spacing_mm != info.spacing_mm:
        raise DataError(
            f"the model was trained on voxels of {list(info.spacing_mm)} mm, but {store.url} holds "
            f"{list(store.spacing_mm)} mm. Ingest the data at the model's voxel size."
        )


def _why_skipped(model: Voters, store: Store, case: Case, options: EvaluateOptions) -> str:
    """Why a case cannot be evaluated; "" if it can."""
    subsets = options.subsets
    if reason := why_not_comparable(store, case, model.info.space, options.lesion_assumed):
        return reason
    if options.adapt_to == TRUE_LESION and not store[case.database].label_view(case, LabelSpace()).annotated.any():
        return "nobody looked for lesions in it, and --adapt-to true takes the annotated one"
    if not model.info.usable(case.modalities):
        return f"it has only {', '.join(case.modalities)}, which the model was not trained on"
    if not model.sees(model.info.usable(case.modalities)):
        return f"it has only {', '.join(case.modalities)}, of which the anatomy branch sees none"
    if not any(map(model.sees, chosen_subsets(subsets, model.info.usable(case.modalities)))):
        return f"it has no complete subset of {subsets} that what answers sees, only {', '.join(case.modalities)}"
    return ""


def _left_out(model: Voters, cases: Sequence[Case]) -> dict[str, tuple[str, ...]]:
    """Sequences of the cases that no training database had: their channels are untrained and stay empty."""
    unused: dict[str, dict[str, None]] = {}
    for case in cases:
        unknown = [name for name in case.modalities if name not in model.info.usable(case.modalities)]
        unused.setdefault(case.database, {}).update(dict.fromkeys(unknown))
    return {database: tuple(names) for database, names in unused.items() if names}


def _unlisted(model: Voters, store: Store, cases: Sequence[Case]) -> dict[str, str]:
    space = model.info.space
    treatment = "ignored" if space.rest == "ignore" else "counted as background"
    unlisted: dict[str, str] = {}
    for case in cases:
        annotated = zip(store[case.database].schemas.values(), case.annotated, strict=True)
        if names := space.unlisted([schema for schema, has_it in annotated if has_it], case.pathology):
            unlisted[case.database] = f"{', '.join(names)}: lesions that the model does not list, {treatment}"
    return unlisted


def _rows(
    model: Voters, loaded: LoadedCase, options: EvaluateOptions, own: Mapping[str, Metric]
) -> tuple[Rows, Codes | None]:
    """The rows of a case, and what is predicted from all its usable sequences, if this was asked for."""
    rows: Rows = []
    predicted_from_all = None
    for answer in answers(model, loaded, options):
        rows += _rows_of_answer(model, loaded, answer, options, own)
        if answer.subset == loaded.usable:
            predicted_from_all = answer.predicted
        del answer  # before the next one is worked out: it holds volumes
    return rows, predicted_from_all


def _rows_of_answer(
    model: Voters, loaded: LoadedCase, answer: CaseAnswer, options: EvaluateOptions, own: Mapping[str, Metric]
) -> Iterator[dict[str, Any]]:
    space, predicted, truth = model.space, answer.predicted, answer.truth
    confidence = Confidence(answer.probabilities, answer.calibrated, answer.brain)
    for row in compared_rows(loaded.case, truth, predicted, space, own, options.scoring):
        label = str(row["label"])
        row |= zone_values(loaded.zones, predicted, label, space)
        if not options.lesion_assumed:  # the probabilities do not know of what is assumed
            code = space.names.index(label) + 1
            masks = (predicted == code, truth.target == code, truth.target != IGNORE)
            row |= confidence_row(confidence, code - 1, masks, model.look_below(label))
            del masks  # before the surfaces of the next structure are compared
        yield {**row, "modalities": "+".join(answer.subset), "num_modalities": len(answer.subset)}


def _panel(model: Voters, loaded: LoadedCase, predicted: Codes | None, options: EvaluateOptions) -> SlicePanel:
    """A picture of the prediction from all usable sequences of the case; None is not predicted yet."""
    case = loaded.case
    learnt = {TRAIN: ", trained on", VAL: ", chosen by"}.get(how_learnt(model.learnt, case.content.values()), "")
    if predicted is None:  # done before, or no subset that was asked for
        predicted = answer_to(model, loaded, loaded.usable, options).predicted
    panel = compared_panel(
        f"{case.database}/{case.name}", case.pathology, loaded.shown, loaded.truth.target, predicted,
        model.info.space.names, loaded.truth.annotated, case.grid.spacing_mm, learnt,
    )  # fmt: skip
    return slice_of(panel)
