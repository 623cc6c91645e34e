"""What Flower starts on the server for a run: the round loop, over a link to the sites."""

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
"""Names the folder of all experiments; `multiseg fed serve` sets it."""

PREDECESSOR_S = 300.0
"""A run that stood still counts as lost after a minute, and may have the experiment's folder for a while yet."""

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds that are not done yet. What the experiment's folder holds is gone on from.

    Raises:
        FederationError: see `rounds.run`; or nobody said where experiments lie, or the run was submitted by another
            multiseg than is here now.
    """
    if not os.environ.get(RUNS):
        raise FederationError(f"{RUNS} names no folder for experiments: start the server with multiseg fed serve.")
    if context.run_config.get("app") != app_hash():
        raise FederationError(
            "multiseg was changed here after the server started, which submitted this run as what it was before: stop "
            "and start multiseg fed serve, and submit the run again."
        )
    options = checked(json.loads(str(context.run_config["settings"])), FederationOptions)
    check(options)
    folder = Path(os.environ[RUNS]) / options.experiment
    wait_until_free(folder / LOCK, PREDECESSOR_S)  # a run that was lost ends when it hears that it was
    home = folder.parent.parent
    link = FlowerLink(grid, revoked=lambda: _revoked(home), too_large=lambda: read_too_large(home))
    rounds.run(options, link, folder, on_event=_tell)


def _revoked(home: Path) -> tuple[str, ...]:
    """The sites that are shut out; none where the registry cannot be read, which is for the steward to say."""
    try:
        return revoked(read_registry(home))
    except FederationError:
        return ()


def _tell(event: Event) -> None:
    sys.stdout.write(in_words(event) + "\n")  # what `fed log` shows
    sys.stdout.flush()
