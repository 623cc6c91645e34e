"""Reading one volume from whatever file it lies in, to the last byte, so that damage cannot pass."""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import replace
from pathlib import Path

from multiseg.errors import SourceError
from multiseg.faults import check_machine
from multiseg.store.border import one_file
from multiseg.store.cases import Channel, ScanFile, Series, joined_sha256, part_of, paths_of
from multiseg.store.formats.compression import DAMAGE, GZIP_MAGIC, gunzip, gunzipped_head
from multiseg.store.formats.lengths import SPARE_BYTES, check_gzip_length, smallest_face
from multiseg.store.formats.mgh import is_mgh, mgh_geometry, read_mgh
from multiseg.store.formats.nifti import is_nifti, is_pair, nifti_geometry, read_nifti
from multiseg.store.formats.pair import further_files, is_header, joined, missing_half, other_half, single_header
from multiseg.store.formats.text_header import is_metaimage, is_nrrd
from multiseg.store.formats.text_image import bytes_of_data, read_text_image, text_geometry
from multiseg.store.formats.volumes import Geometry, Volume, check_extent

DICOM_MAGIC = b"DICM"
HEAD_BYTES = 1 << 18
"""As much of a file as its header needs, compressed or not."""
NIFTI_BYTES = 348
"""The shortest header that a compressed file can have."""
MAX_LAYERS = 4
"""A file that is compressed more often is no scan."""


def read_volume(file: ScanFile) -> Volume:
    """One 3-D volume with finite values. What a file is, its content tells, whatever its name.

    Raises:
        SourceError: the file is missing, damaged, of no format we read, not 3-D, coloured, not finite, or
            its affine is singular. `code` tells which.
    """
    with one_file(paths_of(file)[0]):
        return _volume(file)


def read_geometry(file: ScanFile) -> Geometry:
    """What the header alone says of a volume, for plans; the voxels are not looked at.

    Raises:
        SourceError: the file is missing, its header damaged or of no format we read, or no 3-D volume; or its header
            claims other voxels than the file has room for.
    """
    path = paths_of(file)[0]
    with one_file(path):
        geometry = _geometry(file)
        check_extent(path, geometry)
        return geometry


def _volume(file: ScanFile) -> Volume:
    geometry = read_geometry(file)  # what the header claims is looked at before anything else is read
    if isinstance(file, Series):
        return _read_series(file)
    path, index = _place(file)
    raw = _read_bytes(path)
    if raw[128:132] == DICOM_MAGIC:
        return _read_series(Series((path,)))
    digests = [hashlib.sha256(raw).hexdigest()]
    digests += [hashlib.sha256(bytes_of_data(path, other)).hexdigest() for other in further_files(path, raw)]
    sha256 = joined_sha256(digests, part_of(file))
    at_most = geometry.start + geometry.file_bytes + SPARE_BYTES
    data, layers = _unpacked(path, raw, at_most)
    if not is_nifti(data) and (other := other_half(path)) is not None:
        data, layers = _joined_pair(path, data, layers, other, at_most)
    if is_nifti(data):
        volume = read_nifti(path, data, sha256, index)
    elif is_mgh(data):
        volume = read_mgh(path, data, sha256, index)
    else:
        _check_text(path, data, layers)
        volume = read_text_image(path, data, sha256, index)
    return volume if layers < 2 else replace(volume, doubts=(_often_packed(path, layers), *volume.doubts))


def _geometry(file: ScanFile) -> Geometry:
    if isinstance(file, Series):
        return _series_geometry(file)
    path, index = _place(file)
    head, num_bytes = _read_head(path)
    if head[128:132] == DICOM_MAGIC:
        return _series_geometry(Series((path,)))
    other = other_half(path)
    data, layers = _unpacked_head(path, head, 0 if other is not None else NIFTI_BYTES)
    if other is not None and not is_nifti(data):
        return _pair_geometry(path, other, index)
    if not (is_nifti(data) or is_mgh(data)):
        _check_text(path, data, layers)
        return text_geometry(path, data, num_bytes, index)
    geometry_of = nifti_geometry if is_nifti(data) else mgh_geometry
    geometry = geometry_of(path, data, index, None if layers else num_bytes)
    if layers == 1:
        face = smallest_face(geometry.shape, geometry.bytes_a_voxel) if is_nifti(data) else 0
        check_gzip_length(path, geometry.start + geometry.file_bytes, face)
    return replace(geometry, disk_bytes=num_bytes)


def _joined_pair(path: Path, data: bytes, layers: int, other: Path, at_most: int) -> tuple[bytes, int]:
    """The one file that a pair would make, and how many times the half that was more often so was compressed."""
    if not other.exists():
        raise missing_half(path, other)
    other_data, other_layers = _unpacked(other, _read_bytes(other), at_most)
    most = max(layers, other_layers)
    return (joined(path, data, other_data) if is_header(path) else joined(other, other_data, data)), most


