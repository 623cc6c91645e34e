"""MRBrainS 2013 and 2018: tissues of older people drawn by hand, white-matter lesions among them.

https://mrbrains13.isi.uu.nl and https://mrbrains18.isi.uu.nl - in 2018 9 is infarction and 10 other pathology, which
count neither as tissue nor as the white-matter lesions that were looked for, so they are not to be looked at.
"""

from __future__ import annotations

import re

from multiseg.store.findings import Finding, Severity
from multiseg.store.sources.annotations import schema_for
from multiseg.store.sources.folder import SUFFIX, Folder
from multiseg.store.sources.layout import Layout
from multiseg.store.sources.model import Found, Role, SourceOptions

ANNOTATION = "tissue"
CODES_2013 = (
    "1=cortical grey matter,2=basal ganglia,3=white matter,4=lesion:WM lesion,5=CSF,6=ventricles,7=cerebellum,"
    "8=brainstem"
)
CODES_2018 = f"{CODES_2013},9=ignore,10=ignore"

_2013 = re.compile(
    r"(?:[^/]+/)*(?P<case>[^/]+)/"
    rf"(?P<what>T1|T1_IR|T2_FLAIR|T1_1mm|LabelsForTraining|LabelsForTesting){SUFFIX}"
)
_SCANS_2013 = {"T1": "T1", "T1_IR": "T1IR", "T2_FLAIR": "FLAIR"}
_2018 = re.compile(
    r"(?:[^/]+/)*(?P<case>[^/]+)/"
    rf"(?:(?P<stage>pre|orig)/(?P<what>reg_T1|reg_IR|FLAIR)|(?P<label>segm)){SUFFIX}"
)
_SCANS_2018 = {"reg_T1": "T1", "reg_IR": "T1IR", "FLAIR": "FLAIR"}


def _recognise_2013(folder: Folder) -> str:
    matches = folder.fitting(_2013)
    cases = sorted({match["case"] for match in matches if match["what"].startswith("LabelsFor")})
    return f"{len(cases)} folders such as {cases[0]} with LabelsForTraining or LabelsForTesting" if cases else ""


def _find_2013(folder: Folder, options: SourceOptions) -> Found:
    """T1_1mm is the T1 once more, in finer slices; LabelsForTesting are three tissues of the same drawing."""
    roles = []
    for match in folder.fitting(_2013):
        case, file = match["case"], folder.path(match[0])
        if match["what"] in _SCANS_2013:
            roles.append(Role(case, "image", _SCANS_2013[match["what"]], file))
        elif match["what"] == "LabelsForTraining":
            roles.append(Role(case, "label", ANNOTATION, file))
    labelled = {role.case for role in roles if role.kind == "label"}
    tests = {role.case for role in roles if "TestData" in str(role.file)} - labelled
    return _found(folder, roles, CODES_2013, "MRBrainS 2013", tests)


def _recognise_2018(folder: Folder) -> str:
    matches = folder.fitting(_2018)
    labelled = {match["case"] for match in matches if match["label"]}
    cases = sorted(labelled & {match["case"] for match in matches if match["what"]})
    return f"{len(cases)} folders such as {cases[0]} with segm and reg_T1" if cases else ""


def _find_2018(folder: Folder, options: SourceOptions) -> Found:
    matches = folder.fitting(_2018)
    stage = "pre" if any(match["stage"] == "pre" for match in matches) else "orig"
    roles = [
        Role(match["case"], "label", ANNOTATION, folder.path(match[0]))
        if match["label"] else Role(match["case"], "image", _SCANS_2018[match["what"]], folder.path(match[0]))
        for match in matches if match["label"] or match["stage"] == stage
    ]  # fmt: skip
    both = len({match["stage"] for match in matches if match["stage"]}) > 1
    message = "images are those of pre/ (bias corrected); orig/ is not used. To take it, leave pre/ out of the folder."
    notes = (Finding(Severity.NOTE, "STAGE", options.name or folder.name, "", "", message),) if both else ()
    return _found(folder, roles, CODES_2018, "MRBrainS 2018", set(), notes)


def _found(
    folder: Folder, roles: list[Role], codes: str, source: str, tests: set[str], notes: tuple[Finding, ...] = ()
) -> Found:
    used = {role.file for role in roles}
    return Found(
        name=folder.name,
        folder=folder,
        roles=roles,
        schemas={ANNOTATION: schema_for(ANNOTATION, codes)},
        pathology="white matter hyperintensities",
        required=(ANNOTATION,),
        may_lack_labels=tests,
        unused=[file for file in folder.volumes if folder.path(file) not in used],
        findings=notes,
        source=source,
    )


OF_2013 = Layout("mrbrains13", "MRBrainS 2013", _recognise_2013, _find_2013)
OF_2018 = Layout("mrbrains18", "MRBrainS 2018", _recognise_2018, _find_2018)
