"""Read one volume from a file of any supported format, and check every byte of it."""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import replace
from pathlib import Path

from multiseg.errors import SourceError
from multiseg.faults import check_machine
from multiseg.store.border import one_file
from multiseg.store.cases import Channel, ScanFile, Series, joined_sha256, part_of, paths_of
from multiseg.store.formats.compression import DAMAGE, GZIP_MAGIC, gunzip, gunzip_head
from multiseg.store.formats.file_lengths import SPARE_BYTES, check_gzip_length, smallest_face
from multiseg.store.formats.mgh import is_mgh, mgh_geometry, read_mgh
from multiseg.store.formats.nifti import is_nifti, is_pair, nifti_geometry, read_nifti
from multiseg.store.formats.nifti_zarr import (
    files_of,
    is_nifti_zarr,
    missing_chunks,
    missing_text,
    open_nifti_zarr,
    read_bytes,
    sha256_of_folder,
)
from multiseg.store.formats.pair import further_files, is_header, join_pair, missing_half, other_half, single_header
from multiseg.store.formats.text_header import is_metaimage, is_nrrd
from multiseg.store.formats.text_image import bytes_of_data, read_text_image, text_geometry
from multiseg.store.formats.volumes import Geometry, Volume, check_extent

DICOM_MAGIC = b"DICM"
HEAD_BYTES = 1 << 18
"""The most that a header needs of its file, compressed or not."""
NIFTI_BYTES = 348
"""The shortest header of a format that is compressed as a whole."""
MAX_LAYERS = 4
"""How many layers of gzip are removed."""


def read_volume(file: ScanFile) -> Volume:
    """Read one 3-D volume with finite values. The format is recognised by content, not by name.

    Raises:
        SourceError: the file is missing, damaged, of an unsupported format, not 3-D, in colour, not finite, or has a
            singular affine. `code` says which.
    """
    with one_file(paths_of(file)[0]):
        return _volume(file)


def read_geometry(file: ScanFile) -> Geometry:
    """Read the geometry of a volume from its header alone, without its voxels.

    Raises:
        SourceError: the file is missing, damaged, of an unsupported format or not 3-D, or its size does not match its
            header.
    """
    path = paths_of(file)[0]
    with one_file(path):
        geometry = _geometry(file)
        check_extent(path, geometry)
        return geometry


def _volume(file: ScanFile) -> Volume:
    geometry = read_geometry(file)  # checks the header before the rest is read
    if isinstance(file, Series):
        return _read_series(file)
    path, index = _path_and_index(file)
    if is_nifti_zarr(path):
        return _read_zarr(path, index, part_of(file))
    raw, _ = _read_head(path, -1)
    # DICOM begins with a preamble of 128 arbitrary bytes.
    if raw[128:132] == DICOM_MAGIC:
        return _read_series(Series((path,)))
    digests = [hashlib.sha256(raw).hexdigest()]
    digests += [hashlib.sha256(bytes_of_data(path, other)).hexdigest() for other in further_files(path, raw)]
    sha256 = joined_sha256(digests, part_of(file))
    max_bytes = geometry.start + geometry.file_bytes + SPARE_BYTES
    data, layers = _decompress(path, raw, max_bytes)
    # A single-file NIfTI may be named .img or .hdr too.
    if not is_nifti(data) and (other := other_half(path)) is not None:
        data, layers = _join_halves(path, data, layers, other, max_bytes)
    if is_nifti(data):
        volume = read_nifti(path, data, sha256, index)
    elif is_mgh(data):
        volume = read_mgh(path, data, sha256, index)
    else:
        _check_text(path, data, layers)
        volume = read_text_image(path, data, sha256, index)
    return volume if layers < 2 else replace(volume, doubts=(_nested_gzip(path, layers), *volume.doubts))


def _geometry(file: ScanFile) -> Geometry:
    if isinstance(file, Series):
        return _series_geometry(file)
    path, index = _path_and_index(file)
    if is_nifti_zarr(path):
        disk_bytes = sum(one.stat().st_size for one in files_of(path))
        return replace(nifti_geometry(path, open_nifti_zarr(path).header, index), disk_bytes=disk_bytes)
    head, num_bytes = _read_head(path)
    if head[128:132] == DICOM_MAGIC:
        return _series_geometry(Series((path,)))
    other = other_half(path)
    data, layers = _decompress_head(path, head, 0 if other is not None else NIFTI_BYTES)
    if other is not None and not is_nifti(data):
        return _pair_geometry(path, other, index)
    if not (is_nifti(data) or is_mgh(data)):
        _check_text(path, data, layers)
        return text_geometry(path, data, num_bytes, index)
    raw_bytes = None if layers else num_bytes
    if is_nifti(data):
        geometry = nifti_geometry(path, data, index, raw_bytes)
        face = smallest_face(geometry.shape, geometry.bytes_a_voxel)
    else:
        geometry, face = mgh_geometry(path, data, index, raw_bytes), 0
    if layers == 1:
        check_gzip_length(path, geometry.start + geometry.file_bytes, face)
    return replace(geometry, disk_bytes=num_bytes)


def _read_zarr(path: Path, index: int | None, part: str) -> Volume:
    image = open_nifti_zarr(path)
    volume = read_nifti(path, read_bytes(path, image), joined_sha256([sha256_of_folder(path)], part), index)
    if not missing_chunks(image):
        return volume
    return replace(volume, doubts=(*volume.doubts, ("MISSING_CHUNKS", missing_text(path, image))))


