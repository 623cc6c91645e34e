"""Subjects of FreeSurfer and FastSurfer: SUBJECT/mri/{T1,brainmask,aseg}.mgz, or these files in one folder per subject.

https://surfer.nmr.mgh.harvard.edu/fswiki/ReconAllOutputFiles - recon-all's T1 is conformed (256^3, 1 mm) and corrected
in brightness; `orig` is the same scan before that correction, so it is not a second sequence.

https://github.com/Deep-MI/FastSurfer - without its surface stage there is no T1.mgz and no aseg.mgz, but
aparc.DKTatlas+aseg.deep.mgz in FreeSurfer's codes, and mask.mgz.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from multiseg.store.findings import Finding, Severity
from multiseg.store.sources.annotations import schema_for
from multiseg.store.sources.source_folder import Folder
from multiseg.store.sources.source_types import FoundFiles, Layout, Role, RoleKind, SourceOptions, finding

ANNOTATION = "tissue"
AVERAGES = re.compile(r"fsaverage.*|cvs_avg.*|[lr]h\.EC_average|V1_average")
"""Folders of FreeSurfer that are not patients."""

_IN_MRI = re.compile(r"(?P<path>(?:(?!mri/)[^/]+/)*)mri/(?P<what>[^/]+)\.mg[zh]")
_FLAT = re.compile(r"(?P<path>(?:[^/]+/)*)(?P<what>[^/]+)\.mg[zh]")
_LATER = re.compile(r"(?P<visit>.+)\.long\.(?P<base>.+)")
_BIDS = re.compile(r"(?P<subject>sub-[^_]+)_ses-(?P<session>[^_]+).*")

Files = Mapping[str, str]
"""A subject's .mgz files by their stems."""


@dataclass(frozen=True)
class Tool:
    """The files of a subject by what they are used for; the first that exists is used."""

    name: str
    t1: tuple[str, ...]
    tissue: tuple[str, ...]
    mask: tuple[str, ...]
    others: tuple[str, ...] = ("T2", "FLAIR")


FREESURFER = Tool(
    name="FreeSurfer",
    t1=("T1",),
    tissue=("aseg", "aparc+aseg", "aparc_aseg"),
    mask=("brainmask", "brain", "T1_brain"),
)
FASTSURFER = Tool(
    name="FastSurfer",
    t1=("T1", "orig"),
    tissue=("aparc.DKTatlas+aseg.deep", "aparc.DKTatlas+aseg.deep.withCC"),
    mask=("mask", "brainmask"),
)


def _recognise_freesurfer(folder: Folder) -> str:
    subjects = _subjects_in(folder)
    names = [
        name
        for name, files in subjects.items()
        if _first(files, ("T1", "orig")) and _first(files, FREESURFER.tissue) and not AVERAGES.fullmatch(name)
    ]
    if not names or any(map(_is_fastsurfer, subjects.values())):
        return ""
    return f"{len(names)} subjects such as {names[0]}, with {_first(subjects[names[0]], FREESURFER.tissue)}.mgz"


def _is_fastsurfer(files: Files) -> bool:
    """Whether a subject's segmentation is by FastSurfer."""
    return any(stem.startswith("aparc.DKTatlas+aseg.deep") for stem in files)


def _recognise_fastsurfer(folder: Folder) -> str:
    names = [name for name, files in _subjects_in(folder).items() if _is_fastsurfer(files)]
    return f"{len(names)} subjects such as {names[0]}, with {FASTSURFER.tissue[0]}.mgz" if names else ""


def _find(tool: Tool, folder: Folder, options: SourceOptions) -> FoundFiles:
    """Every subject's T1, T2 and FLAIR, brain mask, and segmentation as seven tissues."""
    subjects, fields, skipped = _select_subjects(_subjects_in(folder))
    roles, findings = [], _skipped_notes(folder, skipped)
    for name, files in subjects.items():
        roles += _roles(folder, name, files, tool, fields[name], options)
        if not any(role.kind == "image" for role in roles if role.case == name):
            findings.append(_no_t1(name, tool))
    return FoundFiles(
        folder=folder,
        roles=roles,
        schemas={ANNOTATION: schema_for(ANNOTATION, "freesurfer")},
        required=(ANNOTATION,),
        unused=_unused(folder, roles, subjects),
        findings=tuple(findings),
        source=tool.name,
    )


