"""Sequences that have only a number or a column: channels in separate files, and the volumes of 4-D files."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

import nibabel as nib
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from multiseg.errors import UsageError, few
from multiseg.faults import check_machine
from multiseg.modalities import modality_of_file_name
from multiseg.store.cases import Channel
from multiseg.store.findings import Finding, Severity
from multiseg.store.sources.source_types import Role, SourceOptions, finding


def num_volumes(path: Path) -> int | None:
    """The number of 3-D volumes in a file; None if it cannot be read, which is reported when its case is prepared."""
    try:
        return math.prod(int(n) for n in nib.load(path).shape[3:])
    except (OSError, EOFError, ValueError, ImageFileError, HeaderDataError, WrapStructError) as error:
        check_machine(error)
        return None


def stack_roles(case: str, path: Path, names: Mapping[int, str], fields: Mapping[str, str] | None = None) -> list[Role]:
    """A role for every volume of a file; a file with one volume may also be 3-D."""
    if len(names) == 1:
        return [Role(case, "image", name, path, fields or {}) for name in names.values()]
    return [Role(case, "image", name, Channel(path, number), fields or {}) for number, name in names.items()]


def check_sizes(files: Iterable[tuple[str, Path]], expected: int) -> Iterator[Finding]:
    """An error for every (case, file) with more or fewer volumes than expected."""
    for case, path in files:
        number = num_volumes(path)
        if number is not None and number != expected:
            message = f"{path} has {number} volumes, but {expected} are named, so it is unclear which is which."
            yield finding(Severity.ERROR, "NUM_VOLUMES", message, case, str(path))


def spellings(channels: Mapping[str, Sequence[str]], options: SourceOptions, where: str) -> dict[str, str]:
    """Each channel's spelling: the channel itself if the user names its sequence, else the sequence of its files.

    Args:
        channels: the file names of every channel, such as {"Channel_0": ["a_t1.nii.gz", "b_t1.nii.gz"]}.
        where: the file that lists them, for messages.

    Raises:
        UsageError: the file names of a channel do not all say one sequence.
    """
    known: dict[str, str] = {}
    unknown: dict[str, str] = {}
    for channel, files in channels.items():
        sequences = {modality_of_file_name(PurePosixPath(file).name) for file in files}
        sequence = sequences.pop() if len(sequences) == 1 else None
        if channel in options.modalities:
            known[channel] = channel
        elif sequence is not None:
            known[channel] = sequence
        else:
            unknown[channel] = f"{channel} ({few(list(dict.fromkeys(files)), 2)})"
    if unknown:
        flags = " ".join(f"--modality {channel}=NAME" for channel in unknown)
        raise UsageError(
            f"{where} does not say the sequence of these channels, and neither do all of their file names: "
            f"{', '.join(unknown.values())}. Name them, such as T1 or FLAIR, or skip to leave one out: {flags}."
        )
    return known
