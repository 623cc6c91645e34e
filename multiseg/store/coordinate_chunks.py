"""Reading and writing small arrays chunk by chunk, with the objects of many arrays in one go.

zarr-python sends each access through an event loop and several threads, which costs many times what the small chunks of
a coordinate do. The bytes are those that zarr writes: the tests compare them.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, TypeAlias

import numpy as np
import zarr
from numcodecs import VLenUTF8, Zstd
from zarr.codecs import BytesCodec, Crc32cCodec, VLenUTF8Codec, ZstdCodec
from zarr.core.array import AsyncArray
from zarr.core.array_spec import ArrayConfig
from zarr.core.buffer import default_buffer_prototype
from zarr.core.metadata import ArrayV3Metadata
from zarr.storage import StorePath

from multiseg.store.array_layout import CHECKSUM_BYTES
from multiseg.store.hierarchy import read_objects, write_objects
from multiseg.store.ingest.packing import is_sound, with_checksum

Region: TypeAlias = tuple[slice, ...]
WRITE_ALL: Any = ArrayConfig.from_dict({"write_empty_chunks": True})
_TEXTS = VLenUTF8()
_LENGTH_BYTES = 4
"""Of the number of texts, before them."""
_TEXT = "_multiseg_text"
"""The attribute of metadata that holds the text which they were read from."""


def open_arrays(group: zarr.Group, names: Sequence[str]) -> dict[str, zarr.Array]:
    """Arrays of a group by name, opened at once.

    Raises:
        FileNotFoundError: one does not exist.
    """
    found = find_arrays(group, names)
    missing = [name for name in names if name not in found]
    if missing:
        raise FileNotFoundError(f"the array {missing[0]!r} is missing")
    return found


def find_arrays(group: zarr.Group, names: Sequence[str]) -> dict[str, zarr.Array]:
    """As `open_arrays`, without those that do not exist."""
    places = [group.store_path / name for name in names]
    texts = read_objects(group.store_path.store, [f"{place.path}/zarr.json" for place in places])
    opened = zip(names, places, texts, strict=True)
    return {name: _array(place, _metadata_in(text)) for name, place, text in opened if text is not None}


def _array(place: StorePath, metadata: ArrayV3Metadata) -> zarr.Array:
    own = copy(metadata)
    object.__setattr__(own, "attributes", dict(metadata.attributes))  # Zarr changes them in place
    return zarr.Array(AsyncArray(own, place, WRITE_ALL))


@lru_cache(maxsize=1024)
def _metadata_in(text: bytes) -> ArrayV3Metadata:
    """The metadata in a zarr.json. Several steps of one command open the same arrays."""
    metadata = ArrayV3Metadata.from_dict(json.loads(text))
    object.__setattr__(metadata, _TEXT, text)
    return metadata


def text_as_read(array: zarr.Array) -> bytes | None:
    """The zarr.json that an array was opened from; None if its metadata or attributes were changed since."""
    text: bytes | None = getattr(array.metadata, _TEXT, None)
    return text if text is not None and array.metadata.attributes == _metadata_in(text).attributes else None


def parsed_metadata(array: zarr.Array) -> dict[str, Any]:
    """The parsed zarr.json of an array, as zarr writes it, without attributes. Only for reading."""
    text = getattr(array.metadata, _TEXT, None)  # not of metadata that were changed since
    return _as_json(array.metadata) if text is None else parsed_metadata_in(text)


@lru_cache(maxsize=1024)
def parsed_metadata_in(text: bytes) -> dict[str, Any]:
    """As `parsed_metadata`, of the text of a zarr.json."""
    return _as_json(_metadata_in(text))


def _as_json(metadata: ArrayV3Metadata) -> dict[str, Any]:
    fields = {name: value for name, value in metadata.to_dict().items() if name != "attributes"}
    parsed: dict[str, Any] = json.loads(json.dumps(fields))
    return parsed


def new_array(group: zarr.Group, name: str, shape: Sequence[int], template: zarr.Array) -> zarr.Array:
    """An array of a group that is as another but for its place and shape. Nothing is written."""
    return _array(group.store_path / name, template.metadata.update_shape(tuple(shape)))


def with_shape(array: zarr.Array, shape: Sequence[int]) -> zarr.Array:
    """An array with another shape. Nothing is written."""
    return _array(array.store_path, array.metadata.update_shape(tuple(shape)))


def write_metadata(arrays: Sequence[zarr.Array]) -> None:
    """Write the zarr.json of arrays of one store. An array that became shorter keeps its files."""
    if arrays:
        texts = {f"{array.path}/zarr.json": _text_of(array.metadata) for array in arrays}
        write_objects(arrays[0].store_path.store, texts)


def _text_of(metadata: ArrayV3Metadata) -> bytes:
    return bytes(metadata.to_buffer_dict(default_buffer_prototype())["zarr.json"].to_bytes())


@dataclass(frozen=True)
class _Overlap:
    """The part of a region that is in one chunk: the chunk's key, and the part's place in the chunk and in the region.

    `is_all`: it is all of the chunk that is in the array.
    """

    key: str
    in_chunk: Region
    in_region: Region
    is_all: bool


def is_plain(array: zarr.Array) -> bool:
    """Whether its chunks are files of their own, with the codecs of coordinates."""
    return all(type(codec) in _CODECS for codec in array.metadata.codecs)


def read_all(arrays: Mapping[str, zarr.Array]) -> dict[str, Any]:
    """The contents of arrays of one store, by name."""
    return read_regions({name: (array, _whole(array)) for name, array in arrays.items()})


def read_row(array: zarr.Array, row: int) -> Any:
    """One row of an array."""
    return read_rows({"": array}, row)[""]


def read_rows(arrays: Mapping[str, zarr.Array], row: int) -> dict[str, Any]:
    """One row of each array, by name.

    Raises:
        IndexError: an array is too short.
    """
    for name, array in arrays.items():
        if row >= array.shape[0]:
            raise IndexError(f"the array {name!r} has {array.shape[0]} rows, and no row {row}")
    regions = {name: (array, (slice(row, row + 1), *_whole(array)[1:])) for name, array in arrays.items()}
    return {name: values[0] for name, values in read_regions(regions).items()}


def read_regions(regions: Mapping[str, tuple[zarr.Array, Region]]) -> dict[str, Any]:
    """Regions of arrays of one store, by name.

    Raises:
        IndexError: a region is not within its array.
    """
    plain = {
        name: (array, list(_overlaps(array, region))) for name, (array, region) in regions.items() if is_plain(array)
    }
    objects = _objects(plain.values())
    values: dict[str, Any] = {}
    for name, (array, region) in regions.items():
        if name not in plain:  # another program's codecs
            values[name] = np.asarray(array[region])
            continue
        values[name] = np.full([part.stop - part.start for part in region], array.fill_value, array.dtype)
        for part in plain[name][1]:
            if (data := objects[part.key]) is not None:
                values[name][part.in_region] = decode_chunk(array, data, part.in_chunk[0].stop)[part.in_chunk]
    return values


def write_regions(regions: Mapping[str, tuple[zarr.Array, Region, Any]]) -> None:
    """Write values into regions of arrays of one store. Chunks that hold only fill values are written, too.

    Raises:
        IndexError: a region is not within its array. Nothing is written.
        ValueError, RuntimeError: a chunk that is written in part is damaged. Nothing is written.
    """
    parts = {name: (array, list(_overlaps(array, region))) for name, (array, region, _values) in regions.items()}
    for name in [name for name, (array, _) in parts.items() if not is_plain(array)]:  # another program's codecs
        array, region, values = regions[name]
        array[region] = values
        del parts[name]
    objects = _objects((array, [part for part in some if not part.is_all]) for array, some in parts.values())
    written: dict[str, bytes] = {}
    for name in parts:
        array, region, values = regions[name]
        whole = np.broadcast_to(np.asarray(values, array.dtype), [part.stop - part.start for part in region])
        for part in parts[name][1]:
            data = objects.get(part.key)
            chunk = empty_chunk(array) if data is None else decode_chunk(array, data)
            chunk[part.in_chunk] = whole[part.in_region]
            written[part.key] = encode_chunk(array, chunk)
    if written:
        write_objects(next(iter(regions.values()))[0].store_path.store, written)


def _objects(parts: Any) -> dict[str, bytes | None]:
    """The objects of these parts of arrays of one store, by key."""
    store, keys = None, list[str]()
    for array, overlaps in parts:
        store = array.store_path.store
        keys += [part.key for part in overlaps]
    keys = list(dict.fromkeys(keys))
    return dict(zip(keys, read_objects(store, keys), strict=True)) if store is not None else {}


def _whole(array: zarr.Array) -> Region:
    return tuple(slice(0, length) for length in array.shape)


def _overlaps(array: zarr.Array, region: Region) -> Iterator[_Overlap]:
    """Raises IndexError if the region is not within the array."""
    if not all(0 <= part.start <= part.stop <= length for part, length in zip(region, array.shape, strict=True)):
        asked = ", ".join(f"{part.start}:{part.stop}" for part in region)
        raise IndexError(f"the array {array.path} has the shape {array.shape}, and no region [{asked}]")
    axes = []
    for part, length, step in zip(region, array.shape, array.chunks, strict=True):
        cuts = []
        for index in range(part.start // step, -(-part.stop // step)) if part.stop > part.start else ():
            first, end = index * step, min((index + 1) * step, length)
            start, stop = max(part.start, first), min(part.stop, end)
            inside, target = slice(start - first, stop - first), slice(start - part.start, stop - part.start)
            cuts.append((index, inside, target, (start, stop) == (first, end)))
        axes.append(cuts)
    for cut in itertools.product(*axes):
        indices, inside_chunk, inside_region, are_all = zip(*cut, strict=True)
        key = f"{array.path}/{array.metadata.encode_chunk_key(indices)}"
        yield _Overlap(key, inside_chunk, inside_region, all(are_all))


def decode_chunk(array: zarr.Array, data: bytes, num_rows: int | None = None) -> Any:
    """The values of one chunk, of the whole chunk's shape or of its first rows. Texts are objects.

    Args:
        num_rows: how many rows to decode (None: all). A chunk has room for more cases than most databases have.

    Raises:
        ValueError, RuntimeError: the checksum is wrong, or the bytes cannot be decoded.
    """
    rows, *others = array.chunks
    shape = (rows if num_rows is None else num_rows, *others)
    decoded: Any = data
    for codec in reversed(array.metadata.codecs):
        decoded = _CODECS[type(codec)][1](codec, decoded, array, math.prod(shape))
    return decoded.reshape(shape)


def empty_chunk(array: zarr.Array) -> Any:
    """A whole chunk of an array that holds only fill values."""
    return np.full(array.chunks, array.fill_value, object if array.dtype.kind in "TO" else array.dtype)


def encode_chunk(array: zarr.Array, values: Any) -> bytes:
    """The bytes of one chunk, as zarr writes them."""
    encoded: Any = values
    for codec in array.metadata.codecs:
        encoded = _CODECS[type(codec)][0](codec, encoded)
    return bytes(encoded)


def _without_checksum(codec: Crc32cCodec, data: bytes, array: zarr.Array, num: int) -> bytes:
    if len(data) < CHECKSUM_BYTES or not is_sound(data):
        raise ValueError("its checksum is wrong")
    return data[:-CHECKSUM_BYTES]


@cache
def _zstd(level: int, checksum: bool) -> Zstd:
    return Zstd(level=level, checksum=checksum)


def _stored_type(codec: BytesCodec, dtype: Any) -> Any:
    return dtype.newbyteorder({"little": "<", "big": ">"}[codec.endian.value]) if codec.endian else dtype


def _numbers(codec: BytesCodec, data: bytes, array: zarr.Array, num: int) -> Any:
    stored = np.frombuffer(data, _stored_type(codec, array.dtype))
    _check_length(stored.size, array)
    return stored[:num].astype(array.dtype)  # a copy, which may be changed


def _text_values(codec: VLenUTF8Codec, data: bytes, array: zarr.Array, num: int) -> Any:
    length, texts = data[:_LENGTH_BYTES], memoryview(data)[_LENGTH_BYTES:]
    _check_length(int.from_bytes(length, "little"), array)
    return _TEXTS.decode(b"".join((num.to_bytes(_LENGTH_BYTES, "little"), texts)))


def _check_length(found: int, array: zarr.Array) -> None:
    if found != math.prod(array.chunks):
        raise ValueError(f"it holds {found} values, not {math.prod(array.chunks)}")


_CODECS: dict[type, tuple[Callable[[Any, Any], Any], Callable[[Any, Any, zarr.Array, int], Any]]] = {
    Crc32cCodec: (lambda codec, data: with_checksum(data), _without_checksum),
    ZstdCodec: (
        lambda codec, data: _zstd(codec.level, codec.checksum).encode(data),
        lambda codec, data, array, num: _zstd(codec.level, codec.checksum).decode(data),
    ),
    BytesCodec: (lambda codec, values: values.astype(_stored_type(codec, values.dtype)).tobytes(), _numbers),
    VLenUTF8Codec: (lambda codec, values: _TEXTS.encode(values), _text_values),
}
"""By the type of a codec: how it encodes, and how it decodes the first values of a chunk."""
