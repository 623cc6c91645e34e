"""What a program without multiseg has to do before and after a model's network, as JSON."""

from __future__ import annotations

from typing import Any

from multiseg.errors import UsageError
from multiseg.evaluation.preparation import LARGEST, recipe_for
from multiseg.labels import BACKGROUND
from multiseg.models.saved import ModelInfo
from multiseg.store.preparation.normalisation import LIMIT
from multiseg.store.preparation.recipe import PERCENTILES, Recipe

FORMAT = 1
ORIENTATION = (
    "RAS+: i increases towards the patient's right, j towards the front, k towards the head. Axes are permuted and "
    "flipped to the order and direction that the header's affine is closest to, and not rotated further."
)
REFERENCE = (
    "one of the patient's sequences (predict takes the first that is given): its box gives the grid, along its own "
    "axes with voxels of spacing_mm around the same centre, and the segmentation is written on its own voxels"
)
RESAMPLING = (
    "linear onto the grid of the reference image with voxels of spacing_mm, 0 outside the image; towards larger voxels "
    "after a Gaussian filter of (ratio of the voxel sizes - 1) / 2 source voxels along each axis"
)
BRAIN = {
    "nonzero": "for each sequence its voxels that are not 0, after the constant around the brain is subtracted; where "
    "they are resampled: more than half of the interpolated share, and values are divided by this share (at least "
    "0.25)",
    "otsu": "Otsu's threshold on the reference image in voxels of 3 mm, gaps up to 9 mm closed, the largest connected "
    "part, holes filled in 3-D and in every slice; the constant around the brain is subtracted first",
    "file": "a mask of the patient's brain has to be given, on any grid: resampled linearly, more than 0.5 is brain",
}
INTENSITY = {
    "zscore": "(value - mean) / std of the voxels in the brain; std divides by their number",
    "histogram": "piecewise linear from the brain's percentiles to the sequence's landmarks, then as zscore",
    "none": "unchanged in the brain",
}
BACKGROUNDS = {
    "zero": "0",
    "shifted": f"where the normalised image is exactly 0: -mean / std of its sequence, within +-{LARGEST:g}",
}
WINDOWS = (
    "windows of `patch` voxels that cover the volume and overlap by half; a volume smaller than a window is padded "
    "with 0 around it; logits are averaged with Gaussian weights, whose standard deviation is an eighth of the patch; "
    "windows without any voxel that is not 0 are background"
)
ACTIVATIONS = {
    True: "sigmoid of the only logit is the probability of the only structure",
    False: "softmax over the logits; the first one is background",
}
DECISION = (
    "Resample probabilities linearly to the patient's grid. Outside the brain (every sequence is exactly 0, holes "
    "filled) a voxel is background.",
    "Let P be the sum of the probabilities of all structures of kind lesion. A voxel is the most likely lesion l if "
    "p(l) >= 1 - P.",
    "Any other voxel is the most likely tissue t if p(t) >= p(background), and otherwise background.",
)

CALIBRATION = (
    "Probabilities for people, after the decision, which takes them uncalibrated. T are the temperatures of the number "
    "of sequences that are present; of a number that is not listed, those of the next smaller one, or else of the "
    "smallest. With P the sum of the probabilities of all structures of kind lesion: those of lesions and 1 - P to the "
    "power of 1/T, made to sum to 1; given no lesion, those of tissues and of background to the power of 1/T, made to "
    "sum to the new 1 - P. Each of these two steps takes the T of `inside` where a structure is at least as likely as "
    "1 - P, or background, and that of `outside` elsewhere."
)


def preparation_record(info: ModelInfo, multiple: int | None) -> dict[str, Any]:
    """How a patient is prepared for a model, and how its logits become labels; JSON throughout.

    It tells the rules of `store.preparation`, but not its refusals of damaged images.

    Args:
        multiple: windows are multiples of so many voxels, at least twice it; None if only the patch is known to fit.
    """
    recipe, doubts = _recipe(info)
    usable = info.usable(tuple(info.axis))
    return {
        "format": FORMAT,
        "network": info.builder,
        "inputs": {
            "images": {"axes": ["batch", "modality", "i", "j", "k"], "type": "float32"},
            "present": {"axes": ["batch", "modality"], "type": "bool"},
        },
        "output": {"logits": {"axes": ["batch", "label", "i", "j", "k"], "type": "float32"}},
        "sequences": list(info.axis),
        "never_present": [name for name in info.axis if name not in usable],
        "absent_channel": {"images": 0.0, "present": False},
        "orientation": ORIENTATION,
        "reference": REFERENCE,
        "spacing_mm": list(info.spacing_mm),
        "resampling": RESAMPLING,
        "registration": "rigid, of every sequence to the reference" if recipe.register else "none: headers are trusted",
        "brain": {"rule": recipe.brain_mask, "meaning": BRAIN[recipe.brain_mask]},
        "intensity": _intensity(recipe, info),
        "patch": list(info.patch),
        "size_multiple_of": multiple,
        "least_size": 2 * multiple if multiple else None,
        "windows": WINDOWS,
        "labels": _labels(info),
        "activation": ACTIVATIONS[info.space.num_logits == 1],
        "decision": list(DECISION),
        "calibration": _calibration(info),
        "doubts": [doubt.message for doubt in doubts],
    }


def _recipe(info: ModelInfo) -> tuple[Recipe, tuple[Any, ...]]:
    """The recipe for a new patient, as `predict` has it; where it would ask for a brain mask, the rule is "file"."""
    try:
        return recipe_for(info, "", "", "refuse")
    except UsageError:
        return recipe_for(info, "file", "", "refuse")


def _intensity(recipe: Recipe, info: ModelInfo) -> dict[str, Any]:
    landmarks = {name: list(scale) for name, scale in sorted(recipe.landmarks.items())}
    return {
        "bias_field": "N4 in the brain, before all else" if recipe.n4 else "not removed",
        "normalise": recipe.normalise,
        "meaning": INTENSITY[recipe.normalise],
        **({"percentiles": list(PERCENTILES), "landmarks": landmarks} if landmarks else {}),
        **({} if recipe.normalise == "none" else {"limits": [-LIMIT, LIMIT]}),
        "rounded_to": "float16, then float32",
        "outside_brain": BACKGROUNDS[info.background],
    }


def _calibration(info: ModelInfo) -> dict[str, Any] | None:
    if info.calibration is None:
        return None
    stored = info.calibration.to_json()
    return {"meaning": CALIBRATION, **{name: stored[name] for name in ("temperatures", "look_below")}}


def _labels(info: ModelInfo) -> list[dict[str, Any]]:
    structures = [
        {"code": code, "name": label.name, "kind": label.kind, "pathology": label.pathology}
        for code, label in enumerate(info.space.labels, start=1)
    ]
    return [{"code": 0, "name": BACKGROUND, "kind": "", "pathology": ""}, *structures]
