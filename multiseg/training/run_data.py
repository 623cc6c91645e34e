"""The data that a run learns from: written to its folder, and compared when the run resumes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from multiseg.errors import CheckpointError, few
from multiseg.files import write_atomically
from multiseg.models.learnt_scans import LearntScans
from multiseg.store.reader import Case, Store

DATA = "data.json"
FORMAT = 1
DIGITS = 16
FIELDS = {
    "scans": "with other scans",
    "labels": "with another label",
    "files": "from other files, with the same scans",
    "prepared": "prepared differently (recipe, brain mask or grid)",
}
"""What is compared of a case; the first difference is reported. `files` covers the source files of a case, including
brain mask and label; `prepared` covers the recipe and its result."""


@dataclass(frozen=True)
class RunData:
    """What a run learns from.

    Attributes:
        cases: of training and validation: by "database/case" its split and the digests of `FIELDS`.
        joint_loss: the version of the losses of the stage joint; 0 in other stages, and in a file that does not say.
    """

    cases: Mapping[str, Mapping[str, str]]
    joint_loss: int = 0

    @property
    def validated(self) -> dict[str, Mapping[str, str]]:
        return {name: entry for name, entry in self.cases.items() if entry["split"] == "val"}

    @property
    def digest(self) -> str:
        return _digest(self.cases)


def data_of(store: Store, train: Iterable[Case], val: Iterable[Case]) -> RunData:
    """What a run learns from: the cases it may draw from, and those that it is validated on."""
    # The attributes as stored: a newer version of multiseg might serialise the same recipe differently.
    recipes, schemas = {}, {}
    for name, database in store.databases.items():
        recipes[name] = _digest(database.attributes["recipe"])
        stored = database.attributes["label_schemas"]
        schemas[name] = {annotation: _digest(stored[annotation]) for annotation in database.schemas}
    cases = {}
    for split, split_cases in (("train", train), ("val", val)):
        for case in split_cases:
            digests = _case_digests(case, recipes[case.database], schemas[case.database])
            cases[f"{case.database}/{case.name}"] = {"split": split, **digests}
    return RunData(cases)


def with_soft_targets(data: RunData, soft: Mapping[str, str]) -> RunData:
    """The data with soft targets as part of the labels of their cases; `soft` has their digests by "database/case"."""
    added = {name: {**data.cases[name], "labels": _digest([data.cases[name]["labels"], soft[name]])} for name in soft}
    return replace(data, cases={**data.cases, **added})


def scans_of(train: Iterable[Case], val: Iterable[Case]) -> LearntScans:
    """The digests of the scans of these cases, as a model file keeps them."""
    return LearntScans.of(
        (digest for case in train for digest in case.content.values()),
        (digest for case in val for digest in case.content.values()),
    )


def write_data(folder: Path, data: RunData) -> None:
    """Write data.json atomically."""
    loss = {"joint_loss": data.joint_loss} if data.joint_loss else {}
    text = json.dumps({"format": FORMAT, **loss, "cases": data.cases}, indent=0)
    write_atomically(folder / DATA, text.encode())


def read_data(folder: Path) -> RunData | None:
    """Read data.json; None if there is none.

    Raises:
        CheckpointError: it is damaged.
    """
    try:
        content = json.loads((folder / DATA).read_text(encoding="utf-8"))
        cases = {
            str(name): {key: str(entry[key]) for key in ("split", *FIELDS)} for name, entry in content["cases"].items()
        }
        is_ours, joint_loss = content["format"] == FORMAT, int(content.get("joint_loss", 0))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{folder / DATA}, which lists what the run learnt from, is damaged: {error!r}. Restore a copy, or remove "
            "it: then changes of the data cannot be detected."
        ) from error
    if not is_ours:
        raise CheckpointError(f"{folder / DATA} has format {content['format']}; this multiseg reads {FORMAT}.")
    return RunData(cases, joint_loss)


def changes(before: RunData, now: RunData, store: Store) -> dict[str, tuple[str, ...]]:
    """The changed cases by a description of the change."""
    splits = {f"{case.database}/{case.name}": case.split for case in store.cases}
    changed: dict[str, list[str]] = {}
    for name in sorted(before.cases.keys() | now.cases.keys()):
        change = _change(before.cases.get(name), now.cases.get(name), splits.get(name))
        if change:
            changed.setdefault(change, []).append(name)
    return {change: tuple(names) for change, names in changed.items()}


def describe_changes(changed: Mapping[str, Sequence[str]]) -> str:
    """Changes as one line: for each the number of cases and the first names."""
    return "; ".join(f"{len(names)} {change} ({few(names)})" for change, names in changed.items())


def _change(before: Mapping[str, str] | None, now: Mapping[str, str] | None, split: str | None) -> str:
    """The change of a case, or ""; `split` is its split in the store, None if the store does not have it."""
    used = {"train": "for training", "val": "for validation"}
    if before is None:
        return f"new {used[now['split']]}" if now else ""
    if now is None and split is None:
        return f"no longer in the store, before {used[before['split']]}"
    if now is None and split == before["split"]:
        return f"no longer used {used[split]}"
    if now is None:
        return f"moved from {before['split']} to {split}"
    if now["split"] != before["split"]:
        return f"moved from {before['split']} to {now['split']}"
    return next((text for field, text in FIELDS.items() if now[field] != before[field]), "")


def _case_digests(case: Case, recipe: str, schemas: Mapping[str, str]) -> dict[str, str]:
    structures = [
        [schemas[name], np.trim_zeros(counts, "b").tolist()]
        for name, is_annotated, counts in zip(schemas, case.annotated.tolist(), case.foreground_count, strict=True)
        if is_annotated
    ]
    intensity = {name: [f"{value:.5g}" for value in pair] for name, pair in case.intensity.items()}
    affine = [round(float(value), 4) for value in case.grid.affine.ravel()]
    return {
        "scans": _digest(dict(case.content)),
        "labels": _digest(structures),
        "files": case.source_sha256[:DIGITS],
        "prepared": _digest([recipe, case.extent, affine, intensity]),
    }


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:DIGITS]
