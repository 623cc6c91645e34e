"""What a network sees outside the brain is what it saw in training: zeros, or the published -mean/std."""

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from multiseg.errors import CheckpointError, UsageError
from multiseg.evaluation.evaluation_result import EvaluateOptions
from multiseg.evaluation.inference import predict_volume
from multiseg.evaluation.model_evaluation import evaluate
from multiseg.evaluation.prediction import predict
from multiseg.evaluation.preparation import network_input
from multiseg.labels import LabelSpace
from multiseg.modalities import ModalityAxis
from multiseg.models.builders import NETWORKS
from multiseg.models.saved import Model, ModelInfo, read_info, save_model
from multiseg.store.reader import open_store
from multiseg.training.validate import validate

SHIFTED = ModelInfo(
    builder="multi_unet", numbers={}, axis=ModalityAxis(("PD", "FLAIR", "T1")), space=LabelSpace(),
    spacing_mm=(5.0, 5.0, 5.0), patch=(48, 48, 48),
    trained_on={"PD": (), "FLAIR": ("x",), "T1": ("x",)}, databases={}, background="shifted",
)  # fmt: skip


class Watcher(nn.Module):
    """Keeps what it is given, and says lesion everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(1))
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor, present: Tensor) -> Tensor:
        self.seen.append(images.clone())
        return torch.full_like(images[:, :1], 9.0) + self.nothing


def test_a_raw_zero_becomes_what_its_z_score_is() -> None:
    """T1: (0 - 100) / 25 = -4. FLAIR: (0 - 60) / 40 = -1.5, also where T1 has brain and FLAIR ends earlier."""
    images = np.zeros((3, 1, 1, 3), dtype=np.float16)
    images[0, 0, 0] = (0, 1.5, -0.5)
    images[1, 0, 0] = (0, 7, 7)
    images[2, 0, 0] = (0, 0, 2.25)
    before = images.copy()
    intensity = {"T1": (100.0, 25.0), "ADC": (1.0, 1.0), "FLAIR": (60.0, 40.0)}
    names = ("T1", "ADC", "FLAIR")
    placed, present = network_input(SHIFTED, images, names, ("FLAIR", "T1"), intensity)
    assert present.tolist() == [False, True, True]
    assert placed[:, 0, 0].tolist() == [[0, 0, 0], [-1.5, -1.5, 2.25], [-4, 1.5, -0.5]]
    assert placed.dtype == np.float16
    placed, present = network_input(replace(SHIFTED, background="zero"), images, names, ("FLAIR",), {})
    assert present.tolist() == [False, True, False]
    assert placed[:, 0, 0].tolist() == [[0, 0, 0], [0, 0, 2.25], [0, 0, 0]]
    np.testing.assert_array_equal(images, before)


@pytest.mark.slow
def test_the_background_of_a_store_case_in_evaluation_and_validation(
    store_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Every subset's own channels are shifted, whatever others are there; absent ones and the padding stay 0."""
    watcher = Watcher()
    monkeypatch.setitem(NETWORKS, "multi_unet", lambda *sizes, **numbers: watcher)
    save_model(tmp_path / "model.safetensors", watcher, SHIFTED)
    evaluate(tmp_path, store_url, EvaluateOptions(split="", databases=("dogwood",), subsets="all"))
    store = open_store(store_url)
    case = store["dogwood"].cases[0]
    own, _ = store["dogwood"].whole(case)
    expected = dict(zip(store["dogwood"].modalities, own.astype(np.float32), strict=True))
    for name, image in expected.items():
        mean, std = case.intensity[name]
        assert mean > 2 * std > 0
        image[image == 0] = np.float16(-mean / std)
    both, flair, t1 = (watcher.seen[at][0].numpy() for at in range(3))
    inside = in_the_middle(both.shape[1:], case.extent)
    for seen, names in ((both, ("FLAIR", "T1")), (flair, ("FLAIR",)), (t1, ("T1",))):
        for channel, name in enumerate(SHIFTED.axis):
            if name in names:
                np.testing.assert_array_equal(seen[channel][inside], expected[name])
                assert np.count_nonzero(seen[channel]) <= np.prod(case.extent)
            else:
                assert not seen[channel].any()

    first = watcher.seen[0]
    watcher.seen.clear()
    validate(watcher, SHIFTED, store, [case])
    assert torch.equal(watcher.seen[0], first)


