import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiseg.errors import UsageError
from multiseg.sizes import num_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0), ("17", 17), ("17B", 17), ("4GiB", 4_294_967_296), ("4 gib", 4_294_967_296), ("4Gi", 4_294_967_296),
        ("500MB", 500_000_000), ("1.5kB", 1500), (".5KiB", 512), ("2T", 2_000_000_000_000), (" 3k ", 3000),
    ],
)  # fmt: skip
def test_sizes_as_people_write_them(text, size):
    assert num_bytes(text, "cache") == size


@given(st.integers(0, 10**15))
def test_whole_bytes_stay_as_they_are(size):
    assert num_bytes(str(size), "cache") == size


@pytest.mark.parametrize("text", ["", "GB", "-1", "4 GiBs", "1e9", "4,5GB", "much", "5X", "1.2.3", "inf"])
def test_what_is_no_size_names_the_option(text):
    with pytest.raises(UsageError, match=r"cache '.*' is not a size\. Write it like 8GB"):
        num_bytes(text, "cache")
