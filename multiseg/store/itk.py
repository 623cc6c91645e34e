"""MetaImage (.mha, .mhd) and NRRD (.nrrd, .nhdr) files, through ITK, which counts towards left and back (LPS)."""

from __future__ import annotations

import gzip
import math
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK

from multiseg.errors import SourceError
from multiseg.store.nifti import new_header
from multiseg.store.nifti_place import Doubts, no_orientation
from multiseg.store.text_header import data_files, fields_of, voxels_start
from multiseg.store.volumes import Geometry, Volume, is_mapping
from multiseg.store.voxels import as_voxels, refuse_colours, refuse_complex, volume_shape
from multiseg.types import Affine, Index3

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
MM_OF = {"um": 0.001, "µm": 0.001, "micron": 0.001, "cm": 10.0, "m": 1000.0}
"""Millimetres of the units of space that are not millimetres."""
_ELEMENT_BYTES = {"CHAR": 1, "SHORT": 2, "INT": 4, "FLOAT": 4, "DOUBLE": 8, "LONG_LONG": 8}


@dataclass(frozen=True, eq=False)
class _Header:
    shape: tuple[int, ...]
    volume: Index3
    affine: Affine
    num_components: int
    bytes_a_voxel: int
    doubts: Doubts


def read_itk(path: Path, raw: bytes, io: str, sha256: str, index: int | None = None) -> Volume:
    """The volume in a MetaImage or NRRD file; `index` picks one of a 4-D file.

    Args:
        raw: the file's bytes.
        io: "MetaImageIO" or "NrrdImageIO".

    Raises:
        SourceError: as `reading.read_volume`.
    """
    fields = fields_of(raw)
    _check_data(path, raw, fields)
    reader = _reader(path, io)
    header = _header(path, reader, fields, index)
    try:
        stored = SimpleITK.GetArrayFromImage(reader.Execute())
    except RuntimeError as error:
        raise _damaged(path, error) from error
    if header.num_components > 1:
        stored = np.moveaxis(stored, -1, 0)
    slope = _number(path, fields, "ElementToIntensityFunctionSlope", 1.0)
    inter = _number(path, fields, "ElementToIntensityFunctionOffset", 0.0)
    voxels = as_voxels(path, stored.T, index, slope, inter)
    native = new_header(header.volume, header.affine, stored.dtype)
    return Volume(voxels, header.affine, native, sha256, path, header.doubts)


def itk_geometry(path: Path, head: bytes, io: str, index: int | None = None) -> Geometry:
    """What the header of a MetaImage or NRRD file says."""
    for file in data_files(path, head):
        _size_of(path, file)
    header = _header(path, _reader(path, io), fields_of(head), index)
    return Geometry(header.volume, header.affine, header.bytes_a_voxel)


def _reader(path: Path, io: str) -> Any:
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)  # we say ourselves what is wrong
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO(io)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise _damaged(path, error) from error
    return reader


def _header(path: Path, reader: Any, fields: dict[str, str], index: int | None) -> _Header:
    num_components = reader.GetNumberOfComponents()
    kinds = fields.get("kinds", "").lower()
    pixel = reader.GetPixelIDValue()
    if "color" in kinds or (num_components in (3, 4) and pixel == SimpleITK.sitkVectorUInt8):
        raise refuse_colours(path)
    if "complex" in kinds or pixel in (SimpleITK.sitkComplexFloat32, SimpleITK.sitkComplexFloat64):
        raise refuse_complex(path)
    shape = (*reader.GetSize(), *([num_components] if num_components > 1 else []))
    volume = volume_shape(path, shape, index)
    affine, doubts = _affine(path, reader, fields)
    return _Header(shape, volume, affine, num_components, _bytes_a_voxel(reader), doubts)


def _bytes_a_voxel(reader: Any) -> int:
    found = re.search(r"(\d+)-bit", SimpleITK.GetPixelIDValueAsString(reader.GetPixelIDValue()))
    return int(found[1]) // 8 if found else 4


def _affine(path: Path, reader: Any, fields: dict[str, str]) -> tuple[Affine, Doubts]:
    num_axes = reader.GetDimension()
    direction = np.array(reader.GetDirection()).reshape(num_axes, num_axes)[:3, :3]
    unit, doubts = _unit(path, fields)
    affine = np.eye(4)
    affine[:3, :3] = direction * np.array(reader.GetSpacing()[:3]) * unit
    affine[:3, 3] = np.array(reader.GetOrigin()[:3]) * unit
    affine = LPS_TO_RAS @ affine
    if not is_mapping(affine):
        message = f"{path} has an affine that is no mapping to space: {affine.tolist()}. Repair its header."
        raise SourceError(message, code="BAD_AFFINE", file=str(path))
    if why := _why_unplaced(fields):
        doubts = (*doubts, ("NO_ORIENTATION", no_orientation(path, affine, why)))
    return affine, doubts


