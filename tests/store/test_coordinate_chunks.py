"""Small arrays are read and written without zarr: the bytes are those of zarr, and so is what is read."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.abc.store import RangeByteRequest, SuffixByteRequest
from zarr.codecs import GzipCodec
from zarr.storage import LocalStore, MemoryStore

from multiseg.store.coordinate_chunks import (
    find_arrays,
    open_arrays,
    read_regions,
    read_row,
    with_shape,
    write_metadata,
    write_regions,
)
from multiseg.store.durable import FolderStore
from multiseg.store.hierarchy import is_folder, open_group
from multiseg.store.schema import COORDINATE_CODECS

TYPES: dict[str, tuple[str, Any, Any]] = {
    "texts": ("string", "", np.array([f"Zürich {n}" * (n % 3) for n in range(35)], dtype=object).reshape(7, 5)),
    "float64": ("float64", float("nan"), np.linspace(-1, 1, 35).reshape(7, 5)),
    "int16": ("int16", -1, np.arange(35, dtype=np.int16).reshape(7, 5)),
    "bool": ("bool", False, np.arange(35).reshape(7, 5) % 3 == 0),
}


def make(store: Any, kind: str, **options: Any) -> zarr.Array:
    dtype, fill, _values = TYPES[kind]
    group = zarr.open_group(store, mode="a")
    given = {"chunks": (3, 4), "compressors": COORDINATE_CODECS, **options}
    group.create_array(kind, shape=(7, 5), dtype=dtype, fill_value=fill, **given)
    return open_arrays(group, [kind])[kind]


def slices(*bounds: tuple[int, int]) -> tuple[slice, ...]:
    return tuple(slice(*bound) for bound in bounds)


@pytest.mark.parametrize("in_folder", [True, False])
@pytest.mark.parametrize("kind", TYPES)
def test_bytes_and_values_are_those_of_zarr(kind: str, in_folder: bool, tmp_path: Path) -> None:
    values, parts = TYPES[kind][2], [slices((0, 7), (0, 5)), slices((2, 4), (1, 5)), slices((6, 7), (0, 0))]
    ours = make(FolderStore(tmp_path / "ours") if in_folder else MemoryStore(), kind)
    theirs = make(LocalStore(tmp_path / "theirs"), kind).with_config({"write_empty_chunks": True})
    assert is_folder(ours.store_path.store) is in_folder
    empty = read_regions({"": (ours, parts[0])})[""]
    np.testing.assert_array_equal(empty, theirs[:])
    for part in (parts[1], parts[0], parts[1]):
        write_regions({"": (ours, part, values[part])})
        theirs[part] = values[part]
        np.testing.assert_array_equal(ours[:], theirs[:])
    for part in parts:
        read = read_regions({"": (theirs, part)})[""]
        assert read.dtype == theirs.dtype
        np.testing.assert_array_equal(read, theirs[part])
    np.testing.assert_array_equal(read_row(theirs, 5), theirs[5])
    if in_folder:
        files = [path.relative_to(tmp_path / "theirs") for path in (tmp_path / "theirs").rglob("*") if path.is_file()]
        assert [file for file in files if "c" in file.parts] != []
        for file in files:
            assert (tmp_path / "ours" / file).read_bytes() == (tmp_path / "theirs" / file).read_bytes(), file


def test_codecs_of_another_program_are_left_to_zarr(tmp_path: Path) -> None:
    array = make(LocalStore(tmp_path), "float64", compressors=zarr.codecs.GzipCodec())
    array[...] = TYPES["float64"][2]
    np.testing.assert_array_equal(read_row(array, 6), TYPES["float64"][2][6])


def test_a_big_endian_array_is_read(tmp_path: Path) -> None:
    array = make(LocalStore(tmp_path), "int16", serializer=zarr.codecs.BytesCodec(endian="big"))
    array[...] = TYPES["int16"][2]
    assert read_row(array, 6).tolist() == TYPES["int16"][2][6].tolist()


@pytest.mark.parametrize("damage", [b"", b"\0", b"\0" * 40])
def test_a_damaged_chunk_is_an_error(damage: bytes, tmp_path: Path) -> None:
    array = make(LocalStore(tmp_path), "int16")
    array[...] = 5
    (tmp_path / "int16/c/1/0").write_bytes(damage)
    with pytest.raises(ValueError, match="checksum"):
        read_row(array, 4)
    (tmp_path / "int16/c/1/0").unlink()
    assert read_row(array, 4).tolist() == array[4].tolist() == [-1, -1, -1, -1, 5]


@pytest.mark.parametrize("kind", ["texts", "int16"])
def test_a_chunk_of_another_size_is_an_error_although_its_first_rows_could_be_read(kind: str, tmp_path: Path) -> None:
    array = make(LocalStore(tmp_path / "array"), kind)
    larger = make(LocalStore(tmp_path / "larger"), kind, chunks=(3, 5))
    array[...] = larger[...] = TYPES[kind][2]
    shutil.copy(tmp_path / "larger" / kind / "c/0/0", tmp_path / "array" / kind / "c/0/0")
    with pytest.raises(ValueError, match="it holds 15 values, not 12"):
        read_row(array, 0)


def test_a_row_beyond_the_end_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(IndexError, match="has 7 rows, and no row 7"):
        read_row(make(LocalStore(tmp_path), "int16"), 7)


@pytest.mark.parametrize("region", [((7, 8), (0, 5)), ((8, 9), (0, 1)), ((-1, 0), (0, 5)), ((0, 1), (0, 6))])
def test_nothing_is_written_beyond_the_end(region: tuple[tuple[int, int], ...], tmp_path: Path) -> None:
    array = make(LocalStore(tmp_path), "int16")
    write_regions({"": (array, slices((0, 7), (0, 5)), TYPES["int16"][2])})
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(IndexError, match=r"the array int16 has the shape \(7, 5\), and no region \["):
        write_regions({"": (array, slices(*region), 9)})
    with pytest.raises(IndexError, match="and no region"):
        read_regions({"": (array, slices(*region))})
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_what_other_programs_encoded_is_written_by_zarr(tmp_path: Path) -> None:
    array = make(LocalStore(tmp_path), "int16", compressors=[GzipCodec()])
    write_regions({"": (array, slices((2, 4), (1, 5)), 7)})
    np.testing.assert_array_equal(array[2:4, 1:5], np.full((2, 4), 7))
    np.testing.assert_array_equal(read_regions({"": (array, slices((2, 3), (0, 2)))})[""], [[-1, 7]])


def test_an_array_is_no_group(tmp_path: Path) -> None:
    make(LocalStore(tmp_path), "int16")
    assert open_group(LocalStore(tmp_path)).path == ""
    with pytest.raises(ValueError, match="it describes a Zarr array of format 3, not a group of format 3"):
        open_group(LocalStore(tmp_path), "int16")


def test_an_array_that_is_not_there(tmp_path: Path) -> None:
    group = make(LocalStore(tmp_path), "int16") and zarr.open_group(tmp_path, mode="r")
    assert list(find_arrays(group, ["other", "int16"])) == ["int16"]
    with pytest.raises(FileNotFoundError, match="'other' is missing"):
        open_arrays(group, ["int16", "other"])


def test_a_new_shape_is_written_as_zarr_does(tmp_path: Path) -> None:
    ours, theirs = (make(LocalStore(tmp_path / name), "texts") for name in ("ours", "theirs"))
    theirs.resize((9, 5))
    grown = with_shape(ours, (9, 5))
    grown.metadata.attributes["changed"] = True
    assert (ours.shape, dict(ours.attrs)) == ((7, 5), {})
    write_metadata([with_shape(ours, (9, 5))])
    texts = [(tmp_path / name / "texts/zarr.json").read_text() for name in ("ours", "theirs")]
    assert texts[0] == texts[1]


def test_a_folder_is_read_as_zarr_reads_it(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "file").write_bytes(b"content")
    (tmp_path / "empty").touch()
    stores = [kind(tmp_path, read_only=True) for kind in (FolderStore, LocalStore)]
    prototype = zarr.core.buffer.default_buffer_prototype()
    parts = [None, RangeByteRequest(1, 3), SuffixByteRequest(2)]
    for key in ("one/file", "empty", "one", "nothing", "one/file/below", "one/nothing"):
        for part in parts:
            ours, theirs = (store.get_sync(key, prototype=prototype, byte_range=part) for store in stores)
            assert (ours and ours.to_bytes()) == (theirs and theirs.to_bytes()), (key, part)
    with pytest.raises(FileNotFoundError):
        FolderStore(tmp_path / "away", read_only=True).get_sync("zarr.json")
