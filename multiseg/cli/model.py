"""What a model file says of itself, and whether it has learnt from patients who have withdrawn."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from multiseg.cli.console import messages, print_json, print_table

if TYPE_CHECKING:
    from multiseg.models.learnt_scans import LearntScans
    from multiseg.store.reader import Store


def show_model(path: Path, store: str, as_json: bool) -> int:
    """Print what a model has learnt from; exit code 3 where scans of it were removed from the store."""
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
        print_json({"model": str(file), **told, "removed_scans": len(dates) if held else None})
        return 3 if dates else 0
    rows = [
        ["sequences", " ".join(info.axis)],
        ["scans trained on", str(counts["train"])],
        ["scans chosen by", str(counts["val"])],
        ["all scans known", "yes" if is_complete else "no"],
    ]
    print_table(str(file), ["what", ""], rows)
    if held is not None:
        warn_of_removed(held, learnt)
    return 3 if dates else 0


def warn_of_removed(store: Store, learnt: LearntScans | None) -> None:
    """Say it where a model has learnt from scans that were removed from a store."""
    from multiseg.models.learnt_scans import removed_among

    dates = removed_among(learnt, store.removed)
    if dates:
        text = (
            f"The model has learnt from {len(dates)} scans of cases that were removed from {store.url} "
            f"({', '.join(dict.fromkeys(dates))}). Train it again without them, from a model that has not seen them."
        )
        messages().print(text, soft_wrap=True, markup=False)
