"""DICOM series: sort slices by position, check them for gaps, and read them as one volume with ITK."""

from __future__ import annotations

import hashlib
import locale
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import SimpleITK
from jaxtyping import Float

from multiseg.errors import SourceError
from multiseg.store.border import one_file
from multiseg.store.cases import Series, joined_sha256
from multiseg.store.formats.dicom_elements import check_elements
from multiseg.store.formats.nifti import new_header
from multiseg.store.formats.volumes import Geometry, Volume, is_mapping
from multiseg.store.formats.voxels import as_voxels, refuse_colours
from multiseg.types import Affine

POSITION, ORIENTATION, PIXEL_SPACING = "0020|0032", "0020|0037", "0028|0030"
PHOTOMETRIC, BITS, IMAGE_TYPE = "0028|0004", "0028|0100", "0008|0008"
PLACE_TAGS = (POSITION, ORIENTATION, PIXEL_SPACING, PHOTOMETRIC, BITS, IMAGE_TYPE)
OUT_OF_PLACE_MM = 0.1
"""The most that a slice may deviate from even spacing; or a tenth of the spacing, if that is less."""
SAME_DIRECTION = 1e-3
"""Direction cosines that differ by less than this are equal."""
_FAULTS = {
    "MULTI_FRAME": "has {num_frames} frames in one file, and multiseg cannot tell their order. Convert it to NIfTI "
    "(with dcm2niix), or export one file per slice.",
    "MOSAIC": "shows many slices side by side (a mosaic). Convert it to NIfTI (with dcm2niix).",
    "INVERTED_IMAGE": "shows high values dark (MONOCHROME1). Export it as MONOCHROME2.",
    "NO_POSITION": "gives no position, orientation or pixel spacing, as is usual for screen captures. Give the "
    "original slices.",
}
"""Why an image cannot be a slice, by the code of the error."""
_locale_lock = threading.Lock()
_num_readers = 0
_locale_before = ""
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class Place:
    """The position of a slice, in LPS millimetres.

    Attributes:
        position: of its first voxel.
        axes: the directions of i, of j and across the slices, as rows.
        spacing_mm: the voxel size along i and j. (DICOM's PixelSpacing gives j first.)
    """

    position: Float[np.ndarray, 3]
    axes: Float[np.ndarray, "3 3"]
    spacing_mm: Float[np.ndarray, 2]


@dataclass(frozen=True, eq=False)
class Slice:
    """The header of one DICOM file: text fields by "group|element", and the size of its image."""

    path: Path
    tags: Mapping[str, str]
    size: tuple[int, ...]
    num_components: int

    @cached_property
    def place(self) -> Place | None:
        """The position of the slice; None if the header does not give it."""
        position = _numbers(self.tags.get(POSITION, ""), 3)
        axes = _numbers(self.tags.get(ORIENTATION, ""), 6)
        spacing = _numbers(self.tags.get(PIXEL_SPACING, ""), 2)
        if position is None or axes is None or spacing is None:
            return None
        directions = np.stack([axes[:3], axes[3:], np.cross(axes[:3], axes[3:])])
        return Place(position, directions, spacing[::-1])


def read_slice(path: Path, tags: Sequence[str] = (), private: bool = False) -> Slice:
    """Read a DICOM header: the position and the tags asked for, nothing else, since headers name patients.

    Args:
        private: `tags` include private tags of manufacturers.

    Raises:
        SourceError: the file is missing or damaged, or is not an image.
    """
    if not path.is_file():
        raise SourceError(f"{path} does not exist.", code="MISSING_FILE", file=str(path))
    with one_file(path):
        check_elements(path)
        return _read_header(path, tags, private)


def _read_header(path: Path, tags: Sequence[str], private: bool) -> Slice:
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)  # our own error says what is wrong
    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    reader.SetLoadPrivateTags(private)
    try:
        with restore_locale():
            reader.ReadImageInformation()
    except RuntimeError as error:
        message = f"{path} is damaged or not a DICOM image. Copy or export it again."
        raise SourceError(message, code="DAMAGED_FILE", file=str(path)) from error
    present = [key for key in (*PLACE_TAGS, *tags) if reader.HasMetaDataKey(key)]
    fields = {key: _clean(reader.GetMetaData(key)) for key in present}
    return Slice(path, fields, tuple(reader.GetSize()), reader.GetNumberOfComponents())


