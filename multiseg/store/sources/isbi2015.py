"""ISBI 2015, the longitudinal multiple-sclerosis challenge: several visits of a person, two raters, no consensus.

https://smart-stats-tools.org/lesion-challenge - training01/{orig,preprocessed}/training01_02_flair_pp.nii is person 01
at visit 02, with masks/training01_02_mask1.nii and mask2; the test set's masks are kept by the organisers.
"""

from __future__ import annotations

import re

from multiseg.store.findings import Finding, Severity
from multiseg.store.sources.annotations import schema_for
from multiseg.store.sources.folder import SUFFIX, Folder
from multiseg.store.sources.layout import Layout
from multiseg.store.sources.model import Found, Role, SourceOptions

SEQUENCES = {"flair": "FLAIR", "mprage": "T1", "t2": "T2", "pd": "PD"}
PREPROCESSED, ORIGINAL = "preprocessed", "orig"

_FILE = re.compile(
    r"(?:[^/]+/)*(?P<person>(?P<set>training|test)\d+)/(?P<stage>orig|preprocessed|masks)/"
    rf"(?P=person)_(?P<visit>\d+)_(?:(?P<scan>flair|mprage|t2|pd)(?:_pp)?|mask(?P<rater>\d)){SUFFIX}"
)


def _recognise(folder: Folder) -> str:
    matches = folder.fitting(_FILE)
    people = sorted({match["person"] for match in matches})
    visits = {(match["person"], match["visit"]) for match in matches}
    return f"{len(people)} people such as {people[0]} with {len(visits)} visits" if people else ""


def _find(folder: Folder, options: SourceOptions) -> Found:
    matches = folder.fitting(_FILE)
    stages = {match["stage"] for match in matches if match["scan"]}
    stage = PREPROCESSED if PREPROCESSED in stages else ORIGINAL
    roles = [_role(folder, match) for match in matches if match["rater"] or match["stage"] == stage]
    raters = sorted({role.name for role in roles if role.kind == "label"})
    used = {role.file for role in roles}
    return Found(
        name=folder.name,
        folder=folder,
        roles=roles,
        schemas={rater: schema_for(rater, "") for rater in raters},
        pathology="multiple sclerosis",
        required=raters,
        may_lack_labels={role.case for role in roles if role.fields.get("split") == "test"},
        unused=[file for file in folder.volumes if folder.path(file) not in used],
        findings=_which_stage(stages, options.name or folder.name),
        source="ISBI 2015",
    )


def _role(folder: Folder, match: re.Match[str]) -> Role:
    case, file = f"{match['person']}_{match['visit']}", folder.path(match[0])
    fields = {"subject": match["person"], "session": match["visit"]}
    if match["set"] == "test":
        fields["split"] = "test"
    if match["rater"]:
        return Role(case, "label", f"rater{match['rater']}", file, fields)
    return Role(case, "image", SEQUENCES[match["scan"]], file, fields)


def _which_stage(stages: set[str], database: str) -> tuple[Finding, ...]:
    if not {PREPROCESSED, ORIGINAL} <= stages:
        return ()
    message = (
        f"images are those of {PREPROCESSED}/ (without skull, on the masks' grid); {ORIGINAL}/ is not used. To take "
        f"it, leave {PREPROCESSED}/ out of the folder."
    )
    return (Finding(Severity.NOTE, "STAGE", database, "", "", message),)


CHALLENGE = Layout("isbi2015", "ISBI 2015 longitudinal MS", _recognise, _find)
