"""FastSurfer's subjects: FreeSurfer's folders, with a network's segmentation and the scan as `orig`.

https://github.com/Deep-MI/FastSurfer - without its surface stage there is no T1.mgz and no aseg.mgz, but
aparc.DKTatlas+aseg.deep.mgz in FreeSurfer's codes, and mask.mgz.
"""

from __future__ import annotations

from multiseg.store.sources.folder import Folder
from multiseg.store.sources.freesurfer import Tool, find_subjects, is_fastsurfer, subjects_in
from multiseg.store.sources.layout import Layout
from multiseg.store.sources.model import Found, SourceOptions

FASTSURFER = Tool(
    t1=("T1", "orig"),
    tissue=("aparc.DKTatlas+aseg.deep", "aparc.DKTatlas+aseg.deep.withCC"),
    mask=("mask", "brainmask"),
)


def _recognise(folder: Folder) -> str:
    names = [name for name, files in subjects_in(folder).items() if is_fastsurfer(files)]
    return f"{len(names)} subjects such as {names[0]}, with {FASTSURFER.tissue[0]}.mgz" if names else ""


def _find(folder: Folder, options: SourceOptions) -> Found:
    return find_subjects(folder, options, FASTSURFER, "FastSurfer")


SUBJECTS = Layout("fastsurfer", "FastSurfer's subjects", _recognise, _find)
