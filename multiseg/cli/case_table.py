"""The table after every ingest: the sequence of each file, and the volumes of brain and lesions."""

from __future__ import annotations

import math
import os.path
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from multiseg.cli.console import STYLES, messages, plain, print_table
from multiseg.store.findings import Severity

if TYPE_CHECKING:
    from multiseg.store.ingest.case_reports import CaseReport

MAX_GOOD, MAX_DOUBTFUL = 20, 40
"""How many cases are shown without, and with, an error or a warning; --json lists all."""
MIN_SHORTENED = 4
"""A common prefix of a case's file names is left out if it has at least this many letters."""


def print_cases(cases: Sequence[CaseReport]) -> None:
    """Print a table of the cases that are new or failed. Above the limits, the rest is only counted."""
    changed = [case for case in cases if case.outcome != "skipped"]
    doubtful = [case for case in changed if case.is_doubtful or case.outcome == "failed"]
    good = [case for case in changed if not (case.is_doubtful or case.outcome == "failed")]
    # Both kinds are limited separately, but shown in their common order.
    shown_ids = {id(case) for case in (*doubtful[:MAX_DOUBTFUL], *good[:MAX_GOOD])}
    shown = [case for case in changed if id(case) in shown_ids]
    if shown:
        numbers = ["brain l", "lesion ml"]
        with_database = len({case.database for case in shown}) > 1
        rows = [_row(case, with_database) for case in shown]
        print_table("Cases", ["case", "file = sequence", *numbers, "findings"], rows, right=numbers)
    if len(changed) > len(shown):
        num_doubtful = max(0, len(doubtful) - MAX_DOUBTFUL)
        messages().print(
            f"{len(changed) - len(shown)} more cases are not shown, {num_doubtful} of them with errors or warnings. "
            "--json lists all.",
            soft_wrap=True,
        )


def _row(case: CaseReport, with_database: bool) -> list[str]:
    name = f"{case.database}/{case.case}" if with_database else case.case
    severity = Severity.WARNING if case.is_doubtful else Severity.NOTE
    if case.outcome == "failed":
        severity = Severity.ERROR
    codes = "\n".join(case.codes)
    return [
        plain(name), plain("\n".join(named_files(case.files))), _number(case.brain_ml / 1000, 2), _lesions(case),
        f"[{STYLES[severity]}]{plain(codes)}[/]" if codes else "",
    ]  # fmt: skip


def named_files(files: Mapping[str, str]) -> list[str]:
    """One line per file, such as "...t1.nii.gz = T1".

    Folders are left out if the file names differ without them, and so is a prefix that all names share.
    """
    names = [name.rpartition("/")[2] for name in files.values()]
    if len(set(names)) < len(names):
        return [f"{name} = {_role_text(role)}" for role, name in files.items()]
    common = os.path.commonprefix(names) if len(names) > 1 else ""  # noqa: RUF071 (of names, not paths)
    # Up to the last separator, so that no word is cut.
    end = max((common.rfind(letter) for letter in "_-. "), default=-1) + 1
    shown = ["..." + name[end:] for name in names] if end >= MIN_SHORTENED else names
    return [f"{name} = {_role_text(role)}" for role, name in zip(files, shown, strict=True)]


def _role_text(role: str) -> str:
    return f"label {role.removeprefix('label:')}" if role.startswith("label:") else role.replace("_", " ")


def _number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _lesions(case: CaseReport) -> str:
    """The lesion volume, or one line per annotation if several have lesions."""
    if len(case.lesions_ml) < 2:
        return _number(next(iter(case.lesions_ml.values()), math.nan), 1)
    return "\n".join(f"{name} {_number(ml, 1)}" for name, ml in case.lesions_ml.items())
