"""Metrics and the sliding window against those of MONAI: together, since importing MONAI takes seconds."""

import warnings

import numpy as np
import pytest
import torch
from scipy import ndimage

from multiseg.evaluation.inference import predict_volume
from multiseg.evaluation.metrics import case_metrics, summarise
from multiseg.models.builders import multi_unet
from multiseg.types import Mask

CUBE_MM = (1.0, 1.0, 1.0)


def blob(seed: int, shape: tuple[int, int, int]) -> Mask:
    noise = np.random.default_rng(seed).normal(size=shape)
    smooth = ndimage.gaussian_filter(noise, 2.5)
    return np.asarray(smooth > np.percentile(smooth, 88))


@pytest.mark.slow
def test_metrics_of_100_pairs() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MONAI warns when imported, and of its own deprecated arguments
        monai = pytest.importorskip("monai.metrics")
        from monai.metrics.utils import get_edge_surface_distance

        rng, found_all, confusion = np.random.default_rng(7), [], []
        for seed in range(100):
            shape = tuple(int(n) for n in rng.integers(6, 16, 3))
            spacing_mm = tuple(float(mm) for mm in rng.uniform(0.4, 5.0, 3))
            tolerance_mm = float(rng.uniform(0.3, 4.0))
            predicted, truth = blob(seed, shape), blob(seed + rng.integers(2), shape) ^ blob(seed + 1000, shape)
            found = case_metrics(predicted, truth, spacing_mm, None, tolerance_mm)
            masks = torch.from_numpy(predicted)[None, None], torch.from_numpy(truth)[None, None]
            _, distances, _ = get_edge_surface_distance(
                *(mask[0, 0] for mask in masks), spacing=spacing_mm, symmetric=True
            )
            expected = (
                monai.compute_dice(*masks).item(),
                monai.compute_average_surface_distance(*masks, symmetric=True, spacing=spacing_mm).item(),
                max(np.percentile(one.numpy().astype(float), 95) for one in distances),
                monai.compute_surface_dice(*masks, [tolerance_mm], include_background=True, spacing=spacing_mm).item(),
            )
            ours = (found.dice, found.assd_mm, found.hd95_mm, found.surface_dice)
            assert ours == pytest.approx(expected, rel=1e-6, abs=1e-6), (seed, spacing_mm)
            # MONAI interpolates the percentile in single precision.
            hd95_mm = monai.compute_hausdorff_distance(*masks, percentile=95, spacing=spacing_mm).item()
            assert found.hd95_mm == pytest.approx(hd95_mm, rel=1e-5, abs=1e-4)
            found_all.append(case_metrics(predicted, truth, CUBE_MM))
            confusion.append(monai.get_confusion_matrix(*(mask.float() for mask in masks)))
        pooled = torch.cat(confusion).sum(0, keepdim=True)
        summary = summarise(found_all)
        for ours, name in (("sensitivity", "sensitivity"), ("precision", "precision"), ("dice", "f1 score")):
            expected = monai.compute_confusion_matrix_metric(name, pooled).item()
            assert summary[f"{ours}_pooled"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow  # where it is the first to import MONAI
def test_the_sliding_window() -> None:
    """Where a window has its middle: towards the edges the two differ in the least weight that they give."""
    inferers = pytest.importorskip("monai.inferers")
    torch.manual_seed(0)
    network, patch = multi_unet(2, 1, widths=(4, 8), dropout=0.5).eval(), (8, 8, 8)
    # Where both place their windows alike.
    images = np.random.default_rng(0).standard_normal((2, 8, 20, 16)).astype(np.float16)

    def probabilities(windows: torch.Tensor) -> torch.Tensor:
        return network(windows, torch.ones(len(windows), 2, dtype=torch.bool)).sigmoid()

    with torch.inference_mode():
        theirs = inferers.sliding_window_inference(
            torch.from_numpy(images[None]).float(), patch, 1, probabilities, overlap=0.5, mode="gaussian",
            sigma_scale=0.125,
        )  # fmt: skip
    ours = predict_volume(network, images, np.array([True, True]), patch, overlap=0.5)
    middle = np.s_[0, 3:5, 3:17, 3:13]
    np.testing.assert_allclose(ours[middle], theirs[0].numpy()[middle], atol=0.01)
