from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from multiseg.errors import UsageError
from multiseg.evaluation.inference import predict_volume, window_corners
from multiseg.evaluation.subsets import all_subsets, full_set
from multiseg.models.builders import multi_unet

PATCH = (8, 8, 8)
PRESENT = np.array([True, True])


class FirstChannel(nn.Module):
    """Its logit is the first sequence: what comes out must be where it went in."""

    def __init__(self):
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(1))
        self.windows = 0

    def forward(self, images, present):
        self.windows += len(images)
        return images[:, :1] + self.nothing


@pytest.fixture
def network():
    torch.manual_seed(0)
    return multi_unet(2, 1, widths=(4, 8), dropout=0.5).eval()


def images_of(*size):
    return np.random.default_rng(0).standard_normal((2, *size)).astype(np.float16)


def sigmoid(x):
    return 1 / (1 + np.exp(-x.astype(np.float64)))


def test_one_window_is_a_plain_forward(network):
    images = images_of(*PATCH)
    with torch.inference_mode():
        logits = network(torch.from_numpy(images[None]).float(), torch.from_numpy(PRESENT[None]))
    found = predict_volume(network, images, PRESENT, PATCH)
    np.testing.assert_allclose(found, logits.sigmoid()[0].numpy(), atol=1e-6)


@pytest.mark.parametrize("size", [(8, 8, 8), (19, 8, 13), (3, 20, 5), (1, 1, 1), (9, 9, 9)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
def test_every_voxel_is_answered_at_its_own_place(size, overlap):
    """A network that looks at one voxel gives the same answer in any window."""
    images = images_of(*size)
    found = predict_volume(FirstChannel(), images, PRESENT, PATCH, overlap, windows_at_once=3)
    assert found.shape == (1, *size)
    np.testing.assert_allclose(found[0], sigmoid(images[0]), atol=1e-5)


@pytest.mark.parametrize("windows_at_once", [2, 5])
def test_several_windows_at_once_change_nothing(network, windows_at_once):
    images = images_of(14, 11, 9)
    one = predict_volume(network, images, PRESENT, PATCH)
    several = predict_volume(network, images, PRESENT, PATCH, windows_at_once=windows_at_once)
    np.testing.assert_allclose(several, one, atol=1e-6)


def test_the_middle_of_a_window_counts_more_than_its_edge():
    class Position(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.arange(8.0).expand(1, 1, 8, 8, 8) - 3.5)

        def forward(self, images, present):
            return self.weight.expand(len(images), -1, -1, -1, -1)

    found = predict_volume(Position(), images_of(8, 8, 12), PRESENT, PATCH, overlap=0.5)[0, 4, 4]
    gauss = np.exp(-0.5 * ((np.arange(8) - 3.5) / 1.0) ** 2)
    logits = np.arange(8) - 3.5
    blended = [  # voxel 4 + n is voxel 4 + n of the first window and voxel n of the second
        sigmoid((gauss[4 + n] * logits[4 + n] + gauss[n] * logits[n]) / (gauss[4 + n] + gauss[n])) for n in range(4)
    ]
    np.testing.assert_allclose(found[4:8], blended, atol=5e-3)
    np.testing.assert_allclose(found[:4], sigmoid(logits[:4]), atol=1e-5)


@pytest.mark.parametrize(("extent", "before"), [(5, 2), (4, 2), (7, 1)])
def test_a_small_case_lies_where_it_lay_in_training(extent, before):
    """loaders.draw puts the corner of its window at (extent - patch) // 2."""
    assert before == -((extent - 8) // 2)
    seen = []

    class Seeing(FirstChannel):
        def forward(self, images, present):
            seen.append(images)
            return super().forward(images, present)

    predict_volume(Seeing(), np.ones((2, extent, 8, 8), np.float16), PRESENT, PATCH)
    filled = seen[0][0, 0, :, 0, 0].nonzero().flatten().tolist()
    assert filled == list(range(before, before + extent))


def test_windows_without_image_are_background_unseen():
    images = images_of(40, 8, 8)
    images[:, 10:] = 0
    network = FirstChannel()
    found = predict_volume(network, images, PRESENT, PATCH)
    assert network.windows < len(list(window_corners((40, 8, 8), PATCH, 0.5)))
    assert not found[0, 20:].any()
    np.testing.assert_allclose(found[0, :10], sigmoid(images[0, :10]), atol=1e-5)


def test_skipping_changes_nothing_where_the_network_finds_background_there():
    class Threshold(FirstChannel):
        def forward(self, images, present):
            return super().forward(100 * images - 60, present)

    images = np.abs(images_of(40, 12, 8))
    images[:, 9:] = 0
    skipped = predict_volume(Threshold(), images, PRESENT, PATCH)
    images[1] += np.float16(1e-3)  # now no window is empty
    seen = predict_volume(Threshold(), images, PRESENT, PATCH)
    np.testing.assert_allclose(skipped, seen, atol=1e-5)


def test_an_absent_sequence_is_not_looked_at(network):
    images = images_of(12, 8, 8)
    images[1] = np.nan
    spoilt = predict_volume(network, images, np.array([True, False]), PATCH)
    images[1] = 0
    np.testing.assert_array_equal(spoilt, predict_volume(network, images, np.array([True, False]), PATCH))
    assert np.isfinite(spoilt).all()


@pytest.mark.parametrize(("num_logits", "num_labels"), [(1, 1), (4, 3)])
def test_an_empty_volume_has_every_label_and_none_of_them(num_logits, num_labels):
    network = multi_unet(2, num_logits, widths=(4, 8)).eval()
    found = predict_volume(network, np.zeros((2, 9, 10, 11), np.float16), PRESENT, PATCH)
    assert found.shape == (num_labels, 9, 10, 11)
    assert not found.any()


def test_several_labels_are_probabilities(network):
    network = multi_unet(2, 4, widths=(4, 8)).eval()
    found = predict_volume(network, images_of(10, 9, 8), PRESENT, PATCH)
    assert found.shape == (3, 10, 9, 8)
    assert found.min() >= 0
    assert found.sum(axis=0).max() <= 1 + 1e-5


sizes = st.tuples(*[st.integers(1, 40)] * 3)


@given(shape=sizes, patch=sizes, overlap=st.floats(0, 0.9))
def test_windows_cover_every_voxel_and_overlap_enough(shape, patch, overlap):
    padded = tuple(max(n, p) for n, p in zip(shape, patch, strict=True))
    corners = list(window_corners(padded, patch, overlap))
    for axis in range(3):
        starts = sorted({corner[axis] for corner in corners})
        assert starts[0] == 0
        assert starts[-1] + patch[axis] == padded[axis]
        assert all(b - a <= max(1, patch[axis] * (1 - overlap) + 1e-6) for a, b in pairwise(starts))
    assert len(set(corners)) == len(corners)


@pytest.mark.parametrize("overlap", [-0.1, 1.0, 2.0])
def test_an_overlap_that_cannot_be_meant(overlap):
    with pytest.raises(UsageError, match=f"the overlap of windows is {overlap}: give a share"):
        list(window_corners((16, 16, 16), PATCH, overlap))


def test_subsets():
    assert all_subsets(["T1", "T2"]) == [("T1", "T2"), ("T1",), ("T2",)]
    assert len(all_subsets("abcd")) == 15
    assert full_set(["T1", "T2"]) == [("T1", "T2")]
