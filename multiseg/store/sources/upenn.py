"""UPENN-GBM: glioblastoma, with labels by hand for some cases and approximate ones of a program for most.

https://doi.org/10.7937/TCIA.709X-DN49 - `images_structural/<case>/<case>_T1GD.nii.gz`, `images_segm/<case>_segm.nii.gz`
and `automated_segm/<case>_automated_approx_segm.nii.gz`; UPENN-GBM-00001_21 is the visit 21 of UPENN-GBM-00001. Many
of its patients are in BraTS 2021, too. Folders called "old" hold superseded files.
"""

from __future__ import annotations

import re

from multiseg.store.sources.annotations import schema_for
from multiseg.store.sources.brats_codes import UNTIL_2021
from multiseg.store.sources.folder import SUFFIX, Folder
from multiseg.store.sources.layout import Layout
from multiseg.store.sources.model import Found, Role, SourceOptions, unused_volumes

ANNOTATIONS = {"segm": "tumour", "automated_approx_segm": "automated"}
_CASE = r"(?P<case>(?P<subject>UPENN-GBM-\d+)_(?P<session>\d+))"
_ABOVE = r"(?!(?:.*/)?old/)(?:.*/)?"
_IMAGE = re.compile(rf"{_ABOVE}images_structural/{_CASE}/(?P=case)_(?P<what>T1|T1GD|T2|FLAIR){SUFFIX}")
_LABEL = re.compile(rf"{_ABOVE}(?:images|automated)_segm/{_CASE}_(?P<what>segm|automated_approx_segm){SUFFIX}")


def _recognise(folder: Folder) -> str:
    cases = {match["case"] for match in folder.fitting(_IMAGE)}
    return f"{len(cases)} folders such as images_structural/{min(cases)}" if cases else ""


def _find(folder: Folder, options: SourceOptions) -> Found:
    roles = [_role(folder, match) for match in (*folder.fitting(_IMAGE), *folder.fitting(_LABEL))]
    return Found(
        name=folder.name,
        folder=folder,
        roles=roles,
        schemas={name: schema_for(name, UNTIL_2021) for name in ANNOTATIONS.values()},
        pathology="glioma",
        unused=unused_volumes(folder, roles),
        source="UPENN-GBM",
    )


def _role(folder: Folder, match: re.Match[str]) -> Role:
    fields = {"subject": match["subject"], "session": match["session"]}
    annotation = ANNOTATIONS.get(match["what"])
    if annotation:
        return Role(match["case"], "label", annotation, folder.path(match[0]), fields)
    return Role(match["case"], "image", match["what"], folder.path(match[0]), fields)


LAYOUT = Layout("upenn", "UPENN-GBM", _recognise, _find)
