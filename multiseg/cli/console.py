"""Print results to stdout, progress and messages to stderr."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console, ConsoleRenderable, RenderHook
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from multiseg.errors import few
from multiseg.shown import lines
from multiseg.store.findings import Finding, Severity

if TYPE_CHECKING:
    from multiseg.pages.page import Table as PageTable

SHOWN_ALIKE = {Severity.ERROR: 5, Severity.WARNING: 2, Severity.NOTE: 1}
"""How many findings of one kind in one database are printed in full."""
HAS_DOCUMENT = "has_document"
"""Attribute of an error that came when the document of --json was printed already."""
STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.NOTE: "cyan"}


def output() -> Console:
    """The console for results. It is 160 columns wide if stdout is no terminal."""
    console = Console(soft_wrap=False, emoji=False)  # as an emoji, the ":CD:" of a fingerprint would be replaced
    return _cleaning(console if console.is_terminal else Console(width=160, emoji=False))


def messages(quiet: bool = False) -> Console:
    """The console for progress and errors. It prints nothing if `quiet`."""
    return _cleaning(Console(stderr=True, highlight=False, quiet=quiet, emoji=False))


class _Cleaned(RenderHook):
    """Makes control characters visible: names and messages come from files, sites and servers."""

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        for text in renderables:
            if isinstance(text, Text) and text.plain != (cleaned := lines(text.plain, len(text.plain))):
                text.plain = cleaned
        return renderables


def _cleaning(console: Console) -> Console:
    console.push_render_hook(_Cleaned())
    return console


def print_json(data: Any) -> None:
    """Print one JSON document on stdout. Numbers that are not finite become null."""
    output().file.write(json.dumps(_finite(data), indent=1) + "\n")


@contextmanager
def after_document() -> Iterator[None]:
    """For what a verb does once its document is printed: with --json, an error is then told on stderr alone."""
    try:
        yield
    except Exception as error:
        setattr(error, HAS_DOCUMENT, True)
        raise


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    right: Sequence[str] = (),
    width: int | None = None,
) -> None:
    """Print a table; one that is too wide is printed in parts, each with the columns that name its rows.

    Args:
        right: columns that are aligned to the right. Those before the first of them name the rows.
        width: the most that it takes; None is all that the console has.
    """
    console = output()
    cells = [[lines(cell) for cell in row] for row in rows]
    for number, group in enumerate(_groups(columns, cells, right, width or console.width)):
        heading = lines(title) if number == 0 else None
        table = Table(title=heading, title_justify="left", title_style="bold", header_style="bold cyan")
        for index in group:
            table.add_column(columns[index], justify="right" if columns[index] in right else "left", overflow="fold")
        for row in cells:
            table.add_row(*(row[index] for index in group))
        console.print(table, width=width)


def _groups(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str], width: int) -> list[list[int]]:
    """The columns of each part of a table, so that no part has to break a word."""
    # Two blanks and a border beside the longest word.
    least = [3 + max(map(_longest_word, (name, *(row[index] for row in rows)))) for index, name in enumerate(columns)]
    if 1 + sum(least) <= width:
        return [list(range(len(columns)))]
    num_keys = next((index for index, name in enumerate(columns) if name in right), 1)
    if not num_keys or 1 + sum(least[:num_keys]) + max(least[num_keys:], default=0) > width:
        num_keys = 1
    keys = list(range(num_keys))
    groups = [[*keys]]
    for index in range(num_keys, len(columns)):
        if len(groups[-1]) > num_keys and 1 + sum(least[column] for column in (*groups[-1], index)) > width:
            groups.append([*keys])
        groups[-1].append(index)
    return groups


def _longest_word(text: str) -> int:
    return max((cell_len(word) for word in text.split()), default=0)


def print_page_table(title: str, table: PageTable) -> None:
    """Print a table that a page also shows."""
    print_table(title, table.columns, table.rows, table.numbers)


def print_findings(findings: Sequence[Finding]) -> None:
    """Print a table of findings, errors first. Findings of one kind in one database share a row."""
    if not findings:
        return
    groups: dict[tuple[Severity, str, str], list[Finding]] = {}
    for finding in sorted(findings, key=lambda finding: list(SHOWN_ALIKE).index(finding.severity)):
        groups.setdefault((finding.severity, finding.code, finding.database), []).append(finding)
    table = Table(title="Findings", title_justify="left", title_style="bold", header_style="bold cyan")
    for column in ("", "code", "database"):
        table.add_column(column, no_wrap=True)
    for column in ("cases", "what, and what to do"):
        table.add_column(column, overflow="fold")
    for (severity, code, database), group in groups.items():
        cases = list(dict.fromkeys(finding.case for finding in group if finding.case))
        texts = list(dict.fromkeys(plain(finding.message) for finding in group))
        limit = SHOWN_ALIKE[severity]
        text = "\n".join(texts[:limit])
        if len(texts) > limit:
            text += f"\n... and {len(texts) - limit} more like this (--json lists all)"
        cells = (database, few(cases, 4), text)
        table.add_row(f"[{STYLES[severity]}]{severity}[/]", code, *map(lines, cells))
    output().print(table)


def plain(text: str) -> str:
    """Escape text so that rich prints its '[' instead of reading markup."""
    return text.replace("[", r"\[")


@contextmanager
def progress_bar(what: str, total: int | None, details: str = "", quiet: bool = False) -> Iterator[Progress]:
    """A progress bar on a terminal; elsewhere it is disabled, and the caller prints lines. Its task has number 0.

    Args:
        total: None if it is not known yet.
    """
    console = messages(quiet)
    text, details_text = TextColumn("{task.description}"), TextColumn("{task.fields[details]}")
    columns = [text, BarColumn(), MofNCompleteColumn(), details_text, TimeElapsedColumn(), TimeRemainingColumn()]
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as bar:
        bar.add_task(what, total=total, details=details)
        yield bar


@contextmanager
def case_counter(what: str) -> Iterator[Callable[[int, int, str], None]]:
    """A progress bar of cases. Yields a function of the number that are done, of all, and the current one's name.

    If there was nothing to do, or an error came before that was known, no bar stays.
    """
    with progress_bar(what, None) as bar:
        try:
            yield lambda done, total, case: bar.update(TaskID(0), completed=done, total=total, details=case)
        finally:
            if not bar.tasks[0].total:
                bar.update(TaskID(0), visible=False)
