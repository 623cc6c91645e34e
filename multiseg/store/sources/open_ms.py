"""Multiple sclerosis of the Ljubljana laboratory (MSLUB), as released and as the "open MS data" lay it out.

https://github.com/muschellij2/open_ms_data - cross_sectional/{raw,coregistered,coregistered_resampled}/patient01 hold
the same patients at three stages; in the original release names begin with patient01_. The longitudinal part marks
what changed between two visits, which is no label of all lesions, so it is not taken.
"""

from __future__ import annotations

import re

from multiseg.store.findings import Finding, Severity
from multiseg.store.sources.annotations import DEFAULT_ANNOTATION, schema_for
from multiseg.store.sources.folder import SUFFIX, Folder
from multiseg.store.sources.layout import Layout
from multiseg.store.sources.model import Found, Role, SourceOptions

SEQUENCES = {"FLAIR": "FLAIR", "T1W": "T1", "T1WKS": "T1c", "T2W": "T2"}
STAGES = ("coregistered_resampled", "coregistered", "raw")
"""The same patients at several stages of preparation; the first that is there is taken."""

_FILE = re.compile(
    r"(?P<path>(?:[^/]+/)*)(?P<case>patient\d+)/(?:(?P=case)_)?"
    rf"(?P<what>FLAIR|T1W|T1WKS|T2W|consensus_gt|brainmask){SUFFIX}"
)


def _matches(folder: Folder) -> list[re.Match[str]]:
    return [match for match in folder.fitting(_FILE) if "longitudinal" not in match["path"].split("/")]


def _recognise(folder: Folder) -> str:
    cases = sorted({match["case"] for match in _matches(folder) if match["what"] == "consensus_gt"})
    return f"{len(cases)} folders such as {cases[0]} with consensus_gt" if cases else ""


def _find(folder: Folder, options: SourceOptions) -> Found:
    matches = _matches(folder)
    stages = {_stage(match) for match in matches}
    stage = next((stage for stage in STAGES if stage in stages), "")
    roles = [_role(folder, match) for match in matches if _stage(match) == stage]
    used = {role.file for role in roles}
    return Found(
        name=folder.name,
        folder=folder,
        roles=roles,
        schemas={DEFAULT_ANNOTATION: schema_for(DEFAULT_ANNOTATION, "")},
        pathology="multiple sclerosis",
        required=(DEFAULT_ANNOTATION,),
        unused=[file for file in folder.volumes if folder.path(file) not in used],
        findings=_which_stage(stage, stages, options.name or folder.name),
        licence="CC-BY-4.0",
        citation="Lesjak et al. 2018, Neuroinformatics, doi:10.1007/s12021-017-9348-7",
        source="MSLUB",
    )


def _stage(match: re.Match[str]) -> str:
    return next((part for part in reversed(match["path"].split("/")) if part in STAGES), "")


def _role(folder: Folder, match: re.Match[str]) -> Role:
    what, file = match["what"], folder.path(match[0])
    if what == "consensus_gt":
        return Role(match["case"], "label", DEFAULT_ANNOTATION, file)
    if what == "brainmask":
        return Role(match["case"], "brain mask", what, file)
    return Role(match["case"], "image", SEQUENCES[what], file)


def _which_stage(stage: str, stages: set[str], database: str) -> tuple[Finding, ...]:
    if len(stages) < 2:
        return ()
    others = ", ".join(sorted(stages - {stage}))
    message = f"images are those of {stage}; {others} show the same patients. To take one of these, give its folder."
    return (Finding(Severity.NOTE, "STAGE", database, "", "", message),)


CROSS_SECTIONAL = Layout("open_ms", "MSLUB (open MS data)", _recognise, _find)