@contextmanager
def restore_locale() -> Iterator[None]:
    """Restore the locale: GDCM sets that of the whole process to "C", in which text with accents cannot be decoded.

    Of threads that read at once, the first keeps the locale and the last restores it: a second one would keep GDCM's.
    """
    global _num_readers, _locale_before
    with _locale_lock:
        if not _num_readers:
            _locale_before = locale.setlocale(locale.LC_ALL)
        _num_readers += 1
    try:
        yield
    finally:
        with _locale_lock:
            _num_readers -= 1
            if not _num_readers:
                locale.setlocale(locale.LC_ALL, _locale_before)


def read_series(series: Series) -> Volume:
    """Read the volume of a DICOM series, in any order of its files. Slopes are applied slice by slice.

    Raises:
        SourceError: as `read_volume`; or the slices do not form one volume, or some are missing.
    """
    slices, affine = arrange([read_slice(path) for path in series.files])
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in series.files]
    reader = SimpleITK.ImageSeriesReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileNames([str(piece.path) for piece in slices])
    # Otherwise ITK uses the type of the first slice for all, whatever their slopes.
    reader.SetOutputPixelType(SimpleITK.sitkFloat32)
    try:
        with restore_locale():
            stored = SimpleITK.GetArrayFromImage(reader.Execute()).T
    except RuntimeError as error:
        message = f"{series.path}: the voxels of its {len(slices)} slices cannot be read. Copy or export them again."
        raise SourceError(message, code="DAMAGED_FILE", file=str(series.path)) from error
    voxels = as_voxels(series.path, stored)
    columns, rows = slices[0].size[:2]
    header = new_header((columns, rows, len(slices)), affine, stored.dtype)
    return Volume(voxels, affine, header, joined_sha256(digests), slices[0].path)


