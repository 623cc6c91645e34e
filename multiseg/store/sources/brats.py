"""BraTS, up to 2021 and from 2023 on: other file names, and another code for enhancing tumour.

https://www.synapse.org/brats - up to 2021 labels are 1 necrosis, 2 oedema, 4 enhancing tumour; from 2023 on
enhancing tumour is 3, and in the post-treatment release of 2024 4 is the resection cavity. Paediatric cases have
numbers of their own from 2024 on. All have four sequences; what belongs to no release's scheme is told by the user.

Folders of one convention with files named by the other (BraTS-GLI-00002-000_t1ce) are met, too. Their names do not
say which numbers the labels have, so the codes of all cases decide, and a warning says what they were taken for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from multiseg.labels import LabelSchema
from multiseg.store.cases import paths_of
from multiseg.store.findings import Finding, Severity
from multiseg.store.sources.annotations import schema_for
from multiseg.store.sources.brats_codes import ANNOTATION, UNTIL_2021, convention, convention_of_old, of_mixed_names
from multiseg.store.sources.file_contents import codes_in_each
from multiseg.store.sources.source_folder import SUFFIX, Folder
from multiseg.store.sources.source_types import Found, Layout, Role, SourceOptions, unused_volumes

PATHOLOGIES = {
    "GLI": "glioma",
    "MEN": "meningioma",
    "MET": "brain metastasis",
    "PED": "paediatric brain tumour",
    "SSA": "glioma",
}
_OLD_SEQUENCES = {"flair": "FLAIR", "t1": "T1", "t1ce": "T1c", "t2": "T2"}
_NEW_SEQUENCES = {"t1n": "T1", "t1c": "T1c", "t2w": "T2", "t2f": "FLAIR"}
_SEQUENCES = _OLD_SEQUENCES | _NEW_SEQUENCES
_WHAT = "|".join([*_SEQUENCES, "seg"])
_OLD = re.compile(rf"(?P<above>(?:.*/)?)(?P<case>BraTS\w*?_\w+?)/(?P=case)[-_](?P<what>{_WHAT}){SUFFIX}", re.IGNORECASE)
# The mask of one case of 2020 kept the name that it had at its hospital.
_OLD_MASK = re.compile(
    rf"(?P<above>(?:.*/)?)(?P<case>BraTS20_Training_355)/(?P<what>W39_1998\.09\.19_Segm){SUFFIX}", re.IGNORECASE
)
_NEW = re.compile(
    r"(?:.*/)?(?P<case>BraTS-(?P<kind>[A-Za-z]+)-\d+(?:-(?P<visit>\d+))?)"
    rf"/(?P=case)[-_](?P<what>{_WHAT}){SUFFIX}",
    re.IGNORECASE,
)


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
    roles = [_role(folder, match, _site(folder, match)) for match in matches]
    schemas: dict[str, LabelSchema] = {ANNOTATION: schema_for(ANNOTATION, UNTIL_2021)}
    findings: tuple[Finding, ...] = ()
    if ANNOTATION not in options.codes and (mixed := _named_by(matches, _NEW_SEQUENCES)):
        codes, findings = convention_of_old(_all_codes(folder, matches), mixed, options.name or folder.name)
        schemas = {ANNOTATION: schema_for(ANNOTATION, codes)}
    grades = {match["case"]: _grade(match) for match in matches}
    found = Found(
        name=folder.name,
        folder=folder,
        roles=roles,
        schemas=schemas,
        pathology="glioma",
        participants={case: {"grade": grade} for case, grade in grades.items()} if any(grades.values()) else {},
        findings=findings,
        any_scan_counts=True,
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
    roles = [_role(folder, match, _visit(match)) for match in matches]
    schemas: dict[str, LabelSchema] = {}
    findings: tuple[Finding, ...] = ()
    if ANNOTATION not in options.codes:
        database = options.name or folder.name
        codes, findings = convention(_codes_by_kind(folder, matches), database)
        if mixed := _named_by(matches, _OLD_SEQUENCES):
            findings += (of_mixed_names(mixed, codes, database),)
        schemas = {ANNOTATION: schema_for(ANNOTATION, codes)}
    pathologies = sorted({PATHOLOGIES.get(match["kind"].upper(), "brain tumour") for match in matches})
    found = Found(
        name=folder.name,
        folder=folder,
        roles=roles,
        schemas=schemas,
        pathology=" and ".join(pathologies),
        findings=findings,
        any_scan_counts=True,
        source="BraTS from 2023 on",
    )
    return _completed(found, options)


def _visit(match: re.Match[str]) -> dict[str, str]:
    """BraTS-GLI-00005-101 is the visit 101 of the person BraTS-GLI-00005."""
    visit = match["visit"] or ""
    return {"subject": match["case"].removesuffix(f"-{visit}"), "session": visit}


def _role(folder: Folder, match: re.Match[str], fields: dict[str, str]) -> Role:
    what, file = match["what"].lower(), folder.path(match[0])
    if what not in _SEQUENCES:
        return Role(match["case"], "label", ANNOTATION, file, fields)
    return Role(match["case"], "image", _SEQUENCES[what], file, fields, what)


def _named_by(matches: Sequence[re.Match[str]], sequences: Mapping[str, str]) -> str:
    """A file that is named by the other convention, for a message; "" where none is."""
    return next((match[0] for match in matches if match["what"].lower() in sequences), "")


def _all_codes(folder: Folder, matches: Sequence[re.Match[str]]) -> list[frozenset[int]]:
    return codes_in_each(folder.path(match[0]) for match in matches if match["what"].lower() not in _SEQUENCES)


def _codes_by_kind(folder: Folder, matches: Sequence[re.Match[str]]) -> dict[str, list[frozenset[int]]]:
    labels: dict[str, list[re.Match[str]]] = {}
    for match in matches:
        if match["what"].lower() == "seg":
            labels.setdefault(match["kind"].upper(), []).append(match)
    return {kind: codes_in_each(folder.path(match[0]) for match in own) for kind, own in labels.items()}


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
