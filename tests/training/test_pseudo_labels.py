"""Soft targets of the stage pseudo_label: their place in a patch, what stands above them, and what is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from multiseg.errors import CheckpointError, UsageError
from multiseg.labels import LabelSpace
from multiseg.loaders.augment import preset
from multiseg.loaders.batches import PatchStream, StreamOptions
from multiseg.loaders.draw import DrawOptions
from multiseg.modalities import ModalityAxis
from multiseg.models.builders import build
from multiseg.models.saved import ModelInfo, save_model
from multiseg.store.catalogue import select
from multiseg.store.reader import open_store
from multiseg.training.pseudo_labels import PseudoLabels, SoftStream, check_still, soft_dice, write_pseudo_labels

SPACE = LabelSpace.of(["lesion", "tissue:GM", "tissue:WM"])
PATCH = (8, 8, 8)


def model_in(folder: Path, spacing_mm: tuple[float, float, float]) -> Path:
    numbers = {
        "widths": [4, 4],
        "dropout": 0.0,
        "norm": "instance_affine",
        "anatomy_channels": [1],
        "lesion_logits": [1],
    }
    axis = ModalityAxis(("FLAIR", "T1"))
    info = ModelInfo("two_branch", numbers, axis, SPACE, spacing_mm, PATCH, dict.fromkeys(axis, ("birch",)), {})
    torch.manual_seed(0)
    save_model(folder / "m.safetensors", build("two_branch", 2, SPACE.num_logits, **numbers), info)
    return folder / "m.safetensors"


@pytest.mark.slow
def test_a_patch_gets_its_part_of_what_was_written(store_url: str, tmp_path: Path) -> None:
    store, said = open_store(store_url), []
    cases = select(store, ["birch"], split="train")
    model = model_in(tmp_path, store.spacing_mm)
    for _ in range(2):
        write_pseudo_labels(store, cases, model, tmp_path / "soft", "cpu", said.append)
    assert [text.endswith("done before") for text in said] == [False, False, True, True]
    stream = PatchStream(
        store,
        ModalityAxis(("FLAIR", "T1")),
        SPACE,
        StreamOptions(DrawOptions(PATCH, overhang=4, drop="none"), batch_size=4, workers=0),
        databases=["birch"],
    )
    labels = PseudoLabels(store, stream.plan.numbered, tmp_path / "soft", SPACE)
    (batch,) = SoftStream(stream, labels).batches(0, 1)
    assert batch.soft.shape == (4, 4, *PATCH)
    torch.testing.assert_close(batch.soft.sum(dim=1), torch.ones(4, *PATCH), atol=1e-3, rtol=0)
    lesion = batch.target == 1
    assert lesion.any()
    assert torch.equal(batch.soft[:, 1], lesion.float())
    with np.load(tmp_path / "soft" / "birch" / f"{batch.case[0]}.npz") as arrays:
        whole = arrays["tissues"]
    voxel = next(v for v in np.argwhere(~lesion[0].numpy()) if (batch.corner[0].numpy() + v >= 0).all())
    place = batch.corner[0].numpy() + voxel
    if (place < whole.shape[1:]).all():
        np.testing.assert_array_equal(batch.soft[0, 2:, *voxel], whole[:, *place].astype(np.float32))
    batch = batch.to(torch.device("cpu"))
    network = build("two_branch", 2, SPACE.num_logits, widths=(4, 4))
    loss, _ = soft_dice(network, batch, 0)
    assert 0 < loss.item() < 1
    ignored = replace(batch, target=torch.full_like(batch.target, 255))
    assert soft_dice(network, replace(ignored, soft=labels.soft(ignored)), 0)[0].item() == pytest.approx(0, abs=1e-5)
    (tmp_path / "soft" / "birch" / f"{cases[0].name}.npz").write_bytes(b"none")
    with pytest.raises(CheckpointError, match="are damaged"):
        write_pseudo_labels(store, cases, model, tmp_path / "soft", "cpu", said.append)


@pytest.mark.slow
def test_a_case_without_pseudo_labels(store_url: str, tmp_path: Path) -> None:
    store = open_store(store_url)
    with pytest.raises(UsageError, match=r"2 of 2 cases have no pseudo-labels in .* \(birch/"):
        PseudoLabels(store, select(store, ["birch"], split="train"), tmp_path, SPACE)


def test_patches_with_soft_targets_do_not_move() -> None:
    with pytest.raises(UsageError, match=r"augment\.flip_probability moves patches"):
        check_still(preset("standard"))
    check_still(replace(preset("none"), contrast_probability=0.5))
