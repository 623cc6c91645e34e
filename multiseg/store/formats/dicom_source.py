"""The DICOM images that a segmentation refers to: where each of them is, and whether they show the same as a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from jaxtyping import Int
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

from multiseg.errors import SourceError
from multiseg.store.border import one_file
from multiseg.store.cases import Series
from multiseg.store.formats.dicom_elements import check_elements
from multiseg.store.formats.dicom_series import (
    IMAGE_TYPE,
    ORIENTATION,
    PHOTOMETRIC,
    PIXEL_SPACING,
    POSITION,
    Slice,
    arrange,
    read_slice,
    restore_locale,
)
from multiseg.store.formats.volumes import Volume, apart_mm, same_grid, voxel_size_mm
from multiseg.types import Affine, Array, Index3

NEEDED = (
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"),
    *("Modality", "Rows", "Columns"),
)
MAY_BE_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("AccessionNumber", "StudyID", "StudyDate", "StudyTime"),
)
"""What a SEG has to have, but perhaps without a value, as after removal of the patient's name."""
SAME_IMAGE = 0.9
"""The least correlation of two images that may be one image before and after a correction of its intensities."""


@dataclass(frozen=True, eq=False)
class SegSource:
    """The images that a segmentation refers to.

    Attributes:
        headers: one dataset of pydicom for each file, without voxels.
        ranks: for each frame, in the order of the files, its place along the third axis of the volume.
        affine: of the volume, to RAS+ millimetres.
        spacing_mm: between slices.
    """

    series: Series
    headers: tuple[Any, ...]
    ranks: Int[np.ndarray, " frame"]
    affine: Affine
    shape: Index3

    @property
    def spacing_mm(self) -> float:
        return voxel_size_mm(self.affine)[2]


def read_seg_source(series: Series) -> SegSource:
    """The images of a series: one file for each slice, or one file with all of them.

    Raises:
        SourceError: a file is missing or damaged, they do not form one volume, or lack what a SEG needs.
    """
    headers = tuple(_header(path) for path in series.files)
    frames = [frame for path, header in zip(series.files, headers, strict=True) for frame in _frames(path, header)]
    if len(frames) > len(headers) > 1:
        raise unusable(series, "has several files with many images each. Give a folder with one of them")
    ordered, affine = arrange(frames)
    place = {id(frame): rank for rank, frame in enumerate(ordered)}
    columns, rows = frames[0].size[:2]
    ranks = np.array([place[id(frame)] for frame in frames])
    return SegSource(series, headers, ranks, affine, (columns, rows, len(frames)))


def _header(path: Path) -> Any:
    import pydicom

    if not path.is_file():
        raise SourceError(f"{path} does not exist.", code="MISSING_FILE", file=str(path))
    with one_file(path):
        check_elements(path)
        header = pydicom.dcmread(path, stop_before_pixels=True)
    if missing := [name for name in NEEDED if header.get(name) in (None, "")]:
        message = f"{path} lacks {', '.join(missing)}, which a DICOM SEG has to refer to. Give the original series."
        raise SourceError(message, code="INCOMPLETE_DICOM", file=str(path))
    for name in MAY_BE_EMPTY:
        if name not in header:
            setattr(header, name, None)
    return header


def _frames(path: Path, header: Any) -> list[Slice]:
    """Where the images of a file are: one, or those of its functional groups."""
    if "PerFrameFunctionalGroupsSequence" not in header:
        return [read_slice(path)]
    common = {PHOTOMETRIC: str(header.get("PhotometricInterpretation", ""))}
    common[IMAGE_TYPE] = "\\".join(header.get("ImageType", ()))
    shared = (header.get("SharedFunctionalGroupsSequence") or [{}])[0]
    fields = {
        POSITION: ("PlanePositionSequence", "ImagePositionPatient"),
        ORIENTATION: ("PlaneOrientationSequence", "ImageOrientationPatient"),
        PIXEL_SPACING: ("PixelMeasuresSequence", "PixelSpacing"),
    }
    frames = []
    for own in header.PerFrameFunctionalGroupsSequence:
        tags = dict(common)
        for tag, (group, name) in fields.items():
            holder = own if group in own else shared
            if group in holder:
                tags[tag] = "\\".join(map(str, holder[group].value[0].get(name) or ()))
        frames.append(Slice(path, tags, (int(header.Columns), int(header.Rows)), int(header.get("SamplesPerPixel", 1))))
    return frames


