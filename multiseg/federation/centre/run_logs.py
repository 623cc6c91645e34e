"""Writes the events of a federated run to log.jsonl, TensorBoard, status.json and a text for Prometheus."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from multiseg.errors import ResourceError
from multiseg.faults import remedy
from multiseg.federation.centre import run_events
from multiseg.federation.centre.prometheus_text import in_text, metric
from multiseg.federation.centre.run_events import Event, RoundDone
from multiseg.files import write_atomically
from multiseg.training.event_log import finite
from multiseg.training.run_folder import LOG, TENSORBOARD

METRICS = "metrics.prom"
STATUS = "status.json"
PREFIX = "multiseg_federation_"
"""Of the names of a run's metrics."""


@dataclass
class Status:
    """The status of a run; mappings are by site.

    Attributes:
        awaited: sites that have a task and are offline.
        left: sites in the settings that the run continues without.
        held: sites that have their task and do not answer yet, and why.
        working: sites that owe the current round an answer, online or not; none before the first round and after the
            last.
    """

    experiment: str
    round: int = 0
    rounds: int = 0
    finished: bool = False
    mean: float = math.nan
    worst: float = math.nan
    epsilon: float = math.inf
    round_seconds: float = math.nan
    seconds_left: float = math.nan
    awaited: tuple[str, ...] = ()
    sites: tuple[str, ...] = ()
    working: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    held: dict[str, str] = field(default_factory=dict)
    dice: dict[str, float] = field(default_factory=dict)
    loss: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    sent: dict[str, int] = field(default_factory=dict)
    received: dict[str, int] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    resent: dict[str, int] = field(default_factory=dict)

    def take(self, event: Event) -> None:
        """Update the status."""
        match event:
            case run_events.Waiting():
                self.awaited = event.sites
            case run_events.Began():
                self.rounds, self.sites, self.working = event.rounds, event.sites, event.sites
            case run_events.Came():
                self._clear(event.site)
                self.sent[event.site] = self.sent.get(event.site, 0) + event.sent
                self.received[event.site] = self.received.get(event.site, 0) + event.received
                self.seconds[event.site] = event.seconds
            case run_events.Refused():
                self._clear(event.site)
                self.failures[event.site] = self.failures.get(event.site, 0) + 1
            case run_events.Left():
                self._clear(event.site)
                self.awaited = tuple(site for site in self.awaited if site != event.site)
                self.left = tuple(dict.fromkeys((*self.left, event.site)))
            case run_events.Held():
                self.held[event.site] = event.reason
            case run_events.Resent():
                self.resent[event.site] = self.resent.get(event.site, 0) + 1
            case RoundDone():
                self.working, self.awaited = (), ()
                self.round, self.rounds, self.mean, self.worst = event.round, event.rounds, event.mean, event.worst
                self.epsilon, self.round_seconds, self.seconds_left = event.epsilon, event.seconds, event.seconds_left
                self.dice |= {site: result.dice for site, result in event.sites.items()}
                self.loss |= {site: result.loss for site, result in event.sites.items()}
            case run_events.Finished():
                self.finished, self.awaited = True, ()

    def _clear(self, site: str) -> None:
        """The site owes no answer any more."""
        self.held.pop(site, None)
        self.working = tuple(other for other in self.working if other != site)


def read_status(folder: Path) -> dict[str, Any]:
    """The `Status` of the run in a folder, None for numbers that are not finite; {} before it started."""
    try:
        return dict(json.loads((folder / STATUS).read_text(encoding="utf-8")))
    except OSError:
        return {}


def busy_with(folder: Path, site: str) -> str:
    """What may keep a site from answering the run in a folder: rounds of other runs that wait for it."""
    others = [read_status(other) for other in sorted(folder.parent.iterdir()) if other.is_dir() and other != folder]
    rounds = [
        f"{other['experiment']}, round {other['round'] + 1}" for other in others if site in other.get("working", ())
    ]
    return f"it may be working for {'; '.join(rounds)}" if rounds else "it is busy, or cut off"