def series_geometry(series: Series) -> Geometry:
    """The geometry of a series from the headers of its first and last file, assuming that its files are in order."""
    # Only two headers are read here; `arrange` checks all when the voxels are read.
    ends = [read_slice(path) for path in dict.fromkeys((series.files[0], series.files[-1]))]
    _check_alike(ends)
    _check_number(series.path, len(series.files))
    ends, offsets = _sorted_by_offset(ends)
    if offsets[-1] <= 0:
        raise _same_position(ends[0], ends[-1])
    bits = _numbers(ends[0].tags.get(BITS, "16"), 1)
    columns, rows = ends[0].size[:2]
    shape = (columns, rows, len(series.files))
    return Geometry(shape, _affine(ends, len(series.files)), 2 if bits is None else max(1, int(bits[0]) // 8))


def arrange(slices: Sequence[Slice]) -> tuple[list[Slice], Affine]:
    """Sort the slices of one volume by position; returns them with the affine.

    Raises:
        SourceError: they are in colour, differ in size or direction, share a position, or are not evenly spaced.
    """
    _check_alike(slices)
    _check_number(slices[0].path.parent, len(slices))
    ordered, offsets = _sorted_by_offset(slices)
    gaps = np.diff(offsets)
    typical = float(np.median(gaps))
    narrowest = int(gaps.argmin())
    if gaps[narrowest] < max(1e-3, 0.1 * typical):
        raise _same_position(ordered[narrowest], ordered[narrowest + 1])
    _check_even(ordered, gaps)
    affine = _affine(ordered, len(ordered))
    if not is_mapping(affine):
        message = f"{slices[0].path}: the affine of its series is not invertible: {affine.tolist()}. Export it again."
        raise SourceError(message, code="BAD_AFFINE", file=str(slices[0].path))
    return ordered, affine


def _check_image(piece: Slice) -> None:
    image_type = piece.tags.get(IMAGE_TYPE, "").upper().split("\\")
    photometric = piece.tags.get(PHOTOMETRIC, "").upper()
    if piece.num_components > 1 or photometric.startswith(("RGB", "YBR", "PALETTE")):
        raise refuse_colours(piece.path)
    is_present = {
        "MULTI_FRAME": len(piece.size) > 2 and piece.size[2] > 1,
        "MOSAIC": "MOSAIC" in image_type,
        "INVERTED_IMAGE": photometric == "MONOCHROME1",
        "NO_POSITION": piece.place is None,
    }
    for code, text in _FAULTS.items():
        if is_present[code]:
            message = f"{piece.path} {text.format(num_frames=piece.size[-1])}"
            raise SourceError(message, code=code, file=str(piece.path))


def _check_alike(slices: Sequence[Slice]) -> None:
    """Check that all slices are of a kind that can be read, and that they form one volume."""
    for piece in slices:
        _check_image(piece)
    first = slices[0]
    place = _place(first)
    for piece in slices:
        other = _place(piece)
        if np.abs(other.axes - place.axes).max() > SAME_DIRECTION:
            message = (
                f"{first.path} and {piece.path} differ in direction, as the slices of a localiser do. "
                "They do not form one volume."
            )
            raise SourceError(message, code="MIXED_ORIENTATIONS", file=str(piece.path))
        if piece.size[:2] != first.size[:2] or not np.allclose(other.spacing_mm, place.spacing_mm, rtol=1e-3):
            message = (
                f"{first.path} has {first.size[:2]} voxels of {place.spacing_mm} mm, but {piece.path} has "
                f"{piece.size[:2]} of {other.spacing_mm} mm. Put them into two series."
            )
            raise SourceError(message, code="MIXED_SLICES", file=str(piece.path))


def _check_number(path: Path, num_slices: int) -> None:
    if num_slices < 2:
        message = f"{path}: a series of one slice is not a volume. Are the other slices missing?"
        raise SourceError(message, code="NOT_3D", file=str(path))


def _sorted_by_offset(slices: Sequence[Slice]) -> tuple[list[Slice], Float[np.ndarray, " slice"]]:
    across = _place(slices[0]).axes[2]
    offsets = np.array([_place(piece).position @ across for piece in slices])
    order = np.argsort(offsets, kind="stable")
    return [slices[index] for index in order], offsets[order] - offsets.min()


def _check_even(slices: Sequence[Slice], gaps: Float[np.ndarray, " gap"]) -> None:
    """Check that the slices are evenly spaced from first to last, and not shifted within their plane."""
    positions = np.stack([_place(piece).position for piece in slices])
    fractions = np.linspace(0, 1, len(slices))[:, None]
    expected = positions[0] + fractions * (positions[-1] - positions[0])
    deviations = np.abs(positions - expected).max(axis=1)
    typical = float(np.median(gaps))
    if deviations.max() <= min(OUT_OF_PLACE_MM, 0.1 * typical):
        return
    widest = int(gaps.argmax())
    missing = round(float((gaps / typical - 1).clip(min=0).round().sum()))
    total = len(slices) + missing
    what = f"{missing} of {total} slices seem to be missing" if missing else f"its {total} slices are not evenly spaced"
    before = slices[widest].path
    message = (
        f"{slices[0].path.parent}: {what}; the widest gap is {gaps[widest]:.3g} mm, after {before.name}, and the usual "
        f"gap is {typical:.3g} mm. Export the whole series again."
    )
    raise SourceError(message, code="MISSING_SLICES", file=str(before))


def _same_position(first: Slice, second: Slice) -> SourceError:
    message = (
        f"{first.path} and {second.path} have the same position: a slice is there twice, or the series has several "
        "volumes. Keep one copy of each slice, or export each volume as its own series."
    )
    return SourceError(message, code="DUPLICATE_SLICES", file=str(second.path))


def _affine(slices: Sequence[Slice], num_slices: int) -> Affine:
    """The affine, from the positions of the first and the last of `num_slices` slices."""
    first, last = _place(slices[0]), _place(slices[-1])
    lps = np.eye(4)
    lps[:3, :2] = (first.axes[:2] * first.spacing_mm[:, None]).T
    lps[:3, 2] = (last.position - first.position) / (num_slices - 1)
    lps[:3, 3] = first.position
    return _LPS_TO_RAS @ lps


def _place(piece: Slice) -> Place:
    assert piece.place is not None
    return piece.place


def _numbers(text: str, count: int) -> Float[np.ndarray, " number"] | None:
    """Numbers separated by backslashes; None if their count is wrong or one is not finite."""
    try:
        numbers = np.array([float(part) for part in text.split("\\")])
    except ValueError:
        return None
    return numbers if len(numbers) == count and np.isfinite(numbers).all() else None


def _clean(text: str) -> str:
    """Remove padding; text that is not UTF-8 is decoded as Latin-1, the next most common character set."""
    raw = text.encode("utf-8", errors="surrogateescape")
    try:
        decoded = raw.decode("utf-8")
    except UnicodeDecodeError:
        decoded = raw.decode("latin-1")
    return "".join(letter for letter in decoded if letter.isprintable()).strip()
