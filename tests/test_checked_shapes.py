import numpy as np
import pytest
from beartype.roar import BeartypeCallHintParamViolation
from checked_shapes import modules_with_shapes

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