def _pair_geometry(path: Path, other: Path, index: int | None) -> Geometry:
    if not other.exists():
        raise missing_half(path, other)
    header, voxels = (path, other) if is_header(path) else (other, path)
    head, offset = single_header(header, _unpacked_head(header, _read_head(header)[0])[0])
    first, num_bytes = _read_head(voxels)
    is_packed = first[:2] == GZIP_MAGIC
    geometry = nifti_geometry(path, head, index, None if is_packed else len(head) + num_bytes - offset)
    if is_packed and gunzipped_head(first, 2) != GZIP_MAGIC:
        check_gzip_length(voxels, offset + geometry.file_bytes, smallest_face(geometry.shape, geometry.bytes_a_voxel))
    return replace(geometry, disk_bytes=num_bytes)


def _place(file: Path | Channel) -> tuple[Path, int | None]:
    return (file.path, file.index) if isinstance(file, Channel) else (file, None)


def _read_series(series: Series) -> Volume:
    from multiseg.store.formats.dicom import read_series

    return read_series(series)


def _series_geometry(series: Series) -> Geometry:
    from multiseg.store.formats.dicom import series_geometry

    return series_geometry(series)


def _check_text(path: Path, data: bytes, layers: int) -> None:
    """Whether a file is MetaImage or NRRD.

    Raises:
        SourceError: it is neither.
    """
    is_text = is_nrrd(data) or is_metaimage(data)
    if is_text and not layers:
        return
    if is_pair(data):
        what = (
            "is no NIfTI file in one piece but half of a pair (.hdr and .img). Make one file of the two, for "
            f"instance with: nib-convert {path.stem}.hdr {path.stem}.nii.gz"
        )
    elif is_text:
        what = "is a MetaImage or NRRD file in gzip. Unpack it first: these formats compress their own voxels."
    else:
        what = (
            f"is no NIfTI file (its first bytes are {data[:4]!r}), nor MGH, MetaImage, NRRD or DICOM. "
            "Export the scan as .nii.gz."
        )
    raise SourceError(f"{path} {what}", code="NOT_NIFTI", file=str(path))


def _often_packed(path: Path, layers: int) -> tuple[str, str]:
    said = f"{path.name} is compressed {layers} times, one gzip in another. Other programs may not read it."
    return "DOUBLE_GZIP", said


def _read_bytes(path: Path) -> bytes:
    _check_regular(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error


def _check_regular(path: Path) -> None:
    """Reading from a pipe or a device could wait for ever."""
    if path.exists() and not path.is_file():
        message = f"{path} is no regular file, but a folder, a pipe or a device. Put the scan in its place."
        raise SourceError(message, code="UNREADABLE_FILE", file=str(path))


def _read_head(path: Path) -> tuple[bytes, int]:
    """A file's first bytes, and its size."""
    _check_regular(path)
    try:
        with path.open("rb") as file:
            return file.read(HEAD_BYTES), path.stat().st_size
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> SourceError:
    check_machine(error)
    if isinstance(error, FileNotFoundError):
        return SourceError(f"{path} does not exist.", code="MISSING_FILE", file=str(path))
    message = f"{path} cannot be read: {error.strerror}. Check the path and its permissions."
    return SourceError(message, code="UNREADABLE_FILE", file=str(path))


def _unpacked(path: Path, raw: bytes, at_most: int) -> tuple[bytes, int]:
    """What is in a file, in not more bytes than `at_most`, and how many times it was compressed."""
    data, layers = raw, 0
    try:
        while data[:2] == GZIP_MAGIC and layers < MAX_LAYERS:
            data, layers = gunzip(data, at_most), layers + 1
    except DAMAGE as error:
        message = f"{path} is a truncated or damaged gzip file ({len(raw)} bytes): {error}. Copy it again."
        raise SourceError(message, code="DAMAGED_FILE", file=str(path)) from error
    return data, layers


def _unpacked_head(path: Path, head: bytes, least: int = NIFTI_BYTES) -> tuple[bytes, int]:
    """As `_unpacked`, of a file's first bytes alone, of which there have to be so many."""
    data, layers = head, 0
    try:
        while data[:2] == GZIP_MAGIC and layers < MAX_LAYERS:
            data, layers = gunzipped_head(data, HEAD_BYTES), layers + 1
    except zlib.error as error:
        message = f"{path} is a truncated or damaged gzip file: {error}. Copy it again."
        raise SourceError(message, code="DAMAGED_FILE", file=str(path)) from error
    if layers and len(data) < least:
        message = f"{path} is a truncated or damaged gzip file: its header is not whole. Copy it again."
        raise SourceError(message, code="DAMAGED_FILE", file=str(path))
    return data, layers
