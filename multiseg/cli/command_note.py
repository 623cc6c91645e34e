"""Keep the command line beside what it makes."""

from __future__ import annotations

from pathlib import Path

import click


def note_command(folder: Path, device: str, keep: bool = True) -> None:
    """Add the command that runs now to the folder's record, with the device that it computes on.

    Args:
        keep: whether earlier commands stay in the record.
    """
    from multiseg.commands_log import add_command
    from multiseg.models.devices import resolve_device

    arguments = click.get_current_context().obj
    if arguments:  # nothing but the command line itself, not a program that calls the function
        add_command(folder, arguments, str(resolve_device(device)), keep)
