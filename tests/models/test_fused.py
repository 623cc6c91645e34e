"""A model for tissues and one for lesions answer as one."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from multiseg.errors import UsageError
from multiseg.evaluation.decision import decide
from multiseg.labels import LabelSpace
from multiseg.modalities import ModalityAxis
from multiseg.models.builders import build
from multiseg.models.fused import LESION_OVER_TISSUE, fuse
from multiseg.models.learnt_scans import LearntScans
from multiseg.models.losses import log_probabilities
from multiseg.models.saved import Model, ModelInfo

ALL = np.ones((8, 8, 8), bool)


def model_of(labels: list[str], axis: tuple[str, ...], seed: int) -> Model:
    torch.manual_seed(seed)
    space = LabelSpace.of(labels)
    numbers = {"widths": (6, 8), "dropout": 0.0, "norm": "instance_affine"}
    info = ModelInfo(
        builder="multi_unet", numbers=numbers, axis=ModalityAxis(axis), space=space, spacing_mm=(3.0, 3.0, 3.0),
        patch=(8, 8, 8), trained_on=dict.fromkeys(axis, (f"of {seed}",)), databases={f"db{seed}": {}},
    )  # fmt: skip
    network = build("multi_unet", len(axis), space.num_logits, **numbers)
    return Model(network, info, LearntScans.of([f"{seed}" * 64])).eval()


TISSUE = model_of(["tissue:CSF", "tissue:WM"], ("T1",), 1)
LESION = model_of(["lesion"], ("FLAIR", "T1"), 2)
PATIENT = torch.randn(1, 2, 8, 8, 8, generator=torch.Generator().manual_seed(0))  # FLAIR and T1


def decided(model: Model, images: torch.Tensor, present: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        p = log_probabilities(model(images, present))[0, 1:].exp().numpy()
    return decide(p, model.info.space, ALL)


@pytest.mark.parametrize("order", [(TISSUE, LESION), (LESION, TISSUE)])
def test_a_lesion_takes_the_place_of_the_tissue(order: tuple[Model, Model]) -> None:
    both = fuse(order)
    assert both.info.space.names == ("CSF", "WM", "lesion")
    assert tuple(both.info.axis) == ("FLAIR", "T1")
    assert both.info.trained_on == {"T1": ("of 1", "of 2"), "FLAIR": ("of 2",)}
    assert both.learnt == TISSUE.learnt | LESION.learnt
    present = torch.ones(1, 2, dtype=torch.bool)
    tissue = decided(TISSUE, PATIENT[:, 1:], present[:, 1:])
    lesion = decided(LESION, PATIENT, present)
    assert 0 < lesion.sum() < lesion.size
    assert np.array_equal(decided(both, PATIENT, present), np.where(lesion, 3, tissue))


def test_without_a_sequence_of_one_model_the_other_answers() -> None:
    both = fuse([TISSUE, LESION])
    present = torch.tensor([[True, False]])  # FLAIR alone, which the tissue model does not know
    lesion = decided(LESION, PATIENT, present)
    assert np.array_equal(decided(both, PATIENT, present), np.where(lesion, 3, 0))


def test_models_that_cannot_be_fused() -> None:
    with pytest.raises(UsageError, match=r"needs two models, one only for tissues .* these segment: lesion; lesion"):
        fuse([LESION, LESION])
    with pytest.raises(UsageError, match="needs two models"):
        fuse([TISSUE, LESION, LESION])
    with pytest.raises(UsageError, match=f"no fusion 'mean': give {LESION_OVER_TISSUE}"):
        fuse([TISSUE, LESION], "mean")
    other = Model(LESION.network, replace(LESION.info, spacing_mm=(1.0, 1.0, 1.0)), None)
    with pytest.raises(UsageError, match=r"cannot be fused: spacing_mm is \(3.0, 3.0, 3.0\) in one"):
        fuse([TISSUE, other])


def test_what_is_known_of_both_models_is_known_of_the_one() -> None:
    tissue = Model(TISSUE.network, replace(TISSUE.info, patch=(16, 8, 8)), TISSUE.learnt)
    space = replace(LESION.info.space, rest="ignore")
    lesion = Model(LESION.network, replace(LESION.info, space=space, patch=(8, 8, 24)), None)
    both = fuse([tissue, lesion])
    assert both.info.patch == (16, 8, 24)
    assert both.info.databases == {"db1": {}, "db2": {}}
    assert both.info.space.rest == "ignore"
    assert both.learnt is None, "one of them does not say what it learnt from"
