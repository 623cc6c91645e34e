"""The verbs of the coordinating centre for its runs: fed run, status, log, stop and report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, TextIO

import typer

from multiseg.cli.federate.server import ServerHome
from multiseg.cli.shared_flags import AsJson, FromRound, Overwrite

FAILED = "ServerApp failed with exception: "
RunNumber = Annotated[str, typer.Argument(metavar="[RUN]", help="Number or experiment of the run (default: newest).")]


def run_command(
    folder: ServerHome,
    settings: Annotated[Path, typer.Argument(metavar="RUN.TOML", help="Settings of the run.")],
    follow: Annotated[bool, typer.Option("--follow", help="Print the log of the run until it ends.")] = False,
    cuda: Annotated[bool, typer.Option("--cuda/--cpu", help="Defaults for settings that are not in RUN.TOML.")] = True,
    from_round: FromRound = None,
    as_json: AsJson = False,
) -> int:
    """Submit a run. To resume an experiment, submit its file again.

    Settings that are not in the file, such as \\[model] and the patch, have the published values, for which sites need
    CUDA; with --cpu they are small. `multiseg fed simulate --device cuda --print-config` prints all settings, and with
    --device cpu the small ones.

    The states of the last rounds are kept, as many as \\[schedule] keep_rounds: --from-round resumes after one of them
    and deletes the later ones, for example because a site had sent bad updates.

    Examples:

    multiseg fed run centre run.toml --follow

    multiseg fed run centre run.toml --from-round 12
    """
    from multiseg.cli.console import after_document, messages, print_json
    from multiseg.federation.flower.submit import submit

    number, warnings = submit(folder, settings, cuda, from_round)
    for warning in warnings:
        messages().print(warning, markup=False, soft_wrap=True)
    if as_json:
        print_json({"run": str(number)})
    else:
        messages().print(f"Run {number} submitted. To follow it: multiseg fed log {folder} --follow", soft_wrap=True)
    # With --json, stdout holds one JSON document and nothing else.
    with after_document():
        return _follow(folder, str(number), stream=sys.stderr if as_json else sys.stdout) if follow else 0


def status_command(folder: ServerHome, as_json: AsJson = False) -> int:
    """Show which sites are enrolled and online, the state of the runs, and the sites that they wait for.

    Example:

    multiseg fed status centre
    """
    from multiseg.cli.console import messages, plain, print_json, print_table
    from multiseg.federation.centre.run_events import megabytes
    from multiseg.federation.flower.submit import status
    from multiseg.shown import line

    report = status(folder)
    if as_json:
        print_json(report)
        return 0
    if report["error"]:
        messages().print(report["error"], markup=False, soft_wrap=True)
    sites = [
        [row["site"], row["status"], row["since"][:19], megabytes(row["up"]), megabytes(row["down"])]
        for row in report["sites"]
    ]
    print_table("Sites", ["site", "status", "since", "up", "down"], sites, right=("up", "down"))
    rows = [[plain(line(value)) for value in row.values()] for row in report["runs"]]
    columns = ["run", "experiment", "status", "round", "Dice", "waits for", "without", "submitted", "details"]
    print_table("Runs", columns, rows)
    return 0


def log_command(
    folder: ServerHome,
    run: RunNumber = "",
    follow: Annotated[bool, typer.Option("--follow", help="Continue until the run ends.")] = False,
) -> int:
    """Print the log of a run.

    Example:

    multiseg fed log centre --follow
    """
    return _follow(folder, run, follow)


def stop_command(folder: ServerHome, run: RunNumber = "") -> int:
    """Stop a run. Its finished rounds are kept; to resume after them, submit its file again.

    Example:

    multiseg fed stop centre
    """
    from multiseg.cli.console import messages
    from multiseg.federation.flower.submit import stop

    messages().print(f"Run {stop(folder, run)} stopped.", highlight=False)
    return 0


def report_command(
    run: Annotated[Path, typer.Argument(help="Folder of the run.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write a page with plots (.html).")] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> int:
    """Print the results of a federated run, round by round; -o writes them to a page with plots.

    Examples:

    multiseg fed report runs/federation

    multiseg fed report centre/runs/joint -o report.html
    """
    from multiseg.cli.console import messages, print_json, print_page_table
    from multiseg.federation.centre.run_report import cross_table, page, round_table, summary, test_table
    from multiseg.files import check_files, write_atomically
    from multiseg.shown import line

    if out is not None:
        check_files([out], overwrite=overwrite, kinds=(".html", ".htm"))
    report = summary(run)
    if out is not None:
        write_atomically(out, page(report).encode())
        messages().print(f"Written: {out}", soft_wrap=True)
    if as_json:
        print_json(report)
        return 0
    final = report["final"]
    print_page_table(f"{run}: Dice of the model at the start of each round", round_table(report["history"], final))
    if final.get("test"):
        print_page_table(f"Test Dice, model of round {report['best']['round']}", test_table(final["test"]))
    if final.get("cross"):
        print_page_table("Test Dice of each site's model of the last round", cross_table(final))
    for event in report["events"]:
        sites = event.get("site") or ", ".join(event.get("sites", ()))
        reason = event.get("reason") or event.get("text", "")
        text = f"round {event['round']}, {event['event'].lower()}: {sites} {reason}"
        messages().print(line(text.strip()), markup=False, soft_wrap=True)
    return 0


def _follow(folder: Path, run: str, until_end: bool = True, stream: TextIO | None = None) -> int:
    """Print the log of a run on `stream` (default: stdout); returns the exit code."""
    from multiseg.cli.console import messages
    from multiseg.federation.flower.submit import show
    from multiseg.shown import TEXT, line

    log = stream or sys.stdout
    shown = show(folder, run, until_end, lambda text: (log.write(text), log.flush()))
    if shown.outcome in ("completed", ""):
        return 0
    reason = line(shown.details.removeprefix(FAILED), TEXT) or "see log.jsonl of the experiment"
    messages().print(f"Run {shown.run_id} ({shown.experiment}) {shown.outcome}: {reason}", markup=False, soft_wrap=True)
    return 3
