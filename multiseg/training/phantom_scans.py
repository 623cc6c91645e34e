"""Synthetic scans of the heads of phantoms, to train a network that finds the brain in any contrast.

They have what the heads around stored brains (`loaders.synthetic_scans`) lack: a cerebellum and a brain stem that lie
where they do in a person, and fluid between the brain and its skull. Each tissue gets a random intensity.
"""

from __future__ import annotations

import numpy as np

from multiseg.loaders.synthetic_scans import SPACING_MM, acquire, draw_places, waves
from multiseg.phantoms.synthetic_head import anatomy_on, draw_head
from multiseg.types import Voxels


def draw_phantom_scan(rng: np.random.Generator) -> tuple[Voxels, Voxels]:
    """A scan of a phantom's head on `GRID`, as the network sees it, and the share of brain in each voxel.

    Both are a function of the state of `rng` alone.
    """
    head = draw_head(rng, old=bool(rng.random() < 0.5))
    places = (SPACING_MM * draw_places(rng)).astype(np.float32)
    anatomy = anatomy_on(head, places, blur_mm=SPACING_MM, is_raw=True)
    assert anatomy.outer is not None
    inner, outer = len(anatomy.tissues) - 1, 1 + len(anatomy.outer)
    # Of the brain and its fluid no tissue is as dark as air; of the outer ones each may be: scalp,
    # muscle, vitreous, spinal cord and its fluid.
    levels = np.concatenate([rng.uniform(0.1, 1, inner), rng.uniform(0, 1, outer)]).astype(np.float32)
    tissues = np.concatenate([anatomy.tissues, anatomy.outer])
    # Not by BLAS, as in `synthetic_head`.
    signal = sum(level * tissue for level, tissue in zip(levels, tissues, strict=True))
    textured = np.clip(signal * (1 + rng.uniform(0, 0.15) * waves(rng, 14)), 0, None)
    return acquire(textured.astype(np.float32), anatomy.brain_share, rng)
