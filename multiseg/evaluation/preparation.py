"""How a case is made ready for a model: prepared and laid out as those were that it learnt from."""

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
"""Rules that need nothing but the images."""
LARGEST = 60_000.0
"""What a background may be moved to: float16 ends at 65504."""


def network_input(
    info: ModelInfo,
    images: Float[np.ndarray, "own i j k"],
    names: Sequence[str],
    kept: Sequence[str],
    intensity: Mapping[str, tuple[float, float]],
) -> tuple[Float[np.ndarray, "modality i j k"], Bool[np.ndarray, " modality"]]:
    """The kept sequences of a prepared case on the model's channels, and which channels are present.

    Outside the brain, where a sequence is exactly 0, it stays so; or, for a model whose background is "shifted",
    gets what its z-score makes of a raw 0: (0 - mean) / std, as the model saw it in training. Each sequence goes
    by its own zeros, so that it looks the same whichever others are there.

    Args:
        names: the sequence of each of `images`.
        kept: the sequences that count; those that are not on the model's axis are left out.
        intensity: mean and standard deviation of the raw values, by sequence.
    """
    placed, present = place(images, names, kept, info.axis)
    if info.background == "shifted":
        for channel in np.flatnonzero(present):
            mean, std = intensity[info.axis[int(channel)]]
            placed[channel][placed[channel] == 0] = np.clip(-mean / std, -LARGEST, LARGEST)
    return placed, present


def place(
    images: Float[np.ndarray, "own i j k"],
    names: Sequence[str],
    kept: Sequence[str],
    axis: ModalityAxis,
) -> tuple[Float[np.ndarray, "modality i j k"], Bool[np.ndarray, " modality"]]:
    """The images of the kept sequences on their channels, 0 on all others, and which channels are present.

    Args:
        names: the sequence of each of `images`.
        kept: the sequences that count; those that are not on the axis are left out.
    """
    placed = np.zeros((len(axis), *images.shape[1:]), dtype=images.dtype)
    present = np.zeros(len(axis), dtype=bool)
    for at, name in enumerate(names):
        if name in kept and name in axis:
            (channel,) = axis.channels([name])
            placed[channel] = images[at]
            present[channel] = True
    return placed, present


def brain_rule(given: Path | str | None) -> tuple[str, Path | None]:
    """What a user says of the brain as a recipe's rule and a mask's file: "nonzero", "otsu", "command ...", a file."""
    if given is None or str(given) == "":
        return "", None
    text = str(given)
    if text.startswith(COMMAND) or (text in BRAIN_RULES and text != "file"):
        return text, None
    return "file", Path(given)


def recipe_for(info: ModelInfo, rule: str, reference: str, headers_disagree: str) -> tuple[Recipe, tuple[Doubt, ...]]:
    """The recipe of the model's databases for one more patient.

    A patient's brain is found as theirs were where the images suffice; a command that a model file names
    is never run. Where databases differ, a step is taken if any of them took it, z-scores go before a
    histogram's scale and that before raw values, and a doubt says so; landmarks are averaged.

    Args:
        rule: the user's own for the brain, "" for the model's.

    Raises:
        UsageError: every database had masks or a command, so that the user has to give one, too.
        CheckpointError: the model holds a recipe that is none.
    """
    by_database = _recipes(info)
    recipes = list(by_database.values())
    settings = {name: (one.normalise, one.register, one.n4) for name, one in by_database.items()}
    doubts = (_mixed(settings),) if len(set(settings.values())) > 1 else ()
    if not recipes:
        doubts = (_unsaid(rule),)
    choices = [choice for choice in ("zscore", "histogram", "none") if choice in {one.normalise for one in recipes}]
    normalise = choices[0] if choices else "zscore"
    recipe = Recipe(
        spacing_mm=info.spacing_mm,
        reference=reference,
        brain_mask=rule or _models_rule(recipes),
        headers_disagree=headers_disagree,
        normalise=normalise,
        register="rigid" if any(one.register for one in recipes) else "",
        n4=any(one.n4 for one in recipes),
        landmarks=_landmarks(recipes) if normalise == "histogram" else {},
    )
    return recipe, doubts


def _recipes(info: ModelInfo) -> dict[str, Recipe]:
    try:
        return {name: Recipe.from_json(about["recipe"]) for name, about in info.databases.items() if "recipe" in about}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"the model holds a recipe of preparation that cannot be read: {error!r}.") from error


def _models_rule(recipes: Iterable[Recipe]) -> str:
    rules = {recipe.brain_mask for recipe in recipes}
    automatic = [rule for rule in AUTOMATIC if rule in rules]
    if rules and not automatic:
        raise UsageError(
            f"the model learnt from cases whose brain was given ({', '.join(sorted(rules))}). Give this patient's: "
            '--brain-mask FILE, or a program you trust: --brain-mask "command ...", or nonzero, if the images show '
            "nothing but brain."
        )
    return automatic[0] if automatic else "nonzero"


def _landmarks(recipes: Sequence[Recipe]) -> dict[str, tuple[float, ...]]:
    names = sorted({name for recipe in recipes for name in recipe.landmarks})
    scales = {name: [one.landmarks[name] for one in recipes if name in one.landmarks] for name in names}
    return {name: tuple(float(value) for value in np.mean(rows, axis=0)) for name, rows in scales.items()}


def _unsaid(rule: str) -> Doubt:
    """A model that was imported does not say how its data were prepared."""
    brain = "everything that is not 0 was taken for brain" if not rule else f"the brain was found by {rule}"
    return Doubt(
        Severity.WARNING, "NO_RECIPE", "the model does not say how its data were prepared; intensities were z-scored, "
        f"and {brain}. A scan with its skull needs --brain-mask.",
    )  # fmt: skip


def _mixed(settings: Mapping[str, tuple[str, str, bool]]) -> Doubt:
    said = "; ".join(
        f"{name}: {normalise}{', registered' if register else ''}{', N4' if n4 else ''}"
        for name, (normalise, register, n4) in settings.items()
    )
    return Doubt(
        Severity.WARNING, "MIXED_RECIPES", f"the model's databases were not prepared alike ({said}); the patient was "
        "prepared with every step that any of them had. Compare with the model's evaluation.",
    )  # fmt: skip
