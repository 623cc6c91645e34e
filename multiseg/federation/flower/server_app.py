"""The app that Flower starts on the server for a run: the round loop, over a link to the sites."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from multiseg.config import checked
from multiseg.errors import FederationError
from multiseg.federation.centre import rounds
from multiseg.federation.centre.answer_size import read_too_large
from multiseg.federation.centre.run_events import Event, in_words
from multiseg.federation.fab import app_hash
from multiseg.federation.flower.link import FlowerLink
from multiseg.federation.identity.registry import read_registry, revoked
from multiseg.federation.plan import FederationOptions, check
from multiseg.files import wait_until_free
from multiseg.training.run_folder import LOCK

RUNS = "MULTISEG_RUNS"
"""The environment variable with the folder of all experiments; `multiseg fed serve` sets it."""

PREDECESSOR_S = 300.0
"""A run that hangs counts as lost after a minute, and may keep the experiment's folder for a while after that."""

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds that are not done yet, resuming from the experiment's folder.

    Raises:
        FederationError: see `rounds.run`; or the folder of experiments is not set, or the run was submitted by another
            version of multiseg.
    """
    if not os.environ.get(RUNS):
        raise FederationError(f"{RUNS} is not set to a folder for experiments: use multiseg fed serve.")
    if context.run_config.get("app") != app_hash():
        raise FederationError(
            "multiseg has changed here since the server started: restart multiseg fed serve, and submit the run again."
        )
    options = checked(json.loads(str(context.run_config["settings"])), FederationOptions)
    check(options)
    folder = Path(os.environ[RUNS]) / options.experiment
    wait_until_free(folder / LOCK, PREDECESSOR_S)  # a lost run ends once it learns that it was lost
    home = folder.parent.parent
    link = FlowerLink(grid, revoked=lambda: _revoked(home), too_large=lambda: read_too_large(home))
    rounds.run(options, link, folder, on_event=_tell)


def _revoked(home: Path) -> tuple[str, ...]:
    """The revoked sites; none if the registry cannot be read, which the steward reports."""
    try:
        return revoked(read_registry(home))
    except FederationError:
        return ()


def _tell(event: Event) -> None:
    sys.stdout.write(in_words(event) + "\n")  # `fed log` shows it
    sys.stdout.flush()
