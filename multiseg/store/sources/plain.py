"""The layout of last resort: a folder a case, or flat files that begin with the case's name.

What a file is, its name must say in well-known words (`file_words`). Nothing is guessed: a volume whose name says
nothing, or two things, is left out with a finding, and codes that do not explain themselves are asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from multiseg.atlases import ATLASES, fitting_atlas
from multiseg.errors import LabelError, SourceError
from multiseg.labels import LabelSchema
from multiseg.store.cases import ScanFile
from multiseg.store.findings import Finding, Severity
from multiseg.store.formats.reading import read_volume
from multiseg.store.formats.volumes import voxel_size_mm
from multiseg.store.sources.annotations import schema_for
from multiseg.store.sources.file_words import Meaning, What, meaning_of, words_of
from multiseg.store.sources.folder import Folder, listed
from multiseg.store.sources.layout import Layout
from multiseg.store.sources.model import SKIP, Found, Role, SourceOptions
from multiseg.store.sources.peek import codes_in
from multiseg.store.sources.plain_cases import Volume, volumes_in

PARCELLATION = 30
"""A label of more codes than this is a parcellation, which its codes alone may name."""
MAX_LESION_ML = 500
"""A label of 0 and 1 that is larger is the mask of a brain or of a head."""
NAMED = {"dlmuse": "dlmuse", "muse": "dlmuse", "aseg": "freesurfer", "aparc": "freesurfer", "wmparc": "freesurfer",
         "freesurfer": "freesurfer", "synthseg": "freesurfer", "neuromorphometrics": "neuromorphometrics"}  # fmt: skip
"""Words in a file's name that say which atlas its codes are of."""


def _recognise(folder: Folder) -> str:
    volumes = [(volume, meaning_of(volume.stem)) for volume in volumes_in(folder)]
    cases = sorted({volume.case for volume, meaning in volumes if meaning.what is What.IMAGE})
    if not cases:
        return ""
    sequences = list(dict.fromkeys(meaning.name for _, meaning in volumes if meaning.what is What.IMAGE))
    labels = list(dict.fromkeys(volume.stem for volume, meaning in volumes if meaning.what is What.LABEL))
    return (
        f"{len(cases)} cases such as {cases[0]}, with {listed(sequences)} and "
        f"{'labels ' + listed(labels) if labels else 'no labels'}"
    )


def _find(folder: Folder, options: SourceOptions) -> Found:
    volumes = volumes_in(folder)
    meanings = [_meaning(volume.stem, options) for volume in volumes]
    parts = [volume for volume, meaning in zip(volumes, meanings, strict=True) if meaning.what is What.ONE_TISSUE]
    roles = {
        volume: _role(folder, volume, meaning)
        for volume, meaning in zip(volumes, meanings, strict=True)
        if meaning.what is not What.ONE_TISSUE
    }
    database = options.name or folder.name
    findings = [
        *_of_one_tissue(parts, database),
        *_of_tables(folder, options, database),
        *_of_people(volumes, database),
    ]
    schemas = {}
    for annotation, own in _by_annotation(roles).items():
        if options.codes.get(annotation) == SKIP:
            continue
        schemas[annotation], notes = _schema(annotation, own, folder, options, database)
        findings += notes
    used = {volume.file for volume in volumes}
    return Found(
        name=folder.name,
        folder=folder,
        roles=list(roles.values()),
        schemas=schemas,
        any_scan_counts=True,
        unused=[file for file in folder.volumes if file not in used],
        findings=tuple(findings),
        source="plain files",
    )


def _meaning(stem: str, options: SourceOptions) -> Meaning:
    """What a file is as the user says, else as its name says."""
    if stem in options.codes:
        return Meaning(What.LABEL, stem)
    if stem in options.modalities:
        return Meaning(What.IMAGE, stem)
    return meaning_of(stem)


def _role(folder: Folder, volume: Volume, meaning: Meaning) -> Role:
    """What is unclear goes as a sequence of an unknown name, so that it is asked about."""
    file = folder.path(volume.file)
    if meaning.what is What.LABEL:
        return Role(volume.case, "label", meaning.name, file, volume.fields)
    if meaning.what is What.BRAIN_MASK:
        return Role(volume.case, "brain mask", meaning.name, file, volume.fields)
    return Role(volume.case, "image", meaning.name or volume.stem, file, volume.fields)


def _by_annotation(roles: Mapping[Volume, Role]) -> dict[str, list[Volume]]:
    """The volumes of every annotation.

    Raises:
        LabelError: two files of a case would be the same one.
    """
    volumes: dict[str, list[Volume]] = {}
    for volume, role in roles.items():
        if role.kind == "label":
            twin = next((other for other in volumes.get(role.name, ()) if other.case == volume.case), None)
            if twin is not None:
                raise LabelError(
                    f"{twin.file} and {volume.file} both read as {role.name!r} of case {volume.case!r}. Leave one out, "
                    f'--modality {volume.stem}=skip, or give one its own codes: --labels "{volume.stem}:1=NAME".',
                    code="DUPLICATE_CASE",
                    file=volume.file,
                )
            volumes.setdefault(role.name, []).append(volume)
    return volumes


