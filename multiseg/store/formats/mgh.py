"""FreeSurfer's MGH files (.mgh, and decompressed .mgz): big-endian, with their own convention for axes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nibabel.freesurfer.mghformat import MGHError, MGHHeader
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from multiseg.errors import SourceError
from multiseg.store.formats.file_lengths import SPARE_BYTES, check_length
from multiseg.store.formats.nifti import new_header
from multiseg.store.formats.nifti_place import Doubts, no_orientation
from multiseg.store.formats.volumes import Geometry, Volume, is_mapping
from multiseg.store.formats.voxels import as_voxels, volume_shape
from multiseg.types import Affine, Index3

HEADER_BYTES = 284
"""The length of the header; the voxels follow."""


@dataclass(frozen=True, eq=False)
class _Header:
    shape: tuple[int, ...]
    volume: Index3
    affine: Affine
    dtype: np.dtype
    doubts: Doubts


def is_mgh(data: bytes) -> bool:
    """Whether a file begins with an MGH header: big-endian, version 1, and four positive sizes."""
    numbers = np.frombuffer(data[:20], dtype=">i4") if len(data) >= 20 else np.zeros(1)
    return bool(numbers[0] == 1 and numbers.min() > 0)


def read_mgh(path: Path, data: bytes, sha256: str, index: int | None = None) -> Volume:
    """The volume in the bytes of an MGH file; `index` selects one of several frames.

    Raises:
        SourceError: as `read_volume`.
    """
    header = _header(path, data, index, len(data))
    stored = np.frombuffer(data, header.dtype, math.prod(header.shape), HEADER_BYTES)
    voxels = as_voxels(path, stored.reshape(header.shape, order="F"), index)
    native = new_header(header.volume, header.affine, header.dtype)
    return Volume(voxels, header.affine, native, sha256, path, header.doubts)


def mgh_geometry(path: Path, head: bytes, index: int | None = None, num_bytes: int | None = None) -> Geometry:
    """The geometry in the first bytes of an MGH file. `num_bytes`: the size of the file, if it is not compressed."""
    header = _header(path, head, index, num_bytes)
    return Geometry(header.volume, header.affine, header.dtype.itemsize, math.prod(header.shape[3:]), HEADER_BYTES)


@np.errstate(over="ignore", invalid="ignore")  # from damaged numbers; the results are checked
def _header(path: Path, data: bytes, index: int | None, num_bytes: int | None) -> _Header:
    try:
        fields = MGHHeader(data[:HEADER_BYTES])
        dtype = np.dtype(fields.get_data_dtype())
    except (MGHError, HeaderDataError, WrapStructError, KeyError, ValueError) as error:
        message = f"{path} has an invalid MGH header: {error}. Copy or export it again."
        raise SourceError(message, code="DAMAGED_FILE", file=str(path)) from error
    shape = tuple(int(n) for n in fields.get_data_shape())
    if num_bytes is not None:
        check_length(path, num_bytes, HEADER_BYTES + math.prod(shape) * dtype.itemsize, SPARE_BYTES)
    volume = volume_shape(path, shape, index)
    affine = np.asarray(fields.get_affine(), dtype=np.float64)
    if not is_mapping(affine) or not (fields["delta"] > 0).all():
        message = f"{path} has an affine that is not invertible: {affine.tolist()}. Repair its header."
        raise SourceError(message, code="BAD_AFFINE", file=str(path))
    warning = no_orientation(path, affine, "no orientation in the header (goodRASFlag is 0)")
    # If the flag is not set, nibabel fills in FreeSurfer's convention and sets it: read the flag from the bytes.
    doubts = () if data[28:30] == b"\0\1" else (("NO_ORIENTATION", warning),)
    return _Header(shape, volume, affine, dtype, doubts)
