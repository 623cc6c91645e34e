"""What an evaluation is asked for and what comes of it: the same for a model and for files of another program."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import pandas as pd

from multiseg.errors import UsageError
from multiseg.evaluation.adaptation import FOUND, check_adapt_to
from multiseg.evaluation.case_answers import AnswerOptions
from multiseg.evaluation.comparison import KEY, ScoringOptions
from multiseg.evaluation.memory_budget import check_memory, memory_bytes
from multiseg.evaluation.own_metrics import POLICY as OWN_POLICY
from multiseg.evaluation.reliability import error_changes, expected_and_true, reliability_table
from multiseg.evaluation.result_folder import (
    ANSWERED,
    PROGRESS,
    RELIABILITY,
    SEVERAL,
    answered_in,
    check_room,
    not_known,
)
from multiseg.evaluation.slice_panel import SlicePanel
from multiseg.evaluation.tables import write_parquet_beside, write_table
from multiseg.files import write_atomically
from multiseg.modalities import as_names
from multiseg.models.calibration_record import Calibration
from multiseg.models.learnt_scans import NOT_KNOWN, NOT_LEARNT, TRAIN, VAL

MONTAGE_CASES = 2
REPR_ROWS = 10
ANSWERING: dict[str, type] = {"branch": str, "adapt": bool, "adapt_to": str, "tta": bool, "lesion_assumed": bool}
"""The fields of `EvaluateOptions` that say how a model answers, for `Evaluation.answered`."""
OVERLAP = "overlap"
"""Key of summary.json, see `Evaluation.overlap`."""


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
        adapt_to: the lesion that it is adapted to: "found", all that it finds; "half" or "quarter" of it, see
            `adaptation.shrunk`, to learn what a missed part costs; or "true", the annotated one.
        scoring: how a prediction is scored.
        tta: whether the probabilities are the mean of those of the image and of its left-right mirror image.
        memory: the most that this process may have, such as "4GB"; "" for no limit. It does not change the results,
            so that an evaluation may resume with another one.
        branch: what of a two_branch model answers: "anatomy" (tissues, also under lesions), "lesion", "pasted" (lesions
            of the one over tissues of the other), or "" for the fusion of both.
    """

    split: str = "test"
    databases: str | tuple[str, ...] = ()
    subsets: str = "all"
    overlap: float = 0.5
    lesion_assumed: bool = False
    zones: bool = False
    adapt: bool = False
    scoring: ScoringOptions = ScoringOptions()
    tta: bool = False
    memory: str = field(default="", repr=False)
    branch: str = field(default="", repr=False)
    adapt_to: str = field(default=FOUND, repr=False)

    @property
    def answer(self) -> AnswerOptions:
        """How the model answers."""
        return AnswerOptions(self.overlap, self.tta, memory_bytes(self.memory))

    def __post_init__(self) -> None:
        object.__setattr__(self, "databases", as_names(self.databases))
        check_memory(self.memory, self.adapt)
        check_adapt_to(self.adapt_to, self.adapt)

    @property
    def answered(self) -> dict[str, Any]:
        """How the model answers, where not as `predict` does by default."""
        defaults = {one.name: one.default for one in fields(self)}
        return {name: value for name in ANSWERING if (value := getattr(self, name)) != defaults[name]}


