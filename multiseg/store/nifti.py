"""NIfTI files: read whole and checked, turned to RAS+, and written back on their own grid."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from multiseg.errors import SourceError
from multiseg.files import write_atomically
from multiseg.store.volumes import Volume, axis_codes, same_grid
from multiseg.types import Affine, Array, Voxels

_TOWARDS = {"L": "left", "R": "right", "P": "back", "A": "front", "I": "feet", "S": "head"}


def read_nifti(path: Path, data: bytes, sha256: str, index: int | None = None) -> Volume:
    """The volume in a NIfTI file's bytes (not compressed any more); `index` picks one of a 4-D file.

    Raises:
        SourceError: as `reading.read_volume`.
    """
    image = _parse(path, data)
    voxels = _voxels(path, image, len(data), index)
    affine, doubts = _affine(path, image)
    doubts = _repairs(path, image, data) + doubts
    return Volume(voxels, affine, bytes(image.header.binaryblock), sha256, path, doubts)


def _parse(path: Path, data: bytes) -> nib.Nifti1Image | nib.Nifti2Image:
    kind = {b"n+1\0": nib.Nifti1Image}.get(data[344:348]) or {b"n+2\0": nib.Nifti2Image}.get(data[4:8])
    try:
        if kind is not None:
            return kind.from_bytes(data)
    except (ImageFileError, HeaderDataError, WrapStructError, ValueError) as error:
        message = f"{path} has a NIfTI header that cannot be read: {error}. Copy or export it again."
        raise SourceError(message, code="DAMAGED_FILE", file=str(path)) from error
    message = f"{path} is no NIfTI file (its first bytes are {data[:4]!r}). Give .nii or .nii.gz files."
    raise SourceError(message, code="NOT_NIFTI", file=str(path))


def _repairs(path: Path, image: nib.Nifti1Image | nib.Nifti2Image, data: bytes) -> tuple[tuple[str, str], ...]:
    """What nibabel mended in the header without a word to us, such as a form code that does not exist."""
    faults = type(image.header).diagnose_binaryblock(data[: image.header.sizeof_hdr])
    # A vox_offset that SPM dislikes hurts nobody here.
    lines = [line for line in faults.splitlines() if "SPM" not in line]
    said = f"{path.name}: its header was mended while reading ({'; '.join(lines)}). Check its place in space."
    return (("HEADER_REPAIRED", said),) if lines else ()


def _voxels(path: Path, image: nib.Nifti1Image | nib.Nifti2Image, num_bytes: int, index: int | None) -> Voxels:
    if image.get_data_dtype().fields is not None:
        message = f"{path} holds colours (RGB), not intensities. Give the original greyscale image."
        raise SourceError(message, code="COLOUR_IMAGE", file=str(path))
    # Before memory is asked for: a damaged header may claim any size.
    needed = int(image.dataobj.offset) + math.prod(map(int, image.shape)) * image.get_data_dtype().itemsize
    if needed > num_bytes:
        message = f"{path} is shorter than its header says: {num_bytes} of {needed} bytes. Copy it again."
        raise SourceError(message, code="DAMAGED_FILE", file=str(path))
    try:
        voxels = np.asanyarray(image.dataobj)
    except (OSError, ValueError, EOFError) as error:
        message = f"{path}: its voxels cannot be read ({error}). Copy it again."
        raise SourceError(message, code="DAMAGED_FILE", file=str(path)) from error
    while voxels.ndim > 3 and voxels.shape[-1] == 1:
        voxels = voxels[..., 0]
    if index is not None:
        if voxels.ndim != 4 or index >= voxels.shape[3]:
            message = f"{path} has shape {image.shape} and so no volume number {index}. Is its description of it right?"
            raise SourceError(message, code="NO_SUCH_VOLUME", file=str(path))
        voxels = voxels[..., index]
    if voxels.ndim != 3 or 0 in voxels.shape:
        message = f"{path} has shape {image.shape}; a volume of one sequence is 3-D. Split it into 3-D files."
        raise SourceError(message, code="NOT_3D", file=str(path))
    if np.iscomplexobj(voxels):
        message = f"{path} holds complex numbers. Give the magnitude image."
        raise SourceError(message, code="COMPLEX_IMAGE", file=str(path))
    if voxels.dtype != np.uint8:
        with np.errstate(over="ignore"):
            voxels = voxels.astype(np.float32, copy=False)
    if not np.isfinite(voxels).all():
        count = int(np.count_nonzero(~np.isfinite(voxels)))
        message = f"{path} holds {count} voxels that are NaN or infinite in float32. Repair or export it again."
        raise SourceError(message, code="NOT_FINITE", file=str(path))
    return np.asarray(voxels)


def _affine(path: Path, image: nib.Nifti1Image | nib.Nifti2Image) -> tuple[Affine, tuple[tuple[str, str], ...]]:
    header = image.header
    sform, sform_code = header.get_sform(coded=True)
    doubts: list[tuple[str, str]] = []
    try:
        qform, qform_code = header.get_qform(coded=True)
    except (ValueError, HeaderDataError):
        qform, qform_code = None, 0
    if sform_code and qform_code and not same_grid(sform, qform, image.shape[:3]):
        doubts.append(("SFORM_QFORM", f"{path.name}: sform and qform disagree; the sform is used. Check the header."))
    affine = np.asarray(image.affine, dtype=np.float64)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-6:
        message = f"{path} has an affine that is no mapping to space: {affine.tolist()}. Repair its header."
        raise SourceError(message, code="BAD_AFFINE", file=str(path))
    if not sform_code and not qform_code:
        towards = ", ".join(_TOWARDS[code] for code in axis_codes(affine))
        doubts.append(
            (
                "NO_ORIENTATION",
                f"{path.name}: no orientation in the header (sform and qform codes are 0); its axes are taken to "
                f"run towards {towards}, so left and right may be swapped. Check it against the patient.",
            )
        )
    return affine, tuple(doubts)


def write_nifti(path: Path, array: Array, affine: Affine) -> None:
    """Write a new NIfTI file in the array's own dtype, whole or not at all."""
    image = nib.Nifti1Image(array, affine, dtype=array.dtype)
    image.header.set_xyzt_units("mm")
    _write_image(path, image)


def write_like(path: Path, array: Array, header: bytes) -> None:
    """Write an array on the grid of the file that `header` came from: its sform, qform, units and codes.

    The array's dtype replaces the header's; intensity scaling, display range and extensions do not
    apply to an answer and are left out.
    """
    kind = nib.Nifti2Image if len(header) == nib.Nifti2Header.sizeof_hdr else nib.Nifti1Image
    own = kind.header_class(header, check=False)
    image = kind(array, own.get_best_affine(), header=own)
    image.header.set_data_dtype(array.dtype)
    image.header.set_slope_inter(1, 0)
    image.header["cal_max"] = image.header["cal_min"] = 0
    _write_image(path, image)


def _write_image(path: Path, image: nib.Nifti1Image | nib.Nifti2Image) -> None:
    data = image.to_bytes()
    if path.name.endswith(".gz"):
        data = gzip.compress(data, compresslevel=6, mtime=0)
    write_atomically(path, data)
