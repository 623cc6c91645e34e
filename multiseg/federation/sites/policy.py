"""What leaves a site: its own word on tensors, metrics and counts, and error texts that name no patient and no path."""

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
"""Significant ones of a loss and of the length of an update: more would help to tell a case from all."""
_FIRST, _LAST = 0xF0000, 0x10FFFD
"""The characters that Unicode gives no meaning: room for the names of 130 000 cases."""


@dataclass(frozen=True)
class Leaves:
    """What may leave a site.

    Attributes:
        tensors: patterns of the parts of the network whose updates may leave, such as "*"; a round that would send
            another one is refused.
        metrics: patterns of numbers that may leave, such as "validation/*", "loss", "exposure/*" (patches by sequence)
            or "seconds/*"; others are left out.
        fingerprint: whether statistics of intensities and sizes are told when they are asked for.
        counts: whether rounded numbers of cases and patches are told.
        least: nothing leaves that fewer cases of this site than this made: no update, no part of one, no Dice, no
            statistic, no sequence, no count. Counts are rounded up to its multiples, or of the run's own number where
            that is larger.
        masked, noise, clip: the least protection of an update, in the terms of the run's [privacy]: masks, noise of at
            least so many multiples of the clip, a clip of at most so much (0: any). A round with less is refused.
        cases: a round that would train on fewer cases than this, or than `least`, is refused.
        to_sites: whether the other sites may be given the model that this one trained in the last round, to test it.
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
    """Raises FederationError where an update holds a part that may not leave."""
    held = [name for name in names if not _fits(name, leaves.tensors)]
    if held:
        more = f" and {len(held) - 1} more" if len(held) > 1 else ""
        raise FederationError(
            f"this site lets {', '.join(leaves.tensors) or 'no tensor'} leave, but the update would hold "
            f"{held[0]!r}{more}. Keep them at the sites (local.personal), or ask the site to let them leave."
        )


def released(answer: Answer, leaves: Leaves) -> tuple[Answer, tuple[str, ...]]:
    """The answer as it may leave, and the names of the metrics that were left out.

    Raises:
        FederationError: it holds a tensor that may not leave.
    """
    check_tensors(answer.tensors, leaves)
    body, left_out = dict(answer.body), []
    for name, above in _measured(answer).items():
        body[name], without = _filtered(body[name], leaves.metrics, above)
        left_out += without
    return replace(answer, body=body), tuple(left_out)


def leaves_metric(name: str, leaves: Leaves) -> bool:
    """Whether a number of this name may leave."""
    return _fits(name, leaves.metrics)


def flat_metrics(answer: Answer) -> dict[str, float | int]:
    """The numbers of an answer by name: "loss", "validation/alder", "test/alder/FLAIR+T1/dice", "seconds/train"."""
    body = answer.body
    return {flat: value for name, above in _measured(answer).items() for flat, value in _flat(body[name], above)}


def rounded(count: int, least: int) -> int:
    """The count rounded up to a multiple of `least`; 0 stays 0."""
    return -(-count // least) * least


def coarse(count: int, least: int) -> int:
    """The count rounded up to a multiple of `least`; 0 where it is below that."""
    return rounded(count, least) if count >= least else 0


def short(value: float) -> float:
    """A mean as it may leave, with few significant digits."""
    return float(f"{value:.{DIGITS}g}")


@dataclass(frozen=True)
class Names:
    """What no text may name: places, cases by database, subjects."""

    places: tuple[str, ...] = ()
    cases: tuple[tuple[str, str], ...] = ()
    subjects: tuple[str, ...] = ()


def names_of(store: Store | None, places: Sequence[str]) -> Names:
    """Those of a store, if it can be opened, and of the site's own places."""
    cases = store.sound_cases if store is not None else ()
    return Names(
        tuple(place for place in places if place),
        tuple((case.database, case.name) for case in cases),
        tuple(dict.fromkeys(case.subject for case in cases if case.subject)),
    )


def cleaned(error: BaseException, names: Names) -> str:
    """What the server may read of an error: our own words without places, files, cases and subjects; of any other
    error only its kind."""
    if not isinstance(error, MultisegError):
        return f"{type(error).__name__}: see the site's log."
    return cleaned_text(str(error), names)


SETTINGS = re.compile(r"(?<![^\s'\"(`])(?:(?:its|the|this site's) )?site\.toml(?=[\s'\"),;:`]|\.?(?:\s|$))")
"""The site's settings in one of our own sentences; with a folder before it is a path as any other."""


def cleaned_text(text: str, names: Names) -> str:
    """The text without places, files, cases and subjects, in capitals or not.

    Names go first, and each becomes one letter of its own that is no name and ends no path: what was found of a place
    first could end inside a name and leave its rest.
    """
    hidden = {chr(_FIRST + at): both for at, both in enumerate(_instead(names).items())}
    texts = [_without_letters(text), *names.places]
    for letter, (name, _) in hidden.items():
        named = re.compile(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", re.IGNORECASE)
        texts = [named.sub(letter, one) for one in texts]
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


def _instead(names: Names) -> dict[str, str]:
    """What is said in place of each name, the longest first, since one may hold another."""
    said = dict.fromkeys(names.subjects, "(subject)") | {case: "(case)" for _, case in names.cases}
    said |= {f"{database}/{case}": f"a case of {database}" for database, case in names.cases}
    return dict(sorted(said.items(), key=lambda both: len(both[0]), reverse=True))


def _without_letters(text: str) -> str:
    return "".join(letter for letter in text if ord(letter) < _FIRST or ord(letter) > _LAST)


def _measured(answer: Answer) -> dict[str, str]:
    """The entries of an answer that hold numbers by name, and what their names begin with."""
    known = {"metrics": str(answer.body.get("split", "")), "exposure": "exposure", "seconds": "seconds"}
    return {name: above for name, above in known.items() if name in answer.body}


def _fits(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _filtered(tree: Mapping[str, Any], patterns: Sequence[str], above: str) -> tuple[dict[str, Any], list[str]]:
    """The metrics whose whole name fits, and the names of the others."""
    kept: dict[str, Any] = {}
    left_out = []
    for key, value in tree.items():
        name = f"{above}/{key}" if above else key
        if isinstance(value, Mapping):
            below, without = _filtered(value, patterns, name)
            left_out += without
            if below:
                kept[key] = below
        elif _fits(name, patterns):
            kept[key] = value
        else:
            left_out.append(name)
    return kept, left_out


def _flat(tree: Mapping[str, Any], above: str) -> Iterable[tuple[str, float | int]]:
    for key, value in tree.items():
        name = f"{above}/{key}" if above else key
        if isinstance(value, Mapping):
            yield from _flat(value, name)
        else:
            yield name, value
