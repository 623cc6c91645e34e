"""Which series is which sequence, by the user or by a guess, and the table in which a person checks the guesses."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from multiseg.errors import UnconfirmedError, UsageError, few
from multiseg.modalities import canonical_modality
from multiseg.store.sources.dicom_scans import Scan
from multiseg.store.sources.sequence import guess_sequence
from multiseg.store.sources.source_folder import grouped
from multiseg.store.sources.source_types import SKIP, SourceOptions


@dataclass(frozen=True, eq=False)
class Choice:
    """A scan of a case, its sequence (None: not used) and why.

    `is_named`: the user named its sequence. `spelling` is then the one in --modality, else the guess.
    """

    case: str
    scan: Scan
    sequence: str | None
    why: str
    spelling: str = ""
    is_named: bool = False


def choose(case: str, scan: Scan, modalities: Mapping[str, str]) -> Choice:
    """The scan's sequence by --modality for its name, its description or its guessed sequence, else the guess."""
    guess, why = guess_sequence(scan.acquisition)
    given = {spelling.strip().lower(): spelling for spelling in modalities}
    for name in filter(None, (scan.name, scan.description, guess)):
        spelling = given.get(name.lower())
        if spelling is not None:
            named = modalities[spelling]
            sequence = None if named == SKIP else canonical_modality(named) or named
            return Choice(case, scan, sequence, "by --modality", spelling, is_named=True)
    return Choice(case, scan, guess, why, guess or "")


def check_spellings(choices: Sequence[Choice], modalities: Mapping[str, str]) -> None:
    """Raise UsageError if a spelling of --modality matches no series; it was mistyped."""
    names = {name for choice in choices for name in (choice.scan.name, choice.scan.description)}
    known = {name.lower() for name in names} | {choice.spelling.lower() for choice in choices}
    unknown = sorted(spelling for spelling in modalities if spelling.strip().lower() not in known)
    if unknown:
        raise UsageError(
            f"--modality names {', '.join(map(repr, unknown))}, but no series has that name. Series are "
            f"{few(sorted(names), 20)}."
        )


def unconfirmed(root: Path, choices: Sequence[Choice], options: SourceOptions) -> UnconfirmedError:
    """The error if the user has not confirmed the guesses."""
    guessed = next((choice for choice in choices if choice.sequence and not choice.is_named), choices[0])
    name = shlex.quote(guessed.scan.name)
    message = (
        f"the sequences of the series in {root} are guesses that you have to confirm; nothing was written. If all are "
        f"right, add --yes. If one is wrong, name it or leave it out: --modality {name}=T1c or --modality {name}=skip."
    )
    if not options.allow_unlabelled:
        message += " DICOM cases have no labels, so also add --allow-unlabelled."
    return UnconfirmedError(message, rows_of(choices))


def rows_of(choices: Sequence[Choice]) -> list[dict[str, str | int]]:
    """The table of series; series of several studies with the same name and sequence share a row."""
    rows: list[dict[str, str | int]] = []
    for (name, sequence, fault), group in grouped(choices, _name_sequence_and_fault).items():
        acquisitions = [choice.scan.acquisition for choice in group]
        rows.append({
            "series": name, "sequence": sequence, "why": group[0].why, "fault": fault, "studies": len(group),
            "slices": _span(len(choice.scan.slices) for choice in group),
            "TE": _span(acquisition.echo_ms for acquisition in acquisitions),
            "TR": _span(acquisition.repetition_ms for acquisition in acquisitions),
            "TI": _span(acquisition.inversion_ms for acquisition in acquisitions),
            "contrast": few(sorted({acquisition.contrast for acquisition in acquisitions} - {""}), 2),
        })  # fmt: skip
    return rows


def _name_sequence_and_fault(choice: Choice) -> tuple[str, str, str]:
    error = choice.scan.checked[1] if choice.sequence else None
    return choice.scan.name, choice.sequence or "", "" if error is None else error.code


def _span(values: Iterable[float | None]) -> str:
    known = sorted({value for value in values if value is not None})
    if len(known) > 1:
        return f"{known[0]:g} to {known[-1]:g}"
    return f"{known[0]:g}" if known else ""
