"""Experiment trackers: pass the events of a training on to MLflow or Weights & Biases."""

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
"""File in the run folder: the run's id at each tracker, so that a resumed training continues the same run."""
PRIVATE = ("store", "start.model", "stream.disk_cache", "track.uri")
"""Settings that are not passed on: a path or an address may identify a person or a place."""


@dataclass(frozen=True)
class TrackOptions:
    """Which trackers get the settings of a training and its numbers by step, but no names of cases and no paths.

    Attributes:
        to: "mlflow" and "wandb", both or none (default).
        project: the experiment of MLflow, the project of Weights & Biases.
        name: of the run; "" takes that of the folder.
        uri: address of the MLflow server; "" takes $MLFLOW_TRACKING_URI or, without it, OUT/mlflow.db.
        mode: of Weights & Biases: "offline" (default: files in OUT/wandb, which `wandb sync` sends) or "online".
    """

    to: tuple[str, ...] = ()
    project: str = "multiseg"
    name: str = ""
    uri: str = ""
    mode: str = "offline"


@runtime_checkable
class Tracker(Protocol):
    """An open run at a tracker; `id` is the tracker's id of the run."""

    id: str

    def write(self, scalars: Mapping[str, float], step: int) -> None:
        """Send finite numbers of a step."""

    def close(self, finished: bool) -> None:
        """End the run, as finished or as interrupted."""


class MlflowTracker:
    """A run at MLflow. Its client is used since it has no global state."""

    def __init__(self, options: TrackOptions, folder: Path, settings: Mapping[str, str], run_id: str) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param, RunTag

        self._metric = Metric
        uri = options.uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder.absolute() / 'mlflow.db'}"
        self._client = MlflowClient(tracking_uri=uri)
        if run_id:
            self._client.update_run(run_id, status="RUNNING")
            self.id = run_id
            return
        experiment = self._client.get_experiment_by_name(options.project)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(options.project)
        run = self._client.create_run(experiment_id, run_name=options.name or folder.absolute().name)
        self.id = str(run.info.run_id)
        params = [Param(name, value) for name, value in settings.items()]
        for start in range(0, len(params), 100):  # a server takes at most 100 at once
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

    def __init__(self, options: TrackOptions, folder: Path, settings: Mapping[str, str], run_id: str) -> None:
        import wandb

        self._run = wandb.init(
            project=options.project,
            name=options.name or folder.absolute().name,
            id=run_id or None,
            resume="allow",
            mode=options.mode,
            dir=str(folder),
            config=dict(settings),
            settings=wandb.Settings(
                disable_git=True,
                disable_code=True,
                x_disable_stats=True,
                x_disable_meta=True,  # the command line and the names of the machine and the account
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
"""Matches characters that MLflow refuses in the name of a metric."""


def check_trackers(options: TrackOptions) -> None:
    """Raises UsageError for an unknown tracker or mode, or one whose package is not installed."""
    for name in options.to:
        if name not in TRACKERS:
            raise UsageError(f"track.to names {name!r}: give {', '.join(TRACKERS)}, both or none.")
        if find_spec(name) is None:
            raise UsageError(
                f"track.to names {name}, which is not installed. Install it in the folder of multiseg with: "
                f"pip install '.[{name}]', or leave it out of [track]."
            )
    if options.mode not in ("offline", "online"):
        raise UsageError(f"track.mode is {options.mode!r}: give offline or online.")


@contextmanager
def tracked(
    options: TrackOptions, folder: Path, settings: Mapping[str, Any], is_finished: Callable[[], bool]
) -> Iterator[Callable[[Event], None]]:
    """Yield a function that passes events on to the trackers.

    If a tracker fails, it is dropped with one warning, and the training continues.

    Args:
        settings: of the run, flat.
        is_finished: called at the end: whether the training has done all its steps.
    """
    # Trackers cut off or refuse long texts.
    public = {name: str(value)[:500] for name, value in settings.items() if name not in PRIVATE and value != ""}
    ids = _read_ids(folder / TRACKED)
    running: dict[str, Tracker] = {}
    for name in options.to:
        with _drop_on_error(name, running):
            running[name] = TRACKERS[name](options, folder, public, ids.get(name, ""))
    if running:
        ids |= {name: tracker.id for name, tracker in running.items()}
        write_atomically(folder / TRACKED, json.dumps(ids).encode())

    def pass_on(event: Event) -> None:
        scalars = {name: value for name, value in scalars_of(event).items() if math.isfinite(value)}
        if not scalars:
            return
        for name, tracker in list(running.items()):
            with _drop_on_error(name, running):
                tracker.write(scalars, event.step)

    try:
        yield pass_on
    finally:
        for name, tracker in list(running.items()):
            with _drop_on_error(name, running):
                tracker.close(is_finished())


@contextmanager
def _drop_on_error(name: str, running: dict[str, Tracker]) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # noqa: BLE001 # whatever a tracker raises: it must not stop a training of days
        running.pop(name, None)
        warnings.warn(
            f"{name} failed and gets no more of this training, which continues: {type(error).__name__}: {error}",
            UserWarning,
            stacklevel=2,
        )


def _read_ids(path: Path) -> dict[str, str]:
    try:
        return {str(name): str(value) for name, value in json.loads(path.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, AttributeError):
        return {}
