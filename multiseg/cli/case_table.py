"""The table after every ingest: which file was taken for which sequence, and how large brain and lesions came out."""

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
"""Cases shown of those without and of those with an error or a warning; --json has all."""
MIN_SHORTENED = 4
"""What the names of a case's files begin with in common is left out from so many letters on."""


def print_cases(cases: Sequence[CaseReport]) -> None:
    """The cases that are new or failed as a table, those with errors or warnings first to be kept; others are counted.

    Nothing where there is no such case.
    """
    rest = [case for case in cases if case.outcome != "skipped"]
    doubtful = [case for case in rest if case.is_doubtful or case.outcome == "failed"]
    good = [case for case in rest if not (case.is_doubtful or case.outcome == "failed")]
    kept = {id(case) for case in (*doubtful[:MAX_DOUBTFUL], *good[:MAX_GOOD])}
    shown = [case for case in rest if id(case) in kept]
    if shown:
        numbers = ["brain l", "lesion ml"]
        several = len({case.database for case in shown}) > 1
        print_table(
            "Cases",
            ["case", "file = sequence", *numbers, "findings"],
            [_row(case, several) for case in shown],
            right=numbers,
        )
    if len(rest) > len(shown):
        num_doubtful = max(0, len(doubtful) - MAX_DOUBTFUL)
        messages().print(
            f"{len(rest) - len(shown)} more cases are not shown, {num_doubtful} of them with errors or warnings. "
            "--json lists all.",
            soft_wrap=True,
        )


def _row(case: CaseReport, several: bool) -> list[str]:
    name = f"{case.database}/{case.case}" if several else case.case
    severity = Severity.ERROR if case.outcome == "failed" else Severity.WARNING if case.is_doubtful else Severity.NOTE
    codes = "\n".join(case.codes)
    return [
        plain(name), plain("\n".join(named_files(case.files))), _number(case.brain_ml / 1000, 2), _lesions(case),
        f"[{STYLES[severity]}]{plain(codes)}[/]" if codes else "",
    ]  # fmt: skip


def named_files(files: Mapping[str, str]) -> list[str]:
    """A line a file, such as "...t1.nii.gz = T1".

    Folders are left out where the files' own names differ, and so is what these names begin with in common.
    """
    names = [name.rpartition("/")[2] for name in files.values()]
    if len(set(names)) < len(names):
        return [f"{name} = {_role_text(role)}" for role, name in files.items()]
    common = os.path.commonprefix(names) if len(names) > 1 else ""  # noqa: RUF071 (letters are meant)
    # Up to the last separator, so that no word is cut.
    end = max((common.rfind(letter) for letter in "_-. "), default=-1) + 1
    shown = ["..." + name[end:] for name in names] if end >= MIN_SHORTENED else names
    return [f"{name} = {_role_text(role)}" for role, name in zip(files, shown, strict=True)]


def _role_text(role: str) -> str:
    return f"label {role.removeprefix('label:')}" if role.startswith("label:") else role.replace("_", " ")


def _number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _lesions(case: CaseReport) -> str:
    """A number, or a line an annotation where several name lesions."""
    if len(case.lesions_ml) < 2:
        return _number(next(iter(case.lesions_ml.values()), math.nan), 1)
    return "\n".join(f"{name} {_number(ml, 1)}" for name, ml in case.lesions_ml.items())
