"""The picture of one prediction: the segmentation over the images that the model saw."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from multiseg.evaluation.case_panel import PNG
from multiseg.evaluation.montage import save_montage
from multiseg.evaluation.panels import answer_panel
from multiseg.evaluation.prediction import Prediction
from multiseg.files import check_files
from multiseg.store.formats.read_volume import read_volume
from multiseg.store.formats.volumes import to_ras
from multiseg.store.preparation.grids import Grid, resample


def save_overlay(path: Path, prediction: Prediction, overwrite: bool = False) -> None:
    """Draw the segmentation, read back from its file, over the images that the model saw, on the patient's own grid.

    The images are where preparation placed them, by their headers or by registration.

    Raises:
        UsageError: the file may not be written, see `check_files`.
    """
    check_files([path], prediction.inputs, overwrite, PNG)
    segmentation = to_ras(read_volume(prediction.path))
    grid = Grid(segmentation.affine, segmentation.shape)
    prepared = prediction.prepared
    shown = {
        name: resample(image.astype(np.float32), prepared.grid, grid, smooth=False)
        for name, image in zip(prepared.modalities, prepared.images, strict=True)
    }
    codes = segmentation.voxels.astype(np.uint8)
    panel = answer_panel(prediction.path.name, shown, codes, prediction.volumes_ml, grid.spacing_mm)
    save_montage(path, [panel], "Segmentation on the patient's own grid", overwrite)
