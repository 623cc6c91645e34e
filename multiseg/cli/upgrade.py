"""Verb: upgrade."""

from __future__ import annotations

from typing import Annotated

import typer

from multiseg.cli.shared_flags import AsJson, ThisStore
from multiseg.cli.source_flags import NumWorkers, WorkerFlags


def upgrade_command(
    store: ThisStore,
    accept: Annotated[
        list[str] | None, typer.Option(help="DATABASE/ARRAY: its missing chunks are empty, not lost. May be repeated.")
    ] = None,
    workers: NumWorkers = "auto",
    as_json: AsJson = False,
) -> int:
    """Convert a store of an older format in place; nothing is ingested again.

    Every voxel is checked first. If anything is damaged or seems lost, nothing is written, and the findings list it.
    After an interruption, run it again. The exit code is 0 if the store now has the newest format, else 3.

    Examples:

    multiseg upgrade brain.zarr

    multiseg upgrade s3://bucket/brain.zarr --accept ms/site
    """
    from multiseg.cli.console import case_counter, messages, print_findings, print_json
    from multiseg.store.upkeep.format_upgrade import upgrade_store

    num_workers = WorkerFlags(workers, scheduler="threads").options([]).num
    with case_counter("upgrade") as on_step:
        result = upgrade_store(store, accept or (), on_step, num_workers)
    if as_json:
        findings = [finding.to_json() for finding in result.findings]
        print_json({"store": store, "is_done": result.is_done, "findings": findings})
    else:
        print_findings(result.findings)
        outcome = "has the newest format" if result.is_done else "was not converted, and nothing was changed"
        messages().print(f"{store} {outcome}.", soft_wrap=True)
    return 0 if result.is_done else 3
