"""MSLesSeg: multiple sclerosis at several time points, each patient's in MNI space.

https://doi.org/10.1038/s41597-025-05250-y - in train/P1/T1/P1_T1_FLAIR.nii.gz the first T1 is the time point, the last
word the sequence. Test patients have a single visit and no folder for it.
"""

from __future__ import annotations

import re

from multiseg.store.sources.annotations import DEFAULT_ANNOTATION, schema_for
from multiseg.store.sources.folder import SUFFIX, Folder
from multiseg.store.sources.layout import Layout
from multiseg.store.sources.model import Found, Role, SourceOptions

_FILE = re.compile(
    r"(?P<path>(?:[^/]+/)*)(?P<patient>P\d+)/(?:T(?P<visit>\d+)/)?"
    rf"(?P=patient)(?:_T(?P<again>\d+))?_(?P<what>FLAIR|T1|T2|MASK){SUFFIX}"
)


def _matches(folder: Folder) -> list[re.Match[str]]:
    return [match for match in folder.fitting(_FILE) if match["visit"] == match["again"]]


def _recognise(folder: Folder) -> str:
    matches = _matches(folder)
    patients = sorted({match["patient"] for match in matches})
    visits = {(match["patient"], match["visit"]) for match in matches}
    return f"{len(patients)} patients such as {patients[0]} with {len(visits)} visits" if patients else ""


def _find(folder: Folder, options: SourceOptions) -> Found:
    roles = [_role(folder, match) for match in _matches(folder)]
    used = {role.file for role in roles}
    return Found(
        name=folder.name,
        folder=folder,
        roles=roles,
        schemas={DEFAULT_ANNOTATION: schema_for(DEFAULT_ANNOTATION, "")},
        pathology="multiple sclerosis",
        required=(DEFAULT_ANNOTATION,),
        unused=[file for file in folder.volumes if folder.path(file) not in used],
        source="MSLesSeg",
    )


def _role(folder: Folder, match: re.Match[str]) -> Role:
    patient, visit = match["patient"], match["visit"]
    # Not "P1_T1": that would read as a sequence once more.
    case = f"{patient}_time{visit}" if visit else patient
    fields = {"subject": patient, "session": f"T{visit}" if visit else ""}
    if "test" in (folder.name.lower(), *match["path"].lower().split("/")):
        fields["split"] = "test"
    if match["what"] == "MASK":
        return Role(case, "label", DEFAULT_ANNOTATION, folder.path(match[0]), fields)
    return Role(case, "image", match["what"], folder.path(match[0]), fields)


CHALLENGE = Layout("mslesseg", "MSLesSeg", _recognise, _find)
