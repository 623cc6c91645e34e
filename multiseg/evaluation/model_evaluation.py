"""Evaluate a model on held-out cases, for every subset of their sequences; cases it learnt from are kept apart."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, UInt8
from safetensors.torch import save

from multiseg.allocator import keep_memory
from multiseg.errors import DataError, UsageError
from multiseg.evaluation.adaptation import adapted, check_adaptable, lesion_of
from multiseg.evaluation.decision import brain_of, decide
from multiseg.evaluation.inference import predict_volume
from multiseg.evaluation.metrics import CaseMetrics, case_metrics, summarise
from multiseg.evaluation.montage import CasePanel, save_montage
from multiseg.evaluation.own_metrics import POLICY as OWN_POLICY
from multiseg.evaluation.own_metrics import Metric, Metrics, identity_of, named_metrics, own_means, own_values
from multiseg.evaluation.panels import compared_panel
from multiseg.evaluation.preparation import network_input
from multiseg.evaluation.result_folder import PROGRESS, DoneCases, check_room, key_of
from multiseg.evaluation.subsets import check_subsets, chosen_subsets
from multiseg.evaluation.tables import write_table
from multiseg.evaluation.zones import Zones, further_columns, zone_values, zones_of
from multiseg.files import write_atomically
from multiseg.labels import IGNORE, LabelSpace
from multiseg.modalities import as_names
from multiseg.models.learnt_scans import NOT_KNOWN, NOT_LEARNT, TRAIN, VAL, how_learnt
from multiseg.models.saved import Model, ModelInfo, load_model, model_path
from multiseg.store.catalogue import select
from multiseg.store.hierarchy import is_remote, local_path
from multiseg.store.reader import Case, Database, Store, open_store

KEY = ["database", "label", "modalities", "learnt"]
POLICY = (
    "A case without lesion has no Dice, sensitivity or distance and is left out of their means, but counted; "
    "a false alarm there has precision 0. A missed lesion, where nothing was predicted, has Dice, sensitivity "
    "and precision 0, and the diagonal of the case's grid as distance: missing never improves a mean."
)
COLUMNS = tuple(CaseMetrics.__dataclass_fields__)
"""The columns of metrics: part of an evaluation's identity, so that one without a new column is not resumed."""
MONTAGE_CASES = 2
REPR_ROWS = 10


