"""The verb that looks for faults: verify."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from multiseg.cli.data import AsJson
from multiseg.errors import UsageError

if TYPE_CHECKING:
    from multiseg.store.findings import Finding


def verify_command(
    path: Annotated[str, typer.Argument(help="A store, by path or URL.")],
    workers: Annotated[int, typer.Option(help="Cases that are checked at once, each in its own memory.", min=1)] = 2,
    as_json: AsJson = False,
) -> int:
    """Look for everything that is wrong with a store: every chunk is decoded, every number held against its voxels.

    Nothing is written. The exit code is 0 when there is no error, and 3 when there is one.

    Examples:

    multiseg verify brain.zarr

    multiseg verify s3://bucket/brain.zarr --workers 8 --json
    """
    from multiseg.cli.console import messages, print_findings, print_json
    from multiseg.store.findings import Severity
    from multiseg.store.verify import is_store

    findings = _verify_store(path, workers) if is_store(path) else _verify_folder(path)
    count = Counter(finding.severity for finding in findings)
    if as_json:
        print_json({"path": path, "findings": [finding.to_json() for finding in findings]})
    else:
        print_findings([_with_place(finding) for finding in findings])
        said = ", ".join(f"{n} {severity}{'s' * (n > 1)}" for severity in Severity if (n := count[severity]))
        messages().print(f"{path}: {said or 'no fault found'}", soft_wrap=True)
    return 3 if count[Severity.ERROR] else 0


def _with_place(finding: Finding) -> Finding:
    """A finding for the table, which has no column for files."""
    is_told = not finding.file or finding.file in finding.message
    return finding if is_told else replace(finding, message=f"{finding.file}: {finding.message}")


def _verify_store(url: str, workers: int) -> Sequence[Finding]:
    from rich.progress import TaskID

    from multiseg.cli.console import progress_bar
    from multiseg.store.verify import verify_store

    with progress_bar("verify", 1) as bar:

        def on_case(done: int, total: int, case: str) -> None:
            bar.update(TaskID(0), completed=done, total=total, details=case)

        return verify_store(url, on_case, workers)


def _verify_folder(path: str) -> Sequence[Finding]:
    raise UsageError(f"there is no store at {path}. Name one, by its folder or its URL.")
