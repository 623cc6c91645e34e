"""Write a segmentation as DICOM SEG, each of whose frames refers to the image that it was drawn on.

Patient and study are those of the source images, as a PACS needs to file the segmentation; new UIDs are made from
random UUIDs. https://dicom.nema.org/medical/dicom/current/output/chtml/part03/sect_A.51.html
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from multiseg.errors import UsageError
from multiseg.files import write_atomically
from multiseg.store.formats.colour_tables import LabelRow
from multiseg.store.formats.dicom_source import SegSource, unusable
from multiseg.store.formats.segment_codes import BRAIN, Concept, codes_of
from multiseg.store.formats.volumes import voxel_size_mm

LONGEST = 64
"""Characters in a name of DICOM."""


@dataclass(frozen=True)
class Algorithm:
    """Who made a segmentation: the name of the model, or of several, and the SHA-256 of each one's file."""

    model: str
    sha256: tuple[str, ...] = ()


def check_installed() -> None:
    """Raise UsageError if the packages for DICOM SEG are missing."""
    try:
        import highdicom  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"--dicom-seg needs packages that are not installed ({error}). Install them in the folder of multiseg "
            "with: pip install '.[dicom]'."
        ) from error


def write_dicom_seg(
    path: Path, labels: UInt8[np.ndarray, "i j k"], rows: Sequence[LabelRow], source: SegSource, algorithm: Algorithm
) -> None:
    """Write a segmentation as DICOM SEG (binary, one segment for each structure), and read it back from its bytes.

    Args:
        labels: on the source's grid (see `turned`).
        rows: what its numbers mean; background is not written.

    Raises:
        SourceError: the source's headers do not allow it.
    """
    import highdicom

    frames = np.ascontiguousarray(labels.T[source.ranks])
    try:
        seg = _segmentation(frames, [row for row in rows if row.kind], source, algorithm)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise unusable(
            source.series, f"cannot be the source of a DICOM SEG ({error}). Give the original series"
        ) from error
    data = io.BytesIO()
    seg.save_as(data)
    data.seek(0)
    written = highdicom.seg.segread(data)
    if not np.array_equal(_read_back(written, source), frames):
        raise AssertionError(f"{path} would not hold the segmentation that was made")
    write_atomically(path, data.getvalue())


def _read_back(seg: Any, source: SegSource) -> UInt8[np.ndarray, "frame row column"]:
    """The numbers in a SEG, in the order of the source's frames."""
    options = {"combine_segments": True, "assert_missing_frames_are_empty": True, "dtype": np.uint8}
    first = source.headers[0]
    if "PerFrameFunctionalGroupsSequence" in first:
        frames = list(range(1, len(source.ranks) + 1))
        found = seg.get_pixels_by_source_frame(first.SOPInstanceUID, frames, **options)
    else:
        found = seg.get_pixels_by_source_instance([one.SOPInstanceUID for one in source.headers], **options)
    return np.asarray(found, dtype=np.uint8)


def _segmentation(
    frames: UInt8[np.ndarray, "frame row column"], rows: Sequence[LabelRow], source: SegSource, algorithm: Algorithm
) -> Any:
    import highdicom
    from pydicom.uid import generate_uid

    first = source.headers[0]
    column_mm, row_mm, _ = voxel_size_mm(source.affine)
    return highdicom.seg.Segmentation(
        source_images=source.headers,
        pixel_array=frames,
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[_description(row, algorithm) for row in rows],
        series_instance_uid=generate_uid(prefix=None),
        series_number=int(first.get("SeriesNumber") or 0) + 1000,
        sop_instance_uid=generate_uid(prefix=None),
        instance_number=1,
        manufacturer="multiseg",
        manufacturer_model_name=algorithm.model[:LONGEST],
        software_versions=version("multiseg"),
        device_serial_number=algorithm.sha256[0] if len(algorithm.sha256) == 1 else "none",
        content_label="MULTISEG",
        content_description=f"Segmentation by multiseg {version('multiseg')}"[:LONGEST],
        series_description=f"multiseg {algorithm.model}"[:LONGEST],
        pixel_measures=highdicom.PixelMeasuresSequence(
            pixel_spacing=(row_mm, column_mm),
            slice_thickness=source.spacing_mm,
            spacing_between_slices=source.spacing_mm,
        ),
    )


def _description(row: LabelRow, algorithm: Algorithm) -> Any:
    import highdicom
    from pydicom.sr.codedict import codes

    category, kind = codes_of(row.name, row.kind)
    return highdicom.seg.SegmentDescription(
        segment_number=row.number,
        segment_label=" ".join(row.name.split())[:LONGEST],
        segmented_property_category=_coded(category),
        segmented_property_type=_coded(kind),
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name=f"multiseg: {algorithm.model}"[:LONGEST],
            family=codes.DCM.ArtificialIntelligence,
            version=version("multiseg"),
            source="multiseg",
            parameters={"model_sha256": ", ".join(algorithm.sha256)} if algorithm.sha256 else None,
        ),
        anatomic_regions=[_coded(BRAIN)] if row.kind == "lesion" else None,
        display_color=highdicom.color.CIELabColor.from_rgb(*bytes.fromhex(row.colour[1:])),
    )


def _coded(concept: Concept) -> Any:
    import highdicom

    return highdicom.sr.CodedConcept(concept.value, "SCT", concept.meaning)
