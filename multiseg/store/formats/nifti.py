"""Read and check NIfTI files, and write predictions on the grid of the source file."""

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
from multiseg.store.formats.colour_tables import LabelRow
from multiseg.store.formats.file_lengths import check_length, smallest_face
from multiseg.store.formats.label_table import INTENT, label_extensions, write_tables
from multiseg.store.formats.nifti_place import Doubts, placement_of
from multiseg.store.formats.volumes import Geometry, Volume
from multiseg.store.formats.voxels import as_voxels, refuse_colours, refuse_complex, volume_shape
from multiseg.types import Affine, Array, Index3

NiftiHeader: TypeAlias = nib.Nifti1Header | nib.Nifti2Header
HEADER_SIZE = {b"n+1\0": (344, 348), b"n+2\0": (4, 540)}
"""The offset of the magic bytes and the length of the header, by version of the format."""


@dataclass(frozen=True, eq=False)
class _Header:
    """A checked header: `fields` as repaired by nibabel, and the geometry of the volume that is read."""

    fields: NiftiHeader
    shape: Index3
    affine: Affine
    doubts: Doubts


def is_nifti(data: bytes) -> bool:
    """Whether a file begins as a single-file NIfTI does."""
    return any(data[offset : offset + 4] == magic for magic, (offset, _) in HEADER_SIZE.items())


def is_pair(data: bytes) -> bool:
    """Whether a file begins with the header of a NIfTI or Analyze pair (.hdr and .img)."""
    is_header = data[:4] in (b"\x5c\x01\0\0", b"\0\0\x01\x5c") and len(data) == 348
    return data[344:348] == b"ni1\0" or data[4:8] == b"ni2\0" or is_header


def read_nifti(path: Path, data: bytes, sha256: str, index: int | None = None) -> Volume:
    """The volume in the decompressed bytes of a NIfTI file; `index` selects one volume of a 4-D file.

    Raises:
        SourceError: as `read_volume`.
    """
    header = _header(path, data, index)
    slope, intercept = _scaling(path, header.fields)
    voxels = as_voxels(path, _stored(path, header.fields, data), index, slope, intercept)
    return Volume(voxels, header.affine, bytes(header.fields.binaryblock), sha256, path, header.doubts)


def nifti_geometry(path: Path, head: bytes, index: int | None = None, num_bytes: int | None = None) -> Geometry:
    """The geometry in the first bytes of a NIfTI file. `num_bytes`: the size of the file, if it is not compressed."""
    header = _header(path, head, index)
    if num_bytes is not None:
        _check_length(path, header.fields, num_bytes)
    num_volumes = math.prod(int(n) for n in header.fields.get_data_shape()[3:])
    itemsize = int(header.fields.get_data_dtype().itemsize)
    return Geometry(header.shape, header.affine, itemsize, num_volumes, _start(path, header.fields))


def new_header(shape: Index3, affine: Affine, dtype: np.dtype) -> bytes:
    """A NIfTI-1 header for a volume from a file of another format, so that predictions can be written on its grid."""
    header = nib.Nifti1Header()
    header.set_data_shape(shape)
    header.set_data_dtype(dtype.newbyteorder("="))
    header.set_xyzt_units("mm")
    header.set_sform(affine, 1)
    header.set_qform(affine, 1)
    if not np.allclose(header.get_qform(), affine, atol=1e-3):  # sheared: a qform cannot represent it
        header["qform_code"] = 0
    return bytes(header.binaryblock)


@np.errstate(over="ignore", invalid="ignore")  # from damaged numbers; the results are checked
def _header(path: Path, data: bytes, index: int | None) -> _Header:
    kind, size = (nib.Nifti2Header, 540) if data[4:8] == b"n+2\0" else (nib.Nifti1Header, 348)
    block = data[:size]
    try:
        faults = kind.diagnose_binaryblock(block)
        fields = kind(block, check=True)
        dtype = fields.get_data_dtype()
        fields.get_data_offset()
    except (HeaderDataError, WrapStructError, ValueError, OverflowError) as error:
        message = f"{path} has an invalid NIfTI header: {error}. Copy or export it again."
        raise SourceError(message, code="DAMAGED_FILE", file=str(path)) from error
    if dtype.fields is not None:
        raise refuse_colours(path)
    if dtype.kind == "c":
        raise refuse_complex(path)
    shape = volume_shape(path, fields.get_data_shape(), index)
    pixdim = kind(block, check=False)["pixdim"][1:4]  # nibabel's check repairs it
    placement = placement_of(path, fields, shape, tuple(float(mm) for mm in pixdim))
    return _Header(placement.header, shape, placement.affine, _repairs(path, faults) + placement.doubts)


