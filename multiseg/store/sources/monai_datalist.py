"""MONAI's datalist: JSON such as {"training": [{"image": ["a_t1.nii.gz"], "label": "a_seg.nii.gz", "fold": 0}]}.

Paths are relative to the JSON file. Images are one file per sequence, in the same order for every case, or one 4-D
file; the sequences are named by file names or the user.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import PurePosixPath
from typing import Any

from multiseg.errors import SourceError, few
from multiseg.labels import LabelSchema
from multiseg.store import schema
from multiseg.store.findings import Finding, Severity
from multiseg.store.sources import dataset_json
from multiseg.store.sources.annotations import only_annotation, schema_for
from multiseg.store.sources.participants import with_numbers
from multiseg.store.sources.source_channels import check_sizes, num_volumes, spellings, stack_roles
from multiseg.store.sources.source_folder import SUFFIX, Folder
from multiseg.store.sources.source_types import FoundFiles, Layout, Role, Row, SourceOptions, finding

SPLITS = {"training": "", "validation": "val", "val": "val", "testing": "test", "test": "test"}
"""The split of each list of cases. Folds of training become a column, since their use is chosen later."""
SUBJECT = ("subject", "subject_id", "subjectid", "patient", "patient_id")


@dataclass(frozen=True)
class _Entry:
    """A case of a datalist."""

    images: tuple[str, ...]
    label: str
    split: str
    rest: Mapping[str, str]
    case: str = ""


def _datalists(folder: Folder) -> list[str]:
    """The datalists among the JSON files directly in the folder."""
    names = [match[0] for match in folder.matches(r"[^/]+\.json")]
    is_decathlon = bool(folder.matches(rf"imagesTr/[^/]+{SUFFIX}"))
    return [name for name in names if not (is_decathlon and name == dataset_json.NAME) and _is_datalist(folder, name)]


def _is_datalist(folder: Folder, name: str) -> bool:
    try:
        rows = dataset_json.read_json(folder.path(name)).get("training")
    except SourceError:
        return False
    return isinstance(rows, list) and bool(rows) and isinstance(rows[0], dict) and "image" in rows[0]


def _recognise(folder: Folder) -> str:
    datalists = _datalists(folder)
    return f'{few(datalists)} with "training" as a list of images and labels' if datalists else ""


def _find(folder: Folder, options: SourceOptions) -> FoundFiles:
    name = _only_datalist(folder)
    data = dataset_json.read_json(folder.path(name))
    unnamed = _entries(data, str(folder.path(name)))
    entries = [replace(entry, case=case) for entry, case in zip(unnamed, _case_names(unnamed), strict=True)]
    annotation, schemas, findings = _annotation(data, options)
    images, doubts = _images(folder, data, {entry.case: entry for entry in entries}, options, name)
    labels = [Role(e.case, "label", annotation, folder.path(e.label), _fields(e)) for e in entries if e.label]
    rows, more = _participants(entries, name)
    return FoundFiles(
        name=PurePosixPath(name).stem,
        folder=folder,
        roles=[*images, *labels],
        schemas=schemas,
        may_lack_labels={entry.case for entry in entries if entry.split == "test"},
        participants=rows,
        findings=(*findings, *more, *doubts),
        licence=dataset_json.text_of(data, "licence", "license"),
        citation=dataset_json.text_of(data, "reference"),
        source=name,
    )


def _only_datalist(folder: Folder) -> str:
    datalists = _datalists(folder)
    if len(datalists) != 1:
        what = f"{len(datalists)} datalists ({few(datalists)})" if datalists else "no datalist"
        message = (
            f"{folder.root} has {what} of MONAI. Name the one to ingest: multiseg ingest "
            f'{folder.path("datalist.json")} ... It contains {{"training": [{{"image": ..., "label": ...}}]}}.'
        )
        raise SourceError(message, code="SEVERAL_DATASETS" if datalists else "NOTHING_FOUND", file=str(folder.root))
    return datalists[0]


def _entries(data: Mapping[str, Any], where: str) -> list[_Entry]:
    try:
        return [_entry(row, split) for key, split in SPLITS.items() for row in data.get(key, [])]
    except (TypeError, KeyError, AttributeError) as error:
        message = f'{where} has a case that is not in the form {{"image": ..., "label": ...}} ({error}). Correct it.'
        raise SourceError(message, code="BAD_JSON", file=where) from error


def _entry(row: Any, split: str) -> _Entry:
    row = {"image": row} if isinstance(row, str) else row
    images = row["image"] if isinstance(row["image"], list) else [row["image"]]
    labels = row.get("label") or ""
    label = labels[0] if isinstance(labels, list) and len(labels) == 1 else labels
    if not (isinstance(label, str) and images and all(isinstance(image, str) for image in images)):
        raise TypeError(f"image {row['image']!r}, label {labels!r}")
    rest = {key: str(value) for key, value in row.items() if isinstance(value, str | int | float)}
    return _Entry(tuple(images), label, split, {k: v for k, v in rest.items() if k not in ("image", "label")})


def _fields(entry: _Entry) -> dict[str, str]:
    fields = {"split": entry.split} if entry.split else {}
    subject = next((value for key, value in entry.rest.items() if key.lower() in SUBJECT), "")
    return {**fields, "subject": subject} if subject else fields


def _participants(entries: Sequence[_Entry], table: str) -> tuple[dict[str, Row], tuple[Finding, ...]]:
    keys = dict.fromkeys(key for entry in entries for key in entry.rest)
    columns = [key for key in keys if key.lower() not in (*schema.RESERVED, *SUBJECT)]
    rows = {entry.case: {column: entry.rest.get(column, "") for column in columns} for entry in entries}
    return with_numbers(rows, table) if columns else ({}, ())


def _case_names(entries: Sequence[_Entry]) -> list[str]:
    """Cases by the shared beginning of their files' names; if that is not unique, by their folder."""
    folders = [PurePosixPath(entry.images[0]).parent.name for entry in entries]
    for names in ([_shared_beginning(entry) for entry in entries], folders):
        if all(names) and len(set(names)) == len(names):
            return names
    return [_stem(entry.images[0].replace("/", "_")).strip("._") for entry in entries]


