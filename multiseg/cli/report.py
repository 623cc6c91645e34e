"""Verb: report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from multiseg.cli.shared_flags import AsJson, Device, Overwrite


def run_report_command(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs; several stand side by side.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The page (default: RUN/report.html).")] = None,
    has_cases: Annotated[
        bool,
        typer.Option("--cases/--no-cases", help="Draw the worst, median and best case: the model answers them again."),
    ] = True,
    overwrite: Overwrite = False,
    device: Device = "auto",
    as_json: AsJson = False,
) -> int:
    """Write one HTML page about trainings: curves, data, evaluations, cases to look at, and how they were made.

    The page needs no other file and no network. It shows the evaluations that are in the folder: evaluate first.

    Examples:

    multiseg report runs/joint

    multiseg report runs/joint runs/plain -o comparison.html
    """
    from multiseg.cli.console import case_counter, messages, print_json
    from multiseg.files import check_files, write_atomically
    from multiseg.models.devices import resolve_device
    from multiseg.pages.page import is_page
    from multiseg.reports.run_page import check_runs, run_page
    from multiseg.reports.run_record import read_run

    check_runs(runs)
    path = out or runs[0] / "report.html"
    # A report may replace an earlier one, but no other page.
    check_files([path], overwrite=overwrite or is_page(path), kinds=(".html", ".htm"))
    records = [read_run(run) for run in runs]
    with case_counter("report") as on_case:
        page = run_page(records, str(resolve_device(device)), has_cases, on_case)
    write_atomically(path, page.encode())
    if as_json:
        print_json({"page": str(path), "bytes": len(page.encode()), "runs": [str(run) for run in runs]})
    else:
        messages().print(f"Written: {path} ({len(page.encode()) / 1e6:.1f} MB)", soft_wrap=True)
    return 0