def _schema(
    annotation: str, volumes: Sequence[Volume], folder: Folder, options: SourceOptions, database: str
) -> tuple[LabelSchema, list[Finding]]:
    """The meaning of an annotation's codes, which they must tell themselves where the user does not.

    Raises:
        LabelError: they do not.
    """
    if annotation in options.codes:
        return schema_for(annotation, options.codes[annotation]), []
    codes, volume = next(
        ((codes, volume) for volume in volumes if (codes := codes_in(folder.path(volume.file)))),
        (frozenset[int](), volumes[0]),
    )
    if codes <= {1} and not annotation.startswith("tissue"):
        _check_size(annotation, volume, folder.path(volume.file))
        return schema_for(annotation, f"1={'tumour' if annotation == 'tumour' else 'lesion'}"), []
    said = next((NAMED[word] for word in words_of(volume.stem) if word in NAMED), "")
    atlas = fitting_atlas(codes, [said] if said else ATLASES) if said or len(codes) > PARCELLATION else ""
    if not atlas:
        raise _unexplained(annotation, volume, codes, said)
    message = (
        f"{volume.stem} files are read as tissues by the atlas {atlas!r}, since it names all {len(codes)} codes of "
        f"{volume.file}{' and their name says so' if said else ''}. If they are another's, say whose: "
        f"--labels {annotation}:ATLAS."
    )
    return schema_for(annotation, atlas), [Finding(Severity.NOTE, "ATLAS", database, "", volume.file, message)]


def _check_size(annotation: str, volume: Volume, file: ScanFile) -> None:
    """A "mask" may well be the brain's."""
    try:
        read = read_volume(file)
    except SourceError:  # its own case says so when it is prepared
        return
    ml = np.count_nonzero(read.voxels > 0.5) * math.prod(voxel_size_mm(read.affine)) / 1000
    if ml > MAX_LESION_ML:
        raise LabelError(
            f"{volume.file} is named as a label, but it holds {ml:.0f} ml: that is a brain, not a lesion. If it is the "
            f'brain mask, say --brain-mask file and call it brainmask; else --labels "{annotation}:1=NAME".',
            code="LABEL_SIZE",
            file=volume.file,
        )


def _unexplained(annotation: str, volume: Volume, codes: frozenset[int], said: str) -> LabelError:
    shown = listed([str(code) for code in sorted(codes)], 12)
    names = ",".join(f"{code}=NAME" for code in sorted(codes)[:4]) + ("" if len(codes) <= 4 else ",...")
    but = f", which {said} does not all know" if said else ""
    atlas = "" if len(codes) <= 8 else f", or whose they are: --labels {annotation}:ATLAS ({', '.join(ATLASES)})"
    return LabelError(
        f'{volume.file} holds the codes {shown}{but}. Say what they mean: --labels "{annotation}:{names}"{atlas}; or '
        f"leave it out: --labels {annotation}:skip.",
        code="LABEL_CODES",
        file=volume.file,
    )


def _of_one_tissue(volumes: Sequence[Volume], database: str) -> Iterator[Finding]:
    stems = list(dict.fromkeys(volume.stem for volume in volumes))
    if stems:
        message = (
            f"{listed(stems)} show one tissue each and are not used: a label is one file of whole-number codes, and "
            "which probability makes a tissue is not for us to say."
        )
        yield Finding(Severity.NOTE, "ONE_TISSUE", database, "", volumes[0].file, message)


def _of_tables(folder: Folder, options: SourceOptions, database: str) -> Iterator[Finding]:
    for table in (file for file in folder.files if file.endswith((".csv", ".tsv")) and "/" not in file):
        if not options.participants:
            message = f"{table} is not used. If its first column names the cases, take it: --participants {table}."
            yield Finding(Severity.NOTE, "PARTICIPANTS_TABLE", database, "", table, message)


def _of_people(volumes: Sequence[Volume], database: str) -> Iterator[Finding]:
    nested = sorted({volume.case for volume in volumes if not volume.fields and volume.file.count("/") > 1})
    parents = {volume.file.rsplit("/", 2)[0] for volume in volumes if volume.case in nested}
    if 1 < len(parents) < len(nested):
        message = (
            f"{listed(nested)} lie in {len(parents)} folders above theirs and are taken for {len(nested)} people. If "
            "those are people with several visits, say so, or one person may stand in two splits: "
            "--pattern '{subject}/{session}/{modality}.nii.gz'."
        )
        yield Finding(Severity.WARNING, "NESTED_CASES", database, "", "", message)


FOLDERS = Layout("plain", "plain files", _recognise, _find)
