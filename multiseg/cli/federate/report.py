"""The verb that shows how a federated run went."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from multiseg.cli.shared_flags import AsJson, Overwrite


def report_command(
    run: Annotated[Path, typer.Argument(help="Folder of the run.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write a page with plots here (.html).")] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> int:
    """Print how a federated run went, round by round; -o writes it as one page with plots.

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
    told = summary(run)
    if out is not None:
        write_atomically(out, page(told).encode())
        messages().print(f"Written: {out}", soft_wrap=True)
    if as_json:
        print_json(told)
        return 0
    print_table(f"{run}: Dice of the model each round began with", *round_table(told["history"], told["final"]))
    if told["final"].get("test"):
        print_table(f"Test Dice, model of round {told['best']['round']}", *test_table(told["final"]["test"]))
    if told["final"].get("cross"):
        print_table("Test Dice of each site's model of the last round", *cross_table(told["final"]))
    for event in told["events"]:
        about = event.get("site") or ", ".join(event.get("sites", ()))
        text = (
            f"round {event['round']}, {event['event'].lower()}: {about} {event.get('reason') or event.get('text', '')}"
        )
        messages().print(line(text.strip()), markup=False, soft_wrap=True)
    return 0
