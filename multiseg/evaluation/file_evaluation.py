"""Evaluate segmentations of any program, from files in native space, in the same tables as those of a model."""

from __future__ import annotations

import hashlib
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import UInt8

from multiseg.errors import DataError, SourceError, UsageError
from multiseg.evaluation.case_panel import CasePanel
from multiseg.evaluation.comparison import COLUMNS, compared_rows, summary_of, truth_of, why_not_comparable
from multiseg.evaluation.decision import brain_of
from multiseg.evaluation.evaluation_result import MONTAGE_CASES, EvaluateOptions, Evaluation
from multiseg.evaluation.own_metrics import Metric, Metrics, identity_of, named_metrics
from multiseg.evaluation.panels import compared_panel
from multiseg.evaluation.result_folder import check_room, key_of
from multiseg.evaluation.slice_panel import SlicePanel, slice_of
from multiseg.evaluation.zones import further_columns, zone_values, zones_of
from multiseg.labels import LabelSchema, LabelSpace, SpaceLabel
from multiseg.models.learnt_scans import NOT_KNOWN
from multiseg.store.catalogue import select
from multiseg.store.formats.volumes import to_ras
from multiseg.store.preparation.grids import resample_codes
from multiseg.store.preparation.journal import Journal
from multiseg.store.preparation.labelling import read_label
from multiseg.store.preparation.places import grid_of
from multiseg.store.reader import Case, Store

FIELDS = ("case", "database", "subject", "session")
LEAST_SHOWN = 0.99
"""A file must show this share of the brain; it would otherwise count as background there."""


@dataclass(frozen=True)
class PredictionFiles:
    """Segmentations of another program.

    Attributes:
        pattern: the file of each case, such as "out/{case}.nii.gz"; see `FIELDS`.
        labels: the meaning of their codes, such as "1=tissue:CSF,2=tissue:GM,7=lesion".
        name: of the program, for the tables.

    Raises:
        UsageError: the pattern has no "{case}", or an unknown field.
        LabelError: the meaning is invalid.
    """

    pattern: str
    labels: str
    name: str

    def __post_init__(self) -> None:
        try:
            fields = [field for _, field, _, _ in string.Formatter().parse(self.pattern) if field is not None]
        except ValueError as error:
            raise UsageError(f"the pattern {self.pattern!r} is invalid: {error}.") from error
        if unknown := [field for field in fields if field not in FIELDS]:
            listed = ", ".join(f"{{{name}}}" for name in FIELDS)
            raise UsageError(f"the pattern {self.pattern!r} has the unknown field {unknown[0]!r}: give {listed}.")
        if "case" not in fields:
            raise UsageError(f"the pattern {self.pattern!r} names one file for all cases: put {{case}} in it.")
        LabelSchema.parse(self.labels, "lesion")

    @property
    def schema(self) -> LabelSchema:
        return LabelSchema.parse(self.labels, "lesion")

    @property
    def space(self) -> LabelSpace:
        """The structures of the files."""
        return LabelSpace(tuple(SpaceLabel(one.name, one.kind) for one in self.schema.structures), "background")

    def file_of(self, case: Case) -> Path:
        return Path(self.pattern.format(**{name: getattr(case, _ATTRIBUTES.get(name, name)) for name in FIELDS}))


_ATTRIBUTES = {"case": "name"}


