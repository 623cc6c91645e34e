"""Verb: ingest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from multiseg.cli.shared_flags import AsJson, StoreUrl
from multiseg.cli.source_flags import (
    PreparationFlags,
    SourceFlags,
    WorkerFlags,
    check_no_source,
    confirmed_databases,
    file_option,
    pair,
    preparation_option,
)
from multiseg.errors import UsageError

if TYPE_CHECKING:
    from multiseg.store.ingest.dry_run import Forecast
    from multiseg.store.ingest.ingest_plan import IngestOptions
    from multiseg.store.ingest.ingestion import IngestReport
    from multiseg.store.sources.source_types import DatabaseFiles

correction_option = partial(typer.Option, rich_help_panel="Corrected masks instead of scans")
store_option = partial(typer.Option, rich_help_panel="The store")


@dataclass(frozen=True)
class CorrectionFlags:
    """Masks that a rater has corrected."""

    corrected: Annotated[
        Path | None,
        correction_option(help="Take corrected masks from this folder, which predict or info --write wrote."),
    ] = None
    rater: Annotated[str, correction_option(help="Who corrected the masks.")] = ""
    case: Annotated[
        str, correction_option(help="The case, DATABASE/CASE, if the folder is that of one case (info --write).")
    ] = ""


def ingest_command(
    context: typer.Context,
    source: Annotated[
        Path | None, typer.Argument(help="A folder of scans, or a table or manifest (.csv, .toml, .json).")
    ] = None,
    *,
    store: StoreUrl,
    corrections: CorrectionFlags,
    database: Annotated[str, file_option(help="Name of the database (default: the folder's).")] = "",
    pathology: Annotated[str, file_option(help='Disease of the patients, such as "multiple sclerosis".')] = "",
    source_flags: SourceFlags,
    preparation_flags: PreparationFlags,
    template: Annotated[
        str,
        preparation_option(help="Register every brain to this image (affine); needed to graft lesions."),
    ] = "",
    template_mask: Annotated[str, preparation_option(help="The brain mask of a template that shows a skull.")] = "",
    codec: Annotated[str, store_option(help="Compression of images: none, lz4, lz4hc or zstd.")] = "lz4",
    split: Annotated[
        str, store_option(help="Fractions of the subjects, or a file: CSV, or JSON such as splits.json#0.")
    ] = "train=0.7,val=0.1,test=0.2",
    seed: Annotated[int, store_option(help="Seed for the split.")] = 0,
    replace: Annotated[bool, store_option("--replace", help="Replace cases whose files have changed.")] = False,
    redo: Annotated[list[str] | None, store_option(help="Write this case again, for example if damaged.")] = None,
    pseudonyms: Annotated[
        str,
        store_option(
            help="Rename people, cases and visits. This file stores the key and the real names (created if missing)."
        ),
    ] = "",
    worker_flags: WorkerFlags,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print what would be done, any faults, the time and the size.")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Write scans into a store: RAS+, one voxel size, z-scored in the brain. Cases already in the store are skipped.

    Challenge layouts, BIDS, FreeSurfer subjects, DICOM and plain folders are recognised automatically. Describe other
    folders by --pattern, or by a manifest.

    Examples:

    multiseg ingest BraTS2021_Training --store brain.zarr --dry-run

    multiseg ingest data/ms --pattern "{case}/{modality}.nii.gz" --label "{case}/lesion.nii.gz" --store brain.zarr

    multiseg ingest manifest.toml --store s3://bucket/brain.zarr --spacing 2

    multiseg ingest data/healthy --store brain.zarr --template T1.nii.gz --template-mask brainmask.nii.gz

    multiseg ingest --corrected predicted --rater "A. Reader" --store brain.zarr
    """
    if corrections.corrected is not None:
        if source is not None:
            raise UsageError(f"give either {source} or --corrected {corrections.corrected}, not both.")
        check_no_source(context, f"--corrected {corrections.corrected} takes masks alone", but=("--database",))
        return _ingest_corrected(store, corrections, database, replace, dry_run, as_json)
    if source is None:
        raise UsageError("name the source: a folder of scans, a table or a manifest; or corrected masks: --corrected.")
    if corrections != CorrectionFlags():
        raise UsageError("--rater and --case belong to --corrected: leave them out.")
    databases = confirmed_databases(source, source_flags.options(database, pathology), as_json)
    options = preparation_flags.options(
        codec=codec, replace=replace, redo=tuple(redo or ()), seed=seed, **_split(split),
        workers=worker_flags.options(databases), pseudonyms=pseudonyms,
        template=template, template_mask=template_mask,
    )  # fmt: skip
    if dry_run:
        return _forecast(databases, store, options, as_json)
    return _ingest(databases, store, options, as_json)


