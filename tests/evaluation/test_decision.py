"""What a voxel is, from the probabilities of the structures."""

import numpy as np
import pytest

from multiseg.evaluation.decision import brain_of, decide
from multiseg.labels import LESION, LabelSpace, SpaceLabel

TISSUES = tuple(SpaceLabel(name, "tissue") for name in ("CSF", "grey matter", "white matter"))
GLIOMA = tuple(SpaceLabel(name, "lesion") for name in ("necrosis", "oedema"))


def decided(space: LabelSpace, *voxels: tuple[float, ...]) -> list[int]:
    """The answer for each voxel, all of them in the brain, from its probabilities in the space's order."""
    probabilities = np.array(voxels, dtype=np.float32).T[:, :, None, None]
    return decide(probabilities, space, np.ones((len(voxels), 1, 1), dtype=bool)).ravel().tolist()


def test_one_structure_wins_from_a_half_on() -> None:
    below = float(np.nextafter(np.float32(0.5), np.float32(0)))
    for one in (LESION, TISSUES[0]):
        assert decided(LabelSpace((one,)), (0.49,), (below,), (0.5,), (0.9,), (0.0,)) == [0, 0, 1, 1, 0]


def test_a_lesion_needs_a_half_however_many_tissues_share_the_rest() -> None:
    space = LabelSpace((*TISSUES, LESION))
    likeliest_but_unlikely = (0.2, 0.2, 0.15, 0.35)
    assert decided(space, likeliest_but_unlikely, (0.25, 0.1, 0.05, 0.5), (0.1, 0.1, 0.7, 0.1)) == [1, 4, 3]


def test_where_the_lesions_are_in_the_space_does_not_matter() -> None:
    assert decided(LabelSpace((LESION, *TISSUES)), (0.35, 0.15, 0.2, 0.2), (0.6, 0.3, 0.0, 0.0)) == [3, 1]
    between = LabelSpace((TISSUES[0], GLIOMA[0], TISSUES[1], GLIOMA[1]))
    assert decided(between, (0.1, 0.3, 0.1, 0.4), (0.3, 0.2, 0.35, 0.1)) == [4, 3]


def test_lesions_alone_are_the_likeliest_of_all_classes() -> None:
    assert decided(LabelSpace(GLIOMA), (0.3, 0.25), (0.2, 0.25), (0.1, 0.6), (0.4, 0.3), (0.4, 0.4)) == [0, 0, 2, 1, 1]


def test_a_lesion_is_compared_with_all_that_is_no_lesion_together() -> None:
    space = LabelSpace((*TISSUES, *GLIOMA))
    shared = (0.15, 0.15, 0.1, 0.35, 0.15)  # lesions 0.5, and the rest 0.5 against the likeliest's 0.35
    assert decided(space, shared, (0.1, 0.1, 0.1, 0.4, 0.3), (0.1, 0.1, 0.1, 0.2, 0.15)) == [1, 4, 0]


def test_tissues_alone_are_the_likeliest_of_all_classes() -> None:
    space = LabelSpace(TISSUES)
    assert decided(space, (0.3, 0.2, 0.1), (0.4, 0.1, 0.1), (0.05, 0.1, 0.6), (0.1, 0.1, 0.1)) == [0, 1, 3, 0]


def test_what_is_no_lesion_is_compared_without_the_lesion() -> None:
    """p(lesion) = 0.45 would make "grey matter or nothing" look like nothing."""
    assert decided(LabelSpace((*TISSUES, LESION)), (0.0, 0.35, 0.0, 0.45), (0.0, 0.15, 0.0, 0.45)) == [2, 0]


@pytest.mark.parametrize("space", [LabelSpace(), LabelSpace(TISSUES), LabelSpace((*TISSUES, *GLIOMA))])
def test_nothing_is_answered_outside_the_brain(space: LabelSpace) -> None:
    random = np.random.default_rng(0)
    probabilities = random.dirichlet(np.ones(len(space.labels)), (6, 7, 8)).transpose(3, 0, 1, 2).astype(np.float32)
    brain = random.random((6, 7, 8)) < 0.5
    answer = decide(probabilities, space, brain)
    assert answer.dtype == np.uint8
    assert (answer[~brain] == 0).all()
    assert (answer[brain] != 0).all()


def test_the_brain_is_where_any_shown_sequence_is_not_zero() -> None:
    flair, t1 = np.zeros((2, 5, 5, 5), dtype=np.float16)
    flair[1, 1, 1], t1[3, 3, 1:4] = -2, 1
    assert np.argwhere(brain_of([flair])).tolist() == [[1, 1, 1]]
    assert brain_of([flair, t1]).sum() == 4
    assert flair[1, 1, 1] == -2
    assert not brain_of([np.zeros((4, 4, 4))]).any()


def test_a_zero_inside_the_brain_is_brain() -> None:
    image = np.zeros((9, 9, 9), dtype=np.float16)
    image[2:7, 2:7, 2:7] = 1
    image[4, 4, 3:5] = 0  # enclosed
    image[2, 2, 4:7] = 0  # a notch
    brain = brain_of([image])
    assert brain[4, 4, 3:5].all()
    assert not brain[2, 2, 4:7].any()
    assert brain.sum() == 125 - 3


def test_a_brain_may_fill_its_box_or_touch_the_border() -> None:
    assert brain_of([np.ones((3, 3, 3))]).all()
    image = np.ones((3, 3, 3))
    image[0, 1, 1] = 0  # open at the border, which may have cut it
    assert not brain_of([image])[0, 1, 1]
