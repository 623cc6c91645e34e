import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from multiseg.loaders.patches import map_codes

TABLE = np.zeros(256, dtype=np.uint8)
TABLE[[1, 2, 3, 4, 255]] = [2, 1, 0, 2, 255]


@given(
    seed=st.integers(0, 1000),
    shape=st.tuples(st.integers(1, 3), *[st.integers(1, 17)] * 3),
    share=st.sampled_from([0, 0.001, 0.02, 0.3, 1]),
)
def test_codes_become_what_the_table_says(seed, shape, share):
    rng = np.random.default_rng(seed)
    codes = rng.choice([1, 2, 3, 4, 255], shape).astype(np.uint8) * (rng.random(shape) < share).astype(np.uint8)
    expected = TABLE[codes]
    map_codes(codes, TABLE)
    assert np.array_equal(codes, expected)
