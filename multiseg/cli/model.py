"""What a model file says of itself, and whether it has learnt from patients who have withdrawn."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from multiseg.cli.console import messages, print_json, print_table

if TYPE_CHECKING:
    from multiseg.models.learnt_scans import LearntScans
    from multiseg.store.reader import Store


def show_model(path: Path, store: str, as_json: bool) -> int:
    """Print what a model has learnt from; exit code 3 where scans of it were removed from the store, or where a damaged
    database does not tell."""
    from multiseg.models.learnt_scans import removed_among
    from multiseg.models.saved import model_path, read_info, read_learnt
    from multiseg.store.reader import open_store

    file = model_path(path)
    info, learnt = read_info(file), read_learnt(file)
    held = open_store(store) if store else None
    dates = () if held is None else removed_among(learnt, held.removed)
    counts = {"train": 0, "val": 0} if learnt is None else {"train": len(learnt.train), "val": len(learnt.val)}
    is_complete = learnt is not None and learnt.is_complete
    if as_json:
        told = {"sequences": list(info.axis), "scans": counts, "all_scans_known": is_complete}
        damaged = [] if held is None else sorted(held.damaged)
        print_json({"model": str(file), **told, "removed_scans": len(dates) if held else None, "damaged": damaged})
        return 3 if dates or damaged else 0
    rows = [
        ["sequences", " ".join(info.axis)],
        ["scans trained on", str(counts["train"])],
        ["scans chosen by", str(counts["val"])],
        ["all scans known", "yes" if is_complete else "no"],
    ]
    print_table(str(file), ["what", ""], rows)
    if held is not None:
        warn_of_removed(held, learnt)
    return 3 if dates or (held is not None and held.damaged) else 0


def warn_of_removed(store: Store, learnt: LearntScans | None) -> None:
    """Say it where a model has learnt, or may have learnt, from scans that were removed from a store."""
    from multiseg.models.learnt_scans import describe_removed

    if text := describe_removed(learnt, store.url, store.removed, store.damaged):
        messages().print(text, soft_wrap=True, markup=False)
