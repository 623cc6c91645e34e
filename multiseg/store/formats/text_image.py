"""MetaImage (.mha, .mhd) and NRRD (.nrrd, .nhdr) files: a text header, then the voxels, there or in other files.

ITK is not used for them, since it accepts damaged voxels and can crash on a damaged header.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from multiseg.errors import SourceError
from multiseg.faults import check_machine
from multiseg.store.formats import metaimage, nrrd
from multiseg.store.formats.compression import DAMAGE, MAX_RATIO, MAX_RATIO_OF_BZIP2, unpack
from multiseg.store.formats.file_lengths import SPARE_BYTES, check_length, smallest_face
from multiseg.store.formats.nifti import new_header
from multiseg.store.formats.nifti_place import Doubts, no_orientation
from multiseg.store.formats.text_header import TextHeader, data_files, fields_of, is_nrrd, voxels_start
from multiseg.store.formats.volumes import Geometry, Volume, is_mapping
from multiseg.store.formats.voxels import as_voxels, refuse_colours, refuse_complex, volume_shape
from multiseg.types import Affine, Index3

MM_OF = {"um": 0.001, "µm": 0.001, "micron": 0.001, "cm": 10.0, "m": 1000.0}
"""Millimetres in each unit of length other than mm."""
MAX_RATIO_OF = {"zlib": MAX_RATIO, "gzip": MAX_RATIO, "bzip2": MAX_RATIO_OF_BZIP2}


@dataclass(frozen=True, eq=False)
class _Header:
    """A checked header, with the geometry of the volume that is read."""

    fields: TextHeader
    volume: Index3
    affine: Affine
    doubts: Doubts

    @property
    def num_bytes(self) -> int:
        return math.prod(self.fields.sizes) * self.fields.dtype.itemsize

    @property
    def face(self) -> int:
        """Bytes of the smallest face of the array."""
        return smallest_face(self.fields.sizes, self.fields.dtype.itemsize)


def read_text_image(path: Path, raw: bytes, sha256: str, index: int | None = None) -> Volume:
    """The volume in a MetaImage or NRRD file of these bytes; `index` selects one volume of a 4-D file.

    Raises:
        SourceError: as `read_volume`.
    """
    header = _header(path, raw, index)
    data = _data(path, raw, header)
    fields = header.fields
    stored = np.frombuffer(data, fields.dtype, math.prod(fields.sizes)).reshape(fields.sizes, order="F")
    space_first = np.asfortranarray(stored.transpose(_axes(fields)))
    voxels = as_voxels(path, space_first, index, fields.slope, fields.intercept)
    native = new_header(header.volume, header.affine, fields.dtype)
    return Volume(voxels, header.affine, native, sha256, path, header.doubts)


def text_geometry(path: Path, head: bytes, num_bytes: int, index: int | None = None) -> Geometry:
    """The geometry in the header of a MetaImage or NRRD file. `num_bytes`: the size of that file."""
    header = _header(path, head, index)
    files = data_files(path, head)
    sizes = [_size_of(path, file) for file in files]
    stored_bytes = sum(sizes) if files else num_bytes - voxels_start(head)
    _check_size(path, stored_bytes, header, max(1, len(files)))
    num_volumes = math.prod(header.fields.sizes) // math.prod(header.volume)
    itemsize = header.fields.dtype.itemsize
    return Geometry(header.volume, header.affine, itemsize, num_volumes, disk_bytes=num_bytes + sum(sizes))


def _check_size(path: Path, stored_bytes: int, header: _Header, num_files: int) -> None:
    """Check that so many bytes on the disk can contain the voxels that the header claims."""
    fields = header.fields
    if fields.encoding != "raw":
        check_length(path, stored_bytes * MAX_RATIO_OF[fields.encoding], header.num_bytes)
    # The number of bytes before the voxels is unknown here.
    elif fields.byte_skip < 0 or fields.line_skip:
        check_length(path, stored_bytes, header.num_bytes)
    else:
        check_length(path, stored_bytes - fields.byte_skip * num_files, header.num_bytes, header.face)


def _header(path: Path, data: bytes, index: int | None) -> _Header:
    try:
        fields = nrrd.parse(fields_of(data)) if is_nrrd(data) else metaimage.parse(fields_of(data))
    except ValueError as error:
        message = f"{path} has an invalid header: {error}. Copy or export it again."
        raise SourceError(message, code="DAMAGED_FILE", file=str(path)) from error
    if fields.is_coloured:
        raise refuse_colours(path)
    if fields.is_complex:
        raise refuse_complex(path)
    volume = volume_shape(path, [fields.sizes[axis] for axis in _axes(fields)], index)
    affine, doubts = _affine(path, fields)
    return _Header(fields, volume, affine, doubts)


def _axes(fields: TextHeader) -> list[int]:
    """The axes of the file in our order: i, j, k, then the others."""
    return [*fields.space_axes, *(axis for axis in range(len(fields.sizes)) if axis not in fields.space_axes)]


def _affine(path: Path, fields: TextHeader) -> tuple[Affine, Doubts]:
    doubts = []
    affine = np.eye(4)
    affine[:3, :3] = fields.directions
    affine[:3, 3] = fields.origin
    factors = {MM_OF[unit] for unit in fields.units if unit in MM_OF}
    if len(factors) == 1 and "mm" not in fields.units:
        affine[:3] *= factors.pop()
        unit = ", ".join(sorted(fields.units))
        doubts.append(("UNITS", f"{path.name}: its header gives lengths in {unit}, converted to mm. Is that right?"))
    if not is_mapping(affine):
        message = f"{path} has an affine that is not invertible: {affine.tolist()}. Repair its header."
        raise SourceError(message, code="BAD_AFFINE", file=str(path))
    if not fields.is_sized:
        sizes = f"{path.name}: its header has no voxel size, so 1 mm is assumed. Add the size to the header."
        doubts.append(("NO_VOXEL_SIZE", sizes))
    if fields.why_unplaced:
        doubts.append(("NO_ORIENTATION", no_orientation(path, affine, fields.why_unplaced)))
    return affine, tuple(doubts)


def _data(path: Path, raw: bytes, header: _Header) -> bytes:
    """The bytes of all voxels, decompressed."""
    files = data_files(path, raw)
    parts = [bytes_of_data(path, file) for file in files] if files else [raw[voxels_start(raw) :]]
    try:
        data = b"".join(_unpack(part, header, len(parts)) for part in parts)
    except DAMAGE as error:
        message = f"{path} has truncated or damaged voxels: {error}. Copy it again."
        raise SourceError(message, code="DAMAGED_FILE", file=str(path)) from error
    check_length(path, len(data), header.num_bytes, header.face)
    return data


def _unpack(part: bytes, header: _Header, num_parts: int) -> bytes:
    fields, begin = header.fields, 0
    for _ in range(fields.line_skip):
        begin = part.index(b"\n", begin) + 1
    room = min(max(0, fields.byte_skip), SPARE_BYTES) + SPARE_BYTES
    data = unpack(part[begin:] if begin else part, fields.encoding, header.num_bytes + room)
    if fields.byte_skip >= 0:
        return data[fields.byte_skip :]
    needed = header.num_bytes // num_parts  # the voxels are at the end of the file
    return data[max(0, len(data) - needed) :]


def _size_of(path: Path, file: Path) -> int:
    """The size of a file with voxels. It must be a regular file: reading from a device would never end."""
    try:
        if not file.is_file():
            raise FileNotFoundError(file)
        return file.stat().st_size
    except (OSError, ValueError) as error:
        check_machine(error)
        raise _missing_data_file(path, file) from error


def bytes_of_data(path: Path, file: Path) -> bytes:
    """The content of a file with the voxels of the header at `path`.

    Raises:
        SourceError: the file is missing or cannot be read.
    """
    _size_of(path, file)
    try:
        return file.read_bytes()
    except OSError as error:
        check_machine(error)
        raise _missing_data_file(path, file) from error


def _missing_data_file(path: Path, file: Path) -> SourceError:
    message = f"{path} has its voxels in {file}, which is missing or cannot be read. Put it next to its header."
    return SourceError(message, code="MISSING_FILE", file=str(path))
