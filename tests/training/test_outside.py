"""Outside the brain is background: what a batch tells of it, and what a model that answers everywhere is left with."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from multiseg.evaluation.evaluation_result import EvaluateOptions
from multiseg.evaluation.model_evaluation import evaluate
from multiseg.evaluation.prediction import predict
from multiseg.labels import LESION, LabelSpace, SpaceLabel
from multiseg.loaders.augment import augment, preset
from multiseg.loaders.batches import Batch, PatchStream, StreamOptions
from multiseg.loaders.draw import DrawOptions
from multiseg.modalities import ModalityAxis
from multiseg.models.builders import NETWORKS
from multiseg.models.losses import outside_brain
from multiseg.models.saved import Model, ModelInfo, save_model
from multiseg.store.reader import Store, open_store
from multiseg.training.validate import judged_by_subset

AXIS = ModalityAxis(("PD", "FLAIR", "T1", "T1c", "T2", "DWI", "ADC"))
SPACE = LabelSpace((LESION, SpaceLabel("CSF", "tissue")))


class Everywhere(nn.Module):
    """Says one structure of the space wherever it is asked."""

    def __init__(self, label: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(1 + len(SPACE.labels)))
        self.logits.data[label] = 9

    def forward(self, images: Tensor, present: Tensor) -> Tensor:
        return self.logits[None, :, None, None, None].expand(len(images), -1, *images.shape[2:])


def info() -> ModelInfo:
    return ModelInfo(
        builder="multi_unet", numbers={}, axis=AXIS, space=SPACE, spacing_mm=(5.0, 5.0, 5.0), patch=(16, 16, 16),
        trained_on=dict.fromkeys(AXIS, ("alder",)), databases={},
    )  # fmt: skip


def batches_of(store: Store, workers: int = 0, drop: str = "uniform") -> list[Batch]:
    draw = DrawOptions(patch=(16, 14, 12), overhang=6, drop=drop)
    stream = PatchStream(store, AXIS, SPACE, StreamOptions(draw, batch_size=4, workers=workers))
    return [batch.to(torch.device("cpu")) for batch in stream.batches(0, 6)]


@pytest.mark.slow
@pytest.mark.parametrize(("drop", "workers"), [("uniform", 0), ("none", 0), ("uniform", 1)])
def test_a_batch_tells_the_outside_by_the_sequences_that_are_shown(store_url: str, drop: str, workers: int) -> None:
    store = open_store(store_url)
    num_outside, num_dropped = 0, 0
    for batch in batches_of(store, workers, drop):
        outside = outside_brain(batch.images, batch.target).numpy()
        for at, (name, case) in enumerate(zip(batch.database, batch.case, strict=True)):
            database = store[name]
            whole = database.image(database[case], tuple(batch.corner[at].tolist()), batch.images.shape[2:])
            shown = {AXIS.names[channel] for channel in np.flatnonzero(batch.present[at].numpy())}
            num_dropped += len(database[case].modalities) - len(shown)
            brain = np.any([image != 0 for n, image in zip(database.modalities, whole, strict=True) if n in shown], 0)
            np.testing.assert_array_equal(outside[at], ~brain & (batch.target[at].numpy() == 0))
            num_outside += int(outside[at].sum())
    assert num_outside > 1000
    assert (num_dropped > 0) == (drop == "uniform")


@pytest.mark.slow
def test_augmentation_brings_nothing_in_that_counts_as_outside(store_url: str) -> None:
    moved = 0
    for batch in batches_of(open_store(store_url)):
        full = batch.images.clone()
        full[:, 0] = full[:, 0].where(full[:, 0] != 0, 1.0)  # brain in the whole window
        full = torch.where(batch.present[:, :, None, None, None], full, 0)
        full[:, 1] = 1.0
        batch = Batch(**{**vars(batch), "images": full, "present": batch.present | (torch.arange(len(AXIS)) == 1)})
        found = augment(batch, preset("standard"))
        moved += int(((found.target == 255) & (batch.target != 255)).sum())
        seam = outside_brain(found.images, found.target)
        # All that is 0 lies beyond the window, or within half a voxel of that.
        assert seam.sum() <= 0.02 * seam.numel()
        assert not (seam & (found.target == 255)).any()
    assert moved > 0


@pytest.mark.slow
@pytest.mark.parametrize(("label", "name"), [(1, "lesion"), (2, "CSF")])
def test_nothing_is_answered_outside_the_brain_that_a_subset_shows(
    store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, label: int, name: str
) -> None:
    monkeypatch.setitem(NETWORKS, "multi_unet", lambda *sizes, **numbers: Everywhere(0))
    save_model(tmp_path / "model.safetensors", Everywhere(label), info())
    store = open_store(store_url)
    rows = evaluate(tmp_path, store, EvaluateOptions(split="", databases=("alder",), subsets="FLAIR,FLAIR+T1+T2")).cases
    database = store["alder"]
    for case in database.cases:
        own, codes = database.whole(case)
        ignored = database.label_view(case, SPACE).target(codes) == 255
        for subset in ("FLAIR", "FLAIR+T1+T2"):
            shown = [own[database.modalities.index(one)] != 0 for one in subset.split("+")]
            row = rows.query("case == @case.name and modalities == @subset and label == @name")
            voxels = float(row["predicted_ml"].iloc[0]) / 0.125
            assert voxels == pytest.approx(np.count_nonzero(np.any(shown, axis=0) & ~ignored), rel=0.002)
            assert voxels < 0.8 * own[0].size


@pytest.mark.slow
def test_validation_knows_the_outside_too(store_url: str) -> None:
    store = open_store(store_url)
    database = store["alder"]
    case = database.cases[0]
    own, codes = database.whole(case)
    target = database.label_view(case, SPACE).target(codes)
    brain = (own != 0).any(axis=0) & (target != 255)
    ((found, *_),) = judged_by_subset(Model(Everywhere(1), info()), store, case).values()
    expected = 2 * np.count_nonzero(brain & (target == 1)) / (brain.sum() + np.count_nonzero(target == 1))
    assert found.dice == pytest.approx(expected, rel=0.01)


def test_a_patient_gets_nothing_outside_the_brain_on_the_own_grid(tmp_path: Path) -> None:
    raw = np.zeros((30, 28, 26), dtype=np.float32)
    raw[5:25, 6:24, 4:20] = np.random.default_rng(0).normal(300, 40, (20, 18, 16))
    nib.save(nib.Nifti1Image(raw, np.diag([-5.0, 5.0, 5.0, 1.0])), tmp_path / "T1.nii.gz")
    predict(Model(Everywhere(2).eval(), info()), {"T1": tmp_path / "T1.nii.gz"}, tmp_path / "out.nii.gz")
    answer = np.asarray(nib.load(tmp_path / "out.nii.gz").dataobj)
    np.testing.assert_array_equal(answer, np.where(raw != 0, 2, 0))
