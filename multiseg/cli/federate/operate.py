"""The coordinating centre's verbs while it serves: run, status, log and stop."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from multiseg.cli.federate.server import ServerHome
from multiseg.cli.shared_flags import AsJson

FAILED = "ServerApp failed with exception: "
RunNumber = Annotated[str, typer.Argument(metavar="[RUN]", help="Its number or experiment (default: the newest).")]


def run_command(
    folder: ServerHome,
    settings: Annotated[Path, typer.Argument(metavar="RUN.TOML", help="Who takes part, and what is learnt.")],
    follow: Annotated[bool, typer.Option("--follow", help="Print what the run says until it ends.")] = False,
    cards: Annotated[
        bool, typer.Option("--cuda/--cpu", help="Whose defaults stand for what RUN.TOML leaves open.")
    ] = True,
    from_round: Annotated[
        int | None, typer.Option("--from-round", help="Go back to the state after this round first.", min=1)
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Submit a run. The same file again goes on where the experiment stands.

    Where the file says no \\[model], patch and the like they are the published ones, which sites need CUDA cards for;
    with --cpu they are small. `multiseg fed simulate --device cuda --print-config` prints every setting, or with
    --device cpu the small ones.

    Of the rounds before the last one, \\[schedule] keep_rounds are kept: --from-round resumes after one of them, and
    forgets the later ones, for instance since a site had sent bad updates.

    Examples:

    multiseg fed run centre run.toml --follow

    multiseg fed run centre run.toml --from-round 12
    """
    from multiseg.cli.console import messages, print_json
    from multiseg.federation.flower.submit import submit

    number, warnings = submit(folder, settings, cards, from_round)
    for line in warnings:
        messages().print(line, markup=False, soft_wrap=True)
    if as_json:
        print_json({"run": str(number)})
    else:
        messages().print(f"Run {number} is submitted. Follow it: multiseg fed log {folder} --follow", soft_wrap=True)
    return _follow(folder, str(number)) if follow else 0


def status_command(folder: ServerHome, as_json: AsJson = False) -> int:
    """Say which sites are enrolled and online, how the runs stand and which sites they wait for.

    Example:

    multiseg fed status centre
    """
    from multiseg.cli.console import messages, plain, print_json, print_table
    from multiseg.federation.centre.run_events import megabytes
    from multiseg.federation.flower.submit import status
    from multiseg.shown import line

    found = status(folder)
    if as_json:
        print_json(found)
        return 0
    if found["error"]:
        messages().print(found["error"], markup=False, soft_wrap=True)
    sites = [
        [row["site"], row["status"], row["since"][:19], megabytes(row["up"]), megabytes(row["down"])]
        for row in found["sites"]
    ]
    print_table("Sites", ["site", "status", "since", "up", "down"], sites, right=("up", "down"))
    rows = [[plain(line(value)) for value in row.values()] for row in found["runs"]]
    head = ["run", "experiment", "status", "round", "Dice", "waits for", "without", "submitted", "details"]
    print_table("Runs", head, rows)
    return 0


def log_command(
    folder: ServerHome,
    run: RunNumber = "",
    follow: Annotated[bool, typer.Option("--follow", help="Until the run ends.")] = False,
) -> int:
    """Print what a run has said.

    Example:

    multiseg fed log centre --follow
    """
    return _follow(folder, run, follow)


def stop_command(folder: ServerHome, run: RunNumber = "") -> int:
    """End a run. Its finished rounds stay, and the same run file goes on from them.

    Example:

    multiseg fed stop centre
    """
    from multiseg.cli.console import messages
    from multiseg.federation.flower.submit import stop

    messages().print(f"Run {stop(folder, run)} is stopped.", highlight=False)
    return 0


def _follow(folder: Path, run: str, until_end: bool = True) -> int:
    from multiseg.cli.console import messages
    from multiseg.federation.flower.submit import show
    from multiseg.shown import TEXT, line

    shown = show(folder, run, until_end, lambda text: (sys.stdout.write(text), sys.stdout.flush()))
    if shown.outcome in ("completed", ""):
        return 0
    why = line(shown.details.removeprefix(FAILED), TEXT) or "see log.jsonl of the experiment"
    messages().print(f"Run {shown.run_id} ({shown.experiment}) {shown.outcome}: {why}", markup=False, soft_wrap=True)
    return 3
