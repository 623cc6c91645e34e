"""Show what a model was trained on, and whether any of these scans were removed from a store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from multiseg.cli.console import messages, print_json, print_table

if TYPE_CHECKING:
    from multiseg.models.learnt_scans import LearntScans
    from multiseg.models.saved import ModelInfo
    from multiseg.store.reader import Store


def show_model(path: Path, store: str, as_json: bool) -> int:
    """Print what a model has learnt from. Returns the exit code.

    It is 3 if the store no longer has some of these scans, or has a damaged database that may have had them.
    """
    from multiseg.models.brain_network import load_brain_network
    from multiseg.models.learnt_scans import removed_among
    from multiseg.models.saved import model_path, read_info, read_learnt
    from multiseg.store.reader import open_store

    file = model_path(path)
    info, learnt = read_info(file), read_learnt(file)
    brain = load_brain_network(file)
    opened = open_store(store) if store else None
    dates = removed_among(learnt, opened.removed) if opened is not None else ()
    damaged = sorted(opened.damaged) if opened is not None else []
    counts = {"train": 0, "val": 0} if learnt is None else {"train": len(learnt.train), "val": len(learnt.val)}
    is_complete = learnt is not None and learnt.is_complete
    if as_json:
        contents = {"sequences": list(info.axis), "scans": counts, "all_scans_known": is_complete}
        contents["brain_network"] = None if brain is None else _about_brain(brain.info)
        removed = len(dates) if opened is not None else None
        held = {"calibration": info.calibration.to_json() if info.calibration else None}
        print_json({"model": str(file), **contents, **held, "removed_scans": removed, "damaged": damaged})
        return 3 if dates or damaged else 0
    rows = [
        ["sequences", " ".join(info.axis)],
        ["scans for training", str(counts["train"])],
        ["scans for validation", str(counts["val"])],
        ["all scans known", "yes" if is_complete else "no"],
        ["temperatures outside/inside by number of sequences", _temperatures(info)],
        ["brain network", "none" if brain is None else _brain_text(brain.info)],
    ]
    print_table(str(file), ["what", ""], rows)
    if opened is not None:
        warn_of_removed(opened, learnt)
    return 3 if dates or damaged else 0


def _temperatures(info: ModelInfo) -> str:
    if info.calibration is None:
        return "none: not calibrated"
    return " ".join(
        f"{num}: {both.outside:.2f}/{both.inside:.2f}" for num, both in info.calibration.temperatures.items()
    )


def _about_brain(info: ModelInfo) -> dict[str, Any]:
    return {
        "databases": {name: about["num_cases"] for name, about in info.databases.items()},
        "spacing_mm": list(info.spacing_mm),
        "steps": info.step,
        "synthetic_dice": info.metrics.get("score"),
    }


def _brain_text(info: ModelInfo) -> str:
    num = sum(about["num_cases"] for about in info.databases.values())
    return f"of {num} brains ({', '.join(info.databases)}): predict --brain-mask model"


def warn_of_removed(store: Store, learnt: LearntScans | None) -> None:
    """Print a warning if a model has learnt, or may have learnt, from scans that were removed from a store."""
    from multiseg.models.learnt_scans import describe_removed

    if text := describe_removed(learnt, store.url, store.removed, store.damaged):
        messages().print(text, soft_wrap=True, markup=False)
