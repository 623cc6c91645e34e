"""What may leave a site: tensors, metrics and counts by its settings, and error texts without patients and paths."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from multiseg.errors import FederationError, MultisegError
from multiseg.federation.messages import Answer
from multiseg.store.reader import Store

FILES = r"(?:nii(?:\.gz)?|mha|mhd|nrrd|dcm|ima|hdr|img|zarr|csv|tsv|json|jsonl|toml|pt|safetensors|gz|zip)"
DIGITS = 3
"""Significant digits of a loss and of the length of an update: more would help to identify a case."""
_FIRST, _LAST = 0xF0000, 0x10FFFD
"""Unicode's private use characters: enough for the names of 130 000 cases."""


@dataclass(frozen=True)
class Leaves:
    """What may leave a site.

    Attributes:
        tensors: patterns of the parts of the network whose updates may leave, such as "*"; a round that would send
            other parts is refused.
        metrics: patterns of numbers that may leave, such as "validation/*", "loss", "exposure/*" (patches by sequence)
            or "seconds/*"; others are left out.
        fingerprint: whether statistics of intensities and sizes may leave if a run asks for them.
        counts: whether rounded numbers of cases and patches may leave.
        least: whatever leaves must be made from at least this many cases of the site: updates and their parts, Dice,
            statistics, sequences, counts. Counts are rounded up to its multiples, or to those of the run's own number
            if that is larger.
        masked, noise, clip: the required protection of an update, in the terms of the run's [privacy]: masks, noise of
            at least this many multiples of the clip, a clip of at most this (0: any). Rounds with less are refused.
        cases: a round that would train on fewer cases than this, or than `least`, is refused.
        to_sites: whether other sites may get the model that this one trained in the last round, to test it.
    """

    tensors: tuple[str, ...] = ("*",)
    metrics: tuple[str, ...] = ("*",)
    fingerprint: bool = True
    counts: bool = True
    least: int = 5
    masked: bool = False
    noise: float = 0.0
    clip: float = 0.0
    cases: int = 0
    to_sites: bool = False


def check_tensors(names: Iterable[str], leaves: Leaves) -> None:
    """Raises FederationError if an update holds a part that may not leave."""
    forbidden = [name for name in names if not fits(name, leaves.tensors)]
    if forbidden:
        more = f" and {len(forbidden) - 1} more" if len(forbidden) > 1 else ""
        raise FederationError(
            f"this site lets only {', '.join(leaves.tensors) or 'no tensor'} leave, but the update would hold "
            f"{forbidden[0]!r}{more}. Keep them at the sites (local.personal), or ask the site to let them leave."
        )


def released(answer: Answer, leaves: Leaves) -> tuple[Answer, tuple[str, ...]]:
    """The answer as it may leave, and the names of the metrics that were left out.

    Raises:
        FederationError: it holds a tensor that may not leave.
    """
    check_tensors(answer.tensors, leaves)
    body, left_out = dict(answer.body), []
    for name, prefix in _measured(answer).items():
        body[name], without = _filtered(body[name], leaves.metrics, prefix)
        left_out += without
    return replace(answer, body=body), tuple(left_out)


def flat_metrics(answer: Answer) -> dict[str, float | int]:
    """The numbers of an answer by name: "loss", "validation/alder", "test/alder/FLAIR+T1/dice", "seconds/train"."""
    measured = _measured(answer).items()
    return {flat: value for name, prefix in measured for flat, value in _flat(answer.body[name], prefix)}


