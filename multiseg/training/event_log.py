"""The log of a training: JSON lines and TensorBoard files."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from multiseg.errors import ResourceError
from multiseg.faults import remedy
from multiseg.files import write_atomically
from multiseg.training.events import Event, scalars_of
from multiseg.training.run_folder import LOG, TENSORBOARD


class EventLog:
    """log.jsonl and TensorBoard files of a run. Entries after the last save of a killed run are removed.

    A number that is not finite becomes null in log.jsonl, since JSON cannot hold it.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and only training needs it

        path = folder / LOG
        if path.exists():
            # A run that starts over keeps nothing, not even the notes from before its first step.
            lines = [line for line in path.read_text().splitlines() if step and _step_of(line) <= step]
            write_atomically(path, "".join(f"{line}\n" for line in lines).encode())
        self.file = path.open("a", buffering=1)
        self.board = SummaryWriter(str(folder / TENSORBOARD), purge_step=step + 1)

    def __enter__(self) -> EventLog:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()
        self.board.close()

    def write(self, event: Event) -> None:
        """Raises ResourceError if the disk is full."""
        try:
            self.file.write(json.dumps(finite({"event": type(event).__name__, **asdict(event)})) + "\n")
            for name, value in scalars_of(event).items():
                self.board.add_scalar(name, value, event.step)
        except OSError as error:
            raise ResourceError(
                f"cannot write the log of step {event.step}: {error}. {remedy(error, '')} The same command resumes "
                "from the last save."
            ) from error


def _step_of(line: str) -> int:
    """The step of a log line; a truncated line counts as later than every step."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return 2**63


def finite(value: Any) -> Any:
    """The value for JSON: numbers that are not finite become null."""
    if isinstance(value, dict):
        return {key: finite(part) for key, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
