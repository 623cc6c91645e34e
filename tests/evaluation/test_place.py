import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from multiseg.evaluation.preparation import place
from multiseg.modalities import ModalityAxis

AXIS = ModalityAxis(("PD", "FLAIR", "T1", "T2"))
NAMES = ("FLAIR", "T1", "DWI", "T2")
IMAGES = np.random.default_rng(0).standard_normal((4, 2, 3, 2)).astype(np.float16)


def test_kept_sequences_lie_on_their_channels_and_all_else_is_0():
    placed, present = place(IMAGES, NAMES, ("T2", "FLAIR", "DWI"), AXIS)
    assert present.tolist() == [False, True, False, True]
    assert np.array_equal(placed[1], IMAGES[0])
    assert np.array_equal(placed[3], IMAGES[3])
    assert not placed[[0, 2]].any()
    assert placed.dtype == np.float16


@given(st.permutations(range(4)), st.sets(st.sampled_from(NAMES)))
def test_the_order_of_the_sequences_does_not_matter(order, kept):
    placed, present = place(IMAGES, NAMES, tuple(kept), AXIS)
    again, there = place(IMAGES[order], [NAMES[at] for at in order], tuple(reversed(tuple(kept))), AXIS)
    assert np.array_equal(placed, again)
    assert np.array_equal(present, there)
    assert not placed[~present].any()
