"""Windows read by ourselves are those that zarr-python reads; what is damaged is told."""

import shutil
from copy import copy
from functools import cache, cached_property, partial
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, Crc32cCodec

from multiseg.errors import StoreError
from multiseg.loaders.shards import ChannelRun, ShardReader, runs_of
from multiseg.store import schema
from multiseg.store.array_layout import ArrayLayout
from multiseg.store.byte_ranges import LocalParts
from multiseg.store.mapping import MappedFiles
from multiseg.store.reader import open_store

SHAPE = (5, 11, 14, 9)
CHUNK, SHARD = (2, 3, 4, 2), (4, 6, 8, 4)
CODECS = {**schema.CODECS, "copied": (BloscCodec(cname="lz4", clevel=0, shuffle="noshuffle"), Crc32cCodec())}
WINDOW = st.tuples(*(st.tuples(st.integers(0, n - 1), st.integers(1, n)) for n in SHAPE[1:]))


class Array:
    """Two rows of voxels in shards so small that windows cross many of them, and the same in memory."""

    def __init__(self, folder: Path, codec: str, dtype: str = "float16") -> None:
        rng = np.random.default_rng(1)
        self.voxels = rng.integers(-9, 9, (2, *SHAPE)).astype(dtype)
        self.voxels[rng.random(self.voxels.shape) < 0.3] = 0
        self.voxels[:, 1:3, 2:7, :8] = 0  # some chunks hold nothing
        self.voxels[1, 4:] = 0  # the second shard along channels is not there
        self.array = zarr.create_array(
            folder / "ms/image", shape=(2, *SHAPE), chunks=(1, *CHUNK), shards=(1, *SHARD), dtype=dtype, fill_value=0,
            compressors=CODECS[codec],
        )  # fmt: skip
        self.array[:] = self.voxels
        kind = "none" if codec == "none" else "blosc"
        self.folder = folder
        self.layout = ArrayLayout("ms/image", SHAPE, CHUNK, SHARD, dtype, kind)

    @cached_property
    def by_zarr(self):
        """All of it, as zarr reads it."""
        return self.array[:]

    def reader(self, checksums="first", shards=None):
        return ShardReader(LocalParts(self.folder), self.layout, checksums, shards or {})

    def file(self, place="0/0/0/0/0"):
        return self.folder / "ms/image/c" / place


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    """The array of a codec, made once. Only for reading."""
    return cache(lambda codec: Array(tmp_path_factory.mktemp(codec), codec))


@pytest.fixture(scope="module", params=sorted(CODECS))
def array(request, arrays):
    return arrays(request.param)


@pytest.fixture(scope="module", params=["none", "lz4", "zstd"])
def untouched(request, arrays):
    return arrays(request.param)


@pytest.fixture
def own_array(untouched, tmp_path):
    """An array that a test may damage."""
    own = copy(untouched)
    own.folder = shutil.copytree(untouched.folder, tmp_path / "own")
    return own


def whole(reader, row=0):
    out = np.full(SHAPE, 7, reader.layout.dtype)
    reader.read(row, runs_of([(c, c) for c in range(SHAPE[0])], CHUNK[0]), (0, 0, 0), SHAPE[1:], out)
    return out


@pytest.mark.slow
@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1), st.permutations(range(7)), st.integers(1, 5), WINDOW, st.tuples(*[st.integers(0, 2)] * 3))
def test_any_window_is_what_zarr_reads_and_nothing_else_is_touched(array, row, places, num, window, at):
    corner = tuple(low for low, _ in window)
    size = tuple(min(n, end - low) for (low, n), end in zip(window, SHAPE[1:], strict=True))
    pairs = list(zip(range(5), places, strict=False))[5 - num :]
    out = np.full((7, *(a + n + 1 for a, n in zip(at, size, strict=True))), 99, np.float16)
    expected = out.copy()
    inside = tuple(slice(c, c + n) for c, n in zip(corner, size, strict=True))
    put = tuple(slice(a, a + n) for a, n in zip(at, size, strict=True))
    for source, target in pairs:
        expected[target, *put] = array.by_zarr[row, source, *inside]
    for reader in (array.reader(), array.reader("always"), array.reader("never")):
        for _ in range(2):  # read, and then looked at through a map
            out[...] = 99
            reader.read(row, runs_of(pairs, CHUNK[0]), corner, size, out, at)
            assert out.tobytes() == expected.tobytes()


