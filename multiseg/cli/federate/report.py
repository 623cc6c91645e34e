"""Verb: fed report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from multiseg.cli.shared_flags import AsJson, Overwrite


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
    from multiseg.cli.console import messages, print_json, print_table
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
    print_table(f"{run}: Dice of the model at the start of each round", *round_table(report["history"], final))
    if final.get("test"):
        print_table(f"Test Dice, model of round {report['best']['round']}", *test_table(final["test"]))
    if final.get("cross"):
        print_table("Test Dice of each site's model of the last round", *cross_table(final))
    for event in report["events"]:
        sites = event.get("site") or ", ".join(event.get("sites", ()))
        reason = event.get("reason") or event.get("text", "")
        text = f"round {event['round']}, {event['event'].lower()}: {sites} {reason}"
        messages().print(line(text.strip()), markup=False, soft_wrap=True)
    return 0
