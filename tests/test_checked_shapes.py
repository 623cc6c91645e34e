import numpy as np
import pytest
import torch
from beartype.roar import BeartypeCallHintParamViolation
from checked_shapes import OWN_SIZES, modules_with_shapes
from jaxtyping import Float, Int

from multiseg.evaluation.metrics import case_metrics
from multiseg.store.preparation.boxes import box_of


def test_an_array_of_another_shape_is_an_error():
    with pytest.raises(BeartypeCallHintParamViolation, match="box_of"):
        box_of(np.ones((3, 3), dtype=bool))


def test_what_names_shapes_is_checked():
    modules = modules_with_shapes()
    assert {"multiseg.models.losses", "multiseg.federation.aggregate", "multiseg.store.reader"} <= set(modules)
    assert "multiseg.cli.app" not in modules


def test_a_dimension_has_one_size_in_a_call_and_another_in_the_next():
    mask = np.ones((3, 3, 3), dtype=bool)
    for side in (3, 4):
        assert case_metrics(np.ones((side,) * 3, bool), np.ones((side,) * 3, bool), (1.0, 1.0, 1.0)).dice == 1
    with pytest.raises(BeartypeCallHintParamViolation, match="case_metrics"):
        case_metrics(mask, np.ones((3, 3, 4), dtype=bool), (1.0, 1.0, 1.0))


FITS = {
    "a b": {(3, 4): True, (3, 3): True, (3,): False, (3, 4, 5): False},
    "a a": {(3, 3): True, (3, 4): False},
    "3 a": {(3, 1): True, (1, 3): False},
    "_ 2": {(7, 2): True, (2, 7): False},
    "*b c": {(1, 2, 3): True, (3,): True, (): False},
    "": {(): True, (1,): False},
    "#a a": {(1, 5): True, (5, 5): True},
}


@pytest.mark.parametrize("dimensions", FITS)
@pytest.mark.parametrize("array", [np.zeros, torch.zeros])
def test_an_array_is_known_by_its_shape_and_numbers_again_and_again(dimensions, array):
    made = array(()).__class__
    for shape, fits in FITS[dimensions].items():
        for _ in range(3):
            assert isinstance(array(shape), Float[made, dimensions]) is fits
            assert not isinstance(array(shape), Int[made, dimensions])
            assert not isinstance(shape, Float[made, dimensions])


def test_a_size_is_that_of_all_arrays_of_a_call():
    hint = Float[np.ndarray, "a b"]
    with OWN_SIZES:
        assert [isinstance(np.zeros(shape), hint) for shape in ((2, 3), (2, 4), (3, 3), (2, 3))] == [1, 0, 0, 1]
        assert not isinstance(np.zeros((3, 9)), Float[np.ndarray, "b a"])
        assert isinstance(np.zeros((3, 2)), Float[np.ndarray, "b a"]), "what did not fit has left no size"
    with OWN_SIZES:
        assert isinstance(np.zeros((0, 5)), hint)
        assert isinstance(np.zeros((0, 5)), hint)
        assert not isinstance(np.zeros((1, 5)), hint)