@dataclass(frozen=True)
class EvaluateOptions:
    """What to evaluate, and how.

    Attributes:
        split: "train", "val" or "test"; "" takes every case.
        databases: names; empty takes all.
        subsets: "all" (every non-empty subset of each case's sequences), "full", or a list such as
            "FLAIR,FLAIR+T1", of which each case gets those whose sequences it has.
        overlap: of the sliding windows, as a share of their size.
        lesion_assumed: whether the annotated lesions are put into every prediction first, so that the tissues are
            measured where there is no lesion; with a label space without lesions, their voxels are ignored.
        zones: whether tissues also get a Dice under the lesion, near it and elsewhere, see `zones`.
        adapt: whether a two_branch model is adapted to each case and subset first, see `adaptation`, with the lesion
            that it finds.
    """

    split: str = "test"
    databases: str | tuple[str, ...] = ()
    subsets: str = "all"
    overlap: float = 0.5
    lesion_assumed: bool = False
    zones: bool = False
    adapt: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "databases", as_names(self.databases))


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Results: one row per case, subset and label; and means by database, label and subset.

    Column `learnt` says how the model used the case: "train" (trained on a scan of it), "val" (chosen by one),
    "" (not at all) or "not known". Means never mix these.

    Attributes:
        left_out: sequences that the model could not use, by database.
        skipped: why a case has no row.
        unlisted: by database, how lesion structures counted that the model does not list.
        key: identifies the evaluation: model, store and options.
        doubts: what a person should check about the files of another program, by "database/case".
    """

    cases: pd.DataFrame
    summary: pd.DataFrame
    panels: tuple[CasePanel, ...]
    split: str
    left_out: Mapping[str, tuple[str, ...]]
    skipped: Mapping[str, str]
    own_metrics: tuple[str, ...] = ()
    unlisted: Mapping[str, str] = field(default_factory=dict)
    key: str = ""
    doubts: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        num = len(self.cases[["database", "case"]].drop_duplicates())
        rows = self.summary[[*KEY, "dice"]].head(REPR_ROWS).to_string(index=False)
        more = f"\n... {len(self.summary) - REPR_ROWS} more rows" if len(self.summary) > REPR_ROWS else ""
        return (
            f"<{self.title}: {num} cases, {len(self.skipped)} not evaluated; .summary and .cases hold all>\n"
            f"{rows}{more}"
        )

    @property
    def title(self) -> str:
        """Which cases these are. Only cases of the test split that the model did not learn from are "held-out"."""
        kinds = list(self.summary["learnt"].unique())
        return self.title_of(kinds[0]) if len(kinds) == 1 else f"{self._all_cases}, some of them learnt from"

    def title_of(self, learnt: str) -> str:
        """The title of the cases with this value of `learnt`."""
        titles = {
            TRAIN: f"{self._all_cases} that the model was TRAINED ON",
            VAL: f"{self._all_cases} by which the model was CHOSEN (validation)",
            NOT_KNOWN: f"{self._all_cases}; whether the model learnt from them is not known",
            NOT_LEARNT: "Held-out cases" if self.split == "test" else f"{self._all_cases}, not learnt from",
        }
        return titles[learnt]

    @property
    def _all_cases(self) -> str:
        return f"Cases of the {self.split} split" if self.split else "Cases of all splits"

    @property
    def learnt(self) -> dict[str, tuple[str, ...]]:
        """The cases, as "database/case", by how the model used them, see the class."""
        cases = self.cases.drop_duplicates(["database", "case"])
        names = cases["database"] + "/" + cases["case"]
        return {kind: tuple(names[cases["learnt"] == kind]) for kind in (TRAIN, VAL, NOT_LEARNT, NOT_KNOWN)}

    def save(self, folder: Path | str, overwrite: bool = False) -> None:
        """Write cases.csv, summary.csv, summary.json and montage.png, and remove the file for resuming.

        Raises:
            UsageError: the folder holds something else, see `check_room`.
        """
        folder = Path(folder)
        check_room(folder, self.key, overwrite)
        write_table(folder / "cases.csv", self.cases)
        write_table(folder / "summary.csv", self.summary)
        write_atomically(folder / "summary.json", json.dumps(self.to_json(), indent=1).encode())
        if self.panels:
            save_montage(folder / "montage.png", self.panels, f"{self.title}, all their sequences", overwrite=True)
        (folder / PROGRESS).unlink(missing_ok=True)

    def to_json(self) -> dict[str, Any]:
        rows = json.loads(self.summary.to_json(orient="records"))
        return {
            "empty_mask_policy": f"{POLICY} {OWN_POLICY}" if self.own_metrics else POLICY,
            "left_out": {k: list(v) for k, v in self.left_out.items()},
            "skipped": dict(self.skipped),
            "learnt": {kind or "not learnt": list(names) for kind, names in self.learnt.items()},
            "unlisted": dict(self.unlisted),
            **({"doubts": dict(self.doubts)} if self.doubts else {}),
            "key": self.key,
            "summary": rows,
        }


def evaluate(
    run: Path | str | Model,
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
        run: a model file, a run folder or a loaded model, which stays on its device and needs `store`.
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
    keep_memory()
    options = options or EvaluateOptions()
    check_subsets(options.subsets)
    own = named_metrics(metrics)
    model = run if isinstance(run, Model) else load_model(run, device)
    if options.adapt:
        check_adaptable(model)
    if not isinstance(store, Store):
        store = open_store(store or store_of_run(run))
    check_spacing(model.info, store)
    selected = select(store, options.databases, split=options.split)
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
    folder = None if folder is None else Path(folder)
    place = store.url if is_remote(store.url) else str(local_path(store.url).resolve())
    identity = (_digest(run), place, options, POLICY, COLUMNS, identity_of(own))
    if folder:
        check_room(folder, key_of(*identity), overwrite)
    done = DoneCases(folder, *identity)
    panels: list[CasePanel] = []
    num_seen: Counter[str] = Counter()
    for index, case in enumerate(cases):
        on_case(index, len(cases), f"{case.database}/{case.name}")
        loaded = _load(model, store, case, options)
        if _key(case) not in done.rows:
            done.add(_key(case), list(_rows(model, loaded, options, own)))
        num_seen[case.database] += 1
        if num_seen[case.database] <= MONTAGE_CASES:
            panels.append(_panel(model, loaded, options))
    table = pd.DataFrame([_with_learnt(model, case, row) for case in cases for row in done.rows[_key(case)]])
    return Evaluation(
        cases=table,
        summary=summary_of(table, further_columns(options.zones, own)),
        panels=tuple(panels),
        split=options.split,
        left_out=_left_out(model, selected),
        skipped=skipped,
        own_metrics=further_columns(options.zones, own),
        unlisted=_unlisted(model, store, cases),
        key=done.key,
    )


def _key(case: Case) -> str:
    """The key of a case's results: they stay valid while its files and its grid are the same."""
    return f"{case.database}/{case.name} {case.source_sha256[:16]} {'x'.join(map(str, case.extent))}"