def _join_halves(path: Path, data: bytes, layers: int, other: Path, max_bytes: int) -> tuple[bytes, int]:
    """The single file with the content of a pair, and the layers of gzip around the half that has more."""
    if not other.exists():
        raise missing_half(path, other)
    other_data, other_layers = _decompress(other, _read_head(other, -1)[0], max_bytes)
    single = join_pair(path, data, other_data) if is_header(path) else join_pair(other, other_data, data)
    return single, max(layers, other_layers)


def _pair_geometry(path: Path, other: Path, index: int | None) -> Geometry:
    if not other.exists():
        raise missing_half(path, other)
    header, voxels = (path, other) if is_header(path) else (other, path)
    head, offset = single_header(header, _decompress_head(header, _read_head(header)[0])[0])
    start, num_bytes = _read_head(voxels)
    is_gzip = start[:2] == GZIP_MAGIC
    geometry = nifti_geometry(path, head, index, None if is_gzip else len(head) + num_bytes - offset)
    if is_gzip and gunzip_head(start, 2) != GZIP_MAGIC:
        check_gzip_length(voxels, offset + geometry.file_bytes, smallest_face(geometry.shape, geometry.bytes_a_voxel))
    return replace(geometry, disk_bytes=num_bytes)


def _path_and_index(file: Path | Channel) -> tuple[Path, int | None]:
    return (file.path, file.index) if isinstance(file, Channel) else (file, None)


def _read_series(series: Series) -> Volume:
    from multiseg.store.formats.dicom_series import read_series

    return read_series(series)


def _series_geometry(series: Series) -> Geometry:
    from multiseg.store.formats.dicom_series import series_geometry

    return series_geometry(series)


def _check_text(path: Path, data: bytes, layers: int) -> None:
    """Check that a file is MetaImage or NRRD, the last formats left.

    Raises:
        SourceError: it is neither, or compressed as a whole.
    """
    is_text = is_nrrd(data) or is_metaimage(data)
    if is_text and not layers:
        return
    if is_pair(data):
        what = (
            "is half of a NIfTI or Analyze pair (.hdr and .img). Convert the two into one file, for instance with: "
            f"nib-convert {path.stem}.hdr {path.stem}.nii.gz"
        )
    elif is_text:
        what = "is a MetaImage or NRRD file in gzip. Decompress it first: these formats compress their own voxels."
    else:
        what = (
            f"is not a NIfTI, MGH, MetaImage, NRRD or DICOM file (it begins with {data[:4]!r}). "
            "Export the scan as .nii.gz."
        )
    raise SourceError(f"{path} {what}", code="NOT_NIFTI", file=str(path))


def _nested_gzip(path: Path, layers: int) -> tuple[str, str]:
    return "DOUBLE_GZIP", f"{path.name} is compressed {layers} times with gzip. Other programs may not read it."


def _read_head(path: Path, num_bytes: int = HEAD_BYTES) -> tuple[bytes, int]:
    """The first bytes of a file, and its size. -1 bytes are all."""
    if path.exists() and not path.is_file():  # reading from a pipe or a device could wait forever
        message = f"{path} is a folder, a pipe or a device, not a file. Give the file of the scan."
        raise SourceError(message, code="UNREADABLE_FILE", file=str(path))
    try:
        with path.open("rb") as file:
            return file.read(num_bytes), path.stat().st_size
    except FileNotFoundError as error:
        raise SourceError(f"{path} does not exist.", code="MISSING_FILE", file=str(path)) from error
    except OSError as error:
        check_machine(error)
        message = f"{path} cannot be read: {error.strerror}. Check the path and its permissions."
        raise SourceError(message, code="UNREADABLE_FILE", file=str(path)) from error


def _decompress(path: Path, raw: bytes, max_bytes: int) -> tuple[bytes, int]:
    """The content of a file, at most `max_bytes` long, and the layers of gzip that were removed."""
    data, layers = raw, 0
    try:
        while data[:2] == GZIP_MAGIC and layers < MAX_LAYERS:
            data, layers = gunzip(data, max_bytes), layers + 1
    except DAMAGE as error:
        message = f"{path} is a truncated or damaged gzip file ({len(raw)} bytes): {error}. Copy it again."
        raise SourceError(message, code="DAMAGED_FILE", file=str(path)) from error
    return data, layers


def _decompress_head(path: Path, head: bytes, least: int = NIFTI_BYTES) -> tuple[bytes, int]:
    """As `_decompress`, given only the first bytes of a file. The result must have `least` bytes."""
    data, layers = head, 0
    try:
        while data[:2] == GZIP_MAGIC and layers < MAX_LAYERS:
            data, layers = gunzip_head(data, HEAD_BYTES), layers + 1
    except zlib.error as error:
        message = f"{path} is a truncated or damaged gzip file: {error}. Copy it again."
        raise SourceError(message, code="DAMAGED_FILE", file=str(path)) from error
    if layers and len(data) < least:
        message = f"{path} is a truncated or damaged gzip file: its header is not whole. Copy it again."
        raise SourceError(message, code="DAMAGED_FILE", file=str(path))
    return data, layers