@pytest.mark.slow
def test_a_case_knows_the_intensity_of_its_own_sequences(store_url: str) -> None:
    """By name, also where a case lacks the database's first sequence."""
    store = open_store(store_url)
    held = store.dataset("cedar")
    for case in store["cedar"].cases:
        row = held.sel(case=case.name)
        assert case.intensity == {
            name: (float(row.intensity_mean.sel(modality=name)), float(row.intensity_std.sel(modality=name)))
            for name in case.modalities
        }
    assert {len(case.intensity) for case in store["cedar"].cases} == {2, 3}


def in_the_middle(size: tuple[int, ...], extent: tuple[int, int, int]) -> tuple[slice, ...]:
    before = [(n - e + 1) // 2 for n, e in zip(size, extent, strict=True)]
    return tuple(slice(b, b + e) for b, e in zip(before, extent, strict=True))


def test_a_patient_looks_as_the_published_preparation_made_it(tmp_path: Path) -> None:
    """The whole array z-scored by the mean and standard deviation of what is not 0 (Xu et al. 2024, as released)."""
    rng = np.random.default_rng(2)
    raw = np.zeros((24, 24, 24), dtype=np.float32)
    raw[4:20, 3:21, 5:19] = rng.normal(300, 40, (16, 18, 14))
    raw[10:12, 10:12, 10:12] = 0  # a hole in the mask
    nib.save(nib.Nifti1Image(raw, np.diag([5.0, 5.0, 5.0, 1.0])), tmp_path / "T1.nii.gz")
    watcher = Watcher()
    predict(Model(watcher, SHIFTED), {"T1": tmp_path / "T1.nii.gz"}, tmp_path / "out.nii.gz")
    published = (raw - raw[raw != 0].mean()) / raw[raw != 0].std()
    (seen,) = watcher.seen
    box = in_the_middle(seen.shape[2:], (16, 18, 14))
    np.testing.assert_allclose(seen[0, 2].numpy()[box], published[4:20, 3:21, 5:19], rtol=1e-3, atol=1e-3)
    assert not seen[0, :2].any()


def test_a_window_of_shifted_background_is_looked_at() -> None:
    """A window that holds no brain is skipped where the background is 0, and seen where the network learnt it."""
    images = np.zeros((3, 32, 8, 8), dtype=np.float16)
    images[2, :6] = 1
    watcher = Watcher()
    for background, num in (("zero", 1), ("shifted", 4)):
        info = replace(SHIFTED, background=background)
        placed, present = network_input(info, images, ("PD", "FLAIR", "T1"), ("T1",), {"T1": (3.0, 2.0)})
        answer = predict_volume(watcher, placed, present, (8, 8, 8), 0.0, windows_at_once=1)
        assert len(watcher.seen) == num
        assert float((answer > 0.5).mean()) == num / 4
        watcher.seen.clear()


def test_files_from_before_and_files_of_others(tmp_path: Path) -> None:
    save_model(tmp_path / "new.safetensors", Watcher(), SHIFTED)
    assert read_info(tmp_path / "new.safetensors") == SHIFTED
    said = SHIFTED.to_json()
    del said["background"]
    save_file({"nothing": torch.zeros(1)}, tmp_path / "old.safetensors", metadata={"multiseg": json.dumps(said)})
    assert read_info(tmp_path / "old.safetensors") == replace(SHIFTED, background="zero")
    said["background"] = "grey"
    save_file({"nothing": torch.zeros(1)}, tmp_path / "odd.safetensors", metadata={"multiseg": json.dumps(said)})
    with pytest.raises(CheckpointError, match="background is 'grey': give one of zero, shifted"):
        read_info(tmp_path / "odd.safetensors")
    with pytest.raises(UsageError, match="background is 'grey': give one of zero, shifted"):
        replace(SHIFTED, background="grey")
