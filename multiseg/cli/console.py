"""What the commands print with: results to stdout, progress and messages to stderr."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from multiseg.store.findings import Finding, Severity

STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "yellow"}


def output() -> Console:
    """Results. Off a terminal nothing is cut to a width."""
    console = Console(soft_wrap=False)
    return console if console.is_terminal else Console(width=160)


def messages() -> Console:
    """Progress and errors."""
    return Console(stderr=True, highlight=False)


def print_json(data: Any) -> None:
    """One JSON document on stdout; what is not finite becomes null."""
    output().file.write(json.dumps(_finite(data), indent=1) + "\n")


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[str] = ()) -> None:
    """A table; the columns in `right` are numbers."""
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold cyan")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    output().print(table)


def print_findings(findings: Sequence[Finding]) -> None:
    """Errors first; a table of what, where, and what to do."""
    if not findings:
        return
    ordered = sorted(findings, key=lambda finding: finding.severity != Severity.ERROR)
    table = Table(title="Findings", title_justify="left", title_style="bold", header_style="bold cyan")
    for column in ("", "code", "case"):
        table.add_column(column, no_wrap=True)
    table.add_column("what, and what to do", overflow="fold")
    for finding in ordered:
        where = "/".join(part for part in (finding.database, finding.case) if part)
        style = STYLES[finding.severity]
        table.add_row(f"[{style}]{finding.severity}[/]", finding.code, where, _plain(finding.message))
    output().print(table)


def _plain(text: str) -> str:
    """Text in which '[' means itself to rich."""
    return text.replace("[", r"\[")


@contextmanager
def progress_bar(what: str, total: int, details: str = "") -> Iterator[Progress]:
    """A bar on a terminal; elsewhere nothing, and the caller prints lines. Its task has number 0."""
    console = messages()
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[details]}")]
    with Progress(
        *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, disable=not console.is_terminal
    ) as bar:
        bar.add_task(what, total=total, details=details)
        yield bar
