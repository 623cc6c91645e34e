"""UCSF-PDGM: preoperative gliomas with SWI, DWI and ADC on the grid of the others.

https://doi.org/10.7937/tcia.bdgf-8v37 - `UCSF-PDGM-0004_nifti/UCSF-PDGM-0004_T1c.nii.gz`; a folder of a later scan
has FU and days in its name. Many of its patients are in BraTS 2021, too. Perfusion and diffusion tensors have no role.
"""

from __future__ import annotations

import re

from multiseg.store.sources.annotations import schema_for
from multiseg.store.sources.brats_codes import UNTIL_2021
from multiseg.store.sources.folder import SUFFIX, Folder
from multiseg.store.sources.layout import Layout
from multiseg.store.sources.model import Found, Role, SourceOptions, unused_volumes

ANNOTATION = "tumour"
_SEQUENCES = ("T1", "T1c", "T2", "FLAIR", "SWI", "DWI", "ADC")
# The images corrected for bias, "_T1_bias", are left out: they would be a second T1.
_FILE = re.compile(
    r"(?:.*/)?(?P<case>(?P<subject>UCSF-PDGM-\d+)(?:_(?P<session>FU\w+))?)_nifti/(?P=case)"
    rf"_(?P<what>{'|'.join(_SEQUENCES)}|tumor_segmentation|brain_segmentation){SUFFIX}"
)


def _recognise(folder: Folder) -> str:
    cases = {match["case"] for match in folder.fitting(_FILE)}
    return f"{len(cases)} folders such as {min(cases)}_nifti" if cases else ""


def _find(folder: Folder, options: SourceOptions) -> Found:
    roles = [_role(folder, match) for match in folder.fitting(_FILE)]
    return Found(
        name=folder.name,
        folder=folder,
        roles=roles,
        schemas={ANNOTATION: schema_for(ANNOTATION, UNTIL_2021)},
        pathology="glioma",
        required=(ANNOTATION,),
        unused=unused_volumes(folder, roles),
        source="UCSF-PDGM",
    )


def _role(folder: Folder, match: re.Match[str]) -> Role:
    fields = {"subject": match["subject"], "session": match["session"] or ""}
    case, what, file = match["case"], match["what"], folder.path(match[0])
    if what == "tumor_segmentation":
        return Role(case, "label", ANNOTATION, file, fields)
    if what == "brain_segmentation":
        return Role(case, "brain mask", "brain mask", file, fields)
    return Role(case, "image", what, file, fields)


LAYOUT = Layout("ucsf_pdgm", "UCSF-PDGM", _recognise, _find)
