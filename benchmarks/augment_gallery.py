"""A real patch before and after every augmentation, with the outline of its lesions.

Run: python -m benchmarks.augment_gallery STORE --out docs/augment/gallery.png
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from PIL import Image

from multiseg.labels import IGNORE, LabelSpace
from multiseg.loaders.augment import AugmentOptions, augment, draw, published, standard
from multiseg.loaders.batches import Batch, PatchStream, StreamOptions
from multiseg.loaders.draw import DrawOptions
from multiseg.loaders.intensity_adjustment import Adjustment
from multiseg.loaders.spatial import Movement
from multiseg.modalities import ModalityAxis
from multiseg.store.reader import open_store

Wanted = Callable[[Movement | None, Adjustment], bool]

SHOWN: dict[str, tuple[AugmentOptions, Wanted]] = {
    "as it is": (AugmentOptions(), lambda move, adjust: True),
    "flip": (AugmentOptions(flip_probability=1.0), lambda move, adjust: True),
    "quarter turn (published)": (replace(published(), rotate90_probability=1.0), lambda move, adjust: True),
    "rotation and scaling": (AugmentOptions(affine_probability=1.0), lambda move, adjust: True),
    "elastic": (AugmentOptions(elastic_probability=1.0, elastic_voxels=6.0), lambda move, adjust: True),
    "gamma 0.7": (AugmentOptions(gamma_probability=1.0, gamma=(0.7, 0.7)), lambda move, adjust: True),
    "gamma 1.4": (AugmentOptions(gamma_probability=1.0, gamma=(1.4, 1.4)), lambda move, adjust: True),
    "contrast 0.75": (AugmentOptions(contrast_probability=1.0, contrast=(0.75, 0.75)), lambda move, adjust: True),
    "brightness +0.3": (AugmentOptions(brightness_probability=1.0, brightness=(0.3, 0.3)), lambda move, adjust: True),
    "bias field 0.3": (AugmentOptions(bias_probability=1.0, bias_strength=(0.3, 0.3)), lambda move, adjust: True),
    "blur 1 voxel": (AugmentOptions(blur_probability=1.0, blur_sigma_voxels=(1.0, 1.0)), lambda move, adjust: True),
    "low resolution 3x": (
        AugmentOptions(low_resolution_probability=1.0, low_resolution=(3.0, 3.0)),
        lambda move, adjust: adjust.coarse is not None and all(adjust.coarse.axes),
    ),
    "noise 0.2": (AugmentOptions(noise_probability=1.0, noise_std=(0.2, 0.2)), lambda move, adjust: True),
    "standard": (standard(), lambda move, adjust: move is not None and move.affine is not None),
    "standard, another draw": (standard(), lambda move, adjust: adjust.bias is not None),
}


def patch_with_lesion(url: str, modality: str, size: int) -> Batch:
    """Of twenty windows that are centred on a lesion the one that shows most of it in its middle."""
    stream = PatchStream(
        open_store(url),
        ModalityAxis((modality,)),
        LabelSpace(),
        StreamOptions(DrawOptions(patch=(size, size, size), lesion_share=1.0), batch_size=1, workers=0),
    )
    return max(stream.batches(0, 20), key=lambda batch: int((batch.target[..., size // 2] == 1).sum()))


def drawn(batch: Batch, options: AugmentOptions, wanted: Wanted) -> Batch:
    """The batch with the first draw that is wanted."""
    for index in range(1000):
        movement, (adjustment,) = draw(options, 0, index, 1)
        if wanted(movement, adjustment):
            return augment(replace(batch, draws=torch.tensor([[0, index]])), options)
    raise LookupError("no such draw among the first thousand")


def show(axes: Axes, title: str, batch: Batch, limits: tuple[float, float]) -> None:
    """The middle axial slice: background black, lesions outlined, what nobody may look at red."""
    middle = batch.target.shape[-1] // 2
    image = batch.images[0, 0, :, :, middle].float().numpy().T
    target = batch.target[0, :, :, middle].numpy().T
    axes.imshow(np.where(image == 0, np.nan, image), cmap="gray", vmin=limits[0], vmax=limits[1], origin="lower")
    axes.imshow(np.where(target == IGNORE, 1.0, np.nan), cmap="Reds_r", vmin=0.5, vmax=3, origin="lower")
    if (target == 1).any():
        axes.contour(target == 1, levels=[0.5], colors="cyan", linewidths=0.5)
    axes.set_title(title, fontsize=7, pad=2)
    axes.set_facecolor("black")
    axes.set_xticks([])
    axes.set_yticks([])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--modality", default="FLAIR")
    parser.add_argument("--patch", type=int, default=112)
    given = parser.parse_args()
    batch = patch_with_lesion(given.store, given.modality, given.patch)
    brain = batch.images[batch.images != 0].float()
    limits = (float(brain.quantile(0.01)), float(brain.quantile(0.998)))
    figure, panels = plt.subplots(3, 5, figsize=(8.2, 5.2), layout="constrained")
    for axes, (title, (options, wanted)) in zip(panels.flat, SHOWN.items(), strict=True):
        show(axes, title, drawn(batch, options, wanted), limits)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(given.out, dpi=110)
    with Image.open(given.out) as drawn_in_full:
        small = drawn_in_full.convert("RGB").quantize(64)  # half the bytes, and no difference to the eye
    small.save(given.out, optimize=True)
    print(f"{given.out}: {batch.database[0]}/{batch.case[0]}, {given.modality}, from voxel {batch.corner[0].tolist()}")


if __name__ == "__main__":
    main()
