"""The command lines that made a result, and on what, kept beside it in commands.jsonl."""

from __future__ import annotations

import json
import platform
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

COMMANDS = "commands.jsonl"
PACKAGES = ("multiseg", "torch", "numpy", "zarr")


def add_command(folder: Path, arguments: Sequence[str], device: str = "", keep: bool = True) -> None:
    """Add a command line, the time, the versions and the machine to the folder's commands.jsonl.

    Args:
        keep: whether earlier commands stay, since they also made what the folder holds.
    """
    entry = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["multiseg", *arguments]),
        "device": device,
        "python": platform.python_version(),
        "system": platform.platform(),
        **{name: _version(name) for name in PACKAGES},
    }
    with (folder / COMMANDS).open("a" if keep else "w", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def read_commands(folder: Path) -> list[dict[str, str]]:
    """The commands of a folder, the earliest first; a line that was cut short is left out."""
    path = folder / COMMANDS
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            entries.append({str(key): str(value) for key, value in entry.items()})
    return entries


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
