"""Records which scans a site has learnt from in an experiment, and changes of its data: never sent."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from multiseg.errors import CheckpointError
from multiseg.files import write_atomically
from multiseg.flushing import flush
from multiseg.models.learnt_scans import TRAIN, VAL, LearntScans, how_learnt
from multiseg.store.reader import Case, Store
from multiseg.training.run_data import changes, data_of, describe_changes, read_data, scans_of, write_data

LEARNT, CHANGES = "learnt.json", "changes.jsonl"
LOGGER = logging.getLogger("multiseg.federation")


def remembered(folder: Path) -> LearntScans:
    """The scans of this site that the experiment has learnt from; those of other sites are unknown here.

    Raises:
        CheckpointError: the file is damaged.
    """
    file = folder / LEARNT
    try:
        return LearntScans.from_json(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return LearntScans(is_complete=False)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{file}, the list of scans that the experiment has learnt from at this site, is damaged: {error!r}. "
            "Restore a copy of it."
        ) from error


def remember(folder: Path, number: int, store: Store, train: Sequence[Case], val: Sequence[Case]) -> None:
    """Add the scans that round `number` learns from, and log changes of the site's data since the last round."""
    learnt = remembered(folder) | scans_of(train, val)
    write_atomically(folder / LEARNT, json.dumps(replace(learnt, is_complete=False).to_json()).encode())
    before, now = read_data(folder), data_of(store, train, val)
    changed = changes(before, now, store) if before else {}
    if changed:
        LOGGER.warning(
            "round %d: this site's data have changed since its last round: %s", number, describe_changes(changed)
        )
        with (folder / CHANGES).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"round": number, "changes": changed}) + "\n")
            file.flush()
            flush(file.fileno())
    if before is None or changed:
        write_data(folder, now)


def fair(cases: Sequence[Case], folder: Path, split: str) -> list[Case]:
    """The cases that give an unbiased result: not trained on and, for test cases, not used to choose the model."""
    learnt = remembered(folder)
    unfair = (TRAIN, VAL) if split == "test" else (TRAIN,)
    return [case for case in cases if how_learnt(learnt, case.content.values()) not in unfair]
