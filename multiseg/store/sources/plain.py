"""The layout of last resort: one folder per case, or flat files that begin with the case's name.

A file's name must say what it is in well-known words (`file_words`). Nothing is guessed: a volume whose name says
nothing, or two things, is left out with a finding, and the user has to explain codes that are not obvious.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from multiseg.errors import counted, few
from multiseg.store.findings import Finding, Severity
from multiseg.store.sources.file_contents import codes_in
from multiseg.store.sources.file_words import Meaning, What, meaning_of, words_of
from multiseg.store.sources.plain_cases import Volume, files_of_subjects, volumes_in
from multiseg.store.sources.plain_labels import one_label_each, schemas_of
from multiseg.store.sources.source_folder import Folder
from multiseg.store.sources.source_types import FoundFiles, Layout, Role, SourceOptions, finding, without_skipped_labels


def _recognise(folder: Folder) -> str:
    volumes = [(volume, meaning_of(volume.stem)) for volume in volumes_in(folder)]
    cases = sorted({volume.case for volume, meaning in volumes if meaning.what is What.IMAGE})
    if not cases:
        return _describe_unclear(volumes)
    sequences = list(dict.fromkeys(meaning.name for _, meaning in volumes if meaning.what is What.IMAGE))
    labels = list(dict.fromkeys(volume.stem for volume, meaning in volumes if meaning.what is What.LABEL))
    return (
        f"{counted(len(cases), 'case')} such as {cases[0]}, with {few(sequences)} and "
        f"{'labels ' + few(labels) if labels else 'no labels'}"
    )


def _describe_unclear(volumes: Sequence[tuple[Volume, Meaning]]) -> str:
    """The evidence for names with words of sequences, of which none is clear."""
    volumes = [(volume, meaning) for volume, meaning in volumes if meaning.what is What.UNCLEAR and meaning.named]
    if not volumes:
        return ""
    cases = sorted({volume.case for volume, _ in volumes})
    names = few(list(dict.fromkeys(volume.stem for volume, _ in volumes)))
    return (
        f"{counted(len(cases), 'case')} such as {cases[0]}, with names that do not say which sequence they are: {names}"
    )


def _find(folder: Folder, options: SourceOptions) -> FoundFiles:
    meanings = [(volume, _meaning(folder, volume, options)) for volume in volumes_in(folder)]
    of_subjects = files_of_subjects(folder, [volume for volume, _ in meanings])
    masks = [(volume, _meaning(folder, volume, options)) for volume in of_subjects]
    meanings += [(volume, meaning) for volume, meaning in masks if meaning.what is What.BRAIN_MASK]
    volumes = [volume for volume, _ in meanings]
    tissues = [volume for volume, meaning in meanings if meaning.what is What.ONE_TISSUE]
    all_roles = {v: _role(folder, v, meaning) for v, meaning in meanings if meaning.what is not What.ONE_TISSUE}
    kept = {role.file for role in without_skipped_labels(list(all_roles.values()), options.codes)}
    if options.only_images:
        kept = {role.file for role in all_roles.values() if role.kind != "label"}
    wanted = {volume: role for volume, role in all_roles.items() if role.file in kept}
    roles, doubts = one_label_each(wanted, options)
    schemas, notes = schemas_of(roles, folder, options)
    findings = [*doubts, *notes, *_note_tissues(tissues), *_note_tables(folder, options), *_note_nested(volumes)]
    return FoundFiles(
        folder=folder,
        roles=[*roles.values(), *(role for volume, role in all_roles.items() if volume not in wanted)],
        schemas=schemas,
        any_scan_counts=True,
        free_names=True,
        unused=folder.unused(folder.path(volume.file) for volume in volumes),
        findings=tuple(findings),
        source="plain files",
    )


def _meaning(folder: Folder, volume: Volume, options: SourceOptions) -> Meaning:
    """What a file is by the user's flags, else by its name."""
    if volume.stem in options.codes:
        return Meaning(What.LABEL, volume.stem)
    if volume.stem in options.modalities or folder.path(volume.file).name in options.modalities:
        return Meaning(What.IMAGE, volume.stem)
    return Meaning(What.BRAIN_MASK, "brain mask") if _is_brain_mask(folder, volume) else meaning_of(volume.stem)


def _is_brain_mask(folder: Folder, volume: Volume) -> bool:
    """Whether a name says brain mask; "brain" alone may also be an image of the brain, with more than one value."""
    if words_of(volume.stem) == ["brain"]:
        return len(codes_in(folder.path(volume.file))) == 1
    return meaning_of(volume.stem).what is What.BRAIN_MASK


def _role(folder: Folder, volume: Volume, meaning: Meaning) -> Role:
    """The role of a file. An unclear one becomes an image of an unknown sequence, so that it is reported."""
    file = folder.path(volume.file)
    if meaning.what is What.LABEL:
        return Role(volume.case, "label", meaning.name, file, volume.fields, volume.stem)
    if meaning.what is What.BRAIN_MASK:
        return Role(volume.case, "brain mask", meaning.name, file, volume.fields, volume.stem)
    return Role(volume.case, "image", meaning.name or volume.stem, file, volume.fields, volume.stem, meaning.why)


def _note_tissues(volumes: Sequence[Volume]) -> Iterator[Finding]:
    stems = list(dict.fromkeys(volume.stem for volume in volumes))
    if stems:
        message = (
            f"{few(stems)} show one tissue each and are not used: a label has to be one file of whole-number "
            "codes. Combine the tissues to one file if you need them."
        )
        yield finding(Severity.NOTE, "ONE_TISSUE", message, file=volumes[0].file)


def _note_tables(folder: Folder, options: SourceOptions) -> Iterator[Finding]:
    for table in (file for file in folder.files if file.endswith((".csv", ".tsv")) and "/" not in file):
        if not options.participants:
            message = f"{table} is not used. If its first column names the cases, use --participants {table}."
            yield finding(Severity.NOTE, "PARTICIPANTS_TABLE", message, file=table)


def _note_nested(volumes: Sequence[Volume]) -> Iterator[Finding]:
    nested = sorted({volume.case for volume in volumes if not volume.fields and volume.file.count("/") > 1})
    parents = {volume.file.rsplit("/", 2)[0] for volume in volumes if volume.case in nested}
    if 1 < len(parents) < len(nested):
        message = (
            f"{few(nested)} are in {len(parents)} parent folders and taken as {len(nested)} patients. If each "
            "parent folder is one patient with several visits, use --pattern '{subject}/{session}/{modality}.nii.gz', "
            "or one patient may be in two splits."
        )
        yield finding(Severity.WARNING, "NESTED_CASES", message)


FOLDERS = Layout("plain", "plain files", _recognise, _find)