def turned(array: Array, affine: Affine, source: SegSource, what: str) -> Array:
    """An array with its axes permuted and flipped to those of the source.

    Args:
        what: the file on whose grid the array is, for messages.

    Raises:
        SourceError: the grids differ in more than the order and the direction of their axes.
    """
    axes = io_orientation(np.linalg.inv(source.affine) @ affine)
    if not np.isnan(axes).any():
        voxels = apply_orientation(array, axes)
        placed = affine @ inv_ornt_aff(axes, array.shape)
        if voxels.shape == source.shape and same_grid(placed, source.affine, source.shape):
            return np.ascontiguousarray(voxels)
        apart = f", and their corners are up to {apart_mm(placed, source.affine, source.shape):.3g} mm apart"
    else:
        apart = ""
    ours, theirs = (" x ".join(f"{mm:.4g}" for mm in voxel_size_mm(grid)) for grid in (affine, source.affine))
    raise SourceError(
        f"{what} does not have the voxels of the DICOM series {source.series.path}: it has {array.shape} voxels of "
        f"{ours} mm, the series {source.shape} of {theirs} mm{apart}. Give the series that it was converted from.",
        code="OTHER_GRID",
        file=str(source.series.path),
    )


def check_same_image(reference: Volume, source: SegSource) -> str:
    """Check that a file shows what a series shows. Returns a doubt if their intensities differ; "" if they do not.

    Voxels that are 0 in the file are not compared: outside a brain they are often removed.

    Raises:
        SourceError: the grids differ, or the images do.
    """
    ours = turned(reference.voxels, reference.affine, source, str(reference.path)).astype(np.float64)
    theirs = _voxels(source)
    inside = ours != 0
    ours, theirs = ours[inside], theirs[inside]
    if ours.size and np.allclose(ours, theirs, rtol=1e-3, atol=1e-3 * float(np.ptp(ours))):
        return ""
    spread = float(np.std(ours) * np.std(theirs)) if ours.size else 0.0
    correlation = float(np.corrcoef(ours, theirs)[0, 1]) if spread > 0 else 0.0
    where = f"{reference.path} and the DICOM series {source.series.path}"
    if correlation < SAME_IMAGE:
        message = (
            f"{where} are different images (their correlation is {correlation:.2f}), so the segmentation may be of "
            "another patient. Give the series that the file was converted from."
        )
        raise SourceError(message, code="OTHER_IMAGE", file=str(source.series.path))
    return (
        f"the intensities of {where} differ (their correlation is {correlation:.3f}), as after a bias correction. "
        "Check that both are the same image of the same patient."
    )


def _voxels(source: SegSource) -> Array:
    """The voxels on the source's grid, as float64."""
    frames = []
    for path in source.series.files:
        reader = SimpleITK.ImageFileReader()
        reader.SetImageIO("GDCMImageIO")
        reader.SetFileName(str(path))
        reader.SetOutputPixelType(SimpleITK.sitkFloat64)
        try:
            with restore_locale():
                stored = SimpleITK.GetArrayFromImage(reader.Execute())
        except RuntimeError as error:
            message = f"{path}: its voxels cannot be read. Copy or export it again."
            raise SourceError(message, code="DAMAGED_FILE", file=str(path)) from error
        frames += list(stored.reshape(-1, *stored.shape[-2:]))
    stack = np.empty(source.shape[::-1])
    stack[source.ranks] = frames
    return stack.T


def unusable(series: Series, why: str) -> SourceError:
    return SourceError(f"the DICOM series {series.path} {why}.", code="UNUSABLE_SERIES", file=str(series.path))
