"""Experiment trackers: what a training tells of itself, passed on to MLflow or Weights & Biases."""

from __future__ import annotations

import json
import math
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from multiseg.errors import UsageError
from multiseg.files import write_atomically
from multiseg.training.events import Event, scalars_of

TRACKED = "track.json"
"""In a run's folder: by tracker, the name that it gave the run, so that a resumed training goes on in the same one."""
PRIVATE = ("store", "start.model", "stream.disk_cache", "track.uri")
"""Settings that are not passed on: a path or an address may tell who or where somebody is."""


@dataclass(frozen=True)
class TrackOptions:
    """Which trackers hear of a training: its settings, and its numbers by step. Names of cases and paths are not told.

    Attributes:
        to: "mlflow" and "wandb", both or none (default).
        project: the experiment of MLflow, the project of Weights & Biases.
        name: of the run; "" takes that of the folder.
        uri: where MLflow keeps it: a server's address; "" takes $MLFLOW_TRACKING_URI or, without it, OUT/mlflow.db.
        mode: of Weights & Biases: "offline" (default: files in OUT/wandb, which `wandb sync` sends) or "online".
    """

    to: tuple[str, ...] = ()
    project: str = "multiseg"
    name: str = ""
    uri: str = ""
    mode: str = "offline"


@runtime_checkable
class Tracker(Protocol):
    """A run that is open at a tracker; `id` is what the tracker calls it."""

    id: str

    def write(self, scalars: Mapping[str, float], step: int) -> None:
        """Pass on finite numbers of a step."""

    def close(self, finished: bool) -> None:
        """End the run, as finished or as one that goes on another time."""


class MlflowTracker:
    """A run at MLflow, through its client, which changes nothing global."""

    def __init__(self, options: TrackOptions, folder: Path, settings: Mapping[str, str], held: str) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param, RunTag

        self._metric = Metric
        uri = options.uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder.absolute() / 'mlflow.db'}"
        self._client = MlflowClient(tracking_uri=uri)
        if held:
            self._client.update_run(held, status="RUNNING")
            self.id = held
            return
        experiment = self._client.get_experiment_by_name(options.project)
        place = experiment.experiment_id if experiment else self._client.create_experiment(options.project)
        self.id = str(self._client.create_run(place, run_name=options.name or folder.absolute().name).info.run_id)
        params = [Param(name, value) for name, value in settings.items()]
        for start in range(0, len(params), 100):  # the most that a server takes at once
            self._client.log_batch(self.id, params=params[start : start + 100])
        self._client.log_batch(self.id, tags=[RunTag("multiseg", version("multiseg"))])

    def write(self, scalars: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        metrics = [self._metric(_ALLOWED.sub("_", name), value, now, step) for name, value in scalars.items()]
        self._client.log_batch(self.id, metrics=metrics)

    def close(self, finished: bool) -> None:
        self._client.set_terminated(self.id, status="FINISHED" if finished else "KILLED")


class WandbTracker:
    """A run at Weights & Biases, offline unless the options say otherwise."""

    def __init__(self, options: TrackOptions, folder: Path, settings: Mapping[str, str], held: str) -> None:
        import wandb

        self._run = wandb.init(
            project=options.project,
            name=options.name or folder.absolute().name,
            id=held or None,
            resume="allow",
            mode=options.mode,
            dir=str(folder),
            config=dict(settings),
            settings=wandb.Settings(
                disable_git=True,
                disable_code=True,
                x_disable_stats=True,
                x_disable_meta=True,  # which holds the command line, the machine's name and the account's
                x_disable_machine_info=True,
                x_save_requirements=False,
                console="off",
                host="",
                silent=True,
            ),
        )
        self.id = str(self._run.id)

    def write(self, scalars: Mapping[str, float], step: int) -> None:
        self._run.log(dict(scalars), step=step)

    def close(self, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


TRACKERS: dict[str, Callable[[TrackOptions, Path, Mapping[str, str], str], Tracker]] = {
    "mlflow": MlflowTracker,
    "wandb": WandbTracker,
}
_ALLOWED = re.compile(r"[^\w\-. :/]")
"""MLflow refuses other characters in the name of a number."""


def check_trackers(options: TrackOptions) -> None:
    """Raises UsageError for an unknown tracker or mode, or one whose package is not installed."""
    for name in options.to:
        if name not in TRACKERS:
            raise UsageError(f"track.to names {name!r}, which is none of {', '.join(TRACKERS)}.")
        if find_spec(name) is None:
            raise UsageError(
                f"track.to names {name}, which is not installed: pip install 'multiseg[{name}]', or leave it out of "
                "[track]."
            )
    if options.mode not in ("offline", "online"):
        raise UsageError(f"track.mode is {options.mode!r}, which is none of offline, online.")


@contextmanager
def tracked(
    options: TrackOptions, folder: Path, settings: Mapping[str, Any], is_finished: Callable[[], bool]
) -> Iterator[Callable[[Event], None]]:
    """What passes events on to the trackers.

    A tracker that fails, at the start or later, warns once, is left out from then on, and stops nothing.

    Args:
        settings: of the run, flat.
        is_finished: asked in the end, whether the training goes on another time.
    """
    told = {name: _plain(value) for name, value in settings.items() if name not in PRIVATE and value != ""}
    held = _read(folder / TRACKED)
    running: dict[str, Tracker] = {}
    for name in options.to:
        with _harmless(name, running):
            running[name] = TRACKERS[name](options, folder, told, held.get(name, ""))
    if running:
        ids = held | {name: tracker.id for name, tracker in running.items()}
        write_atomically(folder / TRACKED, json.dumps(ids).encode())

    def pass_on(event: Event) -> None:
        scalars = {name: value for name, value in scalars_of(event).items() if math.isfinite(value)}
        for name, tracker in list(running.items()) if scalars else []:
            with _harmless(name, running):
                tracker.write(scalars, event.step)

    try:
        yield pass_on
    finally:
        for name, tracker in list(running.items()):
            with _harmless(name, running):
                tracker.close(is_finished())


@contextmanager
def _harmless(name: str, running: dict[str, Tracker]) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # noqa: BLE001 # whatever a tracker raises: a training of days is worth more than its record
        running.pop(name, None)
        warnings.warn(
            f"{name} failed and hears no more of this training, which goes on: {type(error).__name__}: {error}",
            UserWarning,
            stacklevel=2,
        )


def _plain(value: Any) -> str:
    """A setting as text; trackers cut off or refuse long ones."""
    return str(value)[:500]


def _read(path: Path) -> dict[str, str]:
    try:
        return {str(name): str(value) for name, value in json.loads(path.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, AttributeError):
        return {}
