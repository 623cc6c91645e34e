"""Whole-volume inference against MONAI's sliding window, same network, windows and overlap.

Run: python -m benchmarks.inference
"""

from __future__ import annotations

import numpy as np
import torch
from monai.inferers import sliding_window_inference

from benchmarks.paired import phantom_store, ratios, report
from multiseg.allocator import keep_memory
from multiseg.evaluation.inference import predict_volume
from multiseg.evaluation.preparation import place
from multiseg.modalities import ModalityAxis
from multiseg.models.builders import multi_unet

PATCH = (64, 64, 64)


def main() -> None:
    keep_memory()
    store = phantom_store(1.0)
    case = store["alder"].cases[0]
    axis = ModalityAxis(store["alder"].modalities)
    images, present = place(store["alder"].whole(case)[0], axis.names, axis.names, axis)
    network = multi_unet(len(axis), 1, widths=(8, 16, 32, 64)).eval()
    flags = torch.ones(1, len(axis), dtype=torch.bool)

    def ours() -> None:
        predict_volume(network, images, present, PATCH, overlap=0.5)

    def theirs() -> None:
        volume = torch.from_numpy(images.astype(np.float32))[None]
        with torch.inference_mode():
            sliding_window_inference(
                volume, PATCH, 1, lambda x: network(x, flags), overlap=0.5, mode="gaussian"
            ).sigmoid()

    report(f"sliding window, {case.extent} voxels", "MONAI", ratios(ours, theirs, rounds=5))


if __name__ == "__main__":
    main()
