"""Channels that have a number or a column but no sequence: told by their file names, or by the user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from multiseg.errors import UsageError
from multiseg.modalities import modality_of_file_name
from multiseg.store.sources.source_folder import listed
from multiseg.store.sources.source_types import SourceOptions


def spellings(channels: Mapping[str, Sequence[str]], options: SourceOptions, where: str) -> dict[str, str]:
    """How to call each channel's sequence: by the channel itself where the user names it, else by its files.

    Args:
        channels: the file names of every channel, such as {"Channel_0": ["a_t1.nii.gz", "b_t1.nii.gz"]}.
        where: what lists them, for messages.

    Raises:
        UsageError: the file names of a channel tell no sequence, or not all the same one.
    """
    told: dict[str, str] = {}
    untold: dict[str, str] = {}
    for channel, files in channels.items():
        found = {modality_of_file_name(PurePosixPath(file).name) for file in files}
        sequence = found.pop() if len(found) == 1 else None
        if channel in options.modalities:
            told[channel] = channel
        elif sequence is not None:
            told[channel] = sequence
        else:
            untold[channel] = f"{channel} ({listed(list(dict.fromkeys(files)), 2)})"
    if untold:
        flags = " ".join(f"--modality {channel}=NAME" for channel in untold)
        raise UsageError(
            f"{where} does not say which sequences these channels are, nor do their file names, all alike: "
            f"{', '.join(untold.values())}. Name them, such as T1 or FLAIR, or leave one out by the name skip: {flags}."
        )
    return told
