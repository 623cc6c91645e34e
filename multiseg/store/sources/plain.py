"""The layout of last resort: a folder a case, or flat files that begin with the case's name.

What a file is, its name must say in well-known words (`file_words`). Nothing is guessed: a volume whose name says
nothing, or two things, is left out with a finding, and codes that do not explain themselves are asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from multiseg.store.findings import Finding, Severity
from multiseg.store.sources.file_contents import codes_in
from multiseg.store.sources.file_words import Meaning, What, meaning_of, words_of
from multiseg.store.sources.plain_cases import Volume, beside_visits, volumes_in
from multiseg.store.sources.plain_labels import one_label_each, schemas_of
from multiseg.store.sources.source_folder import Folder, listed
from multiseg.store.sources.source_types import Found, Layout, Role, SourceOptions, without_skipped_labels


def _recognise(folder: Folder) -> str:
    volumes = [(volume, meaning_of(volume.stem)) for volume in volumes_in(folder)]
    cases = sorted({volume.case for volume, meaning in volumes if meaning.what is What.IMAGE})
    if not cases:
        return _open_names(volumes)
    sequences = list(dict.fromkeys(meaning.name for _, meaning in volumes if meaning.what is What.IMAGE))
    labels = list(dict.fromkeys(volume.stem for volume, meaning in volumes if meaning.what is What.LABEL))
    return (
        f"{len(cases)} cases such as {cases[0]}, with {listed(sequences)} and "
        f"{'labels ' + listed(labels) if labels else 'no labels'}"
    )


def _open_names(volumes: Sequence[tuple[Volume, Meaning]]) -> str:
    """Where names speak of sequences and none tells one."""
    volumes = [(volume, meaning) for volume, meaning in volumes if meaning.what is What.UNCLEAR and meaning.named]
    if not volumes:
        return ""
    cases = sorted({volume.case for volume, _ in volumes})
    names = listed(list(dict.fromkeys(volume.stem for volume, _ in volumes)))
    return f"{len(cases)} cases such as {cases[0]}, with names that leave open which sequence they are: {names}"


def _find(folder: Folder, options: SourceOptions) -> Found:
    volumes = volumes_in(folder)
    of_people = beside_visits(folder, volumes)
    volumes += [volume for volume in of_people if _meaning(folder, volume, options).what is What.BRAIN_MASK]
    meanings = [_meaning(folder, volume, options) for volume in volumes]
    database = options.name or folder.name
    parts = [volume for volume, meaning in zip(volumes, meanings, strict=True) if meaning.what is What.ONE_TISSUE]
    read = {
        volume: _role(folder, volume, meaning)
        for volume, meaning in zip(volumes, meanings, strict=True)
        if meaning.what is not What.ONE_TISSUE
    }
    left = {role.file for role in without_skipped_labels(list(read.values()), options.codes)}
    wanted = {volume: role for volume, role in read.items() if role.file in left}
    roles, doubts = one_label_each(wanted, options, database)
    schemas, notes = schemas_of(roles, folder, options, database)
    findings = [
        *doubts,
        *notes,
        *_of_one_tissue(parts, database),
        *_of_tables(folder, options, database),
        *_of_people(volumes, database),
    ]
    used = {volume.file for volume in volumes}
    return Found(
        name=folder.name,
        folder=folder,
        roles=[*roles.values(), *(role for volume, role in read.items() if volume not in wanted)],
        schemas=schemas,
        any_scan_counts=True,
        free_names=True,
        unused=[file for file in folder.volumes if file not in used],
        findings=tuple(findings),
        source="plain files",
    )


def _meaning(folder: Folder, volume: Volume, options: SourceOptions) -> Meaning:
    """What a file is as the user says, else as its name says."""
    if volume.stem in options.codes:
        return Meaning(What.LABEL, volume.stem)
    if volume.stem in options.modalities or folder.path(volume.file).name in options.modalities:
        return Meaning(What.IMAGE, volume.stem)
    return Meaning(What.BRAIN_MASK, "brain mask") if _is_brain_mask(folder, volume) else meaning_of(volume.stem)


def _is_brain_mask(folder: Folder, volume: Volume) -> bool:
    """Whether a name says so; "brain" alone may as well be of an image of the brain, which has more than one value."""
    if words_of(volume.stem) == ["brain"]:
        return len(codes_in(folder.path(volume.file))) == 1
    return meaning_of(volume.stem).what is What.BRAIN_MASK


def _role(folder: Folder, volume: Volume, meaning: Meaning) -> Role:
    """What is unclear goes as a sequence of an unknown name, so that it is asked about."""
    file = folder.path(volume.file)
    if meaning.what is What.LABEL:
        return Role(volume.case, "label", meaning.name, file, volume.fields, volume.stem)
    if meaning.what is What.BRAIN_MASK:
        return Role(volume.case, "brain mask", meaning.name, file, volume.fields, volume.stem)
    return Role(volume.case, "image", meaning.name or volume.stem, file, volume.fields, volume.stem, meaning.why)


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
