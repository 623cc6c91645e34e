"""What the commands print with: results to stdout, progress and messages to stderr."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, ConsoleRenderable, RenderHook
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from multiseg.shown import lines
from multiseg.store.findings import Finding, Severity

SHOWN_ALIKE = {Severity.ERROR: 5, Severity.WARNING: 2, Severity.NOTE: 1}
"""Of findings that say the same of several cases, this many are printed in full."""
STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.NOTE: "cyan"}


def output() -> Console:
    """Results. Off a terminal nothing is cut to a width. ":CD:" stays as it is, as in a fingerprint."""
    console = Console(soft_wrap=False, emoji=False)
    return _cleaning(console if console.is_terminal else Console(width=160, emoji=False))


def messages(quiet: bool = False) -> Console:
    """Progress and errors; nothing where `quiet`."""
    return _cleaning(Console(stderr=True, highlight=False, quiet=quiet, emoji=False))


class _Cleaned(RenderHook):
    """Text is printed without what a terminal would obey: names and messages come from files, sites and servers."""

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        for one in renderables:
            if isinstance(one, Text) and one.plain != lines(one.plain, len(one.plain)):
                one.plain = lines(one.plain, len(one.plain))
        return renderables


def _cleaning(console: Console) -> Console:
    console.push_render_hook(_Cleaned())
    return console


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
    table = Table(title=lines(title), title_justify="left", title_style="bold", header_style="bold cyan")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(lines, row))
    output().print(table)


def print_findings(findings: Sequence[Finding]) -> None:
    """Errors first; what, where, and what to do. Findings of one kind in one database share a row."""
    if not findings:
        return
    alike: dict[tuple[Severity, str, str], list[Finding]] = {}
    for finding in sorted(findings, key=lambda finding: list(SHOWN_ALIKE).index(finding.severity)):
        alike.setdefault((finding.severity, finding.code, finding.database), []).append(finding)
    table = Table(title="Findings", title_justify="left", title_style="bold", header_style="bold cyan")
    for column in ("", "code", "database"):
        table.add_column(column, no_wrap=True)
    for column in ("cases", "what, and what to do"):
        table.add_column(column, overflow="fold")
    for (severity, code, database), some in alike.items():
        cases = list(dict.fromkeys(finding.case for finding in some if finding.case))
        messages_shown = list(dict.fromkeys(finding.message for finding in some))
        shown = SHOWN_ALIKE[severity]
        text = "\n".join(plain(message) for message in messages_shown[:shown])
        if len(messages_shown) > shown:
            text += f"\n... and {len(messages_shown) - shown} more like this (all of them with --json)"
        listed = ", ".join(cases[:4]) + (f" and {len(cases) - 4} more" if len(cases) > 4 else "")
        table.add_row(f"[{STYLES[severity]}]{severity}[/]", code, *map(lines, (database, listed, text)))
    output().print(table)


def plain(text: str) -> str:
    """Text in which '[' means itself to rich."""
    return text.replace("[", r"\[")


@contextmanager
def progress_bar(what: str, total: int, details: str = "", quiet: bool = False) -> Iterator[Progress]:
    """A bar on a terminal; elsewhere nothing, and the caller prints lines. Its task has number 0."""
    console = messages(quiet)
    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[details]}"),
    ]
    with Progress(
        *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, disable=quiet or not console.is_terminal
    ) as bar:
        bar.add_task(what, total=total, details=details)
        yield bar
