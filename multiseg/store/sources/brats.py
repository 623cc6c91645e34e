"""BraTS, up to 2021 and from 2023 on: other file names, and another code for enhancing tumour.

https://www.synapse.org/brats - up to 2021 labels are 1 necrosis, 2 oedema, 4 enhancing tumour; from 2023 on
enhancing tumour is 3, and in the post-treatment release of 2024 4 is the resection cavity. Paediatric cases have
numbers of their own from 2024 on. All have four sequences; what belongs to no release's scheme is told by the user.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from multiseg.errors import LabelError
from multiseg.labels import LabelSchema
from multiseg.store.cases import paths_of
from multiseg.store.findings import Finding, Severity
from multiseg.store.sources.annotations import schema_for
from multiseg.store.sources.folder import SUFFIX, Folder
from multiseg.store.sources.layout import Layout
from multiseg.store.sources.model import Found, Role, SourceOptions, unused_volumes
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

_OLD = re.compile(
    rf"(?P<above>(?:.*/)?)(?P<case>BraTS\w*?_\w+?)/(?P=case)_(?P<what>flair|t1|t1ce|t2|seg){SUFFIX}", re.IGNORECASE
)
# The mask of one case of 2020 kept the name that it had at its hospital.
_OLD_MASK = re.compile(
    rf"(?P<above>(?:.*/)?)(?P<case>BraTS20_Training_355)/(?P<what>W39_1998\.09\.19_Segm){SUFFIX}", re.IGNORECASE
)
_NEW = re.compile(
    r"(?:.*/)?(?P<case>BraTS-(?P<kind>[A-Za-z]+)-\d+(?:-(?P<visit>\d+))?)"
    rf"/(?P=case)[-_](?P<what>t1n|t1c|t2w|t2f|seg){SUFFIX}"
)
_OLD_SEQUENCES = {"flair": "FLAIR", "t1": "T1", "t1ce": "T1c", "t2": "T2"}
_NEW_SEQUENCES = {"t1n": "T1", "t1c": "T1c", "t2w": "T2", "t2f": "FLAIR"}


def _recognise_old(folder: Folder) -> str:
    return _evidence(folder.fitting(_OLD))


def _recognise_new(folder: Folder) -> str:
    return _evidence(folder.fitting(_NEW))


def _evidence(matches: Sequence[re.Match[str]]) -> str:
    cases = {match["case"] for match in matches}
    return f"{len(cases)} folders such as {min(cases)}" if cases else ""


def _find_old(folder: Folder, options: SourceOptions) -> Found:
    matches = folder.fitting(_OLD)
    masked = {match["case"] for match in matches if match["what"].lower() == "seg"}
    matches += [match for match in folder.fitting(_OLD_MASK) if match["case"] not in masked]
    roles = [_role(folder, match, _OLD_SEQUENCES, _site(folder, match)) for match in matches]
    grades = {match["case"]: _grade(match) for match in matches}
    found = Found(
        name=folder.name,
        folder=folder,
        roles=roles,
        schemas={ANNOTATION: schema_for(ANNOTATION, UNTIL_2021)},
        pathology="glioma",
        participants={case: {"grade": grade} for case, grade in grades.items()} if any(grades.values()) else {},
        source="BraTS until 2021",
    )
    return _completed(found, options)


def _grade(match: re.Match[str]) -> str:
    """Until 2019 high and low grade gliomas lay in two folders."""
    return next((word for word in ("HGG", "LGG") if PurePosixPath(match["above"]).name.upper() == word), "")


def _site(folder: Folder, match: re.Match[str]) -> dict[str, str]:
    """As The Cancer Imaging Archive gives it out, 2021 has a folder for each of its sources."""
    above = [folder.root.resolve().parent.name, folder.name, *PurePosixPath(match["above"]).parts]
    outer, inner = above[-2:]
    return {"site": inner} if re.fullmatch(r"BraTS2021_\w+Set", outer) else {}


def _find_new(folder: Folder, options: SourceOptions) -> Found:
    matches = folder.fitting(_NEW)
    roles = [_role(folder, match, _NEW_SEQUENCES, _visit(match)) for match in matches]
    schemas: dict[str, LabelSchema] = {}
    findings: tuple[Finding, ...] = ()
    if ANNOTATION not in options.codes:
        codes, findings = _convention(_codes_by_kind(folder, matches), options.name or folder.name)
        schemas = {ANNOTATION: schema_for(ANNOTATION, codes)}
    pathologies = sorted({PATHOLOGIES.get(match["kind"], "brain tumour") for match in matches})
    found = Found(
        name=folder.name,
        folder=folder,
        roles=roles,
        schemas=schemas,
        pathology=" and ".join(pathologies),
        findings=findings,
        source="BraTS from 2023 on",
    )
    return _completed(found, options)


def _visit(match: re.Match[str]) -> dict[str, str]:
    """BraTS-GLI-00005-101 is the visit 101 of the person BraTS-GLI-00005."""
    visit = match["visit"] or ""
    return {"subject": match["case"].removesuffix(f"-{visit}"), "session": visit}


def _role(folder: Folder, match: re.Match[str], sequences: dict[str, str], fields: dict[str, str]) -> Role:
    what, file = match["what"].lower(), folder.path(match[0])
    if what not in sequences:
        return Role(match["case"], "label", ANNOTATION, file, fields)
    return Role(match["case"], "image", sequences[what], file, fields)


def _codes_by_kind(folder: Folder, matches: Sequence[re.Match[str]]) -> dict[str, list[frozenset[int]]]:
    labels: dict[str, list[re.Match[str]]] = {}
    for match in matches:
        if match["what"] == "seg":
            labels.setdefault(match["kind"], []).append(match)
    return {kind: codes_in_each(folder.path(match[0]) for match in own) for kind, own in labels.items()}


def _convention(codes: Mapping[str, Sequence[frozenset[int]]], database: str) -> tuple[str, tuple[Finding, ...]]:
    """What 3 and 4 mean, told from the codes of all cases: the conventions share this file layout.

    A case with both has been treated: 4 is the cavity. Where no case has a 3, 4 is the enhancing tumour of the
    older convention, which people look at. Cases with a 3 and others with a 4 may be of either: that is asked.

    Raises:
        LabelError: the codes do not tell it.
    """
    with_4 = {kind for kind, own in codes.items() if any(4 in some for some in own)}
    treated = {kind for kind, own in codes.items() if any({3, 4} <= some for some in own)}
    ask = 'Look up the numbers in the description of the release, and say them: --labels "tumour:1=NAME,2=NAME,..."'
    if "PED" in with_4:
        raise LabelError(
            f"{database!r} has paediatric cases (PED) with the code 4: from 2024 on they have four structures "
            f"(enhancing, non-enhancing, cystic, oedema) in numbers of their own. {ask}"
        )
    if treated and with_4 - treated:
        raise LabelError(
            f"the code 4 seems to be the resection cavity in {', '.join(sorted(treated))}, which has it beside 3, and "
            f"enhancing tumour in {', '.join(sorted(with_4 - treated))}, which has no case with 3 and 4. Ingest them "
            f"one by one. {ask}"
        )
    if with_4 and not treated and any(3 in some for own in codes.values() for some in own):
        raise LabelError(
            f"some labels of {database!r} hold the code 3, others the code 4, and none both: is 4 the enhancing tumour "
            f"of releases until 2021 ({MIXED}), or the resection cavity of 2024 ({AFTER_TREATMENT})? Say it: --labels "
            f'"{ANNOTATION}:...".'
        )
    doubts = []
    if "PED" in codes:
        doubts.append(
            f"paediatric cases (PED) are taken to have the numbers of 2023, {FROM_2023}; those of 2024 and later have "
            f"others. {ask}"
        )
    if with_4 and not treated:
        labels = [some for own in codes.values() for some in own]
        doubts.append(
            f"{sum(4 in some for some in labels)} of {len(labels)} labels hold the code 4 and no case holds 3 and 4: "
            "taken as the convention until 2021, 4 = enhancing. If it is the resection cavity of 2024, say "
            f'--labels "{ANNOTATION}:{AFTER_TREATMENT}".'
        )
    text = AFTER_TREATMENT if treated else UNTIL_2021 if with_4 else FROM_2023
    return text, tuple(Finding(Severity.WARNING, "LABEL_CONVENTION", database, "", "", doubt) for doubt in doubts)


def _completed(found: Found, options: SourceOptions) -> Found:
    """With what holds for all of BraTS: which cases are for testing, what is left over, what lacks."""
    unlabelled = _unlabelled(found.folder, found.roles)
    return replace(
        found,
        roles=[replace(r, fields={**r.fields, "split": "test"}) if r.case in unlabelled else r for r in found.roles],
        may_lack_labels=unlabelled,
        unused=unused_volumes(found.folder, found.roles),
        findings=(*found.findings, *_incomplete(found.roles, options.name or found.name)),
    )


def _unlabelled(folder: Folder, roles: Sequence[Role]) -> set[str]:
    """Validation and test data come without labels, in a folder or under names that say so."""
    labelled = {role.case for role in roles if role.kind == "label"}
    said = re.compile("validation|testing", re.IGNORECASE)
    return {
        role.case for role in roles
        if role.case not in labelled
        and said.search(f"{folder.name}/{paths_of(role.file)[0].relative_to(folder.root)}")
    }  # fmt: skip


def _incomplete(roles: Sequence[Role], database: str) -> list[Finding]:
    """BraTS has four sequences of everybody: what one case lacks, while others have it, may be lost."""
    held: dict[str, set[str]] = {}
    for role in roles:
        held.setdefault(role.case, set()).update([role.name] if role.kind == "image" else [])
    wanted = set().union(*held.values())
    return [
        Finding(
            Severity.WARNING, "MISSING_SEQUENCE", database, case, "",
            f"case {case!r} has no {', '.join(sorted(wanted - own))}, which BraTS has of all. Was it all copied?",
        )
        for case, own in sorted(held.items())
        if own and own < wanted
    ]  # fmt: skip


UNTIL = Layout("brats2021", "BraTS up to 2021", _recognise_old, _find_old)
FROM = Layout("brats2023", "BraTS 2023 and later", _recognise_new, _find_new)