def _why_unplaced(fields: dict[str, str]) -> str:
    """Why left and right are a convention; "" where the header tells them."""
    if "elementdatafile" in fields:
        has_place = not {"transformmatrix", "orientation", "rotation"}.isdisjoint(fields)
        return "" if has_place else "no orientation in the header (no TransformMatrix)"
    space = fields.get("space", "").lower()
    is_anatomical = "superior" in space or space in ("ras", "las", "lps", "rast", "last", "lpst")
    return "" if is_anatomical else f"no orientation in the header (its space is {space or 'not named'})"


def _unit(path: Path, fields: dict[str, str]) -> tuple[float, Doubts]:
    words = set(re.findall(r"[^\s\"]+", fields.get("distanceunits") or fields.get("space units", "")))
    factors = {MM_OF[word] for word in words if word in MM_OF}
    if len(factors) != 1 or "mm" in words:
        return 1.0, ()
    said = f"{path.name}: its header counts in {', '.join(sorted(words))}, which became mm. Is that so?"
    return factors.pop(), (("UNITS", said),)


def _check_data(path: Path, raw: bytes, fields: dict[str, str]) -> None:
    """Whether all voxels are there. ITK does not look at checksums, and takes damaged voxels as they come."""
    files = data_files(path, raw)
    sizes = [_size_of(path, file) for file in files]
    if len(files) > 1 or fields.get("encoding", "gzip").lower() not in ("gzip", "gz"):
        return  # ITK counts what it gets
    if "elementdatafile" not in fields:
        _check_packed(path, files[0].read_bytes() if files else raw[voxels_start(raw) :], None)
        return
    skipped = max(0, int(_number(path, fields, "HeaderSize", 0.0)))
    needed = _bytes_needed(path, fields)
    if fields.get("compresseddata", "").lower() in ("true", "1"):
        _check_packed(path, files[0].read_bytes()[skipped:] if files else raw[voxels_start(raw) :], needed)
    elif (size := (sizes[0] if files else len(raw) - voxels_start(raw)) - skipped) < (needed or 0):
        message = f"{path} is shorter than its header says: {size} of {needed} bytes of voxels. Copy it again."
        raise SourceError(message, code="DAMAGED_FILE", file=str(path))


def _check_packed(path: Path, packed: bytes, needed: int | None) -> None:
    try:
        size = len(gzip.decompress(packed) if packed[:2] == b"\x1f\x8b" else zlib.decompress(packed, wbits=47))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        message = f"{path} has truncated or damaged voxels: {error}. Copy it again."
        raise SourceError(message, code="DAMAGED_FILE", file=str(path)) from error
    if size < (needed or 0):
        message = f"{path} is shorter than its header says: {size} of {needed} bytes of voxels. Copy it again."
        raise SourceError(message, code="DAMAGED_FILE", file=str(path))


def _bytes_needed(path: Path, fields: dict[str, str]) -> int | None:
    """How many bytes of voxels a MetaImage header promises; None where it is for ITK to say."""
    kind = fields.get("elementtype", "").removeprefix("MET_").removesuffix("_ARRAY")
    size = _ELEMENT_BYTES.get(kind.removeprefix("U"))
    sizes = fields.get("dimsize", "").split()
    if size is None or not all(text.isdecimal() for text in sizes):
        return None
    return math.prod(map(int, sizes)) * size * int(_number(path, fields, "ElementNumberOfChannels", 1.0))


def _number(path: Path, fields: dict[str, str], name: str, default: float) -> float:
    """A field of a MetaImage header; ITK itself does not apply the slope and offset."""
    text = fields.get(name.lower(), "")
    try:
        return float(text or default)
    except ValueError:
        message = f"{path} has a header that says {name} = {text!r}, which is no number. Export it again."
        raise SourceError(message, code="DAMAGED_FILE", file=str(path)) from None


def _size_of(path: Path, file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        message = f"{path} says that its voxels lie in {file}, which does not exist. Put it beside its header."
        raise SourceError(message, code="MISSING_FILE", file=str(path)) from None


def _damaged(path: Path, error: RuntimeError) -> SourceError:
    """ITK's own words are those of a programmer; its last line is the nearest to a reason."""
    reason = str(error).strip().splitlines()[-1].strip()
    message = f"{path} is truncated, damaged or no image ({reason}). Copy or export it again."
    return SourceError(message, code="DAMAGED_FILE", file=str(path))
