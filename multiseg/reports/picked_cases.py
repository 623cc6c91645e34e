"""The worst, the median and the best case of an evaluation, drawn with the answers of all runs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

import numpy as np

from multiseg.errors import MultisegError, UsageError
from multiseg.evaluation.evaluation_result import EvaluateOptions, options_to_repeat
from multiseg.evaluation.stored_answers import answered
from multiseg.models.branch_models import branch_info
from multiseg.models.saved import Model, load_model, model_path
from multiseg.pages.page import Section, Volume, Volumes
from multiseg.reports.case_slices import case_volume
from multiseg.reports.run_record import EvaluationRecord, RunRecord
from multiseg.store.reader import Store, open_store
from multiseg.types import OnStep, no_progress

MOST_SLICES = 120
"""Of one case over all runs, so that the page stays below 15 MB."""
DRAWN_FIRST = ("FLAIR", "DWI", "T1c")
"""The first of these that a case has is drawn, since they show lesions of most kinds; else its first sequence."""
PICKED = ("worst", "median", "best")
TITLE = "Worst, median and best case"
NOTE = (
    "By mean Dice with all their sequences. Left: the image, or the truth in colours. Right: truth (cyan) and answer "
    "(orange) outlined, or the answer in colours. Front is up, the patient's left is on the right."
)
OLDER = "The Dice is that of an older model; the pictures are of the model that the folder holds now."


def picked_cases(runs: Sequence[RunRecord], device: str, on_case: OnStep = no_progress) -> Section:
    """The worst, the median and the best case of the first evaluation."""
    chooser = next(run for run in runs if run.evaluations)
    picked = pick_cases(chooser.evaluations[0])
    url = str(chooser.evaluations[0].about.get("store", ""))
    try:
        store = open_store(url)
    except MultisegError as error:
        return Section(TITLE, [], f"The cases are not drawn, since the store {url!r} cannot be opened: {error}")
    try:
        options = options_to_repeat(chooser.evaluations[0].about)
        for run in runs:
            branch_info(run.info, options.branch)
    except UsageError as error:
        return Section(TITLE, [], f"The cases are not drawn: {error}")
    models = {run.name: load_model(model_path(run.folder), device) for run in runs}
    most = max(12, MOST_SLICES // len(runs))
    parts, steps, total = [], count(1), len(picked) * len(runs)
    for kind, (case, dice) in picked.items():
        shown = []
        for run in runs:
            volume = _volume(models[run.name], store, case, f"{case}, {run.name}", options, most)
            shown += [] if volume is None else [volume]
            on_case(next(steps), total, case)
        parts.append(Volumes(shown, f"{kind.capitalize()}: {case}, Dice {dice:.2f}"))
    note = NOTE if chooser.evaluations[0].is_current else f"{NOTE} {OLDER}"
    return Section(TITLE, parts, note)


def pick_cases(evaluation: EvaluationRecord) -> dict[str, tuple[str, float]]:
    """The worst, median and best case as "database/case", with their mean Dice over structures.

    Each by its largest set of sequences. Cases that the model has learnt from are taken only if there are no others.
    """
    rows = evaluation.held_out if len(evaluation.held_out) else evaluation.cases
    rows = rows[rows["dice"].notna()]
    most = rows.groupby(["database", "case"])["num_modalities"].transform("max")
    means = rows[rows["num_modalities"] == most].groupby(["database", "case"])["dice"].mean().sort_values(kind="stable")
    names = [f"{database}/{case}" for database, case in means.index]
    places = dict(zip(PICKED, (0, (len(names) - 1) // 2, len(names) - 1), strict=True)) if names else {}
    picked: dict[str, tuple[str, float]] = {}
    for kind, place in places.items():
        if names[place] not in [name for name, _ in picked.values()]:
            picked[kind] = (names[place], float(means.iloc[place]))
    return picked


def _volume(
    model: Model, store: Store, name: str, caption: str, options: EvaluateOptions, most_slices: int
) -> Volume | None:
    """The slices of a case over one of its sequences; None if the store lacks it or the model cannot read it."""
    database, _, case_name = name.partition("/")
    case = store[database][case_name] if database in store.databases else None
    if case is None or store.spacing_mm != model.info.spacing_mm or not model.info.usable(case.modalities):
        return None
    images, truth, codes = answered(model, store, case, options)
    sequence = next((name for name in DRAWN_FIRST if name in images), next(iter(images)))
    return case_volume(
        f"{caption} ({sequence})", images[sequence].astype(np.float32), truth.target, codes,
        len(branch_info(model.info, options.branch).space.names), store.spacing_mm, most_slices,
    )  # fmt: skip
