"""Verb: verify."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from multiseg.cli.shared_flags import AsJson
from multiseg.cli.source_flags import PreparationFlags, SourceFlags, WorkerFlags, check_no_source, confirmed_databases
from multiseg.errors import UsageError

if TYPE_CHECKING:
    from multiseg.store.findings import Finding
    from multiseg.store.ingest.case_reports import CaseReport
    from multiseg.store.ingest.ingest_plan import IngestOptions
    from multiseg.store.sources.source_types import DatabaseFiles


def verify_command(
    context: typer.Context,
    path: Annotated[str, typer.Argument(help="A store, by path or URL; or a source, as ingest takes it.")],
    source_flags: SourceFlags,
    preparation_flags: PreparationFlags,
    worker_flags: WorkerFlags,
    as_json: AsJson = False,
) -> int:
    """Look for all faults of a store, or of a dataset before it is ingested. Nothing is written.

    In a store, every chunk is decoded and all metadata is checked against the voxels. In a source, every file is read
    completely and every case is prepared as by ingest. The exit code is 3 if there is an error, else 0.

    Examples:

    multiseg verify brain.zarr

    multiseg verify s3://bucket/brain.zarr --workers 8 --json

    multiseg verify BraTS2021_Training
    """
    from multiseg.cli.case_table import print_cases
    from multiseg.cli.console import case_counter, messages, print_findings, print_json
    from multiseg.store.findings import Severity
    from multiseg.store.hierarchy import is_like_a_store, is_remote

    if not (is_remote(path) or Path(path).exists()):
        raise UsageError(f"there is no store or source at {path}. Check the path.")
    cases: list[CaseReport] | None = None
    if is_like_a_store(path):
        from multiseg.store.checks.verification import verify_store  # slow, and sources do without it

        check_no_source(context, f"{path} is a store")
        num_workers = worker_flags.options([]).num
        with case_counter("verify") as on_case:
            findings = verify_store(path, on_case, num_workers)
    else:
        databases = confirmed_databases(Path(path), source_flags.options(), as_json)
        options = preparation_flags.options(workers=worker_flags.options(databases))
        findings, cases = _verify_sources(databases, options)
    counts = Counter(finding.severity for finding in findings)
    if as_json:
        case_rows = {} if cases is None else {"cases": [case.to_json() for case in cases]}
        print_json({"path": path, "findings": [finding.to_json() for finding in findings], **case_rows})
    else:
        print_cases(cases or ())
        print_findings([_with_file(finding) for finding in findings])
        summary = ", ".join(f"{num} {severity}{'s' * (num > 1)}" for severity in Severity if (num := counts[severity]))
        messages().print(f"{path}: {summary or 'no faults found'}", soft_wrap=True)
    return 3 if counts[Severity.ERROR] else 0


def _with_file(finding: Finding) -> Finding:
    """The finding with its file in the message, since the table has no column for files."""
    if not finding.file or finding.file in finding.message:
        return finding
    return replace(finding, message=f"{finding.file}: {finding.message}")


def _verify_sources(
    databases: Sequence[DatabaseFiles], options: IngestOptions
) -> tuple[list[Finding], list[CaseReport]]:
    from rich.progress import TaskID

    from multiseg.cli.console import progress_bar
    from multiseg.store.ingest.dry_run import check_source

    with progress_bar("verify", sum(len(files.cases) for files in databases)) as bar:

        def on_case(database: str, case: str, outcome: str) -> None:
            bar.update(TaskID(0), advance=1, details=f"{database}/{case}")

        checks = [check_source(files, options, on_case) for files in databases]
    findings = [finding for check in checks for finding in check.findings]
    return findings, [case for check in checks for case in check.cases]