def prometheus(status: Status) -> str:
    """The run in Prometheus's text format. Counters restart with the process."""
    present = {site: site not in status.awaited for site in dict.fromkeys((*status.sites, *status.awaited))}
    of_run = (
        ("round", "Rounds done.", status.round),
        ("rounds", "Rounds in all.", status.rounds),
        ("finished", "1 after the last evaluation.", status.finished),
        ("dice_mean", "Dice of the model that the last round started from, mean over sites.", status.mean),
        ("dice_worst", "The same at the worst site.", status.worst),
        ("epsilon", "Of the (epsilon, delta) guarantee so far.", status.epsilon),
        ("round_seconds", "Duration of the last round.", status.round_seconds),
        ("seconds_left", "Estimate until the last round.", status.seconds_left),
    )
    of_sites: tuple[tuple[str, str, Mapping[str, float | int]], ...] = (
        ("site_present", "0 while the run waits for the site.", present),
        ("site_dice", "Dice of the model that the last round started from.", status.dice),
        ("site_loss", "Mean loss in the last round.", status.loss),
        ("site_seconds", "From the last task to its answer.", status.seconds),
        ("site_sent_bytes_total", "Bytes to the site.", status.sent),
        ("site_received_bytes_total", "Bytes from the site.", status.received),
        ("site_failures_total", "Answers refused or given up.", status.failures),
        ("site_resent_total", "Tasks that were sent again.", status.resent),
    )
    run = status.experiment
    return in_text([
        *(metric(PREFIX + name, text, ["experiment"], {(run,): value}) for name, text, value in of_run),
        *(
            metric(PREFIX + name, text, ["experiment", "site"], {(run, site): value for site, value in values.items()})
            for name, text, values in of_sites
        ),
    ])  # fmt: skip


class RunLogs:
    """Logs each event and passes it on. The log is only appended to: earlier failures stay after a restart."""

    def __init__(self, folder: Path, experiment: str, number: int, on_event: Callable[[Event], None]) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        self._written = ""
        self.folder, self.on_event, self.status = folder, on_event, Status(experiment, number)
        path = folder / LOG
        is_cut_short = path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n")
        self.file = path.open("a", buffering=1, encoding="utf-8")
        if is_cut_short:  # by a kill
            self.file.write("\n")
        self.board = SummaryWriter(str(folder / TENSORBOARD), purge_step=number + 1)

    def __enter__(self) -> RunLogs:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()
        self.board.close()

    def event(self, event: Event) -> None:
        """Raises ResourceError if the disk is full."""
        self.status.take(event)
        head = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "event": type(event).__name__}
        try:
            self.file.write(json.dumps(finite(head | asdict(event))) + "\n")
            if isinstance(event, RoundDone):
                self._plot(event)
        except OSError as error:
            raise ResourceError(
                f"the log of round {event.round} could not be written: {error}. {remedy(error, '')} The same "
                "command resumes from the last saved round."
            ) from error
        status = json.dumps(finite(asdict(self.status)))
        if status != self._written:  # many events do not change it
            write_atomically(self.folder / METRICS, prometheus(self.status).encode())
            write_atomically(self.folder / STATUS, status.encode())
            self._written = status
        self.on_event(event)

    def _plot(self, event: RoundDone) -> None:
        scalars = {"dice/mean": event.mean, "dice/worst": event.worst, "round/seconds": event.seconds}
        for site, result in event.sites.items():
            scalars |= {f"dice/{site}": result.dice, f"loss/{site}": result.loss, f"seconds/{site}": result.seconds}
            scalars |= {f"received_megabytes/{site}": result.received / 1e6}
        scalars["privacy/epsilon"] = event.epsilon
        for name, value in scalars.items():
            if math.isfinite(value):
                self.board.add_scalar(name, value, event.round)
        self.board.flush()
