"""The sequences of channels that have only a number or a column, by their file names or by the user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from multiseg.errors import UsageError
from multiseg.modalities import modality_of_file_name
from multiseg.store.sources.source_folder import join_names
from multiseg.store.sources.source_types import SourceOptions


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
            unknown[channel] = f"{channel} ({join_names(list(dict.fromkeys(files)), 2)})"
    if unknown:
        flags = " ".join(f"--modality {channel}=NAME" for channel in unknown)
        raise UsageError(
            f"{where} does not say the sequence of these channels, and neither do all of their file names: "
            f"{', '.join(unknown.values())}. Name them, such as T1 or FLAIR, or skip to leave one out: {flags}."
        )
    return known
