"""NIfTI-Zarr: a NIfTI header and its voxels in one Zarr group, which is also an OME-Zarr image.

The voxels are those of the first level, on the axes t, c, z, y, x as far as they are there; smaller levels are not
read. If the header and the attributes contradict each other, the header counts.
https://github.com/neuroscales/nifti-zarr (version 1.0.rc1), https://ngff.openmicroscopy.org/0.5
"""

from __future__ import annotations

import hashlib
import math
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import zarr

from multiseg.errors import SourceError
from multiseg.files import ZARR_SCAN
from multiseg.store.formats.pair import single_header

HEADER = "nifti"
"""The name of the array that holds the bytes of the NIfTI header."""
AXES = ("t", "c", "z", "y", "x")
NIFTI_AXES = ("x", "y", "z", "t", "c")
SIZES = {348: (344, b"ni1\0"), 540: (4, b"ni2\0")}
"""The place of a header's magic bytes, and those of a header without voxels behind it, by its length."""


class ZarrImage(NamedTuple):
    """An opened NIfTI-Zarr: the NIfTI header as that of a single file, the array, and the names of its axes."""

    header: bytes
    array: zarr.Array
    axes: tuple[str, ...]


def is_nifti_zarr(path: Path) -> bool:
    """Whether a path is named as a NIfTI-Zarr and is a folder."""
    return path.name.lower().endswith(ZARR_SCAN) and path.is_dir()


def files_of(path: Path) -> Iterator[Path]:
    """All files of a NIfTI-Zarr, sorted."""
    for folder, subfolders, names in os.walk(path):
        subfolders.sort()
        yield from (Path(folder, name) for name in sorted(names))


def sha256_of_folder(path: Path) -> str:
    """The digest of all files of a NIfTI-Zarr and their names."""
    lines = [
        f"{file.relative_to(path).as_posix()}\n{hashlib.sha256(file.read_bytes()).hexdigest()}"
        for file in files_of(path)
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def open_nifti_zarr(path: Path) -> ZarrImage:
    """The header and the array of a NIfTI-Zarr, without reading its voxels.

    Raises:
        SourceError: it is not one, or the header and the array do not fit together.
    """
    try:
        group = zarr.open_group(path, mode="r")
        stored = group[HEADER]
        if not isinstance(stored, zarr.Array):
            raise KeyError(HEADER)
    except (KeyError, FileNotFoundError) as error:
        message = f"{path} is not a NIfTI-Zarr: it has no array {HEADER!r} with a NIfTI header. Convert the scan again."
        raise SourceError(message, code="NOT_NIFTI", file=str(path)) from error
    _check_chunks(path, stored)
    header = _single(path, np.asarray(stored[...]).tobytes())
    name, axes = _level(path, group)
    array = group.get(name)
    if not isinstance(array, zarr.Array) or len(axes) != array.ndim or not set("zyx") <= set(axes) <= set(AXES):
        raise _damaged(path, f"its image {name!r} has the axes {', '.join(axes) or 'none'}")
    return ZarrImage(header, array, axes)


def read_bytes(path: Path, image: ZarrImage) -> bytes:
    """The single NIfTI file with the content of a NIfTI-Zarr.

    Raises:
        SourceError: the shape or the type of the voxels is not that of the header.
    """
    order = _order(image.header)
    shape, bits = _fields(image.header, order)
    sizes = dict(zip(image.axes, image.array.shape, strict=True))
    theirs = [sizes.get(axis, 1) for axis in NIFTI_AXES]
    if math.prod(shape) != math.prod(theirs) or [*shape, *[1] * 5][:5] != theirs:
        raise _damaged(path, f"its header says {shape} voxels, but its array has {tuple(theirs)}")
    if image.array.dtype.itemsize * 8 != bits:
        raise _damaged(path, f"its header says {bits} bits a voxel, but its array is {image.array.dtype}")
    voxels = np.asarray(image.array[...])
    voxels = voxels.transpose([image.axes.index(axis) for axis in NIFTI_AXES if axis in image.axes])
    return image.header + voxels.astype(voxels.dtype.newbyteorder(order), copy=False).tobytes(order="F")


def missing_chunks(image: ZarrImage) -> int:
    """How many chunks are not stored. They are read as the fill value, whether it was left out or lost."""
    return int(image.array.nchunks - image.array.nchunks_initialized)


def missing_text(path: Path, image: ZarrImage) -> str:
    """The text of the doubt about chunks that are not stored."""
    return (
        f"{path.name}: {missing_chunks(image)} of {image.array.nchunks} chunks are not stored and are read as "
        f"{image.array.fill_value}. Check that only background is missing, and no file was lost."
    )


def _check_chunks(path: Path, stored: zarr.Array) -> None:
    if stored.nchunks != stored.nchunks_initialized:
        raise _damaged(path, "the bytes of its NIfTI header are missing")


def _level(path: Path, group: zarr.Group) -> tuple[str, tuple[str, ...]]:
    """The name and the axes of the array with the finest voxels."""
    attributes: Any = dict(group.attrs)
    try:
        scales = (attributes.get("ome") or attributes)["multiscales"][0]
        axes = tuple(str(axis["name"]).lower() for axis in _axes(scales))
        return str(scales["datasets"][0]["path"]), axes
    except (KeyError, IndexError, TypeError) as error:
        raise _damaged(path, f"its OME metadata (multiscales) are incomplete: {error!r}") from error


def _axes(scales: Any) -> Any:
    """The axes of the array: from OME-Zarr 0.6 on, those of the coordinate system that its transformation leads to.

    Raises:
        KeyError, IndexError, TypeError: they are not there.
    """
    if "axes" in scales:
        return scales["axes"]
    output = scales["datasets"][0]["coordinateTransformations"][0]["output"]
    name = output["name"] if isinstance(output, dict) else output
    return {system["name"]: system["axes"] for system in scales["coordinateSystems"]}[name]


def _single(path: Path, header: bytes) -> bytes:
    """The header as that of a single file, with its voxels right behind it."""
    size = next((size for size in SIZES if size in (_number(header, "<"), _number(header, ">"))), 0)
    if not size or len(header) < size:
        raise _damaged(path, f"its NIfTI header has {len(header)} bytes")
    start, magic = SIZES[size]
    changed = bytearray(header[:size])
    changed[start : start + 4] = magic
    field, number = (108, "f") if size == 348 else (168, "q")  # vox_offset, which means nothing here
    struct.pack_into(f"{_order(header)}{number}", changed, field, 0)
    return single_header(path, bytes(changed))[0]


def _number(header: bytes, order: str) -> int:
    return int(struct.unpack_from(f"{order}i", header)[0]) if len(header) >= 4 else 0


def _order(header: bytes) -> Literal["<", ">"]:
    return "<" if _number(header, "<") in SIZES else ">"


def _fields(header: bytes, order: str) -> tuple[tuple[int, ...], int]:
    """The shape and the bits of a voxel in a NIfTI header."""
    is_first = _number(header, order) == 348
    dims = struct.unpack_from(f"{order}8{'h' if is_first else 'q'}", header, 40 if is_first else 16)
    (bits,) = struct.unpack_from(f"{order}h", header, 72 if is_first else 14)
    return tuple(int(n) for n in dims[1 : 1 + max(0, min(7, dims[0]))]), int(bits)


def _damaged(path: Path, what: str) -> SourceError:
    return SourceError(
        f"{path} is a damaged NIfTI-Zarr: {what}. Copy or convert it again.", code="DAMAGED_FILE", file=str(path)
    )
