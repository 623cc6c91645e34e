"""NIfTI files: read whole and checked, and written back on their own grid."""

from __future__ import annotations

import gzip
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from multiseg.errors import SourceError
from multiseg.files import write_atomically
from multiseg.store.formats.label_table import INTENT, LabelRow, label_extensions, write_tables
from multiseg.store.formats.lengths import check_length, smallest_face
from multiseg.store.formats.nifti_place import Doubts, place_of
from multiseg.store.formats.volumes import Geometry, Volume
from multiseg.store.formats.voxels import as_voxels, refuse_colours, refuse_complex, volume_shape
from multiseg.types import Affine, Array, Index3

HeaderOf: TypeAlias = nib.Nifti1Header | nib.Nifti2Header
HEADER_SIZE = {b"n+1\0": (344, 348), b"n+2\0": (4, 540)}
"""Where each version of the format has its magic bytes, and how long its header is."""


@dataclass(frozen=True, eq=False)
class _Header:
    """What a checked header says: `fields` as nibabel mended it, with the volume's place in space."""

    fields: HeaderOf
    shape: Index3
    affine: Affine
    doubts: Doubts


def is_nifti(data: bytes) -> bool:
    """Whether a file's first bytes are those of a NIfTI file in one piece."""
    return any(data[at : at + 4] == magic for magic, (at, _) in HEADER_SIZE.items())


def is_pair(data: bytes) -> bool:
    """Whether they are the header of a NIfTI or Analyze pair (.hdr and .img)."""
    is_header = data[:4] in (b"\x5c\x01\0\0", b"\0\0\x01\x5c") and len(data) == 348
    return data[344:348] == b"ni1\0" or data[4:8] == b"ni2\0" or is_header


def read_nifti(path: Path, data: bytes, sha256: str, index: int | None = None) -> Volume:
    """The volume in a NIfTI file's bytes (not compressed any more); `index` picks one of a 4-D file.

    Raises:
        SourceError: as `reading.read_volume`.
    """
    header = _header(path, data, index)
    slope, inter = _scaling(path, header.fields)
    voxels = as_voxels(path, _stored(path, header.fields, data), index, slope, inter)
    return Volume(voxels, header.affine, bytes(header.fields.binaryblock), sha256, path, header.doubts)


def nifti_geometry(path: Path, head: bytes, index: int | None = None, num_bytes: int | None = None) -> Geometry:
    """What a NIfTI file's first bytes say of it. `num_bytes`: the file's size, where it is not compressed."""
    header = _header(path, head, index)
    if num_bytes is not None:
        _check_length(path, header.fields, num_bytes)
    num_volumes = math.prod(int(n) for n in header.fields.get_data_shape()[3:])
    itemsize = int(header.fields.get_data_dtype().itemsize)
    return Geometry(header.shape, header.affine, itemsize, num_volumes, _start(path, header.fields))


def new_header(shape: Index3, affine: Affine, dtype: np.dtype) -> bytes:
    """A NIfTI-1 header for a volume whose own file has another format, so that an answer can go home to it."""
    header = nib.Nifti1Header()
    header.set_data_shape(shape)
    header.set_data_dtype(dtype.newbyteorder("="))
    header.set_xyzt_units("mm")
    header.set_sform(affine, 1)
    header.set_qform(affine, 1)
    if not np.allclose(header.get_qform(), affine, atol=1e-3):  # sheared: a qform cannot say it
        header["qform_code"] = 0
    return bytes(header.binaryblock)


@np.errstate(over="ignore", invalid="ignore")  # of damaged numbers; what comes of them is looked at
def _header(path: Path, data: bytes, index: int | None) -> _Header:
    kind, size = (nib.Nifti2Header, 540) if data[4:8] == b"n+2\0" else (nib.Nifti1Header, 348)
    block = data[:size]
    try:
        faults = kind.diagnose_binaryblock(block)
        fields = kind(block, check=True)
        dtype = fields.get_data_dtype()
        fields.get_data_offset()
    except (HeaderDataError, WrapStructError, ValueError, OverflowError) as error:
        message = f"{path} has a NIfTI header that cannot be read: {error}. Copy or export it again."
        raise SourceError(message, code="DAMAGED_FILE", file=str(path)) from error
    if dtype.fields is not None:
        raise refuse_colours(path)
    if dtype.kind == "c":
        raise refuse_complex(path)
    shape = volume_shape(path, fields.get_data_shape(), index)
    given = kind(block, check=False)["pixdim"][1:4]
    place = place_of(path, fields, shape, tuple(float(mm) for mm in given))
    return _Header(place.header, shape, place.affine, _repairs(path, faults) + place.doubts)