def _stem(file: str) -> str:
    return re.sub(SUFFIX + "$", "", PurePosixPath(file).name, flags=re.IGNORECASE)


def _shared_beginning(entry: _Entry) -> str:
    stems = [_stem(image) for image in entry.images]
    if len(stems) == 1:
        return stems[0]
    words = zip(*(re.split(r"([-_. ])", stem) for stem in stems), strict=False)
    return "".join(column[0] for column in takewhile(lambda column: len(set(column)) == 1, words)).rstrip("-_. ")


def _annotation(data: Mapping[str, Any], options: SourceOptions) -> tuple[str, dict[str, LabelSchema], list[Finding]]:
    if "labels" in data:
        return dataset_json.annotation(data, options)
    name = only_annotation(options)
    return name, {name: schema_for(name, options.codes.get(name, ""))}, []


def _images(
    folder: Folder, data: Mapping[str, Any], entries: Mapping[str, _Entry], options: SourceOptions, name: str
) -> tuple[list[Role], list[Finding]]:
    """The images of all cases, and an error for each case with more or fewer than the others."""
    stacks = {case: folder.path(entry.images[0]) for case, entry in entries.items() if len(entry.images) == 1}
    if len(stacks) == len(entries):
        sizes = [size for path in stacks.values() if (size := num_volumes(path)) is not None]
        number = max(set(sizes), key=sizes.count, default=1)
        files = {str(n): [path.name for path in stacks.values()] for n in range(number)}
        names = _channels(folder, data, files, options, name)
        roles = [role for c, path in stacks.items() for role in stack_roles(c, path, names, _fields(entries[c]))]
        return roles, list(check_sizes(stacks.items(), number))
    lengths = [len(entry.images) for entry in entries.values()]
    number = max(set(lengths), key=lengths.count)
    complete = {case: entry for case, entry in entries.items() if len(entry.images) == number}
    files = {str(n): [PurePosixPath(e.images[n]).name for e in complete.values()] for n in range(number)}
    names = _channels(folder, data, files, options, name)
    message = "{} lists {} images of case {!r} but {} of others, so it is unclear which is which. Complete the list."
    findings = [
        finding(Severity.ERROR, "NUM_VOLUMES", message.format(name, len(entry.images), case, number), case)
        for case, entry in entries.items()
        if case not in complete
    ]
    roles = [
        Role(case, "image", names[n], folder.path(entry.images[n]), _fields(entry))
        for case, entry in complete.items()
        for n in range(number)
    ]
    return roles, findings


def _channels(
    folder: Folder, data: Mapping[str, Any], files: Mapping[str, Sequence[str]], options: SourceOptions, name: str
) -> dict[int, str]:
    if "modality" in data or "channel_names" in data:
        names = dataset_json.channel_names(folder, data, options)
        if len(names) != len(files) or set(names) != {int(n) for n in files}:
            message = f"{folder.path(name)} names the channels {names}, but cases have {len(files)}. Correct it."
            raise SourceError(message, code="BAD_JSON", file=name)
        return names
    return {int(n): spelling for n, spelling in spellings(files, options, str(folder.path(name))).items()}


LAYOUT = Layout("monai", "MONAI's datalist", _recognise, _find)