@pytest.mark.slow
def test_bits_of_any_kind_come_back_as_they_were_written(tmp_path):
    """NaN and negative zero too."""
    array = Array(tmp_path, "zstd")
    wild = np.random.default_rng(2).integers(0, 2**16, array.voxels.shape).astype(np.uint16).view(np.float16)
    array.array[:] = wild
    assert whole(array.reader()).tobytes() == wild[0].tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["image", "label"])
def test_windows_of_a_store_are_those_of_its_database(store_url, name):
    """Of every database, annotations included, some beyond the first."""
    store, rng = open_store(store_url), np.random.default_rng(3)
    for database in store.databases.values():
        reader = ShardReader(LocalParts(Path(store_url)), database.layout(name))
        read = database.image if name == "image" else database.codes
        for case in database.cases:
            corner = tuple(int(rng.integers(0, n - 1)) for n in case.extent)
            size = tuple(int(rng.integers(1, n - c + 1)) for n, c in zip(case.extent, corner, strict=True))
            expected = read(case, corner, size)
            out = np.full_like(expected, 99)
            runs = runs_of([(c, c) for c in range(len(expected))], database.layout(name).chunk[0])
            reader.read(case.row, runs, corner, size, out)
            assert np.array_equal(out, expected)


@given(st.permutations(range(12)), st.integers(0, 12), st.integers(1, 5))
def test_runs_say_every_pair_once_and_stay_in_a_chunk(places, num, chunk):
    pairs = list(enumerate(places))[:num]
    told = []
    for run in runs_of(reversed(pairs), chunk):
        channels = [run.source + at * run.source_step for at in range(run.num)]
        assert len({channel // chunk for channel in channels}) == 1
        told += [(c, run.target + at * run.target_step) for at, c in enumerate(channels)]
    assert told == pairs


def test_channels_in_order_are_one_run():
    assert runs_of([(c, c + 2) for c in range(4)], 4) == (ChannelRun(0, 2, 4),)
    assert runs_of([(c, c + 2) for c in range(4)], 3) == (ChannelRun(0, 2, 3), ChannelRun(3, 5))
    assert runs_of([(0, 1), (2, 5), (4, 9)], 6) == (ChannelRun(0, 1, 3, 2, 4),)


def test_what_no_case_names_has_no_file_and_reads_as_zeros(array):
    reader, out = array.reader(shards={1: "image:0/0/0/0"}), np.full((1, 2, 2, 2), 5, np.float16)
    assert not array.file("1/1/0/0/0").exists()
    reader.read(1, [ChannelRun(4, 0)], (0, 0, 0), (2, 2, 2), out)
    assert not out.any()


def test_a_file_that_a_case_names_and_that_is_gone_is_an_error(own_array):
    own_array.file("0/0/0/0/0").unlink()
    reader, out = own_array.reader(shards={0: "image:0/0/0/0,1/0/0/0"}), np.empty((1, 2, 2, 2), np.float16)
    reader.read(0, [ChannelRun(4, 0)], (0, 0, 0), (2, 2, 2), out)
    np.testing.assert_array_equal(out[0], own_array.voxels[0, 4, :2, :2, :2])
    for _ in range(2):
        with pytest.raises(StoreError, match=r"^ms/image/c/0/0/0/0/0 is missing: the store is damaged"):
            reader.read(0, [ChannelRun(0, 0)], (0, 0, 0), (2, 2, 2), out)


def places_of(file: Path) -> dict[int, tuple[int, int]]:
    """Where the chunks of a shard are that hold anything."""
    num = int(np.prod([s // c for s, c in zip(SHARD, CHUNK, strict=True)]))
    index = np.frombuffer(file.read_bytes()[-16 * num - 4 : -4], "<u8").reshape(num, 2)
    return {at: (int(start), int(size)) for at, (start, size) in enumerate(index) if size != 2**64 - 1}


def flip(file: Path, at: int) -> None:
    with file.open("r+b") as opened:
        opened.seek(at)
        (byte,) = opened.read(1)
        opened.seek(at)
        opened.write(bytes([byte ^ 1]))


@pytest.mark.slow
@pytest.mark.parametrize("checksums", ["first", "always"])
def test_a_flipped_byte_of_any_chunk_is_found_when_it_is_first_read(own_array, checksums):
    file = own_array.file()
    for start, size in list(places_of(file).values())[::3]:
        for at in (start, start + size // 2, start + size - 1):
            flip(file, at)
            with pytest.raises(StoreError, match=r": the checksum of chunk \d+ is wrong.*--redo") as caught:
                whole(own_array.reader(checksums))
            assert (caught.value.code, caught.value.file) == ("DAMAGED", "ms/image/c/0/0/0/0/0")
            flip(file, at)
    assert np.array_equal(whole(own_array.reader(checksums)), own_array.voxels[0])


@pytest.mark.slow
def test_a_byte_flipped_later_is_found_by_always(tmp_path):
    array = Array(tmp_path, "none")
    readers = {checksums: array.reader(checksums) for checksums in ("first", "always", "never")}
    before = {name: whole(reader) for name, reader in readers.items()}
    start, _ = places_of(array.file())[0]
    flip(array.file(), start)
    for name in ("first", "never"):
        assert (whole(readers[name]) != before[name]).sum() == 1
    with pytest.raises(StoreError, match="checksum of chunk 0 is wrong"):
        whole(readers["always"])
    assert (whole(array.reader("never")) != before["never"]).sum() == 1


@pytest.mark.slow
def test_whoever_does_not_look_at_checksums_sees_no_other_chunk_either(tmp_path):
    """A damaged header of a packed chunk is told, or its own voxels are wrong; it never brings in foreign ones."""
    array = Array(tmp_path, "lz4")
    for start, _ in list(places_of(array.file()).values())[:4]:
        for at in (4, 5, 6, 7, 12, 13, 14, 15):  # sizes, as the packer notes them
            flip(array.file(), start + at)
            with pytest.raises(StoreError, match=r"ms/image/c/0/0/0/0/0: .*chunk \d+ "):
                whole(array.reader("never"))
            flip(array.file(), start + at)


def test_a_flipped_byte_of_an_index_is_always_found(own_array):
    size = own_array.file().stat().st_size
    for back in (1, 4, 5, 20, 100):
        flip(own_array.file(), size - back)
        for checksums in ("first", "always", "never"):
            with pytest.raises(StoreError, match=r": its index is invalid.*multiseg verify") as caught:
                whole(own_array.reader(checksums))
            assert (caught.value.code, caught.value.file) == ("DAMAGED", "ms/image/c/0/0/0/0/0")
        flip(own_array.file(), size - back)


@pytest.mark.parametrize("left", [0, 1, 3, 50, 200, -1, -100])
def test_a_truncated_shard_is_found(own_array, left):
    data = own_array.file().read_bytes()
    own_array.file().write_bytes(data[:left])
    for checksums in ("first", "never"):
        with pytest.raises(StoreError, match=r"ms/image/c/0/0/0/0/0: its index is invalid: .* truncated"):
            whole(own_array.reader(checksums))


def test_a_shard_that_lost_its_beginning_is_found(own_array):
    """Its index is whole, and places lie beyond the end."""
    data = own_array.file().read_bytes()
    own_array.file().write_bytes(data[300:])
    with pytest.raises(StoreError, match=r"truncated|checksum"):
        whole(own_array.reader("first"))
    with pytest.raises(StoreError, match=r"truncated|chunk \d+"):
        whole(own_array.reader("never"))


def test_many_shards_do_not_stay_in_memory(array, monkeypatch):
    monkeypatch.setattr("multiseg.loaders.shards.KEPT_INDICES", 3)
    monkeypatch.setattr("multiseg.store.byte_ranges.MappedFiles", partial(MappedFiles, 2))
    reader = array.reader()
    for _ in range(2):
        assert np.array_equal(whole(reader), array.voxels[0])
        assert np.array_equal(whole(reader, 1), array.voxels[1])
    assert len(reader._shards) == 3
    assert len(reader.parts._maps) <= 2


def test_several_shards_are_really_there(array):
    places = ["/".join(map(str, place)) for place in product([0], range(2), range(2), range(2), range(3))]
    assert all(array.file(place).is_file() for place in places)
