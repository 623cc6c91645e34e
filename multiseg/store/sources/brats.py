"""BraTS, up to 2021 and from 2023 on: other file names, and another code for enhancing tumour.

https://www.synapse.org/brats - up to 2021 labels are 1 necrosis, 2 oedema, 4 enhancing tumour; from 2023 on
enhancing tumour is 3, and in the post-treatment release of 2024 4 is the resection cavity. Paediatric cases have
other codes from 2024 on. All have four sequences; the user explains codes that fit no release.

Folders of one convention with files named by the other (BraTS-GLI-00002-000_t1ce) occur, too. Their names do not say
which codes the labels have, so the codes of all cases decide, and a warning says which convention was assumed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import PurePosixPath

from multiseg.store.cases import paths_of
from multiseg.store.findings import Finding, Severity
from multiseg.store.sources.annotations import schema_for
from multiseg.store.sources.brats_codes import (
    ANNOTATION,
    FROM_2023,
    UNTIL_2021,
    new_convention,
    old_convention,
    warn_of_mixed_names,
)
from multiseg.store.sources.file_contents import codes_in
from multiseg.store.sources.source_folder import SUFFIX, Folder, grouped
from multiseg.store.sources.source_types import FoundFiles, Layout, Role, SourceOptions, finding, image_names

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
# In 2020, the mask of one case still has its hospital's name.
_OLD_MASK = re.compile(
    rf"(?P<above>(?:.*/)?)(?P<case>BraTS20_Training_355)/(?P<what>W39_1998\.09\.19_Segm){SUFFIX}", re.IGNORECASE
)
_NEW = re.compile(
    r"(?:.*/)?(?P<case>BraTS-(?P<kind>[A-Za-z]+)-\d+(?:-(?P<visit>\d+))?)"
    rf"/(?P=case)[-_](?P<what>{_WHAT}){SUFFIX}",
    re.IGNORECASE,
)


def _recognise(expression: re.Pattern[str], folder: Folder) -> str:
    cases = {match["case"] for match in folder.matches(expression)}
    return f"{len(cases)} folders such as {min(cases)}" if cases else ""


def _find_old(folder: Folder, options: SourceOptions) -> FoundFiles:
    matches = folder.matches(_OLD)
    masked = {match["case"] for match in matches if match["what"].lower() == "seg"}
    matches += [match for match in folder.matches(_OLD_MASK) if match["case"] not in masked]
    roles = [_role(folder, match, _site(folder, match)) for match in matches]
    codes, findings = UNTIL_2021, list[Finding]()
    if _reads_codes(options) and (mixed := _named_by(matches, _NEW_SEQUENCES)):
        labels = [match for match in matches if match["what"].lower() not in _SEQUENCES]
        label_codes = [codes_in(folder.path(match[0])) for match in labels]
        codes, findings = old_convention(label_codes, mixed, options.name or folder.name)
    grades = {match["case"]: _grade(match) for match in matches}
    participants = {case: {"grade": grade} for case, grade in grades.items()} if any(grades.values()) else {}
    return replace(_found(folder, roles, codes, findings, "glioma", "BraTS until 2021"), participants=participants)


def _reads_codes(options: SourceOptions) -> bool:
    """Whether the labels have to say what their codes mean."""
    return ANNOTATION not in options.codes and not options.only_images


def _grade(match: re.Match[str]) -> str:
    """The grade: until 2019 high and low grade gliomas had two folders."""
    return next((word for word in ("HGG", "LGG") if PurePosixPath(match["above"]).name.upper() == word), "")


def _site(folder: Folder, match: re.Match[str]) -> dict[str, str]:
    """The site: 2021 has a folder for each one if it is from The Cancer Imaging Archive."""
    above = [folder.root.resolve().parent.name, folder.name, *PurePosixPath(match["above"]).parts]
    outer, inner = above[-2:]
    return {"site": inner} if re.fullmatch(r"BraTS2021_\w+Set", outer) else {}


def _find_new(folder: Folder, options: SourceOptions) -> FoundFiles:
    matches = folder.matches(_NEW)
    roles = [_role(folder, match, _visit(match)) for match in matches]
    codes, findings = FROM_2023, list[Finding]()
    if _reads_codes(options):
        codes, findings = new_convention(_codes_by_kind(folder, matches), options.name or folder.name)
        if mixed := _named_by(matches, _OLD_SEQUENCES):
            findings.append(warn_of_mixed_names(mixed, codes))
    pathologies = sorted({PATHOLOGIES.get(match["kind"].upper(), "brain tumour") for match in matches})
    return _found(folder, roles, codes, findings, " and ".join(pathologies), "BraTS from 2023 on")


def _visit(match: re.Match[str]) -> dict[str, str]:
    """Subject and session: BraTS-GLI-00005-101 is the visit 101 of BraTS-GLI-00005."""
    visit = match["visit"] or ""
    return {"subject": match["case"].removesuffix(f"-{visit}"), "session": visit}


def _role(folder: Folder, match: re.Match[str], fields: dict[str, str]) -> Role:
    what, file = match["what"].lower(), folder.path(match[0])
    if what not in _SEQUENCES:
        return Role(match["case"], "label", ANNOTATION, file, fields)
    return Role(match["case"], "image", _SEQUENCES[what], file, fields, what)


def _named_by(matches: Sequence[re.Match[str]], sequences: Mapping[str, str]) -> str:
    """The first file named by the other convention, for a message; "" if there is none."""
    return next((match[0] for match in matches if match["what"].lower() in sequences), "")


def _codes_by_kind(folder: Folder, matches: Sequence[re.Match[str]]) -> dict[str, list[frozenset[int]]]:
    labels = grouped((m for m in matches if m["what"].lower() == "seg"), lambda match: match["kind"].upper())
    return {kind: [codes_in(folder.path(match[0])) for match in group] for kind, group in labels.items()}


def _found(
    folder: Folder, roles: Sequence[Role], codes: str, findings: Sequence[Finding], pathology: str, source: str
) -> FoundFiles:
    """What applies to all of BraTS: the test cases, the unused files and the missing sequences."""
    unlabelled = _unlabelled(folder, roles)
    return FoundFiles(
        folder=folder,
        roles=[replace(r, fields={**r.fields, "split": "test"}) if r.case in unlabelled else r for r in roles],
        schemas={ANNOTATION: schema_for(ANNOTATION, codes)},
        pathology=pathology,
        may_lack_labels=unlabelled,
        unused=folder.unused(role.file for role in roles),
        any_scan_counts=True,
        findings=(*findings, *_incomplete(roles)),
        source=source,
    )


def _unlabelled(folder: Folder, roles: Sequence[Role]) -> set[str]:
    """The cases without labels in a folder or with a name for validation or testing."""
    labelled = {role.case for role in roles if role.kind == "label"}
    is_test = re.compile("validation|testing", re.IGNORECASE)
    return {
        role.case for role in roles
        if role.case not in labelled
        and is_test.search(f"{folder.name}/{paths_of(role.file)[0].relative_to(folder.root)}")
    }  # fmt: skip


def _incomplete(roles: Sequence[Role]) -> Iterator[Finding]:
    """Warnings of cases without a sequence that others have: BraTS has four sequences of everyone."""
    present = image_names(roles)
    wanted = set().union(*present.values())
    for case, sequences in present.items():
        if sequences and sequences < wanted:
            missing = ", ".join(sorted(wanted - sequences))
            message = f"case {case!r} has no {missing}, which every case of BraTS has. Was everything copied?"
            yield finding(Severity.WARNING, "MISSING_SEQUENCE", message, case)


UNTIL = Layout("brats2021", "BraTS up to 2021", partial(_recognise, _OLD), _find_old)
FROM = Layout("brats2023", "BraTS 2023 and later", partial(_recognise, _NEW), _find_new)
