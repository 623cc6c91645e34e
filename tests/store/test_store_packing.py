import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from multiseg.store import schema
from multiseg.store.ingest.packing import KEPT_SHARE, PACKERS, shards_of
from multiseg.store.shard_decoding import decode_shard, has_own_shards

CHUNK, SHARD = (2, 4, 4, 4), (2, 8, 8, 8)


def read_by_zarr(volume, packed, codec, dtype):
    """The one row of an array that consists of these shards."""
    return array_of(volume, packed, codec, dtype)[0]


def array_of(volume, packed, codec, dtype):
    held = {}
    array = zarr.create_array(
        MemoryStore(held), name="a", shape=(1, *volume.shape), chunks=(1, *CHUNK), shards=(1, *SHARD), dtype=dtype,
        fill_value=0, compressors=schema.CODECS[codec], zarr_format=3,
    )  # fmt: skip
    make = default_buffer_prototype().buffer.from_bytes
    held.update({f"a/c/0/{place}": make(one) for place, one in packed.items()})
    return array


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
    array = array_of(volume, packed, codec, dtype)
    assert np.array_equal(array[0], volume)
    assert has_own_shards(array)
    for place, one in packed.items():
        inside = tuple(slice(8 * int(n), 8 * int(n) + 8) for n in place.split("/")[1:])
        expected = volume[2 * int(place[0]) : 2 * int(place[0]) + 2, *inside]
        np.testing.assert_array_equal(decode_shard(array, one, (1, *expected.shape))[0], expected)


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_no_flipped_byte_of_a_shard_is_decoded(codec):
    volume = volume_of(1, (2, 8, 8, 8), "float16")
    volume[0, 0, 0, 0] = 1
    packed = dict(shards_of(volume, CHUNK, SHARD, codec))
    array, (shard,) = array_of(volume, packed, codec, "float16"), packed.values()
    for position in range(0, len(shard), 37):
        flipped = bytearray(shard)
        flipped[position] ^= 16
        with pytest.raises(ValueError, match=r"checksum of (a chunk|the index) is wrong"):
            decode_shard(array, bytes(flipped), (1, 2, 8, 8, 8))
    for length in (0, 3, 100, len(shard) - 1):
        with pytest.raises(ValueError, match="checksum of the index is wrong"):
            decode_shard(array, shard[:length], (1, 2, 8, 8, 8))


def test_shards_of_another_program_are_left_to_zarr():
    options = {"shape": (2, 4), "shards": (1, 4), "chunks": (1, 2), "dtype": "uint8", "zarr_format": 3}
    own = {"compressors": schema.CODECS["lz4"], "fill_value": 0}
    for other in ({"compressors": zarr.codecs.ZstdCodec()}, {"fill_value": 1}, {"shards": None}, {"shards": (2, 4)}):
        assert not has_own_shards(zarr.create_array(MemoryStore(), **{**options, **own, **other}))
    assert has_own_shards(zarr.create_array(MemoryStore(), **options, **own))


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
