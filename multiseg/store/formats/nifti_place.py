"""Where a NIfTI header says its volume lies: two forms that may contradict each other, and units.

The rule, for files whose header names more than one place:

- A form whose code is 0 says nothing. One that is singular, not finite or no rotation says nothing either, and
  the other one is used (BAD_SFORM, BAD_QFORM).
- Where both forms are good and put a corner of the volume 0.1 mm or more apart, the sform is used (SFORM_QFORM).
- Without any form the axes run towards left, front and head, as NIfTI has it for old files (NO_ORIENTATION).
- Metres and micrometres become millimetres (UNITS); units that are not named are millimetres.
- A voxel size that is 0, negative or no number is never mended.
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
"""Millimetres of the units of space that are not millimetres, by their NIfTI code: metres and micrometres."""
UNIT_NAMES = {1: "metres", 3: "micrometres"}
_TOWARDS = {"L": "left", "R": "right", "P": "back", "A": "front", "I": "feet", "S": "head"}


@dataclass(frozen=True, eq=False)
class Place:
    """A volume's place in space; `header` says it too, without a form that was found to be bad."""

    affine: Affine
    header: nib.Nifti1Header
    doubts: Doubts


def place_of(path: Path, header: nib.Nifti1Header, shape: Index3, pixdim: tuple[float, ...]) -> Place:
    """The place of a volume by the rule above.

    Args:
        pixdim: the voxel size as the file has it: `header` has been mended.

    Raises:
        SourceError: the header places it nowhere.
    """
    if not all(0 < mm < np.inf for mm in pixdim):
        sizes = " x ".join(f"{mm:g}" for mm in pixdim)
        message = f"{path} has voxels of {sizes} mm by its header (pixdim). Repair it from the original scan."
        raise SourceError(message, code="BAD_AFFINE", file=str(path))
    unit = int(header["xyzt_units"]) % 8
    scale = np.diag([MM_OF.get(unit, 1.0)] * 3 + [1.0])
    sform, qform = _form(header, "sform", scale), _form(header, "qform", scale)
    if sform is not None or qform is not None:
        affine, doubts, kept = _chosen(path, header, sform, qform, shape)
    else:
        affine, kept = scale @ np.asarray(header.get_base_affine(), dtype=np.float64), header
        doubts = (_no_orientation(path, affine),)
    if not is_mapping(affine):
        message = (
            f"{path} has an affine that is no mapping to space: {affine.tolist()}. Are its units micrometres? Repair "
            "its header."
        )
        raise SourceError(message, code="BAD_AFFINE", file=str(path))
    return Place(affine, kept, (*_units(path, unit, affine), *doubts))


def _form(header: nib.Nifti1Header, name: str, scale: Affine) -> Affine | None:
    """A form in millimetres; None where its code is 0, and not a number where it says nothing."""
    if int(header[f"{name}_code"]) == 0:
        return None
    try:
        form = header.get_sform() if name == "sform" else header.get_qform()
    except (ValueError, HeaderDataError):  # a quaternion longer than 1
        return np.full((4, 4), np.nan)
    return scale @ np.asarray(form, dtype=np.float64)


def _chosen(
    path: Path, header: nib.Nifti1Header, sform: Affine | None, qform: Affine | None, shape: Index3
) -> tuple[Affine, Doubts, nib.Nifti1Header]:
    if sform is None or qform is None:
        only = qform if sform is None else sform
        assert only is not None
        return only, (), header
    for name, bad, good in (("sform", sform, qform), ("qform", qform, sform)):
        if not is_mapping(bad) and is_mapping(good):
            other = "qform" if name == "sform" else "sform"
            said = f"{path.name}: its {name} is no mapping to space; the {other} is used. Check the header."
            kept = header.copy()
            kept[f"{name}_code"] = 0  # or the answer would go home to it
            return good, ((f"BAD_{name.upper()}", said),), kept
    apart = apart_mm(sform, qform, shape)
    if apart < AFFINE_TOLERANCE_MM:
        return sform, (), header
    axes = [axis_codes(form) if is_mapping(form) else "" for form in (sform, qform)]
    turned = f", and their axes run {axes[0]} and {axes[1]}, so one of them swaps sides" if axes[0] != axes[1] else ""
    said = f"{path.name}: sform and qform disagree by {apart:.3g} mm{turned}; the sform is used. Check the header."
    return sform, (("SFORM_QFORM", said),) if is_mapping(sform) else (), header


def _units(path: Path, unit: int, affine: Affine) -> Doubts:
    if unit not in UNIT_NAMES:
        return ()
    sizes = " x ".join(f"{mm:.4g}" for mm in voxel_size_mm(affine))
    said = f"{path.name}: its header counts in {UNIT_NAMES[unit]}, so voxels are taken to be {sizes} mm. Is that so?"
    return (("UNITS", said),)


def _no_orientation(path: Path, affine: Affine) -> tuple[str, str]:
    return "NO_ORIENTATION", no_orientation(path, affine, "no orientation in the header (sform and qform codes are 0)")


def no_orientation(path: Path, affine: Affine, why: str) -> str:
    """What to say of a volume of which only a convention tells left from right."""
    towards = ", ".join(_TOWARDS[code] for code in axis_codes(affine))
    return (
        f"{path.name}: {why}; its axes are taken to run towards {towards}, so left and right may be swapped. "
        "Check it against the patient."
    )
