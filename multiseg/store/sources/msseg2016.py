"""MSSEG 2016: multiple sclerosis at four centres, seven raters and their consensus, in two releases.

https://shanoir.irisa.fr (MSSEG-Training, MSSEG-Testing) with Center_01/Patient_01/{Raw_Data,Preprocessed_Data,Masks};
before that a flat folder a patient, such as 01016SACH, whose first two digits are the centre.
"""

from __future__ import annotations

import re

from multiseg.store.findings import Finding, Severity
from multiseg.store.sources.annotations import DEFAULT_ANNOTATION, schema_for
from multiseg.store.sources.folder import SUFFIX, Folder
from multiseg.store.sources.layout import Layout
from multiseg.store.sources.model import Found, Role, SourceOptions

SEQUENCES = {"flair": "FLAIR", "t1": "T1", "gado": "T1c", "t1gado": "T1c", "t2": "T2", "dp": "PD"}
PREPROCESSED, RAW = "preprocessed_data", "raw_data"

_SCAN = r"(?P<scan>(?:3D)?(?:FLAIR|T1|T1GADO|GADO|T2|DP))(?:_preprocessed)?"
_MASK = r"(?P<mask>Consensus|ManualSegmentation_\d+|Brain_?Mask)"
_RELEASE = re.compile(
    rf"(?P<path>(?:[^/]+/)*)(?P<centre>Center_\w+)/(?P<patient>Patient_\w+)/"
    rf"(?:(?P<stage>Preprocessed_Data|Raw_Data)/{_SCAN}|Masks/{_MASK}){SUFFIX}",
    re.IGNORECASE,
)
_FLAT = re.compile(
    rf"(?P<path>(?:[^/]+/)*)(?P<patient>(?P<centre>\d\d)\d{{3}}[A-Z]{{4}})/(?:{_SCAN}|{_MASK}){SUFFIX}", re.IGNORECASE
)


def _recognise(folder: Folder) -> str:
    matches = _matches(folder)
    patients = sorted({_case(folder, match) for match in matches})
    has_labels = any(match["mask"] for match in matches)
    return f"{len(patients)} patients such as {patients[0]}" if patients and has_labels else ""


def _find(folder: Folder, options: SourceOptions) -> Found:
    matches = _matches(folder)
    stages = {(match.groupdict().get("stage") or "").lower() for match in matches if match["scan"]}
    stage = next((stage for stage in (PREPROCESSED, RAW) if stage in stages), "")
    roles = [
        _role(folder, match) for match in matches
        if match["mask"] or (match.groupdict().get("stage") or "").lower() == stage
    ]  # fmt: skip
    labels = dict.fromkeys(role.name for role in roles if role.kind == "label")
    used = {role.file for role in roles}
    return Found(
        name=folder.name,
        folder=folder,
        roles=roles,
        schemas={name: schema_for(name, "") for name in labels},
        pathology="multiple sclerosis",
        unused=[file for file in folder.volumes if folder.path(file) not in used],
        findings=_which_stage(stage, stages, options.name or folder.name),
        source="MSSEG 2016",
    )


def _matches(folder: Folder) -> list[re.Match[str]]:
    return folder.fitting(_RELEASE) or folder.fitting(_FLAT)


def _is_test(folder: Folder, match: re.Match[str]) -> bool:
    return "testing" in f"{folder.root.resolve()}/{match['path']}".lower()


def _case(folder: Folder, match: re.Match[str]) -> str:
    """The patients of both sets are counted from 1, so those of the test set are named for it."""
    name = match["patient"] if match.re is _FLAT else f"{match['centre']}_{match['patient']}"
    return f"Testing_{name}" if match.re is _RELEASE and _is_test(folder, match) else name


def _role(folder: Folder, match: re.Match[str]) -> Role:
    case, file = _case(folder, match), folder.path(match[0])
    fields = {"site": match["centre"]} | ({"split": "test"} if _is_test(folder, match) else {})
    if match["scan"]:
        return Role(case, "image", SEQUENCES[match["scan"].lower().removeprefix("3d")], file, fields)
    mask = match["mask"].lower()
    if mask.startswith("brain"):
        return Role(case, "brain mask", "brain mask", file, fields)
    rater = mask.partition("_")[2]
    return Role(case, "label", f"rater{rater}" if rater else DEFAULT_ANNOTATION, file, fields)


def _which_stage(stage: str, stages: set[str], database: str) -> tuple[Finding, ...]:
    if not {PREPROCESSED, RAW} <= stages:
        return ()
    message = (
        "images are those of Preprocessed_Data (denoised, without skull, bias corrected, on the FLAIR's grid); "
        "Raw_Data is not used. To take it, leave Preprocessed_Data out of the folder."
    )
    return (Finding(Severity.NOTE, "STAGE", database, "", "", message),)


RELEASES = Layout("msseg2016", "MSSEG 2016", _recognise, _find)
