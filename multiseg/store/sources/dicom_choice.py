"""Which series is which sequence: what the user says, else a guess, and the table in which a person sees it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from multiseg.errors import UnconfirmedError, UsageError
from multiseg.modalities import canonical_modality
from multiseg.store.sources.dicom_scans import Scan
from multiseg.store.sources.sequence import guess_sequence
from multiseg.store.sources.source_folder import listed
from multiseg.store.sources.source_types import SKIP, SourceOptions


@dataclass(frozen=True, eq=False)
class Choice:
    """A scan of a case, the sequence it is taken for (or none) and why.

    `spelling` is what `--modality` names, or the guess; `is_said` where it was `--modality`.
    """

    case: str
    scan: Scan
    sequence: str | None
    why: str
    spelling: str = ""
    is_said: bool = False


def choose(case: str, scan: Scan, said: Mapping[str, str]) -> Choice:
    """The user's word for the scan by its own name, then for its description, then for what it is guessed to be."""
    guess, why = guess_sequence(scan.acquisition)
    given = {spelling.strip().lower(): spelling for spelling in said}
    for name in filter(None, (scan.name, scan.description, guess)):
        spelling = given.get(name.lower())
        if spelling is not None:
            meant = said[spelling]
            sequence = None if meant == SKIP else canonical_modality(meant) or meant
            return Choice(case, scan, sequence, "as you say", spelling, is_said=True)
    return Choice(case, scan, guess, why, guess or "")


def check_spellings(choices: Sequence[Choice], said: Mapping[str, str]) -> None:
    """A name that fits no series was mistyped.

    Raises:
        UsageError: there is one.
    """
    names = {name for choice in choices for name in (choice.scan.name, choice.scan.description)}
    known = {name.lower() for name in names} | {choice.spelling.lower() for choice in choices}
    unknown = sorted(spelling for spelling in said if spelling.strip().lower() not in known)
    if unknown:
        raise UsageError(
            f"--modality names {', '.join(map(repr, unknown))}, but no series is called so; they are "
            f"{listed(sorted(names), 20)}."
        )


def unconfirmed(root: Path, choices: Sequence[Choice], options: SourceOptions) -> UnconfirmedError:
    """What to say while nobody has looked at the guesses."""
    guessed = next((choice for choice in choices if choice.sequence and not choice.is_said), choices[0])
    name = shlex.quote(guessed.scan.name)
    message = (
        f"which sequence a series of {root} shows is a guess until you have looked at it; nothing was written. If all "
        f"are right, add --yes. If one is not, name it or leave it out: --modality {name}=T1c, --modality {name}=skip; "
        "more such options for more series."
    )
    if not options.allow_unlabelled:
        message += " DICOM cases have no labels here, so --allow-unlabelled is needed, too."
    return UnconfirmedError(message, rows_of(choices))


def rows_of(choices: Sequence[Choice]) -> list[dict[str, str | int]]:
    """The table of series; those of one name and one verdict in several studies share a row."""
    groups: dict[tuple[str, str, str], list[Choice]] = {}
    for choice in choices:
        error = choice.scan.checked[1] if choice.sequence else None
        key = (choice.scan.name, choice.sequence or "", "" if error is None else error.code)
        groups.setdefault(key, []).append(choice)
    rows: list[dict[str, str | int]] = []
    for (name, sequence, fault), some in groups.items():
        said = [choice.scan.acquisition for choice in some]
        rows.append({
            "series": name, "sequence": sequence, "why": some[0].why, "fault": fault, "studies": len(some),
            "slices": _span(len(choice.scan.slices) for choice in some), "TE": _span(one.echo_ms for one in said),
            "TR": _span(one.repetition_ms for one in said), "TI": _span(one.inversion_ms for one in said),
            "contrast": listed(sorted({one.contrast for one in said if one.contrast}), 2),
        })  # fmt: skip
    return rows


def _span(values: Iterable[float | None]) -> str:
    known = sorted({value for value in values if value is not None})
    return "" if not known else f"{known[0]:g}" if len(known) == 1 else f"{known[0]:g} to {known[-1]:g}"
