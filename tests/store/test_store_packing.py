import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from multiseg.store import schema
from multiseg.store.ingest.packing import KEPT_SHARE, PACKERS, shards_of

CHUNK, SHARD = (2, 4, 4, 4), (2, 8, 8, 8)


def read_by_zarr(volume, packed, codec, dtype):
    """The one row of an array that consists of these shards."""
    held = {}
    array = zarr.create_array(
        MemoryStore(held), name="a", shape=(1, *volume.shape), chunks=(1, *CHUNK), shards=(1, *SHARD), dtype=dtype,
        fill_value=0, compressors=schema.CODECS[codec], zarr_format=3,
    )  # fmt: skip
    make = default_buffer_prototype().buffer.from_bytes
    held.update({f"a/c/0/{place}": make(one) for place, one in packed.items()})
    return array[0]


def volume_of(seed, shape, dtype):
    rng = np.random.default_rng(seed)
    volume = (rng.standard_normal(shape) * 100).astype(dtype)
    return volume * (rng.random(shape) < rng.choice([0, 0.02, 0.5, 1])).astype(dtype)


@pytest.mark.slow
@pytest.mark.parametrize("codec", list(schema.CODECS))
@settings(max_examples=25)
@given(
    seed=st.integers(0, 1000),
    shape=st.tuples(st.integers(1, 5), *[st.integers(1, 19)] * 3),
    dtype=st.sampled_from(["float16", "uint8"]),
)
def test_zarr_reads_what_was_packed(codec, seed, shape, dtype):
    volume = volume_of(seed, shape, dtype)
    packed = dict(shards_of(volume, CHUNK, SHARD, codec))
    assert np.array_equal(read_by_zarr(volume, packed, codec, dtype), volume)


def test_every_codec_of_the_schema_has_a_packer():
    assert list(PACKERS) == list(schema.CODECS)


def test_what_holds_nothing_takes_no_room():
    volume = np.zeros((2, 16, 8, 8), np.float16)
    assert dict(shards_of(volume, CHUNK, SHARD, "lz4")) == {}
    volume[1, 12, 0, 0] = 1
    (place,) = dict(shards_of(volume, CHUNK, SHARD, "none"))
    assert place == "0/1/0/0"
    index_bytes, one_chunk = 8 * 16 + 4, 2 * 64 * 2 + 4
    assert len(dict(shards_of(volume, CHUNK, SHARD, "none"))[place]) == index_bytes + one_chunk


def test_noise_is_copied_and_emptiness_is_packed():
    noise = np.random.default_rng(0).standard_normal((2, 4, 4, 4)).astype(np.float16)
    assert len(PACKERS["lz4"](noise)) == noise.nbytes + 16
    sparse = np.zeros((2, 32, 32, 32), np.float16)
    sparse[:, :4] = 1
    assert len(PACKERS["lz4"](sparse)) < KEPT_SHARE * sparse.nbytes / 10


def test_a_negative_zero_stays_what_it_is():
    volume = np.zeros((2, 8, 8, 8), np.float16)
    volume[0, 0, 0, 0] = -0.0
    packed = dict(shards_of(volume, CHUNK, SHARD, "lz4"))
    assert np.signbit(read_by_zarr(volume, packed, "lz4", "float16")[0, 0, 0, 0])