def _repairs(path: Path, faults: str) -> Doubts:
    """What nibabel mended in the header without a word to us, such as a form code that does not exist."""
    # A vox_offset that SPM dislikes hurts nobody here.
    lines = [line for line in faults.splitlines() if "SPM" not in line]
    said = f"{path.name}: its header was mended while reading ({'; '.join(lines)}). Check its place in space."
    return (("HEADER_REPAIRED", said),) if lines else ()


def _scaling(path: Path, header: HeaderOf) -> tuple[float, float]:
    """Slope and intercept; a slope of 0 or NaN says that there is no scaling."""
    try:
        slope, inter = header.get_slope_inter()
    except HeaderDataError as error:
        message = f"{path} has a slope but an intercept that is no number ({error}). Export it again."
        raise SourceError(message, code="DAMAGED_FILE", file=str(path)) from error
    return (1.0, 0.0) if slope is None else (float(slope), float(inter))


def _start(path: Path, header: HeaderOf) -> int:
    """The byte at which the voxels begin.

    Raises:
        SourceError: it lies within the header.
    """
    offset = int(header.get_data_offset())
    if offset < header.sizeof_hdr:
        message = f"{path} says that its voxels begin at byte {offset}, within its header. Export it again."
        raise SourceError(message, code="DAMAGED_FILE", file=str(path))
    return offset


def _check_length(path: Path, header: HeaderOf, num_bytes: int) -> None:
    """Before memory is asked for: a damaged header may claim any size."""
    shape, itemsize = [int(n) for n in header.get_data_shape()], int(header.get_data_dtype().itemsize)
    start = _start(path, header)
    # An odd start with bytes left over is one that was moved: every voxel would be read from beside its place.
    face = 1 if start % 16 else smallest_face(shape, itemsize)
    check_length(path, num_bytes, start + math.prod(shape) * itemsize, face)


def _stored(path: Path, header: HeaderOf, data: bytes) -> Array:
    """The array as it lies in the file's bytes, without a copy."""
    _check_length(path, header, len(data))
    shape = [int(n) for n in header.get_data_shape()]
    array = np.frombuffer(data, header.get_data_dtype(), math.prod(shape), int(header.get_data_offset()))
    return array.reshape(shape, order="F")


def write_nifti(path: Path, array: Array, affine: Affine, labels: Sequence[LabelRow] = ()) -> None:
    """Write a new NIfTI file in the array's own dtype, whole or not at all; `labels` as in `write_like`."""
    image = nib.Nifti1Image(array, affine, dtype=array.dtype)
    image.header.set_xyzt_units("mm")
    _write_image(path, image, labels)


def write_like(path: Path, array: Array, header: bytes, labels: Sequence[LabelRow] = ()) -> None:
    """Write an array on the grid of the file that `header` came from: its sform, qform, units and codes.

    The array's dtype replaces the header's; intensity scaling, display range and extensions do not
    apply to an answer and are left out.

    Args:
        labels: what the array's numbers mean, if they are labels: written into the file and beside it, see
            `label_table`.
    """
    kind = nib.Nifti2Image if len(header) == nib.Nifti2Header.sizeof_hdr else nib.Nifti1Image
    own = kind.header_class(header, check=False)
    image = kind(array, own.get_best_affine(), header=own)
    image.header.set_data_dtype(array.dtype)
    image.header.set_slope_inter(1, 0)
    image.header["cal_max"] = image.header["cal_min"] = 0
    image.header["vox_offset"] = 0  # wherever the header and its extensions end
    _write_image(path, image, labels)


def _write_image(path: Path, image: nib.Nifti1Image | nib.Nifti2Image, labels: Sequence[LabelRow]) -> None:
    if labels:
        image.header.set_intent(INTENT)
        image.header.extensions.extend(label_extensions(labels))
        write_tables(path, labels)
    data = image.to_bytes()
    if path.name.endswith(".gz"):
        data = gzip.compress(data, compresslevel=6, mtime=0)
    write_atomically(path, data)
