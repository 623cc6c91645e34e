"""Verb: fed audit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from multiseg.cli.shared_flags import AsJson

SHOWN = ("time", "direction", "kind", "experiment", "round", "bytes", "tensors", "metrics", "notes")


def audit_command(
    place: Annotated[Path, typer.Argument(metavar="SITE.TOML|STATE", help="The site's settings, or its state folder.")],
    experiment: Annotated[str, typer.Option(help="Only this experiment.")] = "",
    verify: Annotated[bool, typer.Option("--verify", help="Check that no line was changed or removed.")] = False,
    as_json: AsJson = False,
) -> int:
    """Print the messages that this site received and sent. --verify checks the chain of hashes.

    Examples:

    multiseg fed audit site.toml

    multiseg fed audit site.toml --verify
    """
    from multiseg.cli.console import messages, plain, print_json, print_table
    from multiseg.federation.sites import audit_log
    from multiseg.federation.sites.site_settings import read_site
    from multiseg.shown import line

    log = (place if place.is_dir() else read_site(place).state) / audit_log.LOG
    faults = audit_log.verify(log) if verify else []
    rows = [] if faults else audit_log.rows(log, experiment)
    if as_json:
        print_json({"faults": faults, "entries": rows})
        return 3 if faults else 0
    for fault in faults:
        messages().print(f"{log}: {fault}", markup=False, soft_wrap=True)
    if not faults:
        table = [[plain(line(row[name])) for name in SHOWN] for row in rows]
        print_table(f"{log}", SHOWN, table, right=("round", "bytes", "tensors"))
    if verify and not faults:
        messages().print(f"{len(rows)} lines, none changed or removed.", highlight=False)
    return 3 if faults else 0