def _with_learnt(model: Model, case: Case, row: Mapping[str, Any]) -> dict[str, Any]:
    learnt = how_learnt(model.learnt, case.content.values())
    return {"database": row["database"], "case": row["case"], "learnt": learnt, **row}


def _digest(run: Path | str | Model) -> str:
    """A digest of the evaluated model."""
    if not isinstance(run, Model):
        return hashlib.sha256(model_path(Path(run)).read_bytes()).hexdigest()
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in run.state_dict().items()}
    return hashlib.sha256(repr(run.info).encode() + save(weights)).hexdigest()


def store_of_run(run: Path | str | Model) -> str:
    """The store that a run folder was trained from, from its run.toml.

    Raises:
        UsageError: there is no run.toml, so the user must name the store.
    """
    if isinstance(run, Model):
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


def _why_skipped(model: Model, store: Store, case: Case, options: EvaluateOptions) -> str:
    """Why a case cannot be evaluated; "" if it can."""
    subsets = options.subsets
    if reason := why_not_comparable(store, case, model.info.space, options.lesion_assumed):
        return reason
    if not model.info.usable(case.modalities):
        return f"it has only {', '.join(case.modalities)}, which the model was not trained on"
    if not chosen_subsets(subsets, model.info.usable(case.modalities)):
        return f"it has no complete subset of {subsets} that the model knows, only {', '.join(case.modalities)}"
    return ""


def _left_out(model: Model, cases: Sequence[Case]) -> dict[str, tuple[str, ...]]:
    """Sequences of the cases that no training database had: their channels are untrained and stay empty."""
    unused: dict[str, dict[str, None]] = {}
    for case in cases:
        unknown = [name for name in case.modalities if name not in model.info.usable(case.modalities)]
        unused.setdefault(case.database, {}).update(dict.fromkeys(unknown))
    return {database: tuple(names) for database, names in unused.items() if names}


def _unlisted(model: Model, store: Store, cases: Sequence[Case]) -> dict[str, str]:
    space = model.info.space
    treatment = "ignored" if space.rest == "ignore" else "counted as background"
    unlisted: dict[str, str] = {}
    for case in cases:
        annotated = zip(store[case.database].schemas.values(), case.annotated, strict=True)
        if names := space.unlisted([schema for schema, has_it in annotated if has_it], case.pathology):
            unlisted[case.database] = f"{', '.join(names)}: lesions that the model does not list, {treatment}"
    return unlisted


def why_not_comparable(store: Store, case: Case, space: LabelSpace, lesion_assumed: bool) -> str:
    """Why nothing can be compared with the annotations of a case; "" if something can."""
    if not store[case.database].label_view(case, space).annotated.any():
        return f"it is not annotated for {', '.join(space.names)}"
    if lesion_assumed and not store[case.database].label_view(case, LabelSpace()).annotated.any():
        return "it is not annotated for lesions, which were to be assumed"
    return ""


@dataclass(frozen=True, eq=False)
class Truth:
    """What the predictions for a case are compared with.

    Attributes:
        target: index in the label space; 255 is ignored.
        annotated: the labels of the space that the case is annotated for.
        assumed: what is put into every prediction where it is not 0.
    """

    target: UInt8[np.ndarray, "i j k"]
    annotated: Bool[np.ndarray, " label"]
    assumed: UInt8[np.ndarray, "i j k"]

    def completed(self, predicted: UInt8[np.ndarray, "i j k"]) -> UInt8[np.ndarray, "i j k"]:
        """The prediction with what is assumed."""
        return np.where(self.assumed > 0, self.assumed, predicted)


def truth_of(
    database: Database,
    case: Case,
    codes: UInt8[np.ndarray, "annotation i j k"],
    space: LabelSpace,
    lesion_assumed: bool,
) -> Truth:
    """The truth of a case in a label space, from its stored codes."""
    view = database.label_view(case, space)
    target = view.target(codes)
    assumed = np.zeros_like(target)
    if lesion_assumed:
        is_lesion = database.label_view(case, LabelSpace()).target(codes) == 1
        lesions = [index for index, label in enumerate(space.labels, start=1) if label.kind == "lesion"]
        if lesions:
            assumed = np.where(is_lesion & np.isin(target, lesions), target, 0).astype(np.uint8)
        else:
            target = np.where(is_lesion, IGNORE, target).astype(np.uint8)
    return Truth(target, view.annotated, assumed)


@dataclass(frozen=True, eq=False)
class _Loaded:
    """A case as stored (`shown`), on the model's axis and in its label space."""

    case: Case
    usable: tuple[str, ...]
    shown: dict[str, Float[np.ndarray, "i j k"]]
    images: Float[np.ndarray, "modality i j k"]
    truth: Truth
    zones: Zones | None


