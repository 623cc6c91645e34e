"""Which brains of a store are learnt, and what is made of them: a model file that finds brains."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from multiseg.errors import DataError, UsageError
from multiseg.loaders.synthetic_scans import GRID
from multiseg.models.brain_network import BRAIN_FILE, is_brain_network, load_brain_network
from multiseg.models.learnt_scans import TRAIN, how_learnt
from multiseg.models.saved import BEST, read_learnt
from multiseg.store.preparation.grids import Grid
from multiseg.store.reader import open_store
from multiseg.training import brain_training
from multiseg.training.brain_shapes import brain_shapes, fault_of
from multiseg.training.brain_training import HELD_OUT, BrainOptions, ScanStream, train_brain

SMALL = BrainOptions(num_steps=2, batch_size=1, widths=(2, 4), num_checks=1)


@pytest.fixture(scope="module")
def found(store_url: str):
    return brain_shapes(open_store(store_url), ("alder", "birch"))


def far_mm(size: int = 70) -> np.ndarray:
    """The distance from the middle of a grid of 3 mm."""
    return np.asarray(3 * np.linalg.norm(np.indices((size, size, size)) - (size - 1) / 2, axis=0))


@pytest.mark.parametrize(
    ("mask", "fault"),
    [
        (far_mm() < 66, ""),
        ((far_mm() < 66) & (far_mm() > 12), ""),  # ventricles that are 0
        ((far_mm() < 66) | ((far_mm() > 76) & (far_mm() < 84)), "a gap between brain and scalp"),
        (far_mm() < 90, "includes skull, neck or air"),
        (far_mm() < 30, "The voxel size seems lost"),
        (far_mm() < 0, "empty"),
    ],
)
def test_only_what_may_be_a_brain_is_learnt(mask: np.ndarray, fault: str) -> None:
    reason = fault_of(mask, Grid(np.diag([3.0, 3.0, 3.0, 1.0]), mask.shape))
    assert fault in reason
    assert bool(fault) == bool(reason)


def test_a_shape_has_the_volume_of_the_brain_and_every_sequence(store_url: str, found) -> None:
    shapes, left_out = found
    assert not left_out
    store = open_store(store_url)
    for case, shape in shapes:
        images, _ = store[case.database].whole(case)
        ml = np.count_nonzero((images != 0).any(axis=0)) * 0.125
        assert float(shape.share.astype(np.float32).sum()) * 0.216 == pytest.approx(ml, rel=0.06)
        assert len(shape.images) == len(case.modalities)
        inside = shape.images[:, shape.share > 0.9].astype(np.float32)
        assert np.abs(inside.mean(axis=1)).max() < 0.5
        assert not shape.images[:, shape.share == 0].any()


def test_batches_are_a_function_of_their_number(found) -> None:
    stream = ScanStream([shape for _, shape in found[0]], 2, seed=4)
    _, second = stream.batches(3, 5)
    (again,) = stream.batches(4, 5)
    assert torch.equal(second.images, again.images)
    assert torch.equal(second.target, again.target)
    (other,) = replace(stream, part=1).batches(4, 5)
    assert not torch.equal(second.images, other.images)


def test_a_share_of_the_scans_shows_phantoms(found, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    for name in ("draw_scan", "draw_phantom_scan"):
        scan = np.zeros(GRID, np.float32), np.zeros(GRID, np.float32)
        monkeypatch.setattr(brain_training, name, lambda *given, name=name, scan=scan: drawn.append(name) or scan)
    shapes = [shape for _, shape in found[0]]
    for share in (0.0, 0.25, 1.0):
        drawn.clear()
        list(ScanStream(shapes, 4, seed=1, phantom_share=share).batches(0, 50))
        assert drawn.count("draw_phantom_scan") == pytest.approx(200 * share, abs=20)
        assert share not in (0, 1) or len(set(drawn)) == 1


def test_a_voxel_is_brain_as_often_as_its_share_says(found, monkeypatch: pytest.MonkeyPatch) -> None:
    share = np.linspace(0, 1, GRID[0], dtype=np.float32)[:, None, None] * np.ones(GRID, np.float32)
    monkeypatch.setattr(brain_training, "draw_scan", lambda shape, rng: (np.zeros(GRID, np.float32), share))
    shapes = [shape for _, shape in found[0]]
    (batch,) = ScanStream(shapes, 4, seed=1).batches(0, 1)
    often = batch.target.float().mean(dim=(0, 2, 3)).numpy()
    assert often == pytest.approx(share[:, 0, 0], abs=0.03)
    (checked,) = ScanStream(shapes, 1, seed=1, part=HELD_OUT).batches(0, 1)
    assert np.array_equal(checked.target[0].numpy() == 1, share > 0.5)


@pytest.mark.slow
def test_a_store_becomes_a_network_that_a_model_carries(store_url: str, tmp_path: Path) -> None:
    (tmp_path / BEST).write_bytes(b"a model")
    trained = train_brain(store_url, tmp_path / BRAIN_FILE, replace(SMALL, databases=("alder",)))
    assert {case.database for case in trained.cases} == {"alder"}
    assert not trained.left_out
    network = load_brain_network(tmp_path)
    assert network is not None
    assert is_brain_network(network.info)
    assert network.info.databases["alder"]["num_cases"] == len(trained.cases)
    assert network.info.step == 2
    assert network.info.metrics["recipe"] == 2
    digests = [digest for case in trained.cases for digest in case.content.values()]
    assert how_learnt(read_learnt(tmp_path / BRAIN_FILE), digests) == TRAIN


def test_a_store_without_brains_is_an_error(store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(brain_training, "brain_shapes", lambda *given: ((), {"ms/p1": "it is empty"}))
    with pytest.raises(DataError, match="no training case that shows a brain without its skull: ms/p1"):
        train_brain(store_url, tmp_path / BRAIN_FILE, SMALL)
    with pytest.raises(UsageError, match="num_steps is 0"):
        train_brain(store_url, tmp_path / BRAIN_FILE, replace(SMALL, num_steps=0))
