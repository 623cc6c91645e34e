"""MetaImage (.mha, .mhd) and NRRD (.nrrd, .nhdr) files: a header in text, the voxels behind it or in other files.

They are read here and not by ITK, which takes damaged voxels as they come and can crash over a damaged header.
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
from multiseg.store.formats.lengths import SPARE_BYTES, check_length, smallest_face
from multiseg.store.formats.nifti import new_header
from multiseg.store.formats.nifti_place import Doubts, no_orientation
from multiseg.store.formats.text_header import Described, data_files, fields_of, is_nrrd, voxels_start
from multiseg.store.formats.volumes import Geometry, Volume, is_mapping
from multiseg.store.formats.voxels import as_voxels, refuse_colours, refuse_complex, volume_shape
from multiseg.types import Affine, Array, Index3

MM_OF = {"um": 0.001, "µm": 0.001, "micron": 0.001, "cm": 10.0, "m": 1000.0}
"""Millimetres of the units of space that are not millimetres."""
MAX_RATIO_OF = {"zlib": MAX_RATIO, "gzip": MAX_RATIO, "bzip2": MAX_RATIO_OF_BZIP2}


@dataclass(frozen=True, eq=False)
class _Header:
    """What a checked header says. `shape` has space first."""

    said: Described
    shape: tuple[int, ...]
    volume: Index3
    affine: Affine
    doubts: Doubts

    @property
    def num_bytes(self) -> int:
        return math.prod(self.said.sizes) * self.said.dtype.itemsize

    @property
    def face(self) -> int:
        """Bytes of the smallest face of the array."""
        return smallest_face(self.said.sizes, self.said.dtype.itemsize)


def read_text_image(path: Path, raw: bytes, sha256: str, index: int | None = None) -> Volume:
    """The volume in a MetaImage or NRRD file of these bytes; `index` picks one of a 4-D file.

    Raises:
        SourceError: as `reading.read_volume`.
    """
    header = _header(path, raw, index)
    data = _data(path, raw, header)
    stored = np.frombuffer(data, header.said.dtype, math.prod(header.said.sizes)).reshape(header.said.sizes, order="F")
    voxels = as_voxels(path, _space_first(stored, header.said), index, header.said.slope, header.said.inter)
    native = new_header(header.volume, header.affine, header.said.dtype)
    return Volume(voxels, header.affine, native, sha256, path, header.doubts)


def text_geometry(path: Path, head: bytes, num_bytes: int, index: int | None = None) -> Geometry:
    """What the header of a MetaImage or NRRD file says. `num_bytes`: the size of that file."""
    header = _header(path, head, index)
    files = data_files(path, head)
    sizes = [_size_of(path, file) for file in files]
    held = sum(sizes) if files else num_bytes - voxels_start(head)
    _check_claim(path, held, header, max(1, len(files)))
    num_volumes = math.prod(header.said.sizes) // math.prod(header.volume)
    itemsize = header.said.dtype.itemsize
    return Geometry(header.volume, header.affine, itemsize, num_volumes, disk_bytes=num_bytes + sum(sizes))


def _check_claim(path: Path, held: int, header: _Header, num_files: int) -> None:
    """Whether the voxels that a header claims can come out of so many bytes on the disk."""
    said = header.said
    if said.encoding != "raw":
        check_length(path, held * MAX_RATIO_OF[said.encoding], header.num_bytes)
    elif said.byte_skip < 0 or said.line_skip:
        check_length(path, held, header.num_bytes)
    else:
        check_length(path, held - said.byte_skip * num_files, header.num_bytes, header.face)


def _header(path: Path, data: bytes, index: int | None) -> _Header:
    try:
        said = (nrrd if is_nrrd(data) else metaimage).described(fields_of(data))
    except ValueError as error:
        message = f"{path} has a header that cannot be read: {error}. Copy or export it again."
        raise SourceError(message, code="DAMAGED_FILE", file=str(path)) from error
    if said.is_coloured:
        raise refuse_colours(path)
    if said.is_complex:
        raise refuse_complex(path)
    shape = tuple(said.sizes[at] for at in _axes(said))
    volume = volume_shape(path, shape, index)
    affine, doubts = _affine(path, said)
    return _Header(said, shape, volume, affine, doubts)


def _axes(said: Described) -> list[int]:
    """The axes of the file in our order: space, then the others."""
    return [*said.space_axes, *(at for at in range(len(said.sizes)) if at not in said.space_axes)]


def _space_first(stored: Array, said: Described) -> Array:
    turned = stored.transpose(_axes(said))
    return turned if turned.flags.f_contiguous else np.asfortranarray(turned)


def _affine(path: Path, said: Described) -> tuple[Affine, Doubts]:
    doubts = []
    affine = np.eye(4)
    affine[:3, :3] = said.directions
    affine[:3, 3] = said.origin
    factors = {MM_OF[unit] for unit in said.units if unit in MM_OF}
    if len(factors) == 1 and "mm" not in said.units:
        affine[:3] *= factors.pop()
        counts = f"{path.name}: its header counts in {', '.join(sorted(said.units))}, which became mm. Is that so?"
        doubts.append(("UNITS", counts))
    if not is_mapping(affine):
        message = f"{path} has an affine that is no mapping to space: {affine.tolist()}. Repair its header."
        raise SourceError(message, code="BAD_AFFINE", file=str(path))
    if not said.is_sized:
        sizes = f"{path.name}: its header does not tell the size of its voxels, which are taken to be 1 mm. Add it."
        doubts.append(("NO_VOXEL_SIZE", sizes))
    if said.why_unplaced:
        doubts.append(("NO_ORIENTATION", no_orientation(path, affine, said.why_unplaced)))
    return affine, tuple(doubts)


def _data(path: Path, raw: bytes, header: _Header) -> bytes:
    """All voxels, unpacked."""
    files = data_files(path, raw)
    parts = [bytes_of_data(path, file) for file in files] if files else [raw[voxels_start(raw) :]]
    try:
        data = b"".join(_unpacked(part, header, len(parts)) for part in parts)
    except DAMAGE as error:
        message = f"{path} has truncated or damaged voxels: {error}. Copy it again."
        raise SourceError(message, code="DAMAGED_FILE", file=str(path)) from error
    check_length(path, len(data), header.num_bytes, header.face)
    return data


def _unpacked(part: bytes, header: _Header, num_parts: int) -> bytes:
    said, begin = header.said, 0
    for _ in range(said.line_skip):
        begin = part.index(b"\n", begin) + 1
    room = min(max(0, said.byte_skip), SPARE_BYTES) + SPARE_BYTES
    data = unpack(part[begin:] if begin else part, said.encoding, header.num_bytes + room)
    if said.byte_skip >= 0:
        return data[said.byte_skip :]
    needed = header.num_bytes // num_parts  # the voxels are the file's end
    return data[max(0, len(data) - needed) :]


def _size_of(path: Path, file: Path) -> int:
    """The size of a file with voxels, which must be one: reading from a device would never end."""
    try:
        if not file.is_file():
            raise FileNotFoundError(file)
        return file.stat().st_size
    except (OSError, ValueError) as error:
        check_machine(error)
        raise _not_beside(path, file) from error


def bytes_of_data(path: Path, file: Path) -> bytes:
    """A file that holds the voxels which the header at `path` describes.

    Raises:
        SourceError: it is not there.
    """
    _size_of(path, file)
    try:
        return file.read_bytes()
    except OSError as error:
        check_machine(error)
        raise _not_beside(path, file) from error


def _not_beside(path: Path, file: Path) -> SourceError:
    message = f"{path} says that its voxels lie in {file}, which cannot be read. Put it beside its header."
    return SourceError(message, code="MISSING_FILE", file=str(path))
