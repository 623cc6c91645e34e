"""BraTS, up to 2021 and from 2023 on: other file names, and another code for enhancing tumour.

https://www.synapse.org/brats - up to 2021 labels are 1 necrosis, 2 oedema, 4 enhancing tumour; from 2023 on
enhancing tumour is 3, and in the post-treatment release of 2024 4 is the resection cavity.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from multiseg.store.cases import paths_of
from multiseg.store.findings import Finding, Severity
from multiseg.store.sources.folder import SUFFIX, Folder
from multiseg.store.sources.gathering import Found, Role, SourceOptions, schema_for
from multiseg.store.sources.layout import Layout
from multiseg.store.sources.peek import codes_in_each

ANNOTATION = "tumour"
PATHOLOGIES = {
    "GLI": "glioma",
    "MEN": "meningioma",
    "MET": "brain metastasis",
    "PED": "paediatric brain tumour",
    "SSA": "glioma",
}
UNTIL_2021 = "1=necrosis,2=oedema,4=enhancing"
FROM_2023 = "1=necrosis,2=oedema,3=enhancing"
AFTER_TREATMENT = "1=necrosis,2=oedema,3=enhancing,4=resection cavity"
MIXED = "1=necrosis,2=oedema,3=enhancing,4=enhancing"

_OLD = re.compile(rf"(?:.*/)?(?P<case>BraTS\w*?_\w+?)/(?P=case)_(?P<what>flair|t1|t1ce|t2|seg){SUFFIX}", re.IGNORECASE)
_NEW = re.compile(
    rf"(?:.*/)?(?P<case>BraTS-(?P<kind>\w+)-\d+-(?P<visit>\d+))/(?P=case)-(?P<what>t1n|t1c|t2w|t2f|seg){SUFFIX}"
)
_OLD_SEQUENCES = {"flair": "FLAIR", "t1": "T1", "t1ce": "T1c", "t2": "T2"}
_NEW_SEQUENCES = {"t1n": "T1", "t1c": "T1c", "t2w": "T2", "t2f": "FLAIR"}


def _recognise_old(folder: Folder) -> str:
    cases = {match["case"] for match in folder.fitting(_OLD)}
    return f"{len(cases)} folders such as {min(cases)}" if cases else ""


def _find_old(folder: Folder, options: SourceOptions) -> Found:
    roles = [_role(folder, match, _OLD_SEQUENCES, {}) for match in folder.fitting(_OLD)]
    return Found(
        name=folder.name,
        folder=folder,
        roles=roles,
        schemas={ANNOTATION: schema_for(ANNOTATION, UNTIL_2021)},
        pathology="glioma",
        may_lack_labels=_unlabelled(roles),
        unused=_unused(folder, roles),
        source="BraTS until 2021",
    )


def _recognise_new(folder: Folder) -> str:
    cases = {match["case"] for match in folder.fitting(_NEW)}
    return f"{len(cases)} folders such as {min(cases)}" if cases else ""


def _find_new(folder: Folder, options: SourceOptions) -> Found:
    matches = folder.fitting(_NEW)
    roles = [_role(folder, match, _NEW_SEQUENCES, _visit(match)) for match in matches]
    codes, findings = _convention(roles, options.name or folder.name)
    pathologies = sorted({PATHOLOGIES.get(match["kind"], "brain tumour") for match in matches})
    return Found(
        name=folder.name,
        folder=folder,
        roles=roles,
        schemas={ANNOTATION: schema_for(ANNOTATION, codes)},
        pathology=" and ".join(pathologies),
        may_lack_labels=_unlabelled(roles),
        unused=_unused(folder, roles),
        findings=findings,
        source="BraTS from 2023 on",
    )


def _visit(match: re.Match[str]) -> dict[str, str]:
    """BraTS-GLI-00005-101 is the visit 101 of the person BraTS-GLI-00005."""
    return {"subject": match["case"].removesuffix(f"-{match['visit']}"), "session": match["visit"]}


def _role(folder: Folder, match: re.Match[str], sequences: dict[str, str], fields: dict[str, str]) -> Role:
    what, file = match["what"].lower(), folder.path(match[0])
    if what == "seg":
        return Role(match["case"], "label", ANNOTATION, file, fields)
    return Role(match["case"], "image", sequences[what], file, fields)


def _convention(roles: Sequence[Role], database: str) -> tuple[str, tuple[Finding, ...]]:
    """What 3 and 4 mean, told from the codes of all cases: the two conventions share this file layout.

    A case with both has been treated: 4 is the cavity. A 4 without any 3 beside it is the enhancing tumour of
    the older convention, which people look at.
    """
    codes = codes_in_each(role.file for role in roles if role.kind == "label")
    if not any(4 in some for some in codes):
        return FROM_2023, ()
    if any({3, 4} <= some for some in codes):
        return AFTER_TREATMENT, ()
    olds = sum(4 in some for some in codes)
    message = (
        f"{olds} of {len(codes)} labels hold the code 4 and no case holds 3 and 4: taken as the convention until 2021, "
        f'4 = enhancing. If it is the resection cavity of 2024, say --labels "{ANNOTATION}:{AFTER_TREATMENT}".'
    )
    return MIXED, (Finding(Severity.WARNING, "LABEL_CONVENTION", database, "", "", message),)


def _unlabelled(roles: Sequence[Role]) -> set[str]:
    """Validation data come without labels, and in a folder that says so."""
    return {role.case for role in roles if "Validation" in str(paths_of(role.file)[0].resolve())}


def _unused(folder: Folder, roles: Sequence[Role]) -> list[str]:
    used = {role.file for role in roles}
    return [file for file in folder.volumes if folder.path(file) not in used]


UNTIL = Layout("brats2021", "BraTS up to 2021", _recognise_old, _find_old)
FROM = Layout("brats2023", "BraTS 2023 and later", _recognise_new, _find_new)