def _repairs(path: Path, faults: str) -> Doubts:
    """What nibabel silently repaired in the header, such as an unknown form code."""
    # A vox_offset that SPM rejects is harmless here.
    lines = [line for line in faults.splitlines() if "SPM" not in line]
    if not lines:
        return ()
    return (("HEADER_REPAIRED", f"{path.name}: its header was repaired ({'; '.join(lines)}). Check its orientation."),)


def _scaling(path: Path, header: NiftiHeader) -> tuple[float, float]:
    """Slope and intercept; a slope of 0 or NaN means no scaling."""
    try:
        slope, intercept = header.get_slope_inter()
    except HeaderDataError as error:
        message = f"{path} has a slope but an invalid intercept ({error}). Export it again."
        raise SourceError(message, code="DAMAGED_FILE", file=str(path)) from error
    return (1.0, 0.0) if slope is None else (float(slope), float(intercept))


def _start(path: Path, header: NiftiHeader) -> int:
    """The offset of the voxels.

    Raises:
        SourceError: it is within the header.
    """
    offset = int(header.get_data_offset())
    if offset < header.sizeof_hdr:
        message = f"{path} has its voxels at byte {offset}, within its header. Export it again."
        raise SourceError(message, code="DAMAGED_FILE", file=str(path))
    return offset


def _check_length(path: Path, header: NiftiHeader, num_bytes: int) -> None:
    """Check the length before memory is allocated: a damaged header may claim any size."""
    shape, itemsize = [int(n) for n in header.get_data_shape()], int(header.get_data_dtype().itemsize)
    start = _start(path, header)
    # A damaged offset is seldom a multiple of 16. With one, not even a byte may be left over: every voxel would be
    # read from a shifted place.
    face = 1 if start % 16 else smallest_face(shape, itemsize)
    check_length(path, num_bytes, start + math.prod(shape) * itemsize, face)


def _stored(path: Path, header: NiftiHeader, data: bytes) -> Array:
    """The array in the bytes of the file, without a copy."""
    _check_length(path, header, len(data))
    shape = [int(n) for n in header.get_data_shape()]
    array = np.frombuffer(data, header.get_data_dtype(), math.prod(shape), int(header.get_data_offset()))
    return array.reshape(shape, order="F")


def write_nifti(path: Path, array: Array, affine: Affine, labels: Sequence[LabelRow] = (), tables: bool = True) -> None:
    """Write a new NIfTI file atomically, in the dtype of the array. `labels`, `tables`: as in `write_like`."""
    _write_image(path, new_image(array, affine), labels, tables)


def new_image(array: Array, affine: Affine) -> nib.Nifti1Image:
    """A new image in the dtype of the array."""
    image = nib.Nifti1Image(array, affine, dtype=array.dtype)
    image.header.set_xyzt_units("mm")
    return image


def write_like(path: Path, array: Array, header: bytes, labels: Sequence[LabelRow] = (), tables: bool = True) -> None:
    """Write an array on the grid of the file of `header`: with its sform, qform, units and codes.

    The dtype is the array's. Intensity scaling, display range and extensions are dropped: they do not apply to a
    prediction.

    Args:
        labels: what the array's numbers mean, if they are labels. They are written into the file and into tables next
            to it (see `label_table`).
        tables: whether the tables are written.
    """
    _write_image(path, image_like(array, header), labels, tables)


def image_like(array: Array, header: bytes) -> nib.Nifti1Image | nib.Nifti2Image:
    """An array on the grid of the file of `header`; see `write_like`."""
    kind = nib.Nifti2Image if len(header) == nib.Nifti2Header.sizeof_hdr else nib.Nifti1Image
    source = kind.header_class(header, check=False)
    image = kind(array, source.get_best_affine(), header=source)
    image.header.set_data_dtype(array.dtype)
    image.header.set_slope_inter(1, 0)
    image.header["cal_max"] = image.header["cal_min"] = 0
    image.header["vox_offset"] = 0  # nibabel sets it to the end of header and extensions
    return image


def _write_image(
    path: Path, image: nib.Nifti1Image | nib.Nifti2Image, labels: Sequence[LabelRow], tables: bool
) -> None:
    if labels:
        image.header.set_intent(INTENT)
        image.header.extensions.extend(label_extensions(labels))
        if tables:
            write_tables(path, labels)
    data = image.to_bytes()
    if path.name.endswith(".gz"):
        data = gzip.compress(data, compresslevel=6, mtime=0)
    write_atomically(path, data)