def evaluate_files(
    files: PredictionFiles,
    store: Store,
    options: EvaluateOptions,
    folder: Path | None = None,
    on_case: Callable[[int, int, str], None] = lambda done, total, case: None,
    metrics: Metrics = (),
    overwrite: bool = False,
) -> Evaluation:
    """Compare files in a case's native space with the annotations in a store, on the store's grid.

    Files are brought to the store's grid by their headers, like annotations in `ingest`. Column `modalities` holds the
    name of the program. Whether it has learnt from a case is not known.

    Args:
        options: `subsets` and `overlap` have no effect.
        folder: where the results will be saved; it is checked before the work.

    Raises:
        UsageError: a metric cannot be called, or the folder holds something else, see `check_room`.
        LabelError: a file has a code without a meaning.
        DataError: no case has a file and an annotation.
    """
    own = named_metrics(metrics)
    selected = select(store, options.databases, split=options.split)
    key = key_of(_digest(files, selected), store.url, options, options.scoring.definitions, COLUMNS, identity_of(own))
    if folder:
        check_room(folder, key, overwrite)
    skipped: dict[str, str] = {}
    doubts: dict[str, str] = {}
    rows: list[Mapping[str, object]] = []
    panels: list[SlicePanel] = []
    num_seen: Counter[str] = Counter()
    for index, case in enumerate(selected):
        name = f"{case.database}/{case.name}"
        on_case(index, len(selected), name)
        result = _compare(files, store, case, options, own)
        if isinstance(result, str):
            skipped[name] = result
            continue
        case_rows, panel, text = result
        doubts |= {name: text} if text else {}
        rows += [{"database": case.database, "case": case.name, "learnt": NOT_KNOWN, **row} for row in case_rows]
        num_seen[case.database] += 1
        panels += [slice_of(panel)] if num_seen[case.database] <= MONTAGE_CASES else []
    if not rows:
        why = "; ".join(dict.fromkeys(skipped.values())) or "there is none"
        raise DataError(f"{store.url} has no case of the split {options.split or 'any'!r} to compare: {why}.")
    table = pd.DataFrame(rows)
    return Evaluation(
        cases=table,
        summary=summary_of(table, further_columns(options.zones, own)),
        panels=tuple(panels),
        split=options.split,
        left_out={},
        skipped=skipped,
        own_metrics=further_columns(options.zones, own),
        key=key,
        doubts=doubts,
        scoring=options.scoring,
        store=store.url,
    )


def _compare(
    files: PredictionFiles, store: Store, case: Case, options: EvaluateOptions, own: Mapping[str, Metric]
) -> tuple[list[dict[str, object]], CasePanel, str] | str:
    """The rows and the picture of a case and the doubts about its file, or why it has none."""
    space, database, path = files.space, store[case.database], files.file_of(case)
    if reason := why_not_comparable(store, case, space, options.lesion_assumed):
        return reason
    if not path.is_file():
        return "there is no file of its prediction"
    images, codes = database.whole(case)
    journal = Journal()
    try:
        predicted, share = _on_grid(files, case, path, brain_of(images), journal)
    except SourceError as error:
        return f"its file cannot be read: {error}"
    if share < LEAST_SHOWN:
        return f"its file shows only {share:.0%} of the brain. Is it the file of another scan?"
    truth = truth_of(database, case, codes, space, options.lesion_assumed)
    predicted = truth.completed(predicted)
    zones = zones_of(database, case, codes, space) if options.zones else None
    rows = [
        {**row, **zone_values(zones, predicted, str(row["label"]), space), "modalities": files.name}
        for row in compared_rows(case, truth, predicted, space, own, options.scoring)
    ]
    shown = {name: images[database.modalities.index(name)] for name in case.modalities}
    panel = compared_panel(
        f"{case.database}/{case.name}", case.pathology, shown, truth.target, predicted, space.names, truth.annotated,
        case.grid.spacing_mm, "",
    )  # fmt: skip
    return rows, panel, " ".join(doubt.message for doubt in journal.doubts)


def _on_grid(
    files: PredictionFiles, case: Case, path: Path, brain: np.ndarray, journal: Journal
) -> tuple[UInt8[np.ndarray, "i j k"], float]:
    """The codes of a file on the case's grid, and the share of the brain that the file shows."""
    volume = to_ras(read_label(files.name, path, files.schema, journal))
    grid = grid_of(volume)
    shown = grid.contains(case.grid)
    share = float(np.count_nonzero(shown & brain)) / max(1, int(np.count_nonzero(brain)))
    return resample_codes(volume.voxels, grid, case.grid), share


def _digest(files: PredictionFiles, cases: Sequence[Case]) -> str:
    """A digest of the files, by their sizes and times, and of what they mean."""
    marks = []
    for case in cases:
        path = files.file_of(case)
        marks.append((str(path), path.stat().st_size, path.stat().st_mtime_ns) if path.is_file() else (str(path),))
    return hashlib.sha256(repr((files, marks)).encode()).hexdigest()
