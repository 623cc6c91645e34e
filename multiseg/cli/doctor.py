"""Verb: doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from multiseg.cli.shared_flags import AsJson

STYLES = {"ok": "green", "warning": "yellow", "error": "bold red"}


def doctor_command(
    store: Annotated[
        str, typer.Argument(metavar="[STORE]", help="Also read patches from this store, by path or URL.")
    ] = "",
    folder: Annotated[
        Path, typer.Option(help="Where stores and runs are to lie. Trials in it leave nothing behind.")
    ] = Path(),
    as_json: AsJson = False,
) -> int:
    """Check this machine: packages, memory, disk, GPU; and write, ingest and read a little, as real work does.

    Every check says what to do if it fails. Nothing is downloaded or sent. The exit code is 3 if there is an error,
    0 if there are only warnings.

    Examples:

    multiseg doctor

    multiseg doctor --folder /data/multiseg --json

    multiseg doctor brain.zarr
    """
    from multiseg.cli.console import case_counter, plain, print_json, print_table
    from multiseg.doctor.check_record import ERROR
    from multiseg.doctor.examination import examine, worst

    with case_counter("doctor") as on_check:
        checks = examine(folder, store, on_check)
    verdict = worst(checks)
    if as_json:
        print_json({"verdict": verdict, "checks": [vars(check) for check in checks]})
    else:
        rows = [
            (check.name, f"[{STYLES[check.verdict]}]{check.verdict}[/]", plain(check.found), plain(check.remedy))
            for check in checks
        ]
        print_table("This machine", ("check", "", "what was found", "what to do"), rows)
    return 3 if verdict == ERROR else 0