def _ingest_corrected(
    store: str, flags: CorrectionFlags, database: str, replace: bool, dry_run: bool, as_json: bool
) -> int:
    """Take corrected masks into the store."""
    from multiseg.cli.console import case_counter, output, print_findings, print_json
    from multiseg.evaluation.corrected_masks import find_corrections
    from multiseg.store.ingest.corrections import CorrectionOptions, ingest_corrections

    assert flags.corrected is not None
    options = CorrectionOptions(flags.rater, replace=replace)
    found, report = find_corrections(flags.corrected, store, database, flags.case)
    with case_counter("ingest") as on_case:
        report = ingest_corrections(store, found, options, report, dry_run, on_case)
    outcomes = {name: getattr(report, name) for name in ("written", "unchanged", "failed")}
    if as_json:
        print_json({**outcomes, "findings": [finding.to_json() for finding in report.findings]})
    else:
        print_findings(report.findings)
        counts = ", ".join(f"{len(names)} {name}" for name, names in outcomes.items())
        output().print(f"{'Would be: ' if dry_run else ''}{counts}", soft_wrap=True, markup=False)
    if not report.failed:
        return 0 if report.written or report.unchanged else 4
    return 4 if report.written or report.unchanged else 3


def _split(text: str) -> dict[str, Any]:
    """Fractions such as train=0.8,test=0.2, or the split of each case from a file, as fields of `IngestOptions`."""
    if "=" not in text:
        from multiseg.store.ingest.split_file import read_split_file

        return {"given_splits": read_split_file(text)}
    try:
        return {"split": {name.strip(): float(share) for name, share in map(pair, text.split(","))}}
    except ValueError as error:
        raise UsageError(f"--split {text!r} is not of the form train=0.7,val=0.1,test=0.2 ({error}).") from error


def _ingest(databases: Sequence[DatabaseFiles], store: str, options: IngestOptions, as_json: bool) -> int:
    from rich.progress import TaskID

    from multiseg.cli.console import messages, progress_bar
    from multiseg.store.ingest.ingestion import ingest

    total = sum(len(files.cases) for files in databases)
    console = messages()
    with progress_bar("ingest", total) as bar:

        def on_case(database: str, case: str, outcome: str) -> None:
            bar.update(TaskID(0), advance=1, details=f"{database}/{case}")
            if bar.disable:
                console.print(f"{outcome} {database}/{case}", soft_wrap=True, markup=False)

        reports = ingest(databases, store, options, on_case)
    _print(reports, as_json)
    if not as_json:
        for report in reports:
            updated = f" ({len(report.described)} with updated metadata)" if report.described else ""
            console.print(
                f"{report.database}: {len(report.written)} written, {len(report.skipped)} unchanged{updated}, "
                f"{len(report.failed)} failed"
            )
    return _exit_code(reports, any(report.written or report.skipped for report in reports))


def _exit_code(results: Sequence[IngestReport | Forecast], any_good: bool) -> int:
    """3 if all cases failed, 4 if some did."""
    if not any(result.failed for result in results):
        return 0
    return 4 if any_good else 3


def _print(results: Sequence[IngestReport | Forecast], as_json: bool) -> None:
    """Print the cases and findings of all databases; as JSON every field."""
    from multiseg.cli.case_table import print_cases
    from multiseg.cli.console import print_findings, print_json

    if as_json:
        print_json([_as_json(result) for result in results])
    else:
        print_cases([case for result in results for case in result.cases])
        print_findings([finding for result in results for finding in result.findings])


def _as_json(result: IngestReport | Forecast) -> dict[str, Any]:
    findings = [finding.to_json() for finding in result.findings]
    return {**vars(result), "findings": findings, "cases": [case.to_json() for case in result.cases]}


def _forecast(databases: Sequence[DatabaseFiles], store: str, options: IngestOptions, as_json: bool) -> int:
    from itertools import count

    from multiseg.cli.console import case_counter, print_table
    from multiseg.store.ingest.dry_run import forecast
    from multiseg.store.ingest.ingest_plan import names_of

    names = {name for files in databases for name in names_of(files)}
    total, steps = sum(len(files.cases) for files in databases), count(1)
    with case_counter("dry run") as on_case:
        forecasts = [
            forecast(files, store, options, names, lambda case: on_case(next(steps), total, case))
            for files in databases
        ]
    _print(forecasts, as_json)
    if not as_json:
        numbers = ["new", "unchanged", "failed", "train/val/test", "time", "MB", "memory"]
        title = f"Forecast of the ingest; {store} is not changed"
        print_table(title, ["database", *numbers], map(_forecast_row, forecasts), numbers)
    return _exit_code(forecasts, any(expected.new or expected.same for expected in forecasts))


def _forecast_row(expected: Forecast) -> list[str]:
    minutes, seconds = divmod(round(expected.seconds), 60)
    return [
        expected.database, str(len(expected.new)), str(len(expected.same)), str(len(expected.failed)),
        "/".join(str(expected.splits.get(split, 0)) for split in ("train", "val", "test")),
        f"{minutes} min {seconds} s" if minutes else f"{seconds} s",
        f"{expected.stored_bytes / 1e6:.0f}", f"{expected.memory_bytes / 1e9:.1f} GB per case",
    ]  # fmt: skip
