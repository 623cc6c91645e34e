"""Prepare a case for a model in the same way as its training cases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from multiseg.errors import CheckpointError, UsageError
from multiseg.modalities import ModalityAxis
from multiseg.models.saved import ModelInfo
from multiseg.store.findings import Doubt, Severity
from multiseg.store.preparation.recipe import BRAIN_RULES, COMMAND, Recipe

AUTOMATIC = ("nonzero", "otsu")
"""Brain rules that need only the images."""
MODEL_RULE = "model"
"""The brain is found by the network that the model carries, see `brain_finding`."""
LARGEST = 60_000.0
"""Limit of a shifted background: the largest float16 is 65504."""


def network_input(
    info: ModelInfo,
    images: Float[np.ndarray, "own i j k"],
    names: Sequence[str],
    kept: Sequence[str],
    intensity: Mapping[str, tuple[float, float]],
) -> tuple[Float[np.ndarray, "modality i j k"], Bool[np.ndarray, " modality"]]:
    """The kept sequences of a prepared case on the model's channels, and which channels are present.

    Outside the brain, where a sequence is exactly 0, it stays 0. For a model with a "shifted" background it becomes
    the z-score of a raw 0, (0 - mean) / std, as in the model's training. Each sequence is shifted at its own zeros,
    so that it does not depend on the others.

    Args:
        names: the sequence of each of `images`.
        kept: the sequences to use; those that are not on the model's axis are left out.
        intensity: mean and standard deviation of the raw values, by sequence.
    """
    placed, present = place(images, names, kept, info.axis)
    if info.background == "shifted":
        for channel in np.flatnonzero(present):
            mean, std = intensity[info.axis[int(channel)]]
            placed[channel][placed[channel] == 0] = np.clip(-mean / std, -LARGEST, LARGEST)
    return placed, present


def place(
    images: Float[np.ndarray, "own i j k"], names: Sequence[str], kept: Sequence[str], axis: ModalityAxis
) -> tuple[Float[np.ndarray, "modality i j k"], Bool[np.ndarray, " modality"]]:
    """The images of the kept sequences on their channels, 0 on all others, and which channels are present.

    Args:
        names: the sequence of each of `images`.
        kept: the sequences to use; those that are not on the axis are left out.
    """
    placed = np.zeros((len(axis), *images.shape[1:]), dtype=images.dtype)
    present = np.zeros(len(axis), dtype=bool)
    for index, name in enumerate(names):
        if name in kept and name in axis:
            (channel,) = axis.channels([name])
            placed[channel] = images[index]
            present[channel] = True
    return placed, present


def brain_rule(brain_mask: Path | str | None) -> tuple[str, Path | None]:
    """The rule and the mask file for a user's "nonzero", "otsu", "model", "command ..." or file name."""
    if brain_mask is None or str(brain_mask) == "":
        return "", None
    text = str(brain_mask)
    if text.startswith(COMMAND) or (text in (*BRAIN_RULES, MODEL_RULE) and text != "file"):
        return text, None
    return "file", Path(brain_mask)


def recipe_for(
    info: ModelInfo, rule: str, reference: str, headers_disagree: str, finds_brain: bool = False
) -> tuple[Recipe, tuple[Doubt, ...]]:
    """The recipe of the model's databases for a new patient.

    The brain is found by the databases' rule if it needs only the images; a command from a model file is never run.
    If databases differ, a step is taken if any of them took it, z-scores are preferred to a histogram's scale and that
    to raw values, landmarks are averaged, and a doubt reports it.

    Args:
        rule: the user's rule for the brain, "" for the model's.
        finds_brain: whether the model carries a brain network, which is then named to a user who needs a mask.

    Raises:
        UsageError: every database had masks or a command, so the user must give one, too.
        CheckpointError: a recipe in the model is invalid.
    """
    by_database = _recipes(info)
    recipes = list(by_database.values())
    settings = {name: (recipe.normalise, recipe.register, recipe.n4) for name, recipe in by_database.items()}
    doubts = (_mixed(settings),) if len(set(settings.values())) > 1 else ()
    if not recipes:
        doubts = (_no_recipe(rule),)
    used = {recipe.normalise for recipe in recipes}
    normalise = next((choice for choice in ("zscore", "histogram", "none") if choice in used), "zscore")
    recipe = Recipe(
        spacing_mm=info.spacing_mm,
        reference=reference,
        brain_mask=rule or _models_rule(recipes, finds_brain),
        headers_disagree=headers_disagree,
        normalise=normalise,
        register="rigid" if any(recipe.register for recipe in recipes) else "",
        n4=any(recipe.n4 for recipe in recipes),
        landmarks=_landmarks(recipes) if normalise == "histogram" else {},
    )
    return recipe, doubts


def _recipes(info: ModelInfo) -> dict[str, Recipe]:
    try:
        return {
            name: Recipe.from_json(attributes["recipe"])
            for name, attributes in info.databases.items()
            if "recipe" in attributes
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"cannot read a preparation recipe in the model: {error!r}.") from error


def _models_rule(recipes: Iterable[Recipe], finds_brain: bool) -> str:
    rules = {recipe.brain_mask for recipe in recipes}
    automatic = [rule for rule in AUTOMATIC if rule in rules]
    if rules and not automatic:
        raise UsageError(
            f"the model was trained with given brain masks ({', '.join(sorted(rules))}). Give this patient's: "
            '--brain-mask FILE, or a program you trust: --brain-mask "command ...", or nonzero if the images show '
            f"only the brain{', or model, whose own network then finds it' if finds_brain else ''}."
        )
    return automatic[0] if automatic else "nonzero"


def _landmarks(recipes: Sequence[Recipe]) -> dict[str, tuple[float, ...]]:
    names = sorted({name for recipe in recipes for name in recipe.landmarks})
    scales = {name: [recipe.landmarks[name] for recipe in recipes if name in recipe.landmarks] for name in names}
    return {name: tuple(float(value) for value in np.mean(rows, axis=0)) for name, rows in scales.items()}


def _no_recipe(rule: str) -> Doubt:
    """The doubt for an imported model, which does not say how its data were prepared."""
    brain = f"the brain was found by {rule}" if rule else "all voxels that are not 0 were taken as brain"
    text = f"the model does not say how its data were prepared; intensities were z-scored, and {brain}."
    return Doubt(Severity.WARNING, "NO_RECIPE", f"{text} A scan with its skull needs --brain-mask.")


def _mixed(settings: Mapping[str, tuple[str, str, bool]]) -> Doubt:
    listed = "; ".join(
        f"{name}: {normalise}{', registered' if register else ''}{', N4' if n4 else ''}"
        for name, (normalise, register, n4) in settings.items()
    )
    text = (
        f"the model's databases were prepared differently ({listed}); the patient was prepared with every step that "
        "any of them had. Compare with the model's evaluation."
    )
    return Doubt(Severity.WARNING, "MIXED_RECIPES", text)
