"""DICOM series: slices put in order by where they lie, checked for gaps, and read as one volume through ITK."""

from __future__ import annotations

import hashlib
import locale
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
"""A slice may lie this far from where even spacing puts it, or a tenth of the spacing where that is less."""
SAME_DIRECTION = 1e-3
"""Direction cosines that differ by less are the same."""
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class Place:
    """A slice in space, in LPS millimetres: its first voxel, the directions of i, j and of the slices as rows, and
    the voxel size along i and j (of which DICOM names j, that of the rows, first)."""

    position: Float[np.ndarray, 3]
    axes: Float[np.ndarray, "3 3"]
    spacing_mm: Float[np.ndarray, 2]


@dataclass(frozen=True, eq=False)
class Slice:
    """The header of one DICOM file: some text fields by "group|element", and the size of its image."""

    path: Path
    tags: Mapping[str, str]
    size: tuple[int, ...]
    num_components: int

    @cached_property
    def place(self) -> Place | None:
        """Where it lies; None where its header does not say so."""
        position = _numbers(self.tags.get(POSITION, ""), 3)
        axes = _numbers(self.tags.get(ORIENTATION, ""), 6)
        spacing = _numbers(self.tags.get(PIXEL_SPACING, ""), 2)
        if position is None or axes is None or spacing is None:
            return None
        directions = np.stack([axes[:3], axes[3:], np.cross(axes[:3], axes[3:])])
        return Place(position, directions, spacing[::-1])


def read_slice(path: Path, tags: Sequence[str] = (), private: bool = False) -> Slice:
    """A DICOM file's header: where it lies, and nothing else of it than these tags; patients have names.

    Args:
        private: manufacturers' own tags are among them.

    Raises:
        SourceError: the file is missing, damaged, or no image.
    """
    if not path.is_file():
        raise SourceError(f"{path} does not exist.", code="MISSING_FILE", file=str(path))
    with one_file(path):
        check_elements(path)
        return _read_header(path, tags, private)


def _read_header(path: Path, tags: Sequence[str], private: bool) -> Slice:
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)  # we say ourselves what is wrong
    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    reader.SetLoadPrivateTags(private)
    try:
        with _locale_kept():
            reader.ReadImageInformation()
    except RuntimeError as error:
        message = f"{path} is damaged or no DICOM image. Copy or export it again."
        raise SourceError(message, code="DAMAGED_FILE", file=str(path)) from error
    present = [key for key in (*PLACE_TAGS, *tags) if reader.HasMetaDataKey(key)]
    said = {key: _clean(reader.GetMetaData(key)) for key in present}
    return Slice(path, said, tuple(reader.GetSize()), reader.GetNumberOfComponents())


@contextmanager
def _locale_kept() -> Iterator[None]:
    """GDCM sets the whole process to the locale "C", in which texts with accents cannot be read any more."""
    before = locale.setlocale(locale.LC_ALL)
    try:
        yield
    finally:
        locale.setlocale(locale.LC_ALL, before)


def read_series(series: Series) -> Volume:
    """The volume of a DICOM series, whatever the order of its files; slopes are applied slice by slice.

    Raises:
        SourceError: as `reading.read_volume`; or its slices are no one volume, or some are missing.
    """
    slices, affine = arranged([read_slice(path) for path in series.files])
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in series.files]
    reader = SimpleITK.ImageSeriesReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileNames([str(one.path) for one in slices])
    # The first slice's type would be that of all, whatever their slopes.
    reader.SetOutputPixelType(SimpleITK.sitkFloat32)
    try:
        with _locale_kept():
            stored = SimpleITK.GetArrayFromImage(reader.Execute()).T
    except RuntimeError as error:
        message = f"{series.path}: the voxels of its {len(slices)} slices cannot be read. Copy or export them again."
        raise SourceError(message, code="DAMAGED_FILE", file=str(series.path)) from error
    voxels = as_voxels(series.path, stored)
    header = new_header(_shape(slices), affine, stored.dtype)
    return Volume(voxels, affine, header, joined_sha256(digests), slices[0].path)


