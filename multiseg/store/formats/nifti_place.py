"""The affine of a NIfTI volume: its header has two forms, which may contradict each other, and units.

The rules, with the codes of their warnings:

- A form with code 0 is ignored. If one is singular, not finite or not a rotation, the other is used (BAD_SFORM,
  BAD_QFORM).
- If both are valid but place a corner of the volume 0.1 mm or more apart, the sform is used (SFORM_QFORM).
- Without a form, the axes run towards left, front and head, as NIfTI defines for old files (NO_ORIENTATION).
- Metres and micrometres are converted to millimetres (UNITS); millimetres are assumed if no unit is given.
- A voxel size that is 0, negative or not a number is an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from multiseg.errors import SourceError
from multiseg.store.formats.volumes import AFFINE_TOLERANCE_MM, apart_mm, axis_codes, is_mapping, voxel_size_mm
from multiseg.types import Affine, Index3

Doubts: TypeAlias = tuple[tuple[str, str], ...]
MM_OF = {1: 1000.0, 3: 0.001}
"""Millimetres in each unit of length other than mm, by NIfTI code: metres and micrometres."""
UNIT_NAMES = {1: "metres", 3: "micrometres"}
_TOWARDS = {"L": "left", "R": "right", "P": "back", "A": "front", "I": "feet", "S": "head"}


@dataclass(frozen=True, eq=False)
class Placement:
    """The affine of a volume, the header without invalid forms, and warnings as (code, text)."""

    affine: Affine
    header: nib.Nifti1Header
    doubts: Doubts


def placement_of(path: Path, header: nib.Nifti1Header, shape: Index3, pixdim: tuple[float, ...]) -> Placement:
    """The affine of a volume by the rules above.

    Args:
        pixdim: the voxel size in the file; `header` has been repaired by nibabel.

    Raises:
        SourceError: the header gives no valid voxel size or affine.
    """
    if not all(0 < mm < np.inf for mm in pixdim):
        sizes = " x ".join(f"{mm:g}" for mm in pixdim)
        message = f"{path} has an invalid voxel size, {sizes} mm (pixdim). Repair its header from the original scan."
        raise SourceError(message, code="BAD_AFFINE", file=str(path))
    unit = int(header["xyzt_units"]) % 8
    scale = np.diag([MM_OF.get(unit, 1.0)] * 3 + [1.0])
    sform, qform = _form(header, "sform", scale), _form(header, "qform", scale)
    if sform is not None or qform is not None:
        affine, doubts, cleaned = _choose_form(path, header, sform, qform, shape)
    else:
        affine, cleaned = scale @ np.asarray(header.get_base_affine(), dtype=np.float64), header
        why = "no orientation in the header (sform and qform codes are 0)"
        doubts = (("NO_ORIENTATION", no_orientation(path, affine, why)),)
    if not is_mapping(affine):
        message = (
            f"{path} has an affine that is not invertible: {affine.tolist()}. Are its units micrometres? Repair "
            "its header."
        )
        raise SourceError(message, code="BAD_AFFINE", file=str(path))
    return Placement(affine, cleaned, (*_units(path, unit, affine), *doubts))


def _form(header: nib.Nifti1Header, name: str, scale: Affine) -> Affine | None:
    """A form in millimetres; None if its code is 0, and NaN if it is invalid."""
    if int(header[f"{name}_code"]) == 0:
        return None
    try:
        form = header.get_sform() if name == "sform" else header.get_qform()
    except (ValueError, HeaderDataError):  # a quaternion longer than 1
        return np.full((4, 4), np.nan)
    return scale @ np.asarray(form, dtype=np.float64)


def _choose_form(
    path: Path, header: nib.Nifti1Header, sform: Affine | None, qform: Affine | None, shape: Index3
) -> tuple[Affine, Doubts, nib.Nifti1Header]:
    if sform is None or qform is None:
        only = qform if sform is None else sform
        assert only is not None
        return only, (), header
    # If one form is invalid, use the other.
    for name, bad, other, good in (("sform", sform, "qform", qform), ("qform", qform, "sform", sform)):
        if not is_mapping(bad) and is_mapping(good):
            warning = f"{path.name}: its {name} is not invertible; the {other} is used. Check the header."
            cleaned = header.copy()
            cleaned[f"{name}_code"] = 0  # otherwise predictions would be written with it
            return good, ((f"BAD_{name.upper()}", warning),), cleaned
    distance_mm = apart_mm(sform, qform, shape)
    if distance_mm < AFFINE_TOLERANCE_MM:
        return sform, (), header
    axes = [axis_codes(form) if is_mapping(form) else "" for form in (sform, qform)]
    turned = f", with axes {axes[0]} and {axes[1]}, so one of them swaps sides" if axes[0] != axes[1] else ""
    warning = (
        f"{path.name}: sform and qform differ by {distance_mm:.3g} mm{turned}; the sform is used. Check the header."
    )
    return sform, (("SFORM_QFORM", warning),) if is_mapping(sform) else (), header


def _units(path: Path, unit: int, affine: Affine) -> Doubts:
    if unit not in UNIT_NAMES:
        return ()
    sizes = " x ".join(f"{mm:.4g}" for mm in voxel_size_mm(affine))
    warning = f"{path.name}: its header is in {UNIT_NAMES[unit]}, so its voxels are {sizes} mm. Is that right?"
    return (("UNITS", warning),)


def no_orientation(path: Path, affine: Affine, why: str) -> str:
    """The warning for a volume whose left and right are only a convention."""
    towards = ", ".join(_TOWARDS[code] for code in axis_codes(affine))
    return (
        f"{path.name}: {why}; its axes are assumed to run towards {towards}, so left and right may be swapped. "
        "Check it against the patient."
    )
