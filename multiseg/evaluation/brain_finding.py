"""Find the brain in scans with their skull, by the network that a model carries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from jaxtyping import Float
from scipy import ndimage

from multiseg.errors import SourceError, UsageError
from multiseg.evaluation.inference import predict_volume
from multiseg.loaders.synthetic_scans import standard_intensities
from multiseg.models.brain_network import NEWEST_RECIPE, RECIPE
from multiseg.models.saved import Model, ModelInfo
from multiseg.store.formats.volumes import Volume
from multiseg.store.preparation.grids import Grid, resample
from multiseg.store.preparation.journal import Journal
from multiseg.store.preparation.places import grid_of
from multiseg.store.preparation.prepare import BrainFinder
from multiseg.store.preparation.space import Scene
from multiseg.types import Mask

SURE = 0.9
"""The least Dice that the network must expect of its own mask."""
LEARNT = {1: 0.9, NEWEST_RECIPE: 0.85}
"""The least Dice that the network must have reached on synthetic scans of stored brains after its training, by the
recipe of that (see `models.brain_network`).

By recipe 2 networks of 100 steps reached 0.83, those of 600 to 1,500 steps 0.87 to 0.89.
"""
WHOLE = 0.95
"""The least share of the voxels above 1/2 in the largest connected part; the others are left out."""
ALIKE = 0.9
"""The least Dice of the mask of one sequence alone and the mask of all."""


@dataclass(frozen=True, eq=False)
class FoundBrain:
    """A brain on coarse voxels.

    Attributes:
        probability: of brain in each voxel, the mean over the sequences; 0 outside the largest part, 1 in its holes.
        faults: why the mask is doubtful, in words.
    """

    grid: Grid
    probability: Float[np.ndarray, "i j k"]
    faults: tuple[str, ...]


def brain_finder(network: Model | None, overlap: float = 0.5) -> BrainFinder:
    """A function that `prepare_case` takes to find the brain of a case with this network.

    Raises:
        UsageError: there is none.
    """
    if network is None:
        raise UsageError(
            "--brain-mask model needs a model with a network that finds brains, and this one carries none. Add it: "
            "multiseg train-brain STORE --into RUN. Or give a mask: --brain-mask FILE."
        )
    return partial(find_mask, network, overlap)


def find_mask(network: Model, overlap: float, scene: Scene, journal: Journal) -> Volume:
    """The mask of the brain in the voxels of the reference image.

    Raises:
        SourceError: no brain is found.
    """
    reference = scene.volumes[scene.reference]
    home = grid_of(reference)
    names = tuple(dict.fromkeys((scene.reference, *scene.names)))
    found = find_brain(network, {name: scene.volumes[name] for name in names}, home, overlap)
    mask = resample(found.probability, found.grid, home, smooth=False) > 0.5
    if not mask.any():
        message = (
            f"the brain network found no brain in {', '.join(names)} ({reference.path}). Is this a scan of a head, "
            "with the voxel size and directions that its header says? If so, give a mask: --brain-mask FILE."
        )
        raise SourceError(message, code="EMPTY_BRAIN", file=str(reference.path))
    journal.step(scene.reference, f"brain mask made by the model's network from {', '.join(names)}")
    if found.faults:
        text = f"the brain mask of the model's network is doubtful: {'; '.join(found.faults)}. Look at it "
        journal.warn("BRAIN_UNSURE", f"{text}(multiseg brain-mask), and correct it by hand: --brain-mask FILE.")
    path = reference.path.with_name(f"the brain in {reference.path.name}")
    return replace(reference, voxels=mask.astype(np.uint8), path=path)


def find_brain(network: Model, volumes: Mapping[str, Volume], home: Grid, overlap: float = 0.5) -> FoundBrain:
    """Find the brain in the sequences of one person, which lie on RAS+ grids and fit each other in space.

    Every sequence is resampled to the network's voxels and answered alone, whichever it is. The mask is where the mean
    over the sequences that were scanned there is above 1/2.

    Args:
        home: the box in which it is sought.
    """
    info = network.info
    grid = home.orthonormal().respaced(info.spacing_mm)
    total, num = np.zeros(grid.shape, np.float32), np.zeros(grid.shape, np.float32)
    answers: dict[str, tuple[Mask, Mask]] = {}
    for name, volume in volumes.items():
        source = grid_of(volume)
        scanned = source.contains(grid)
        image = standard_intensities(resample(volume.voxels, source, grid))
        answer = predict_volume(network, image[None], np.ones(1, bool), info.patch, overlap)[0] * scanned
        answers[name] = (answer > 0.5, scanned)
        total += answer
        num += scanned
    mean = total / np.maximum(num, 1)
    brain, share = _largest(mean > 0.5)
    near = ndimage.binary_dilation(brain)
    probability = np.where(ndimage.binary_fill_holes(brain) & ~brain, 1, np.where(near, mean, 0)).astype(np.float32)
    return FoundBrain(grid, probability, (*_unlearnt(info), *_faults(mean, brain, share, answers)))


def _unlearnt(info: ModelInfo) -> Iterator[str]:
    reached, recipe = info.metrics.get("score", 1.0), int(info.metrics.get(RECIPE, 1))
    if not has_learnt(reached, recipe):
        yield f"the network had a Dice of only {reached:.3f} on synthetic scans, so train it for more steps"


def has_learnt(dice: float, recipe: int = NEWEST_RECIPE) -> bool:
    """Whether a network with this Dice on synthetic scans has learnt enough to be trusted."""
    return dice >= LEARNT.get(recipe, max(LEARNT.values()))


def _largest(mask: Mask) -> tuple[Mask, float]:
    """The largest connected part of a mask, and its share of the voxels."""
    parts, num = ndimage.label(mask)
    if num == 0:
        return mask, 1.0
    sizes = np.bincount(parts.ravel())[1:]
    return parts == 1 + int(sizes.argmax()), float(sizes.max() / sizes.sum())


def _faults(
    mean: Float[np.ndarray, "i j k"], brain: Mask, share: float, answers: Mapping[str, tuple[Mask, Mask]]
) -> Iterator[str]:
    expected = 2 * float(mean[brain].sum()) / max(float(mean.sum()) + np.count_nonzero(brain), 1e-6)
    if expected < SURE:
        yield f"the network expects it to overlap with the brain by a Dice of only {expected:.2f}"
    if share < WHOLE:
        yield f"{1 - share:.0%} of what looked like brain is not connected to it, and was left out"
    for name, (own, scanned) in answers.items():
        total = np.count_nonzero(own) + np.count_nonzero(brain & scanned)
        alike = 2 * np.count_nonzero(own & brain) / total if total else 1.0
        if alike < ALIKE:
            yield f"from {name} alone the mask would be another one (Dice {alike:.2f})"
