"""Verb: ingest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from multiseg.cli.shared_flags import AsJson, StoreUrl
from multiseg.cli.source_flags import (
    PreparationFlags,
    SourceFlags,
    WorkerFlags,
    confirmed_databases,
    file_option,
    pair,
)
from multiseg.errors import UsageError

if TYPE_CHECKING:
    from multiseg.store.ingest.dry_run import Forecast
    from multiseg.store.ingest.ingest_plan import IngestOptions
    from multiseg.store.ingest.ingestion import IngestReport
    from multiseg.store.sources.source_types import DatabaseFiles

_WHERE = "The store"


def ingest_command(
    source: Annotated[Path, typer.Argument(help="A folder of scans, or a table or manifest (.csv, .toml, .json).")],
    store: StoreUrl,
    *,
    database: Annotated[str, file_option(help="Name of the database (default: the folder's).")] = "",
    pathology: Annotated[str, file_option(help='What the patients have, such as "multiple sclerosis".')] = "",
    source_flags: SourceFlags,
    preparation_flags: PreparationFlags,
    codec: Annotated[
        str, typer.Option(help="Compression of images: none, lz4, lz4hc or zstd.", rich_help_panel=_WHERE)
    ] = "lz4",
    split: Annotated[
        str,
        typer.Option(
            help="Shares of the subjects, or a file: CSV, or JSON such as splits.json#0.", rich_help_panel=_WHERE
        ),
    ] = "train=0.7,val=0.1,test=0.2",
    seed: Annotated[int, typer.Option(help="Of the split.", rich_help_panel=_WHERE)] = 0,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace cases whose files have changed.", rich_help_panel=_WHERE)
    ] = False,
    redo: Annotated[
        list[str] | None, typer.Option(help="Write this case again, as when it is damaged.", rich_help_panel=_WHERE)
    ] = None,
    pseudonyms: Annotated[
        str,
        typer.Option(
            help="Other names for people, cases and visits; this file keeps key and real names (made if new).",
            rich_help_panel=_WHERE,
        ),
    ] = "",
    worker_flags: WorkerFlags,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, what is wrong, how long and how large.")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Bring scans into a store: RAS+, one voxel size, z-scored in the brain. Cases already there are skipped.

    Challenge layouts, BIDS, FreeSurfer subjects, DICOM and plain folders are recognised by looking; other folders
    are described by --pattern, or by a manifest.

    Examples:

    multiseg ingest BraTS2021_Training --store brain.zarr --dry-run

    multiseg ingest data/ms --pattern "{case}/{modality}.nii.gz" --label "{case}/lesion.nii.gz" --store brain.zarr

    multiseg ingest manifest.toml --store s3://bucket/brain.zarr --spacing 2
    """
    databases = confirmed_databases(source, source_flags.options(database, pathology), as_json)
    options = preparation_flags.options(
        codec=codec, replace=replace, redo=tuple(redo or ()), seed=seed, **_split(split),
        workers=worker_flags.options(databases), pseudonyms=pseudonyms,
    )  # fmt: skip
    return _rehearse(databases, store, options, as_json) if dry_run else _ingest(databases, store, options, as_json)


def _split(text: str) -> dict[str, Any]:
    """Shares such as train=0.8,test=0.2, or what a file gives each case."""
    if "=" not in text:
        from multiseg.store.ingest.split_file import read_split_file

        return {"given_splits": read_split_file(text)}
    try:
        return {"split": {name.strip(): float(share) for name, share in map(pair, text.split(","))}}
    except ValueError as error:
        raise UsageError(f"--split {text!r} is not of the form train=0.7,val=0.1,test=0.2 ({error}).") from error


def _ingest(databases: Sequence[DatabaseFiles], store: str, options: IngestOptions, as_json: bool) -> int:
    from rich.progress import TaskID

    from multiseg.cli.case_table import print_cases
    from multiseg.cli.console import messages, print_findings, print_json, progress_bar
    from multiseg.store.ingest.ingestion import ingest

    total = sum(len(files.cases) for files in databases)
    console = messages()
    with progress_bar("ingest", total) as bar:

        def on_case(database: str, case: str, outcome: str) -> None:
            bar.update(TaskID(0), advance=1, details=f"{database}/{case}")
            if bar.disable:
                console.print(f"{outcome} {database}/{case}", soft_wrap=True, markup=False)

        reports = ingest(databases, store, options, on_case)
    if as_json:
        print_json([_report_json(report) for report in reports])
    else:
        print_cases([case for report in reports for case in report.cases])
        print_findings([finding for report in reports for finding in report.findings])
        for report in reports:
            anew = f" ({len(report.described)} described anew)" if report.described else ""
            console.print(
                f"{report.database}: {len(report.written)} written, {len(report.skipped)} already there{anew}, "
                f"{len(report.failed)} failed"
            )
    good = sum(len(report.written) + len(report.skipped) for report in reports)
    return (4 if good else 3) if any(report.failed for report in reports) else 0


def _report_json(report: IngestReport) -> dict[str, Any]:
    return {
        "database": report.database,
        "written": list(report.written),
        "skipped": list(report.skipped),
        "described": list(report.described),
        "failed": list(report.failed),
        "findings": [finding.to_json() for finding in report.findings],
        "cases": [case.to_json() for case in report.cases],
    }


def _rehearse(databases: Sequence[DatabaseFiles], store: str, options: IngestOptions, as_json: bool) -> int:
    from multiseg.cli.case_table import print_cases
    from multiseg.cli.console import print_findings, print_json, print_table
    from multiseg.store.ingest.dry_run import forecast
    from multiseg.store.ingest.ingest_plan import names_of

    names = {name for files in databases for name in names_of(files)}
    forecasts = [forecast(files, store, options, names) for files in databases]
    if as_json:
        print_json([_forecast_json(one) for one in forecasts])
    else:
        print_cases([case for one in forecasts for case in one.cases])
        print_findings([finding for one in forecasts for finding in one.findings])
        numbers = ["new", "there", "failed", "train/val/test", "time", "MB", "memory"]
        print_table(
            f"What would be done; {store} is not changed",
            ["database", *numbers],
            map(_forecast_row, forecasts),
            numbers,
        )
    good = sum(len(one.new) + len(one.same) for one in forecasts)
    return (4 if good else 3) if any(one.failed for one in forecasts) else 0


def _forecast_row(one: Forecast) -> list[str]:
    minutes, seconds = divmod(round(one.seconds), 60)
    return [
        one.database, str(len(one.new)), str(len(one.same)), str(len(one.failed)),
        "/".join(str(one.splits.get(split, 0)) for split in ("train", "val", "test")),
        f"{minutes} min {seconds} s" if minutes else f"{seconds} s",
        f"{one.stored_bytes / 1e6:.0f}", f"{one.memory_bytes / 1e9:.1f} GB a case",
    ]  # fmt: skip


def _forecast_json(one: Forecast) -> dict[str, Any]:
    return {
        "database": one.database,
        "new": list(one.new),
        "same": list(one.same),
        "failed": list(one.failed),
        "splits": dict(one.splits),
        "seconds": one.seconds,
        "stored_bytes": one.stored_bytes,
        "memory_bytes": one.memory_bytes,
        "findings": [finding.to_json() for finding in one.findings],
        "cases": [case.to_json() for case in one.cases],
    }
