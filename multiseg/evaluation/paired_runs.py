"""Compare the evaluations of several models case by case: paired differences, tests, intervals, and what is worst."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from multiseg.errors import DataError, UsageError, few
from multiseg.evaluation.evaluation_result import Evaluation
from multiseg.evaluation.paired_statistics import CompareOptions, holm, paired_numbers
from multiseg.evaluation.tables import write_table
from multiseg.files import check_files, check_folder, write_atomically
from multiseg.models.learnt_scans import NOT_KNOWN, NOT_LEARNT, TRAIN, VAL

ROW = ["database", "case", "label", "modalities"]
FAMILY = ["run", "learnt", "label", "metric"]
"""The databases of one family are corrected together."""
VALUES = ["baseline_value", "value", "difference"]
METRICS = (
    *("dice", "sensitivity", "precision", "assd_mm", "hd95_mm", "surface_dice"),
    *("lesion_f1", "lesion_dice", "lesion_hd95_mm"),
    *("ece", "brier", "expected_dice"),
)
LEARNT_FIRST = (TRAIN, VAL, NOT_KNOWN, NOT_LEARNT)
"""A case that one model has learnt from is no held-out case of the comparison."""
BY_DATABASE, BY_SUBSET, BY_CASE, RECORD = "comparison.csv", "subsets.csv", "differences.csv", "comparison.json"
NOTE = (
    "Differences are paired: the mean over the subsets of a case's sequences that all runs have, then over cases. "
    "low and high are a 95% bootstrap interval over cases (none below 5 cases), p is that of Wilcoxon's signed-rank "
    "test, and p_holm is corrected over the databases of one structure and metric; nothing is corrected over metrics, "
    "structures or runs. Several scans of one person count as several cases. All this covers the choice of the "
    "patients, and not that another training of the same model would give another result."
)


@dataclass(frozen=True, eq=False)
class Comparison:
    """Runs, each compared with the first one, on the rows that all of them have.

    Attributes:
        names: of the runs.
        by_database: a row for each run, structure, metric and database: means, difference, interval, tests.
        by_subset: the same for each subset of sequences, without tests.
        by_case: the values and the difference of each case, structure, subset and metric.
        worst: for each run its lowest Dice, and its greatest loss against the first one, by database and by subset.
        missing_cases: by run, cases that another run has and this one has not.
        missing_rows: by run, structures and subsets of its cases that another run has and this one has not.
        skipped: by run, why cases have no row.
    """

    names: tuple[str, ...]
    by_database: pd.DataFrame
    by_subset: pd.DataFrame
    by_case: pd.DataFrame
    worst: tuple[Mapping[str, Any], ...]
    missing_cases: Mapping[str, tuple[str, ...]]
    missing_rows: Mapping[str, tuple[str, ...]]
    skipped: Mapping[str, Mapping[str, str]]
    options: CompareOptions
    policy: str

    def save(self, folder: Path | str, overwrite: bool = False) -> None:
        """Write comparison.csv, subsets.csv, differences.csv and comparison.json.

        Raises:
            UsageError: the folder holds something else, see `check_comparison_room`.
        """
        folder = Path(folder)
        check_comparison_room(folder, self.names, overwrite)
        write_table(folder / BY_DATABASE, self.by_database)
        write_table(folder / BY_SUBSET, self.by_subset)
        write_table(folder / BY_CASE, self.by_case)
        write_atomically(folder / RECORD, json.dumps(self.to_json(), indent=1).encode())

    def to_json(self) -> dict[str, Any]:
        return {
            "runs": list(self.names),
            "note": NOTE,
            "empty_mask_policy": self.policy,
            "options": asdict(self.options),
            "worst": [dict(one) for one in self.worst],
            "missing_cases": {name: list(cases) for name, cases in self.missing_cases.items()},
            "missing_rows": {name: list(rows) for name, rows in self.missing_rows.items()},
            "skipped": {name: dict(reasons) for name, reasons in self.skipped.items()},
            "databases": json.loads(self.by_database.to_json(orient="records")),
            "subsets": json.loads(self.by_subset.to_json(orient="records")),
        }


def check_comparison_room(folder: Path, names: Sequence[str], overwrite: bool = False) -> None:
    """Check that a comparison of these runs may be written to a folder.

    Raises:
        UsageError: the folder holds the comparison of other runs or something else, or a file is read-only.
    """
    check_folder(folder, own=(RECORD,))
    files = [folder / name for name in (BY_DATABASE, BY_SUBSET, BY_CASE, RECORD)]
    existing = [path.name for path in files if path.exists()]
    if existing and not overwrite and _names_in(folder / RECORD) != list(names):
        raise UsageError(
            f"{folder} holds the {existing[0]} of another comparison. Choose another --out, or pass --overwrite."
        )
    check_files(files, overwrite=True)


def _names_in(record: Path) -> list[str] | None:
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    names = content.get("runs") if isinstance(content, dict) else None
    return names if isinstance(names, list) else None


def names_of(runs: Sequence[Path]) -> tuple[str, ...]:
    """A short name for each run: the last parts of its path that tell it from the others.

    Raises:
        UsageError: there are fewer than two, or a run is given twice.
    """
    if len(runs) < 2:
        raise UsageError("--compare needs two runs or more: the others are compared with the first one.")
    parts = [path.resolve().with_suffix("").parts if path.is_file() else path.resolve().parts for path in runs]
    for index, one in enumerate(parts):
        if one in parts[:index]:
            raise UsageError(f"--compare is given {runs[index]} twice.")
    for length in range(1, max(map(len, parts)) + 1):
        names = tuple("-".join(part.strip("/\\:") for part in one[-length:]) for one in parts)
        if len(set(names)) == len(names):
            return names
    raise UsageError(f"--compare cannot tell the runs {few([str(run) for run in runs])} apart: rename one.")


def compare(evaluations: Mapping[str, Evaluation], options: CompareOptions | None = None) -> Comparison:
    """Compare evaluations by the names of their runs, each with the first one.

    Raises:
        UsageError: they were scored in different ways.
        DataError: they have no case, structure and subset in common.
    """
    options = options or CompareOptions()
    names = tuple(evaluations)
    first, *others = evaluations.values()
    for name, other in zip(names[1:], others, strict=True):
        if (other.scoring, other.own_metrics) != (first.scoring, first.own_metrics):
            raise UsageError(f"{names[0]} and {name} were scored in different ways, so they cannot be compared.")
    tables = {name: one.cases.drop_duplicates(ROW).set_index(ROW) for name, one in evaluations.items()}
    common = list(tables[names[0]].index[_is_in_all(tables)])
    if not common:
        raise DataError(f"the runs {', '.join(names)} have no case, structure and subset of sequences in common.")
    aligned = {name: table.loc[common] for name, table in tables.items()}
    by_case = _by_case(aligned, (*METRICS, *first.own_metrics))
    by_database = _corrected(_grouped(by_case, [*FAMILY, "database"], options))
    by_subset = _grouped(by_case, [*FAMILY, "database", "modalities"], options).drop(columns="p")
    missing_cases, missing_rows = _missing(tables)
    return Comparison(
        names, by_database, by_subset, by_case, _worst(names[0], by_database, by_subset), missing_cases, missing_rows,
        {name: dict(one.skipped) for name, one in evaluations.items()}, options, first.policy,
    )  # fmt: skip


def _is_in_all(tables: Mapping[str, pd.DataFrame]) -> Any:
    first, *others = tables.values()
    inside = first.index.isin(first.index)
    for other in others:
        inside &= first.index.isin(other.index)
    return inside


def _by_case(aligned: Mapping[str, pd.DataFrame], metrics: Sequence[str]) -> pd.DataFrame:
    """The values of each run and metric, beside those of the first run."""
    name, *others = aligned
    learnt = pd.DataFrame({run: table["learnt"].map(LEARNT_FIRST.index) for run, table in aligned.items()}).min(axis=1)
    frames = []
    for run in others:
        for metric in metrics:
            values = pd.DataFrame({"baseline_value": aligned[name][metric], "value": aligned[run][metric]}, dtype=float)
            values["difference"] = values["value"] - values["baseline_value"]
            values.insert(0, "metric", metric)
            values.insert(0, "learnt", learnt.map(lambda index: LEARNT_FIRST[index]))
            values.insert(0, "run", run)
            frames.append(values.reset_index())
    return pd.concat(frames, ignore_index=True).assign(baseline=name)


def _grouped(by_case: pd.DataFrame, key: list[str], options: CompareOptions) -> pd.DataFrame:
    """The numbers of each group, each case counted once: by the mean over its rows for which both runs are defined."""
    is_defined = by_case["difference"].notna()
    values = by_case[VALUES].where(is_defined)
    per_case = pd.concat([by_case[[*key, "case"]], values], axis=1).groupby([*key, "case"], sort=False).mean()
    baseline, rows = by_case["baseline"].iloc[0], []
    for names, cases in per_case.groupby(level=key, sort=False):
        defined = cases.dropna()
        named = dict(zip(key, names, strict=True))
        rows.append({"baseline": baseline, **named, **paired_numbers(defined, options),
                     "num_undefined": len(cases) - len(defined)})  # fmt: skip
    return pd.DataFrame(rows)


def _corrected(table: pd.DataFrame) -> pd.DataFrame:
    """With Holm's correction of p over the databases of each family."""
    corrected = table.groupby(FAMILY, sort=False)["p"].transform(lambda p: holm(p.tolist()))
    table.insert(list(table.columns).index("p") + 1, "p_holm", corrected)
    return table


