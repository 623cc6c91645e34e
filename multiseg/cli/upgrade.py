"""The verb that brings a store to the newest format: upgrade."""

from __future__ import annotations

from typing import Annotated

import typer

from multiseg.cli.shared_flags import AsJson
from multiseg.cli.source_flags import NumWorkers, WorkerFlags


def upgrade_command(
    store: Annotated[str, typer.Argument(help="The store, by path or URL.")],
    accept: Annotated[
        list[str] | None,
        typer.Option(help="DATABASE/ARRAY: what is not there of it is empty and was not lost. May be repeated."),
    ] = None,
    workers: NumWorkers = "auto",
    as_json: AsJson = False,
) -> int:
    """Convert a store of an older format in its place; nothing is ingested again.

    Every voxel is checked first. Where anything is damaged or looks lost, nothing is written, and the findings name
    it. Should it be interrupted, run it again. The exit code is 0 when the store is of the newest format, else 3.

    Examples:

    multiseg upgrade brain.zarr

    multiseg upgrade s3://bucket/brain.zarr --accept ms/site
    """
    from rich.progress import TaskID

    from multiseg.cli.console import messages, print_findings, print_json, progress_bar
    from multiseg.store.upkeep.format_upgrade import upgrade_store

    num_workers = WorkerFlags(workers, scheduler="threads").options([]).num
    with progress_bar("check", 1) as bar:

        def on_case(done: int, total: int, case: str) -> None:
            bar.update(TaskID(0), completed=done, total=total, details=case)

        done = upgrade_store(store, accept or (), on_case, num_workers)
    if as_json:
        findings = [finding.to_json() for finding in done.findings]
        print_json({"store": store, "is_done": done.is_done, "findings": findings})
    else:
        print_findings(done.findings)
        said = "has the newest format" if done.is_done else "was not converted, and nothing was changed"
        messages().print(f"{store} {said}.", soft_wrap=True)
    return 0 if done.is_done else 3
