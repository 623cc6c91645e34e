from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiseg.errors import StoreError
from multiseg.loaders.patches import CaseSource, DatabaseSource, PatchReader, PatchTask, Sources, map_codes
from multiseg.store.array_layout import ArrayLayout
from multiseg.store.byte_ranges import LocalParts
from multiseg.store.shard_names import MISSING_FILE

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


@pytest.mark.parametrize("is_whole_case", [False, True])
def test_an_error_names_the_case_and_keeps_its_code_and_file(tmp_path: Path, is_whole_case: bool) -> None:
    """The case names a file of its image, and the folder is empty."""
    image, label = (
        ArrayLayout(f"ms/{name}", (1, 8, 8, 8), (1, 8, 8, 8), (1, 8, 8, 8), dtype, "none")
        for name, dtype in (("image", "float16"), ("label", "uint8"))
    )
    case = CaseSource("ms/P1", 0, 3, (8, 8, 8), 0, "image:0/0/0/0", cached_at=0)
    sources = Sources(str(tmp_path), [DatabaseSource(image, label, (0,))], [case], [[]], (8, 8, 8), 1)
    reader = PatchReader(sources, LocalParts(tmp_path), memoryview(bytearray(sources.cached_bytes(case))))
    images, target = np.zeros((1, 8, 8, 8), np.float16), np.zeros((8, 8, 8), np.uint8)
    patch = PatchTask(0, 0, 0, 0, (0, 0, 0), 1)
    read = partial(reader.decode, case) if is_whole_case else partial(reader.fill, patch, images, target)
    with pytest.raises(StoreError, match=r"^ms/P1: ms/image/c/3/0/0/0/0 is missing") as caught:
        read()
    assert (caught.value.code, caught.value.file) == (MISSING_FILE, "ms/image/c/3/0/0/0/0")
