import numpy as np
import pytest
from beartype.roar import BeartypeCallHintParamViolation
from checked_shapes import modules_with_shapes

from multiseg.store.preparation.boxes import box_of


def test_an_array_of_another_shape_is_an_error():
    with pytest.raises(BeartypeCallHintParamViolation, match="box_of"):
        box_of(np.ones((3, 3), dtype=bool))


def test_what_names_shapes_is_checked():
    modules = modules_with_shapes()
    assert {"multiseg.models.losses", "multiseg.federation.aggregate", "multiseg.store.reader"} <= set(modules)
    assert "multiseg.cli.app" not in modules
