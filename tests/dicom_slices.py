"""DICOM series of tiny slices, written by pydicom: one file a slice, or one file with all of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

MR, ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.4.1"
TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def _image(sop_class: str, voxels: np.ndarray, study: str, **fields: object) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = sop_class, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    image.SOPClassUID, image.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    image.StudyInstanceUID, image.Modality, image.SeriesNumber = study, "MR", 7
    image.PatientID, image.PatientName, image.StudyDate = "P7", "Doe^Jane", "20240102"
    image.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND"]
    image.PhotometricInterpretation, image.SamplesPerPixel = "MONOCHROME2", 1
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 0
    image.Columns, image.Rows = voxels.shape[:2]
    image.PixelData = np.ascontiguousarray(voxels.T.astype("<u2")).tobytes()
    for name, value in fields.items():
        setattr(image, name, value)
    return image


def _place(affine: np.ndarray, k: int) -> tuple[list[float], list[float], list[float]]:
    """Position, orientation and pixel spacing of slice k, with the 10 digits that scanners write."""
    lps = TO_LPS @ affine
    sizes = np.linalg.norm(lps[:3, :3], axis=0)
    position = (lps @ [0, 0, k, 1])[:3]
    axes = [*(lps[:3, 0] / sizes[0]), *(lps[:3, 1] / sizes[1])]
    return *([float(f"{number:.10g}") for number in numbers] for numbers in (position, axes)), [
        float(f"{sizes[1]:.10g}"),
        float(f"{sizes[0]:.10g}"),
    ]


def write_slices(
    folder: Path,
    voxels: np.ndarray,
    affine: np.ndarray,
    order: Sequence[int] | None = None,
    start: int = 0,
    **fields: object,
) -> list[str]:
    """Write the slices of a volume in this order of their files, numbered from `start`; the UID of each slice k."""
    folder.mkdir(parents=True, exist_ok=True)
    study, frame, series = generate_uid(), generate_uid(), generate_uid()
    uids = [""] * voxels.shape[2]
    for number, k in enumerate(order if order is not None else range(voxels.shape[2]), start):
        image = _image(MR, voxels[:, :, k], study, FrameOfReferenceUID=frame, SeriesInstanceUID=series, **fields)
        image.ImagePositionPatient, image.ImageOrientationPatient, image.PixelSpacing = _place(affine, k)
        image.SliceThickness, image.InstanceNumber = 1.0, number + 1
        image.save_as(folder / f"{number:03}.dcm", enforce_file_format=True)
        uids[k] = str(image.SOPInstanceUID)
    return uids


def write_frames(path: Path, voxels: np.ndarray, affine: np.ndarray, order: Sequence[int]) -> str:
    """Write all slices in this order as the frames of one file; its SOP instance UID."""
    image = _image(ENHANCED_MR, voxels[:, :, list(order)], generate_uid(), FrameOfReferenceUID=generate_uid())
    image.SeriesInstanceUID, image.NumberOfFrames, image.InstanceNumber = generate_uid(), len(order), 1
    measures, orientation, shared = Dataset(), Dataset(), Dataset()
    _, orientation.ImageOrientationPatient, measures.PixelSpacing = _place(affine, 0)
    measures.SliceThickness = 1.0
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    image.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for k in order:
        position, frame = Dataset(), Dataset()
        position.ImagePositionPatient = _place(affine, k)[0]
        frame.PlanePositionSequence = [position]
        frames.append(frame)
    image.PerFrameFunctionalGroupsSequence = frames
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save_as(path, enforce_file_format=True)
    return str(image.SOPInstanceUID)


def read(path: Path) -> pydicom.Dataset:
    return pydicom.dcmread(path)
