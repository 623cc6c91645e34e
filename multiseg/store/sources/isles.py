"""ISLES 2022: acute ischaemic stroke in DWI and ADC, with a FLAIR on a grid of its own.

https://doi.org/10.5281/zenodo.7153326 - the release there has folders `anat` and `dwi`, an older one puts all
files of a session side by side in lower case. The lesion is drawn on the grid of DWI and ADC. A few masks are
empty: these patients were looked at, and have no lesion to be seen.
"""

from __future__ import annotations

import re

from multiseg.store.sources.annotations import schema_for
from multiseg.store.sources.folder import SUFFIX, Folder
from multiseg.store.sources.layout import Layout
from multiseg.store.sources.model import Found, Role, SourceOptions, unused_volumes

ANNOTATION = "lesion"
_HEAD = r"(?P<root>(?:.*/)?)(?P<subject>sub-[^/_]+)/(?P<session>ses-[^/_]+)/"
_STEM = rf"(?P=subject)_(?P=session)_(?P<what>%s){SUFFIX}"
_RELEASED = re.compile(_HEAD + "(?:anat|dwi)/" + _STEM % "FLAIR|flair|adc|dwi")
_FLAT = re.compile(_HEAD + _STEM % "flair|adc|dwi")
_MASK = re.compile(_HEAD + r"(?:\w+/)?" + _STEM % "msk")
_SEQUENCES = {"flair": "FLAIR", "adc": "ADC", "dwi": "DWI"}


def _recognise(folder: Folder) -> str:
    subjects = {match["subject"] for match in _images(folder)}
    released = any(match.re is _RELEASED for match in _images(folder))
    # "sub-01/ses-01/dwi/sub-01_ses-01_dwi.nii.gz" is as well plain BIDS.
    if not subjects or (released and not any(subject.startswith("sub-strokecase") for subject in subjects)):
        return ""
    return f"{len(subjects)} folders such as {min(subjects)}, as {'released' if released else 'in the flat release'}"


def _images(folder: Folder) -> list[re.Match[str]]:
    matches = folder.fitting(_RELEASED) or folder.fitting(_FLAT)
    return [match for match in matches if "derivatives" not in match["root"]]


def _find(folder: Folder, options: SourceOptions) -> Found:
    roles = [_role(folder, match) for match in (*_images(folder), *folder.fitting(_MASK))]
    return Found(
        name=folder.name,
        folder=folder,
        roles=roles,
        schemas={ANNOTATION: schema_for(ANNOTATION, "1=lesion")},
        pathology="ischaemic stroke",
        required=(ANNOTATION,),
        unused=unused_volumes(folder, roles),
        licence="CC BY-SA 4.0",
        citation="Hernandez Petzsche et al. 2022, Scientific Data 9:762",
        source="ISLES 2022",
    )


def _role(folder: Folder, match: re.Match[str]) -> Role:
    case = f"{match['subject']}_{match['session']}"
    fields = {"subject": match["subject"], "session": match["session"]}
    if match["what"] == "msk":
        return Role(case, "label", ANNOTATION, folder.path(match[0]), fields)
    return Role(case, "image", _SEQUENCES[match["what"].lower()], folder.path(match[0]), fields)


ISLES_2022 = Layout("isles2022", "ISLES 2022", _recognise, _find)
