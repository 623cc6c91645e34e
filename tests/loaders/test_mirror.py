"""A mirrored patch has its left structures on the right."""

from dataclasses import replace

import pytest
import torch

from multiseg.errors import UsageError
from multiseg.labels import LabelSpace, SpaceLabel
from multiseg.loaders.augment import AugmentOptions, augment, preset
from multiseg.loaders.batches import Batch, PatchStream, StreamOptions
from multiseg.loaders.draw import DrawOptions
from multiseg.loaders.mirror import check_sides
from multiseg.loaders.spatial import Movement
from multiseg.modalities import ModalityAxis
from multiseg.sides import mirrored
from multiseg.store.reader import open_store

NAMES = ("left hippocampus", "stem", "right hippocampus")
SPACE = LabelSpace(tuple(SpaceLabel(name, "tissue") for name in NAMES))


def batch_of(space: LabelSpace = SPACE, annotated: tuple[bool, ...] = (True, True, True)) -> Batch:
    """Left is where i is low, as in RAS+; a voxel that is not to be looked at, and background."""
    target = torch.tensor([1, 1, 2, 3, 255, 0], dtype=torch.uint8).reshape(1, 6, 1, 1).expand(2, 6, 4, 2).contiguous()
    return Batch(
        images=torch.ones(2, 1, 6, 4, 2), present=torch.ones(2, 1, dtype=torch.bool), target=target,
        annotated=torch.tensor([annotated] * 2), database=("a",) * 2, case=("c",) * 2,
        corner=torch.zeros(2, 3, dtype=torch.int64), draws=torch.tensor([[0, 0], [0, 1]]), mirrored=mirrored(space),
    )  # fmt: skip


ALWAYS = AugmentOptions(flip_probability=1.0)


def test_a_flip_exchanges_left_and_right_codes_and_what_was_looked_for() -> None:
    batch = batch_of(annotated=(True, False, False))
    found = augment(batch, ALWAYS)
    assert found.target[0, :, 0, 0].tolist() == [0, 255, 1, 2, 3, 3]
    assert found.annotated.tolist() == [[False, False, True]] * 2
    assert batch.target[0, :, 0, 0].tolist() == [1, 1, 2, 3, 255, 0]
    assert batch.annotated.tolist() == [[True, False, False]] * 2


def test_a_patch_that_stays_keeps_its_codes() -> None:
    found = augment(batch_of(), replace(preset("standard"), flip_probability=0.0, affine_probability=0.0))
    assert found.target[0, :, 0, 0].tolist() == [1, 1, 2, 3, 255, 0]


def test_one_flip_is_a_mirror_image_and_two_are_half_a_turn() -> None:
    assert Movement(flips=(True, False, False)).is_mirror
    assert Movement(flips=(False, True, False), quarter_turns=2).is_mirror
    assert not Movement(flips=(True, True, False)).is_mirror
    assert not Movement(quarter_turns=2, plane=(0, 1)).is_mirror
    both = augment(batch_of(), replace(ALWAYS, flip_axes=("i", "j")))
    assert both.target[0, :, 0, 0].tolist() == [0, 255, 3, 2, 1, 1]


def test_flips_are_refused_where_a_side_has_no_counterpart() -> None:
    alone = LabelSpace((SPACE.labels[0], *(SpaceLabel(name, "tissue") for name in ("stem", "thalamus"))))
    with pytest.raises(UsageError, match="do not have the other side of left hippocampus"):
        check_sides(alone)
    with pytest.raises(UsageError, match="structure 1 of the label space has a side"):
        augment(batch_of(alone), ALWAYS)
    check_sides(SPACE)
    check_sides(LabelSpace())


@pytest.mark.slow
def test_a_stream_tells_what_its_labels_become(store_url: str) -> None:
    options = StreamOptions(DrawOptions(patch=(8, 8, 8)), batch_size=1, workers=0)
    space = LabelSpace(
        (SpaceLabel("left lesion", "lesion"), SpaceLabel("lesion", "lesion"), SpaceLabel("right lesion", "lesion"))
    )
    stream = PatchStream(open_store(store_url), ModalityAxis(("FLAIR", "T1")), space, options)
    (batch,) = stream.batches(0, 1)
    assert batch.to(torch.device("cpu")).mirrored == (0, 3, 2, 1)
