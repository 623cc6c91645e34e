"""nnU-Net's raw format: version 2 (DatasetNNN_Name) and version 1 (TaskNNN_Name).

https://github.com/MIC-DKFZ/nnUNet/blob/master/documentation/dataset_format.md - one file per channel, X_0000.nii.gz,
and one label X.nii.gz; dataset.json names channels and labels. Every case has every channel.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from multiseg.errors import SourceError
from multiseg.store.findings import Finding, Severity
from multiseg.store.sources import dataset_json
from multiseg.store.sources.source_folder import SUFFIX, Folder, is_volume
from multiseg.store.sources.source_types import SKIP, FoundFiles, Layout, Role, SourceOptions, finding, image_names


def _version(home: Folder) -> int:
    """The version of the format that a folder has; 0 for another format."""
    return 2 if "channel_names" in dataset_json.peek(home) else int(dataset_json.has_channel_files(home))


def _recognise(folder: Folder) -> str:
    versions = {home.name: _version(home) for home in dataset_json.homes(folder)}
    return next(
        (f"{name} has a dataset.json of version {version}" for name, version in versions.items() if version), ""
    )


def _find(folder: Folder, options: SourceOptions) -> FoundFiles:
    home = dataset_json.only_home(folder)
    data = dataset_json.read_json(home.path(dataset_json.NAME))
    ending = _ending(home, data)
    names = dataset_json.channel_names(home, data, options)
    annotation, schemas, notes = dataset_json.annotation(data, options)
    training = _listed_roles(home, data, names, annotation) or _roles(home, "Tr", ending, names, annotation)
    test = _roles(home, "Ts", ending, names, annotation)
    # Version 2 does not read the list of cases, and people keep outdated ones.
    promised = {k: v for k, v in data.items() if k != "training"} if "channel_names" in data else data
    findings = [
        *notes,
        *_incomplete((*training, *test), names, options),
        *dataset_json.broken_promises(promised, ("training", "numTraining"), {role.case for role in training}, ending),
    ]
    return FoundFiles(
        folder=home,
        roles=(*training, *test),
        schemas=schemas,
        may_lack_labels=_unlabelled(test),
        unused=home.unused(role.file for role in (*training, *test)),
        findings=tuple(findings),
        licence=dataset_json.text_of(data, "licence", "license"),
        citation=dataset_json.text_of(data, "citation", "reference"),
        source=dataset_json.text_of(data, "name", "description") or home.name,
    )


def _ending(home: Folder, data: Mapping[str, Any]) -> str:
    """The suffix of files, as a regular expression.

    Raises:
        SourceError: it is not a suffix of volumes, or no file has it.
    """
    given = data.get("file_ending")
    if given is None:
        return SUFFIX
    if not is_volume(f"x{given}"):
        message = (
            f"{home.path(dataset_json.NAME)} says that files end in {given!r}, which is not a format of volumes "
            "that multiseg reads. Convert them to .nii.gz."
        )
        raise SourceError(message, code="NOT_A_VOLUME", file=dataset_json.NAME)
    if home.volumes and not any(file.endswith(given) for file in home.volumes):
        message = (
            f"{home.path(dataset_json.NAME)} says that files end in {given!r}, but they are such as "
            f"{home.volumes[0]}. Correct its file_ending."
        )
        raise SourceError(message, code="BAD_JSON", file=dataset_json.NAME)
    return re.escape(str(given))


def _roles(home: Folder, part: str, ending: str, names: Mapping[int, str], annotation: str) -> list[Role]:
    fields = {"split": "test"} if part == "Ts" else {}
    images = [
        Role(match["case"], "image", _channel(int(match["number"]), names), home.path(match[0]), fields)
        for match in home.matches(rf"images{part}/(?P<case>[^/]+)_(?P<number>\d{{4}}){ending}")
    ]
    labels = [
        Role(match["case"], "label", annotation, home.path(match[0]), fields)
        for match in home.matches(rf"labels{part}/(?P<case>[^/]+){ending}")
    ]
    return images + labels


def _channel(number: int, names: Mapping[int, str]) -> str:
    return names.get(number, f"{number:04d}")


def _listed_roles(home: Folder, data: Mapping[str, Any], names: Mapping[int, str], annotation: str) -> list[Role]:
    """The training cases if dataset.json lists their files, which may be anywhere on the disk.

    Raises:
        SourceError: the list is not in the form that nnU-Net reads.
    """
    if "dataset" not in data:
        return []
    try:
        rows = data["dataset"].items()
        return [role for case, row in rows for role in _listed_case(home, case, row, names, annotation)]
    except (AttributeError, KeyError, TypeError) as error:
        message = (
            f'{home.path(dataset_json.NAME)}: "dataset" is not in the form {{"CASE": {{"images": [...], "label": '
            f'"..."}}}} ({type(error).__name__}: {error}). Correct it.'
        )
        raise SourceError(message, code="BAD_JSON", file=dataset_json.NAME) from error


def _listed_case(
    home: Folder, case: str, row: Mapping[str, Any], names: Mapping[int, str], annotation: str
) -> list[Role]:
    files = enumerate(row["images"])
    images = [Role(case, "image", _channel(number, names), _resolve(home, file)) for number, file in files]
    return [*images, Role(case, "label", annotation, _resolve(home, row["label"]))]


def _resolve(home: Folder, file: str) -> Path:
    """A listed path: nnU-Net allows $VARIABLES, and paths relative to the folder of dataset.json."""
    return home.path(os.path.expandvars(file))


def _incomplete(roles: Sequence[Role], names: Mapping[int, str], options: SourceOptions) -> Iterator[Finding]:
    """An error for each case without all channels: in nnU-Net every case has them, so a missing file was lost."""
    wanted = {number: name for number, name in names.items() if options.modalities.get(name) != SKIP}
    for case, sequences in image_names(roles).items():
        missing = [f"{case}_{number:04d} ({name})" for number, name in sorted(wanted.items()) if name not in sequences]
        if missing:
            message = (
                f"case {case!r} lacks {', '.join(missing)}, which dataset.json names. Copy the file again, or leave "
                "the sequence out of all cases: --modality NAME=skip."
            )
            yield finding(Severity.ERROR, "MISSING_FILE", message, case)


def _unlabelled(test: Sequence[Role]) -> set[str]:
    """The cases of a test set without any labels; if some have labels, all should."""
    return set() if any(role.kind == "label" for role in test) else {role.case for role in test}


LAYOUT = Layout("nnunet", "nnU-Net raw", _recognise, _find)