def rounded(count: int, least: int) -> int:
    """The count rounded up to a multiple of `least`; 0 stays 0."""
    return -(-count // least) * least


def coarse(count: int, least: int) -> int:
    """The count rounded up to a multiple of `least`; 0 if it is below that."""
    return rounded(count, least) if count >= least else 0


def short(value: float) -> float:
    """A mean as it may leave, with few significant digits."""
    return float(f"{value:.{DIGITS}g}")


@dataclass(frozen=True)
class Names:
    """Names that no text may show: paths, cases with their database, subjects."""

    places: tuple[str, ...] = ()
    cases: tuple[tuple[str, str], ...] = ()
    subjects: tuple[str, ...] = ()


def names_of(store: Store | None, places: Sequence[str]) -> Names:
    """The names of a store, if it could be opened, and the site's own paths."""
    cases = store.sound_cases if store is not None else ()
    return Names(
        tuple(place for place in places if place),
        tuple((case.database, case.name) for case in cases),
        tuple(dict.fromkeys(case.subject for case in cases if case.subject)),
    )


def cleaned(error: BaseException, names: Names) -> str:
    """What the server may read of an error: our own messages without paths, files, cases and subjects; of any other
    error only its type."""
    if not isinstance(error, MultisegError):
        return f"{type(error).__name__}: see the site's log."
    return cleaned_text(str(error), names)


SETTINGS = re.compile(r"(?<![^\s'\"(`])(?:(?:its|the|this site's) )?site\.toml(?=[\s'\"),;:`]|\.?(?:\s|$))")
"""The site's settings file in one of our own messages, where it has no folder before it."""


def cleaned_text(text: str, names: Names) -> str:
    """The text without paths, files, cases and subjects, in any case.

    Names are replaced first, each by one private character that ends no path: a path that was replaced first could
    end inside a name and leave the rest of it.
    """
    hidden = {chr(_FIRST + index): pair for index, pair in enumerate(_replacements(names).items())}
    without_private = "".join(letter for letter in text if not _FIRST <= ord(letter) <= _LAST)
    texts = [without_private, *names.places]
    for letter, (name, _) in hidden.items():
        pattern = re.compile(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", re.IGNORECASE)
        texts = [pattern.sub(letter, each) for each in texts]
    text, *places = texts
    # A colon that ends a path is the sentence's: "cannot write (path): No space left".
    for place in sorted(places, key=len, reverse=True):
        text = re.sub(re.escape(place) + r"[^\s'\"(),;]*(?<!:)", "(path)", text, flags=re.IGNORECASE)
    for database in dict(names.cases):
        text = re.sub(rf"(?<![\w./\\]){re.escape(database)}/[^\s'\"(),;:]+", f"a file of {database}", text)
    text = SETTINGS.sub("its settings file", text)
    text = re.sub(r"'[^'\n]*[/\\][^'\n]*'|\"[^\"\n]*[/\\][^\"\n]*\"", "(path)", text)
    text = re.sub(r"[^\s'\"(),;]*[/\\][^\s'\"(),;]*(?<!:)", "(path)", text)
    text = re.sub(rf"[^\s'\"(),;]+\.{FILES}\b", "(file)", text)
    return "".join(hidden[letter][1] if letter in hidden else letter for letter in text)


def _replacements(names: Names) -> dict[str, str]:
    """The replacement of each name, the longest first, since one may contain another."""
    words = dict.fromkeys(names.subjects, "(subject)") | {case: "(case)" for _, case in names.cases}
    words |= {f"{database}/{case}": f"a case of {database}" for database, case in names.cases}
    return dict(sorted(words.items(), key=lambda pair: len(pair[0]), reverse=True))


def _measured(answer: Answer) -> dict[str, str]:
    """The entries of an answer that hold numbers by name, with the prefix of their names."""
    prefixes = {"metrics": str(answer.body.get("split", "")), "exposure": "exposure", "seconds": "seconds"}
    return {name: prefix for name, prefix in prefixes.items() if name in answer.body}


def fits(name: str, patterns: Iterable[str]) -> bool:
    """Whether a name fits one of the patterns of what may leave."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _filtered(tree: Mapping[str, Any], patterns: Sequence[str], prefix: str) -> tuple[dict[str, Any], list[str]]:
    """The metrics with a full name that fits, and the names of the others."""
    kept: dict[str, Any] = {}
    left_out = []
    for key, value in tree.items():
        name = f"{prefix}/{key}" if prefix else key
        if isinstance(value, Mapping):
            below, without = _filtered(value, patterns, name)
            left_out += without
            if below:
                kept[key] = below
        elif fits(name, patterns):
            kept[key] = value
        else:
            left_out.append(name)
    return kept, left_out


def _flat(tree: Mapping[str, Any], prefix: str) -> Iterable[tuple[str, float | int]]:
    for key, value in tree.items():
        name = f"{prefix}/{key}" if prefix else key
        if isinstance(value, Mapping):
            yield from _flat(value, name)
        else:
            yield name, value
