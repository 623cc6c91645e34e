import gc

import pytest


@pytest.fixture(scope="module")
def few_objects() -> None:
    """What lives by now is left out of later searches for garbage, which take long in a process with many modules."""
    gc.collect()
    gc.freeze()
