"""File names of the Virtual Skeleton Database: ISLES 2015 (SISS), and BraTS of 2013 and 2015.

`<case>/VSD.Brain.XX.O.MR_T1.<id>/VSD.Brain.XX.O.MR_T1.<id>.nii`, the label in a folder `...OT.<id>`. SISS has one
lesion label; these BraTS have 1 necrosis, 2 oedema, 3 non-enhancing and 4 enhancing tumour.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import PurePosixPath

from multiseg.errors import SourceError
from multiseg.store.sources.annotations import schema_for
from multiseg.store.sources.source_folder import SUFFIX, Folder, is_test_part
from multiseg.store.sources.source_types import FoundFiles, Layout, Role, SourceOptions

TUMOUR = "1=necrosis,2=oedema,3=non-enhancing,4=enhancing"
_FILE = re.compile(
    r"(?P<above>(?:.*/)?)(?P<case>[^/]+)/VSD\.Brain(?P<more>_3more)?\.XX\.(?:O|XX)\.(?P<what>OT|MR_\w+)\.(?P<id>[^/]+)/"
    rf"VSD\.Brain[^/]*\.(?P=what)\.(?P=id){SUFFIX}"
)
_SEQUENCES = {"MR_T1": "T1", "MR_T1c": "T1c", "MR_T2": "T2", "MR_Flair": "FLAIR", "MR_DWI": "DWI"}
_PERFUSION = {"MR_CBF", "MR_CBV", "MR_TTP", "MR_Tmax", "MR_MTT"}
_VISIT = re.compile(r"(?P<subject>.*pat\d+)_(?P<session>\d+)")
_GRADES = {"HG": "HGG", "HGG": "HGG", "LG": "LGG", "LGG": "LGG"}


def _recognise(is_tumour: bool, folder: Folder) -> str:
    matches = folder.matches(_FILE)
    if not matches or _is_tumour(matches) != is_tumour:
        return ""
    cases = {match["above"] + match["case"] for match in matches}
    return f"{len(cases)} folders with files such as {PurePosixPath(matches[0][0]).name}"


def _is_tumour(matches: Sequence[re.Match[str]]) -> bool:
    """Whether it is BraTS, with T1c and FLAIR but no DWI; SISS has no T1c, and SPES (perfusion) no FLAIR."""
    whats = {match["what"] for match in matches}
    return {"MR_T1c", "MR_Flair"} <= whats and not whats & {"MR_DWI", *_PERFUSION}


def _find_siss(folder: Folder, options: SourceOptions) -> FoundFiles:
    matches = folder.matches(_FILE)
    perfusion = sorted({match["what"] for match in matches} & _PERFUSION)
    if perfusion:
        message = (
            f"{folder.root} has perfusion maps ({', '.join(perfusion)}), like SPES of ISLES 2015: its label is tissue "
            "at risk and not the full stroke lesion. To ingest it nevertheless, use --pattern and --label."
        )
        raise SourceError(message, code="NO_FULL_LESIONS", file=str(folder.root))
    return _found(folder, matches, "lesion", "1=lesion", "ischaemic stroke", "ISLES 2015 SISS")


def _find_brats(folder: Folder, options: SourceOptions) -> FoundFiles:
    return _found(folder, folder.matches(_FILE), "tumour", TUMOUR, "glioma", "BraTS 2013 and 2015")


def _found(
    folder: Folder, matches: Sequence[re.Match[str]], annotation: str, codes: str, pathology: str, source: str
) -> FoundFiles:
    roles = [_role(folder, match, annotation) for match in matches]
    grades = {_case(folder, match): _grade(match) for match in matches}
    return FoundFiles(
        folder=folder,
        roles=roles,
        schemas={annotation: schema_for(annotation, codes)},
        pathology=pathology,
        required=(annotation,),
        may_lack_labels={_case(folder, match) for match in matches if is_test_part(folder, match[0])},
        participants={case: {"grade": grade} for case, grade in grades.items()} if any(grades.values()) else {},
        unused=folder.unused(role.file for role in roles),
        source=source,
    )


def _role(folder: Folder, match: re.Match[str], annotation: str) -> Role:
    case, file = _case(folder, match), folder.path(match[0])
    visit = _VISIT.fullmatch(match["case"])
    fields = {"subject": visit["subject"], "session": visit["session"]} if visit else {"subject": case}
    if is_test_part(folder, match[0]):
        fields["split"] = "test"
    if match["what"] == "OT":
        return Role(case, "label", annotation, file, fields)
    return Role(case, "image", _SEQUENCES.get(match["what"], match["what"]), file, fields)


def _case(folder: Folder, match: re.Match[str]) -> str:
    """The case's name: numbers restart in every part, so they are prefixed with it: "HGG_0001", "test_1"."""
    if not match["case"].isdigit():
        return match["case"]
    part = "test" if is_test_part(folder, match[0]) else ""
    return "_".join(word for word in (part, _grade(match), match["case"]) if word)


def _grade(match: re.Match[str]) -> str:
    return _GRADES.get(PurePosixPath(match["above"]).name, "")


SISS = Layout("isles2015", "ISLES 2015 (SISS)", partial(_recognise, False), _find_siss)
BRATS = Layout("brats2015", "BraTS 2013 or 2015", partial(_recognise, True), _find_brats)