def options_to_repeat(about: Mapping[str, Any]) -> EvaluateOptions:
    """The options with which one model answers as in a saved evaluation.

    Args:
        about: summary.json of the evaluation. An older one without its overlap gets that of `EvaluateOptions`.

    Raises:
        UsageError: several models answered, or it says something that this version does not know.
    """
    answered = answered_in(about)
    given = answered if isinstance(answered, dict) else {ANSWERED: answered}
    if several := [f"{name} = {value}" for name, value in given.items() if name in SEVERAL]:
        raise UsageError(
            f"in the evaluation several models answered ({', '.join(several)}), so that the answers of one of them "
            "would not be those that were measured. Evaluate this model by itself."
        )
    unknown = [f"{name} = {value}" for name, value in given.items() if not isinstance(value, ANSWERING.get(name, ()))]
    overlap = about.get(OVERLAP, EvaluateOptions.overlap)
    if not isinstance(overlap, float | int) or not 0 <= overlap < 1:
        unknown.append(f"{OVERLAP} = {overlap}")
    if unknown:
        raise not_known(unknown)
    return EvaluateOptions(overlap=float(overlap), **given)


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
        model: the SHA-256 of the model, or a digest of several; "" for files of another program.
        models: the SHA-256 of each model file, if they are several.
        store: the URL or path of the store that the cases are from.
        answered: how the model answered, where not as `predict` does by default: `EvaluateOptions.answered`, with
            the rule of an ensemble or the number of folds, see `result_folder.SEVERAL`.
        overlap: of the sliding windows; None for files of another program.
        scoring: how predictions were scored.
        parts: the evaluations that this one was put together from, by name; empty if it is none of these.
        reliability: the bins of probabilities, see `reliability.reliability_table`; empty for files.
        calibration: of the model; None for several.
        is_calibrated: whether the model, or one of several, is calibrated.
    """

    cases: pd.DataFrame
    summary: pd.DataFrame
    panels: tuple[SlicePanel, ...]
    split: str
    left_out: Mapping[str, tuple[str, ...]]
    skipped: Mapping[str, str]
    own_metrics: tuple[str, ...] = ()
    unlisted: Mapping[str, str] = field(default_factory=dict)
    key: str = ""
    doubts: Mapping[str, str] = field(default_factory=dict)
    model: str = ""
    scoring: ScoringOptions = ScoringOptions()
    reliability: pd.DataFrame = field(default_factory=lambda: reliability_table([]))
    calibration: Calibration | None = None
    is_calibrated: bool = False
    models: tuple[str, ...] = ()
    store: str = ""
    answered: Mapping[str, Any] = field(default_factory=dict)
    overlap: float | None = None
    parts: Mapping[str, Evaluation] = field(default_factory=dict)

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
        """Write the tables (cases.csv, summary.csv, reliability.csv), summary.json and the pictures montage.png and
        reliability.png, and remove the file for resuming.

        With pyarrow each table is also there as a file .parquet. Files of another program have no reliability.
        Each part gets a folder of its name.

        Raises:
            UsageError: the folder holds something else, see `check_room`.
        """
        folder = Path(folder)
        check_room(folder, self.key, overwrite)
        tables = {"cases.csv": self.cases, "summary.csv": self.summary}
        if len(self.reliability):
            tables["reliability.csv"] = self.reliability
        for name, table in tables.items():
            write_table(folder / name, table)
            write_parquet_beside(folder / name, table)
        write_atomically(folder / "summary.json", json.dumps(self.to_json(), indent=1).encode())
        if self.panels:
            from multiseg.evaluation.montage import save_montage  # slow to import

            save_montage(folder / "montage.png", self.panels, f"{self.title}, all their sequences", overwrite=True)
        if len(self.reliability):
            from multiseg.evaluation.reliability_plot import save_reliability  # slow to import

            save_reliability(folder / RELIABILITY, self.reliability, self.title_of)
        else:  # not those of an earlier evaluation
            for name in (RELIABILITY, "reliability.csv", "reliability.parquet"):
                (folder / name).unlink(missing_ok=True)
        (folder / PROGRESS).unlink(missing_ok=True)
        for name, part in self.parts.items():
            part.save(folder / name, overwrite)

    @property
    def policy(self) -> str:
        """How empty masks, and undefined values of own metrics, count."""
        text = self.scoring.policy.text
        return f"{text} {OWN_POLICY}" if self.own_metrics else text

    def to_json(self) -> dict[str, Any]:
        rows = json.loads(self.summary.to_json(orient="records"))
        return {
            "empty_mask_policy": self.policy,
            "scoring": asdict(self.scoring),
            "left_out": {k: list(v) for k, v in self.left_out.items()},
            "skipped": dict(self.skipped),
            "learnt": {kind or "not learnt": list(names) for kind, names in self.learnt.items()},
            "unlisted": dict(self.unlisted),
            **({"doubts": dict(self.doubts)} if self.doubts else {}),
            "key": self.key,
            "store": self.store,
            **({"model": self.model} if self.model else {}),
            **({"models": list(self.models)} if self.models else {}),
            **({ANSWERED: dict(self.answered)} if self.answered else {}),
            **({} if self.overlap is None else {OVERLAP: self.overlap}),
            "calibration": self.calibration.to_json() if self.calibration else None,
            "calibration_errors": error_changes(self.summary) if self.is_calibrated else [],
            "expected_dice": json.loads(pd.DataFrame(expected_and_true(self.cases)).to_json(orient="records")),
            "summary": rows,
        }
