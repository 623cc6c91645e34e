"""What a run learns from, written into its folder, and what of it has changed when the run resumes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
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
    "prepared": "prepared in another way (recipe, brain mask or grid)",
}
"""What is compared of a case, told by its first difference. `files` is over the source files of a case, brain mask
and label included; `prepared` over the recipe and what came of it."""


@dataclass(frozen=True)
class RunData:
    """The cases that a run is trained on and validated on: by "database/case" its split and the digests of `FIELDS`."""

    cases: Mapping[str, Mapping[str, str]]

    @property
    def validated(self) -> dict[str, Mapping[str, str]]:
        return {name: about for name, about in self.cases.items() if about["split"] == "val"}

    @property
    def digest(self) -> str:
        """One digest of it all."""
        return _digest(self.cases)


def data_of(store: Store, train: Iterable[Case], val: Iterable[Case]) -> RunData:
    """What a run learns from: the cases it may draw from, and those that it is validated on."""
    # As they are stored: what this version would write may say more than the one before.
    held = {name: database.attributes for name, database in store.databases.items()}
    recipes = {name: _digest(attributes["recipe"]) for name, attributes in held.items()}
    schemas = {
        name: {one: _digest(held[name]["label_schemas"][one]) for one in database.schemas}
        for name, database in store.databases.items()
    }
    cases = {}
    for split, some in (("train", train), ("val", val)):
        for case in some:
            about = _about(case, recipes[case.database], schemas[case.database])
            cases[f"{case.database}/{case.name}"] = {"split": split, **about}
    return RunData(cases)


def scans_of(train: Iterable[Case], val: Iterable[Case]) -> LearntScans:
    """The same as digests of scans, as a model file keeps them."""
    return LearntScans.of(
        (digest for case in train for digest in case.content.values()),
        (digest for case in val for digest in case.content.values()),
    )


def write_data(folder: Path, data: RunData) -> None:
    """Write it down, whole or not at all."""
    text = json.dumps({"format": FORMAT, "cases": data.cases}, indent=0)
    write_atomically(folder / DATA, text.encode())


def read_data(folder: Path) -> RunData | None:
    """What was written down; None where nothing was.

    Raises:
        CheckpointError: it is damaged.
    """
    try:
        content = json.loads((folder / DATA).read_text(encoding="utf-8"))
        cases = {
            str(name): {key: str(about[key]) for key in ("split", *FIELDS)} for name, about in content["cases"].items()
        }
        is_ours = content["format"] == FORMAT
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{folder / DATA}, which says what the run learnt from, is damaged: {error!r}. Put back a copy of it, or "
            "remove it: then nobody can tell whether the data have changed."
        ) from error
    if not is_ours:
        raise CheckpointError(f"{folder / DATA} has format {content['format']}; this multiseg reads {FORMAT}.")
    return RunData(cases)


def changes(before: RunData, now: RunData, store: Store) -> dict[str, tuple[str, ...]]:
    """What has changed, in words, with the cases that it has happened to; empty where nothing has."""
    today = {f"{case.database}/{case.name}": case.split for case in store.cases}
    found: dict[str, list[str]] = {}
    for name in sorted(before.cases.keys() | now.cases.keys()):
        what = _change(before.cases.get(name), now.cases.get(name), today.get(name))
        if what:
            found.setdefault(what, []).append(name)
    return {what: tuple(names) for what, names in found.items()}


def describe_changes(changed: Mapping[str, Sequence[str]]) -> str:
    """Changes as one line: how many cases each, and the first by name."""
    return "; ".join(f"{len(names)} {what} ({few(names)})" for what, names in changed.items())


def _change(before: Mapping[str, str] | None, now: Mapping[str, str] | None, split: str | None) -> str:
    """What has happened to a case; `split` is the one that the store has it in, None where it is not there."""
    used = {"train": "for training", "val": "for validation"}
    if before is None:
        return f"new {used[now['split']]}" if now else ""
    if now is None and split is None:
        return f"no longer in the store, before {used[before['split']]}"
    if now is None:
        moved = f"moved from {before['split']} to {split}"
        return moved if split != before["split"] else f"no longer taken {used[before['split']]}"
    if now["split"] != before["split"]:
        return f"moved from {before['split']} to {now['split']}"
    return next((text for field, text in FIELDS.items() if now[field] != before[field]), "")


def _about(case: Case, recipe: str, schemas: Mapping[str, str]) -> dict[str, str]:
    structures = [
        [schemas[name], np.trim_zeros(counts, "b").tolist()]
        for name, there, counts in zip(schemas, case.annotated.tolist(), case.foreground_count, strict=True)
        if there
    ]
    intensity = {name: [f"{value:.5g}" for value in pair] for name, pair in case.intensity.items()}
    place = [round(float(value), 4) for value in case.grid.affine.ravel()]
    return {
        "scans": _digest(dict(case.content)),
        "labels": _digest(structures),
        "files": case.source_sha256[:DIGITS],
        "prepared": _digest([recipe, case.extent, place, intensity]),
    }


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:DIGITS]