def _load(model: Model, store: Store, case: Case, options: EvaluateOptions) -> _Loaded:
    info, database = model.info, store[case.database]
    stored, codes = database.whole(case)
    # In the model's order, so that a subset has the same name in every store.
    usable = tuple(name for name in info.axis if name in info.usable(case.modalities))
    images, _ = network_input(info, stored, database.modalities, usable, case.intensity)
    shown = {name: stored[database.modalities.index(name)] for name in usable}
    truth = truth_of(database, case, codes, info.space, options.lesion_assumed)
    zones = zones_of(database, case, codes, info.space) if options.zones else None
    return _Loaded(case, usable, shown, images, truth, zones)


def _rows(
    model: Model, loaded: _Loaded, options: EvaluateOptions, own: Mapping[str, Metric]
) -> Iterator[dict[str, Any]]:
    for subset in chosen_subsets(options.subsets, loaded.usable):
        predicted = _segmented(model, loaded, subset, options)
        for row in compared_rows(loaded.case, loaded.truth, predicted, model.info.space, own):
            row |= zone_values(loaded.zones, predicted, str(row["label"]), model.info.space)
            yield {**row, "modalities": "+".join(subset), "num_modalities": len(subset)}


def compared_rows(
    case: Case, truth: Truth, predicted: UInt8[np.ndarray, "i j k"], space: LabelSpace, own: Mapping[str, Metric]
) -> Iterator[dict[str, Any]]:
    """A row of metrics for each annotated label of a case, without the sequences it was predicted from."""
    looked_at, spacing_mm = truth.target != IGNORE, case.grid.spacing_mm
    for label, name in enumerate(space.names, start=1):
        if truth.annotated[label - 1]:
            mask, expected = predicted == label, truth.target == label
            metrics = case_metrics(mask, expected, spacing_mm, looked_at)
            own_columns = own_values(own, mask & looked_at, expected & looked_at, spacing_mm)
            yield {"database": case.database, "case": case.name, "label": name, "modalities": "", "num_modalities": 0,
                   **asdict(metrics), **own_columns}  # fmt: skip


def _panel(model: Model, loaded: _Loaded, options: EvaluateOptions) -> CasePanel:
    """A picture of the prediction from all usable sequences of the case."""
    case = loaded.case
    learnt = {TRAIN: ", trained on", VAL: ", chosen by"}.get(how_learnt(model.learnt, case.content.values()), "")
    predicted = _segmented(model, loaded, loaded.usable, options)
    return compared_panel(
        f"{case.database}/{case.name}", case.pathology, loaded.shown, loaded.truth.target, predicted,
        model.info.space.names, loaded.truth.annotated, case.grid.spacing_mm, learnt,
    )  # fmt: skip


def _segmented(
    model: Model, loaded: _Loaded, subset: Sequence[str], options: EvaluateOptions
) -> UInt8[np.ndarray, "i j k"]:
    brain = brain_of(loaded.shown[name] for name in subset)
    if options.adapt:
        present = np.isin(model.info.axis.names, subset)
        lesion = lesion_of(model, loaded.images, present, options.overlap)
        model = adapted(model, loaded.images, present, lesion).model
    return loaded.truth.completed(segment(model, loaded.images, subset, options.overlap, brain))


def segment(
    model: Model,
    images: Float[np.ndarray, "modality i j k"],
    subset: Sequence[str],
    overlap: float,
    brain: Bool[np.ndarray, "i j k"],
) -> UInt8[np.ndarray, "i j k"]:
    """Indices in the model's label space, from the given subset of the sequences; 0 outside their brain."""
    present = np.isin(model.info.axis.names, subset)
    probabilities = predict_volume(model, images, present, model.info.patch, overlap)
    return decide(probabilities, model.info.space, brain)


def summary_of(cases: pd.DataFrame, own: Sequence[str] = ()) -> pd.DataFrame:
    """Means and counts by database, label, subset and `learnt`, in the order of evaluation."""
    rows = []
    for key, group in cases.groupby(KEY, sort=False):
        metrics = [CaseMetrics(*values) for values in group[list(COLUMNS)].itertuples(index=False, name=None)]
        names = dict(zip(KEY, key if isinstance(key, tuple) else (key,), strict=True))
        own_numbers = own_means(own, {name: group[name].tolist() for name in own})
        num_modalities = int(group["num_modalities"].iloc[0])
        rows.append({**names, "num_modalities": num_modalities, **summarise(metrics), **own_numbers})
    return pd.DataFrame(rows)