def _subjects_in(folder: Folder) -> dict[str, Files]:
    """The .mgz files of every subject; subjects with the same name get the names of the folders above, too."""
    by_path: dict[str, dict[str, str]] = {}
    for match in folder.matches(_IN_MRI) or folder.matches(_FLAT):
        by_path.setdefault(match["path"].rstrip("/"), {})[match["what"]] = match[0]
    names = Counter(path.rpartition("/")[2] for path in by_path)
    # "" is the folder of one subject, or the "mri" in it.
    of_root = folder.root.resolve().parent.name if folder.name == "mri" else folder.name
    return {_name(path, names) or of_root: files for path, files in by_path.items()}


def _name(path: str, names: Counter[str]) -> str:
    name = path.rpartition("/")[2]
    return name if names[name] == 1 else path.replace("/", "_")


def _select_subjects(
    subjects: Mapping[str, Files],
) -> tuple[dict[str, Files], dict[str, dict[str, str]], dict[str, str]]:
    """The subjects to use, their fields subject and session, and why the others are left out.

    The longitudinal stream makes three folders of one scan: the visit itself, VISIT.long.BASE, and BASE, which is
    the average of a patient's visits. Only one of them is a case, and all visits have one subject.
    """
    later = {name: match for name in subjects if (match := _LATER.fullmatch(name))}
    fields = {match["visit"]: {"subject": match["base"], "session": match["visit"]} for match in later.values()}
    fields |= {name: fields[match["visit"]] for name, match in later.items()}
    bases = {match["base"] for match in later.values()}
    skipped = {name: "is an average, not a patient" for name in subjects if AVERAGES.fullmatch(name)}
    skipped |= {name: "is the average of a patient's visits" for name in subjects if name in bases}
    skipped |= {
        name: f"is the scan of {match['visit']} processed again"
        for name, match in later.items()
        if match["visit"] in subjects
    }
    selected = {name: files for name, files in subjects.items() if name not in skipped}
    return selected, {name: fields.get(name) or _bids_fields(name) for name in selected}, skipped


def _bids_fields(name: str) -> dict[str, str]:
    match = _BIDS.fullmatch(name)
    return {"subject": match["subject"], "session": match["session"]} if match else {"subject": name}


def _skipped_notes(folder: Folder, skipped: dict[str, str]) -> list[Finding]:
    with_volumes = {file.partition("/")[0] for file in folder.volumes}
    others = sorted({file.partition("/")[0] for file in folder.files if "/" in file} - with_volumes)
    empty = dict.fromkeys(others, "has no .mgz files") if "mri" not in with_volumes else {}
    return [
        finding(Severity.NOTE, "NOT_A_SUBJECT", f"{name} is left out: it {why}.", file=name)
        for name, why in (skipped | empty).items()
    ]


def _roles(
    folder: Folder, name: str, files: Files, tool: Tool, fields: Mapping[str, str], options: SourceOptions
) -> list[Role]:
    named = [stem for stem in files if stem in options.modalities and stem not in (*tool.t1, *tool.others)]
    chosen: list[tuple[RoleKind, str, str]] = [("image", stem, stem) for stem in named]
    t1, tissue, mask = (_first(files, choice) for choice in (tool.t1, tool.tissue, tool.mask))
    if not (named and options.modalities.get(t1) == "skip"):
        chosen.append(("image", "T1", t1))
    chosen += [("image", stem, stem) for stem in tool.others]
    chosen += [("label", ANNOTATION, tissue), ("brain mask", "brain mask", "" if mask in named else mask)]
    return [Role(name, kind, what, folder.path(files[stem]), fields) for kind, what, stem in chosen if stem in files]


def _first(files: Files, choice: Sequence[str]) -> str:
    return next((stem for stem in choice if stem in files), "")


def _no_t1(subject: str, tool: Tool) -> Finding:
    message = (
        f"subject {subject!r} has no {' or '.join(f'{stem}.mgz' for stem in tool.t1)}. Did the processing finish? "
        "To use another file as T1: --modality orig=T1."
    )
    return finding(Severity.ERROR, "MISSING_FILE", message, subject)


def _unused(folder: Folder, roles: Sequence[Role], subjects: Mapping[str, Files]) -> list[str]:
    """The subjects' files without a role, segmentations first, since users may miss these."""
    used = {role.file for role in roles}
    left = [file for files in subjects.values() for file in files.values() if folder.path(file) not in used]
    return sorted(left, key=lambda file: "aseg" not in file)


FREESURFER_SUBJECTS = Layout("freesurfer", "FreeSurfer's subjects", _recognise_freesurfer, partial(_find, FREESURFER))
FASTSURFER_SUBJECTS = Layout("fastsurfer", "FastSurfer's subjects", _recognise_fastsurfer, partial(_find, FASTSURFER))