def series_geometry(series: Series) -> Geometry:
    """What the headers of a series' first and last file say, if its files are in order."""
    ends = [read_slice(path) for path in dict.fromkeys((series.files[0], series.files[-1]))]
    for one in ends:
        _check_image(one)
    _check_alike(ends)
    _check_number(series.path, len(series.files))
    ends, offsets = _in_order(ends)
    if offsets[-1] <= 0:
        raise _same_place(ends[0], ends[-1])
    bits = _numbers(ends[0].tags.get(BITS, "16"), 1)
    columns, rows = ends[0].size[:2]
    shape = (columns, rows, len(series.files))
    return Geometry(shape, _affine(ends, len(series.files)), 2 if bits is None else max(1, int(bits[0]) // 8))


def arranged(slices: Sequence[Slice]) -> tuple[list[Slice], Affine]:
    """The slices of one volume in their order in space, and its affine.

    Raises:
        SourceError: they are in colour, of several sizes or directions, in one place twice, or not evenly spaced.
    """
    for one in slices:
        _check_image(one)
    _check_alike(slices)
    _check_number(slices[0].path.parent, len(slices))
    ordered, offsets = _in_order(slices)
    gaps = np.diff(offsets)
    typical = float(np.median(gaps))
    at = int(gaps.argmin())
    if gaps[at] < max(1e-3, 0.1 * typical):
        raise _same_place(ordered[at], ordered[at + 1])
    _check_even(ordered, gaps)
    affine = _affine(ordered, len(ordered))
    if not is_mapping(affine):
        message = f"{slices[0].path}: its series has no mapping to space: {affine.tolist()}. Export it again."
        raise SourceError(message, code="BAD_AFFINE", file=str(slices[0].path))
    return ordered, affine


def _check_image(one: Slice) -> None:
    kinds = one.tags.get(IMAGE_TYPE, "").upper().split("\\")
    light = one.tags.get(PHOTOMETRIC, "").upper()
    if one.num_components > 1 or light.startswith(("RGB", "YBR", "PALETTE")):
        raise refuse_colours(one.path)
    faults = {
        "MULTI_FRAME": (
            len(one.size) > 2 and one.size[2] > 1,
            f"holds {one.size[-1]} frames in one file, of which multiseg cannot tell the order. "
            "Make NIfTI of it (dcm2niix does), or export it as one file a slice.",
        ),
        "MOSAIC": ("MOSAIC" in kinds, "holds many slices side by side (a mosaic). Make NIfTI of it; dcm2niix does."),
        "INVERTED_IMAGE": (
            light == "MONOCHROME1",
            "shows high values dark (MONOCHROME1). Export it as MONOCHROME2.",
        ),
        "NO_POSITION": (
            one.place is None,
            "does not say where it lies (no position, orientation or pixel spacing), as screen captures do not. "
            "Give the original slices.",
        ),
    }
    for code, (is_so, said) in faults.items():
        if is_so:
            raise SourceError(f"{one.path} {said}", code=code, file=str(one.path))


def _check_alike(slices: Sequence[Slice]) -> None:
    first = slices[0]
    place = _place(first)
    for one in slices:
        own = _place(one)
        if np.abs(own.axes - place.axes).max() > SAME_DIRECTION:
            message = f"{first.path} and {one.path} are cut in two directions, as localisers are: no one volume."
            raise SourceError(message, code="MIXED_ORIENTATIONS", file=str(one.path))
        if one.size[:2] != first.size[:2] or not np.allclose(own.spacing_mm, place.spacing_mm, rtol=1e-3):
            message = (
                f"{first.path} has {first.size[:2]} voxels of {place.spacing_mm} mm and {one.path} {one.size[:2]} of "
                f"{own.spacing_mm} mm: no one volume. Put them into two series."
            )
            raise SourceError(message, code="MIXED_SLICES", file=str(one.path))


def _check_number(path: Path, number: int) -> None:
    if number < 2:
        message = f"{path}: a series of one slice is no volume. Is the rest of it missing?"
        raise SourceError(message, code="NOT_3D", file=str(path))


def _in_order(slices: Sequence[Slice]) -> tuple[list[Slice], Float[np.ndarray, " slice"]]:
    across = _place(slices[0]).axes[2]
    offsets = np.array([_place(one).position @ across for one in slices])
    order = np.argsort(offsets, kind="stable")
    return [slices[at] for at in order], offsets[order] - offsets.min()


def _check_even(slices: Sequence[Slice], gaps: Float[np.ndarray, " gap"]) -> None:
    """Every slice must lie where even spacing between the first and the last puts it, in the plane, too."""
    places = np.stack([_place(one).position for one in slices])
    shares = np.linspace(0, 1, len(slices))[:, None]
    apart = np.abs(places - (places[0] + shares * (places[-1] - places[0]))).max(axis=1)
    typical = float(np.median(gaps))
    if apart.max() <= min(OUT_OF_PLACE_MM, 0.1 * typical):
        return
    at = int(gaps.argmax())
    number = round(float((gaps / typical - 1).clip(min=0).round().sum()))
    where = f"the widest gap is {gaps[at]:.3g} mm, after {slices[at].path.name}, where {typical:.3g} mm are usual"
    what = f"{number} slices seem to be missing" if number else "its slices are not evenly spaced"
    message = f"{slices[0].path.parent}: {what} of {len(slices) + number}; {where}. Export the whole series again."
    raise SourceError(message, code="MISSING_SLICES", file=str(slices[at].path))


def _same_place(one: Slice, two: Slice) -> SourceError:
    message = (
        f"{one.path} and {two.path} lie at the same place: a slice that is there twice, or several volumes "
        "in one series. Keep one of each, or export the volumes as series of their own."
    )
    return SourceError(message, code="DUPLICATE_SLICES", file=str(two.path))


def _affine(slices: Sequence[Slice], number: int) -> Affine:
    """From the positions of the first and the last of `number` slices."""
    first, last = _place(slices[0]), _place(slices[-1])
    lps = np.eye(4)
    lps[:3, :2] = (first.axes[:2] * first.spacing_mm[:, None]).T
    lps[:3, 2] = (last.position - first.position) / (number - 1)
    lps[:3, 3] = first.position
    return _LPS_TO_RAS @ lps


def _place(one: Slice) -> Place:
    assert one.place is not None
    return one.place


def _shape(slices: Sequence[Slice]) -> tuple[int, int, int]:
    columns, rows = slices[0].size[:2]
    return columns, rows, len(slices)


def _numbers(text: str, count: int) -> Float[np.ndarray, " number"] | None:
    """Numbers with backslashes between them; None where there are not as many, or not finite."""
    try:
        numbers = np.array([float(part) for part in text.split("\\")])
    except ValueError:
        return None
    return numbers if len(numbers) == count and np.isfinite(numbers).all() else None


def _clean(text: str) -> str:
    """Without padding, and what is no UTF-8 read as Latin-1, the commonest other set."""
    raw = text.encode("utf-8", errors="surrogateescape")
    try:
        decoded = raw.decode("utf-8")
    except UnicodeDecodeError:
        decoded = raw.decode("latin-1")
    return "".join(letter for letter in decoded if letter.isprintable()).strip()