def _missing(tables: Mapping[str, pd.DataFrame]) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
    """By run, the cases, and the structures and subsets of its other cases, that another run has."""
    every = pd.concat([table.index.to_frame(index=False) for table in tables.values()]).drop_duplicates()
    cases_missing: dict[str, tuple[str, ...]] = {}
    rows_missing: dict[str, tuple[str, ...]] = {}
    for name, table in tables.items():
        own = table.index.to_frame(index=False)
        rows = every[~pd.MultiIndex.from_frame(every).isin(table.index)]
        own_cases = set(own["database"] + "/" + own["case"])
        full = rows["database"] + "/" + rows["case"]
        if lost := tuple(dict.fromkeys(full[~full.isin(own_cases)])):
            cases_missing[name] = lost
        others = rows[full.isin(own_cases)]
        texts = others["database"] + " " + others["label"] + " " + others["modalities"]
        if len(others):
            rows_missing[name] = tuple(f"{text} ({number} cases)" for text, number in Counter(texts).items())
    return cases_missing, rows_missing


def _worst(baseline: str, by_database: pd.DataFrame, by_subset: pd.DataFrame) -> tuple[dict[str, Any], ...]:
    """The lowest Dice of each run, and the greatest loss of each against the first: one record by database and one by
    subset, for every way of having learnt from the cases."""
    records: list[dict[str, Any]] = []
    for what, table in (("database", by_database), ("subset", by_subset)):
        dice = table[(table["metric"] == "dice") & (table["num_cases"] > 0)]
        for learnt, group in dice.groupby("learnt", sort=True):
            one_other = group[group["run"] == group["run"].iloc[0]]
            records.append(_record(what, str(learnt), baseline, "dice", one_other, "baseline_mean"))
            for run, rows in group.groupby("run", sort=False):
                records.append(_record(what, str(learnt), str(run), "dice", rows, "mean"))
                records.append(_record(what, str(learnt), str(run), "difference", rows, "difference"))
    return tuple(records)


def _record(what: str, learnt: str, run: str, value: str, rows: pd.DataFrame, column: str) -> dict[str, Any]:
    row = rows.iloc[int(rows[column].to_numpy().argmin())]
    subset = {"modalities": row["modalities"]} if what == "subset" else {}
    return {"what": what, "learnt": learnt, "run": run, "value_of": value, "value": float(row[column]),
            "database": row["database"], "label": row["label"], **subset,
            "num_cases": int(row["num_cases"])}  # fmt: skip
