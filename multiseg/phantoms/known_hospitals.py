"""The synthetic hospitals, and the form of their folders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from multiseg.phantoms.surfaces import Triple
from multiseg.phantoms.synthetic_head import Pathology


@dataclass(frozen=True)
class Scan:
    """A sequence as a hospital acquires it.

    Attributes:
        spacing_mm: along the axes of the file.
        tilt_deg: rotation of the grid about the left-right and the head-foot axis.
        absent_every: every n-th case lacks the scan; 0 if all have it.
    """

    modality: str
    spacing_mm: Triple
    spelling: str
    tilt_deg: tuple[float, float] = (0.0, 0.0)
    absent_every: int = 0


@dataclass(frozen=True)
class Annotation:
    """An annotation: its name, the pattern of its files, and the meaning of its codes."""

    name: str
    pattern: str
    codes: str


@dataclass(frozen=True)
class Hospital:
    """The form of one hospital's folder. Annotations are on the grid of the first scan."""

    name: str
    pathology: Pathology
    scans: tuple[Scan, ...]
    annotations: tuple[Annotation, ...]
    orientation: str
    pattern: str = "{case}/{modality}.nii.gz"
    background: Literal["head", "zero", "z-score", "raw"] = "zero"
    dtype: Literal["float32", "int16"] = "float32"
    brain_mask: str | None = None
    participants: str | None = None

    @property
    def modalities(self) -> tuple[str, ...]:
        """The canonical names of the sequences, in the order of the scans."""
        return tuple(scan.modality for scan in self.scans)


def _scans(spacing_mm: Triple, *spellings: tuple[str, str]) -> tuple[Scan, ...]:
    return tuple(Scan(modality, spacing_mm, spelling) for modality, spelling in spellings)


HOSPITALS: tuple[Hospital, ...] = (
    Hospital(
        name="alder",
        pathology="multiple sclerosis",
        scans=_scans((2.0, 2.0, 2.5), ("T1", "T1"), ("T2", "T2"), ("FLAIR", "FLAIR"), ("PD", "PD")),
        annotations=(
            Annotation("lesion", "{case}/lesion.nii.gz", "1=lesion"),
            Annotation("tissue", "{case}/tissue.nii.gz", "1=CSF,2=grey matter,3=white matter"),
        ),
        orientation="RAS",
    ),
    Hospital(
        name="birch",
        pathology="glioma",
        scans=_scans((2.0, 2.0, 2.0), ("FLAIR", "flair"), ("T1", "t1"), ("T1c", "t1ce"), ("T2", "t2")),
        annotations=(Annotation("seg", "{case}/seg.nii.gz", "1=necrosis,2=oedema,4=enhancing"),),
        orientation="LPS",
        background="z-score",
        brain_mask="{case}/brainmask.nii.gz",
    ),
    Hospital(
        name="cedar",
        pathology="ischaemic stroke",
        scans=(
            *_scans((2.5, 2.5, 2.5), ("DWI", "dwi"), ("ADC", "adc")),
            Scan("FLAIR", (1.5, 1.5, 5.0), "flair", tilt_deg=(12.0, 4.0), absent_every=3),
        ),
        annotations=(Annotation("lesion", "sub-{case}_lesion.nii.gz", "1=lesion"),),
        orientation="LAS",
        pattern="sub-{case}_{modality}.nii.gz",
        background="head",
    ),
    Hospital(
        name="dogwood",
        pathology="white matter hyperintensities",
        scans=_scans((2.2, 2.2, 3.0), ("T1", "T1w"), ("FLAIR", "FLAIR")),
        annotations=(Annotation("wmh", "labels/{case}.nii.gz", "1=lesion"),),
        orientation="PIR",
        pattern="images/{case}_{modality}.nii.gz",
        background="head",
        dtype="int16",
        participants="participants.csv",
    ),
)
"""The hospitals that are written by default."""

MORE_HOSPITALS: tuple[Hospital, ...] = (
    Hospital(
        name="elm",
        pathology="chronic stroke",
        scans=_scans((2.0, 2.0, 2.0), ("T1", "T1w")),
        annotations=(Annotation("lesion", "{case}/lesion.nii.gz", "1=lesion"),),
        orientation="LPI",
    ),
    Hospital(
        name="fir",
        pathology="chronic stroke",
        scans=_scans((2.4, 2.4, 2.4), ("FLAIR", "flair"), ("T1", "t1"), ("T2", "t2")),
        annotations=(Annotation("lesion", "{case}/lesion.nii.gz", "1=lesion"),),
        orientation="RAS",
    ),
    Hospital(
        name="gorse",
        pathology="glioma",
        scans=_scans((2.2, 2.2, 2.2), ("T1", "T1")),
        annotations=(Annotation("tumour", "{case}_tumour.nii.gz", "1=necrosis,2=oedema,4=enhancing"),),
        orientation="RPI",
        pattern="{case}_{modality}.nii.gz",
    ),
    Hospital(
        name="hazel",
        pathology="healthy",
        scans=_scans((2.0, 2.0, 2.0), ("T1", "T1w")),
        annotations=(Annotation("tissue", "{case}/tissue.nii.gz", "1=CSF,2=grey matter,3=white matter"),),
        orientation="RAS",
    ),
    Hospital(
        name="ivy",
        pathology="glioma",
        scans=_scans((2.0, 2.0, 2.2), ("T1", "t1"), ("FLAIR", "flair"), ("T1c", "t1ce"), ("T2", "t2")),
        annotations=(
            Annotation("seg", "{case}/seg.nii.gz", "1=necrosis,2=oedema,4=enhancing"),
            Annotation("tissue", "{case}/tissue.nii.gz", "1=CSF,2=grey matter,3=white matter"),
        ),
        orientation="LPS",
    ),
)
"""Written only if named: a pathology with T1 alone, two hospitals with sets of sequences that no other has, and two for
anatomy: healthy heads, and gliomas with the tissues as they are under the lesion."""
