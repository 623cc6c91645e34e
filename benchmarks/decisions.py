"""Rules by which probabilities become an answer, compared on the validation cases of a store.

    python -m benchmarks.decisions runs/joint --store brain.zarr

For each rule: the mean Dice of every structure over the cases that have it, the lesion voxels in which the lesions
together have p < 0.5, and the share of the voxels outside the brain that are not background.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from multiseg.evaluation.decision import brain_of, decide
from multiseg.evaluation.inference import predict_volume
from multiseg.evaluation.metrics import dice, mean_of_defined
from multiseg.evaluation.preparation import network_input
from multiseg.labels import IGNORE, LabelSpace
from multiseg.models.saved import Model, load_model
from multiseg.store.catalogue import select
from multiseg.store.reader import Case, Store, open_store

Rule = Callable[[np.ndarray, LabelSpace, np.ndarray], np.ndarray]


def argmax(p: np.ndarray, space: LabelSpace, brain: np.ndarray) -> np.ndarray:
    """The likeliest of all classes, background among them, wherever it is."""
    return np.where(p.max(axis=0) >= 1 - p.sum(axis=0), p.argmax(axis=0) + 1, 0)


def argmax_in_brain(p: np.ndarray, space: LabelSpace, brain: np.ndarray) -> np.ndarray:
    return np.where(brain, argmax(p, space, brain), 0)


def lesions_together(p: np.ndarray, space: LabelSpace, brain: np.ndarray) -> np.ndarray:
    """The likeliest lesion wherever the lesions together have 0.5; tissue as in `decide`."""
    lesion = np.array([label.kind == "lesion" for label in space.labels])
    answer = decide(p, space, brain)
    if not lesion.any():
        return answer
    wins = (p[lesion].sum(axis=0) >= 0.5) & brain
    return np.where(wins, np.arange(1, len(p) + 1)[lesion][p[lesion].argmax(axis=0)], answer)


def half_for_each(p: np.ndarray, space: LabelSpace, brain: np.ndarray) -> np.ndarray:
    """A structure wins from 0.5 on, whatever else there is."""
    return np.where((p.max(axis=0) >= 0.5) & brain, p.argmax(axis=0) + 1, 0)


def any_tissue(p: np.ndarray, space: LabelSpace, brain: np.ndarray) -> np.ndarray:
    """As `decide`, but what is no lesion is tissue where the tissues together are likelier than background."""
    tissue = np.array([label.kind == "tissue" for label in space.labels])
    answer = decide(p, space, brain)
    if not tissue.any():
        return answer
    wins = (p[tissue].sum(axis=0) >= 1 - p.sum(axis=0)) & brain & (answer == 0)
    return np.where(wins, np.arange(1, len(p) + 1)[tissue][p[tissue].argmax(axis=0)], answer)


RULES: Mapping[str, Rule] = {
    "argmax": argmax,
    "argmax in the brain": argmax_in_brain,
    "0.5 for each": half_for_each,
    "lesions together from 0.5 on": lesions_together,
    "any tissue against background": any_tissue,
    "decide": decide,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--store", required=True)
    parser.add_argument("--split", default="val")
    asked = parser.parse_args()
    model, store = load_model(asked.run), open_store(asked.store)
    cases = [case for case in select(store, split=asked.split) if _annotated(model, store, case).any()]
    probabilities = [_probabilities(model, store, case) for case in cases]
    for name, rule in RULES.items():
        print(name, dict(_scores(model, store, cases, probabilities, rule)), flush=True)


def _annotated(model: Model, store: Store, case: Case) -> np.ndarray:
    return np.asarray(store[case.database].label_view(case, model.info.space).annotated)


def _probabilities(model: Model, store: Store, case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Of every structure, from all sequences; and the brain that these show."""
    database = store[case.database]
    usable = model.info.usable(case.modalities)
    own, _ = database.whole(case)
    images, present = network_input(model.info, own, database.modalities, usable, case.intensity)
    brain = brain_of(own[database.modalities.index(name)] for name in usable)
    return predict_volume(model, images, present, model.info.patch), brain


def _scores(
    model: Model, store: Store, cases: list[Case], found: list[tuple[np.ndarray, np.ndarray]], rule: Rule
) -> Iterator[tuple[str, float]]:
    space = model.info.space
    lesions = [at for at, label in enumerate(space.labels) if label.kind == "lesion"]
    scores: dict[str, list[float]] = {name: [] for name in space.names}
    unlikely = num_lesion = outside = num_outside = 0
    for case, (p, brain) in zip(cases, found, strict=True):
        database = store[case.database]
        view = database.label_view(case, space)
        target = view.target(database.whole(case)[1])
        answer = rule(p, space, brain)
        is_lesion = np.isin(answer, [at + 1 for at in lesions])
        unlikely += int((is_lesion & (p[lesions].sum(axis=0) < 0.5)).sum())
        num_lesion += int(is_lesion.sum())
        outside += int(((answer != 0) & ~brain).sum())
        num_outside += int((~brain).sum())
        for at in np.flatnonzero(view.annotated):
            predicted = (answer == at + 1) & (target != IGNORE)
            scores[space.names[at]].append(dice(predicted, target == at + 1))
    for name, values in scores.items():
        yield name, round(mean_of_defined(values), 3)
    yield "lesion voxels", num_lesion
    yield "of them p < 0.5", unlikely
    yield "outside answered", round(outside / max(1, num_outside), 4)


if __name__ == "__main__":
    main()
