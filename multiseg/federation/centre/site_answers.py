"""Validates every answer of a site before it is used: types, sizes, characters and counts.

A site is another party: it may be broken, or it may lie. An invalid answer is refused, and the reason names the entry.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from multiseg.federation.messages import DESCRIBE, EVALUATE, FINGERPRINT, FINISH, ROUND, Answer

MOST_CASES = 1_000_000
"""Of a database, in each split."""
MOST_EVENTS, MOST_EVENT = 100, 500
"""Notes in one answer, and characters of each."""
MOST_BODY, MOST_DESCRIPTION = 2_000_000, 262_144
"""Characters of an answer as JSON. Descriptions are also copied into every message and every model file."""
MOST_RECIPE, MOST_TEXT, MOST_NAME = 65_536, 2_000, 200
MOST_SEQUENCES, MOST_DATABASES, MOST_LABELS = 64, 200, 600
MOST_SCORES = 20_000
"""Databases times subsets of their sequences."""
MOST_SECONDS, MOST_RELEASES = 1e9, 1_000_000

Databases = Mapping[str, Mapping[str, Any]]
"""A site's description of each of its databases."""


def fault(answer: Answer, described: Databases | None = None) -> str:
    """Why an answer is invalid; "" if it is valid. The text of an error is not checked, only shown.

    Args:
        described: the databases of the site, if known: it cannot count more cases than it has described.
    """
    if answer.error:
        return ""
    try:
        size = len(json.dumps(answer.body))
        _check(size <= (MOST_DESCRIPTION if answer.kind == DESCRIBE else MOST_BODY), f"it has {size} characters")
        is_expected = answer.kind == ROUND or not answer.tensors
        _check(is_expected, f"it holds {len(answer.tensors)} tensors, but none were asked for")
        for name, value in _leaves_of(answer.body):
            _check_leaf(name, value)
        _READ[answer.kind](dict(answer.body), described)
        _count(answer.body.get("damaged", 0), "damaged", MOST_CASES)
        _texts(answer.body.get("events", []), "events", MOST_EVENTS)
    except KeyError as error:
        return f"its answer is invalid: {error!s:.80} is missing"
    except (TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        return f"its answer is invalid: {error!s:.300}"
    return ""


def _leaves_of(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf value and every key of a JSON document, each with its path."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield name, key
            yield from _leaves_of(value, f"{name}/{key:.80}" if name else f"{key:.80}")
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from _leaves_of(value, name)
    else:
        yield name, tree


def _check(is_valid: bool, problem: str) -> None:
    if not is_valid:
        raise ValueError(problem)


def _check_leaf(name: str, value: Any) -> None:
    """Raises ValueError for a text or number that no answer may hold."""
    if isinstance(value, str):
        limit = MOST_EVENT if name == "events" else MOST_TEXT
        if len(value) > limit:
            raise ValueError(f"{_shown(name)} has a text of {len(value)} characters, more than {limit}")
        is_prose = name.endswith("/licence") or "/recipe" in name  # free text, perhaps over several lines
        letters = re.sub(r"[\n\t]", " ", value) if is_prose else value
        if not letters.isprintable():
            raise ValueError(f"{_shown(name)} holds characters that cannot be printed: {ascii(value)[:80]}")
    elif isinstance(value, float) and math.isinf(value):
        raise ValueError(f"{_shown(name)} is {value}")


def _shown(name: str) -> str:
    return f"{name:.80}" if name.isprintable() else ascii(name)[:80]


def _only(body: Mapping[str, Any], *names: str) -> None:
    unknown = sorted(body.keys() - set(names))
    _check(not unknown, f"it holds {unknown[:3]!r:.80}, which do not belong to this kind of answer")


def _mapping(value: Any, name: str, limit: int) -> dict[str, Any]:
    _check(isinstance(value, dict), f"{name} is {_kind(value)}, not a mapping")
    _check(len(value) <= limit, f"{name} has {len(value)} entries, more than {limit}")
    for key in value:
        is_valid = 0 < len(key) <= MOST_NAME or (not key and name == "exposure")
        _check(is_valid, f"{name} has a name of {len(key)} letters")
    return dict(value)


def _texts(value: Any, name: str, limit: int) -> list[str]:
    are_texts = isinstance(value, list) and all(isinstance(text, str) for text in value)
    _check(are_texts, f"{name} is not a list of texts")
    _check(len(value) <= limit, f"{name} has {len(value)} entries, more than {limit}")
    return list(value)


def _name(value: Any, what: str) -> str:
    _text(value, what, MOST_NAME)
    _check(value != "", f"{what} is empty")
    _check(re.search(r"[/\\]|^\.|^\s|\s$", value) is None, f"{what} is {value!r:.80}, which is not a valid name")
    return str(value)


def _text(value: Any, what: str, limit: int = MOST_TEXT) -> None:
    _check(isinstance(value, str), f"{what} is {_kind(value)}, not a text")
    _check(len(value) <= limit, f"{what} has {len(value)} characters, more than {limit}")


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def _count(value: Any, what: str, limit: float | int) -> None:
    _check(type(value) is int, f"{what} is {value!r:.40}, not an integer")  # isinstance would accept true
    _check(0 <= value <= limit, f"{what} is {value}, which is not from 0 to {limit:.0f}")


def _number(value: Any, what: str, low: float, high: float) -> None:
    """A number in its range; null and NaN mean undefined."""
    if value is None:
        return
    _check(type(value) in (int, float), f"{what} is {value!r:.40}, not a number")
    _check(math.isnan(value) or low <= value <= high, f"{what} is {value}")


def _read_description(body: dict[str, Any], described: Databases | None) -> None:
    _only(body, "site", "databases", "spacing_mm", "versions", "can_train", "public_key", "device", "events")
    _name(body["site"], "site")
    for name, about in _mapping(body["databases"], "databases", MOST_DATABASES).items():
        _read_database(_name(name, "the name of a database"), about)
    edges = body["spacing_mm"]
    _check(isinstance(edges, list) and len(edges) == 3, "spacing_mm is not a list of three")
    for edge in edges:
        _number(edge, "spacing_mm", 1e-3, 1e3)
        _check(edge is not None and edge == edge, "spacing_mm is undefined")
    for name, version in _mapping(body["versions"], "versions", 20).items():
        if type(version) is not int:
            _text(version, f"versions/{name}", MOST_NAME)
    _check(isinstance(body["can_train"], bool), "can_train is neither true nor false")
    key = body.get("public_key", "")
    _text(key, "public_key", 64)
    _check(re.fullmatch(r"([0-9a-f]{64})?", key) is not None, "public_key is not a valid key")
    _text(body.get("device", ""), "device", MOST_NAME)


def _read_database(name: str, about: Any) -> None:
    about = _mapping(about, name, 20)
    _only(about, "pathology", "num_cases", "modalities", "labels", "unlisted", "recipe", "licence")
    for split in ("train", "val", "test"):
        _count(_mapping(about["num_cases"], "num_cases", 3)[split], f"num_cases/{split}", MOST_CASES)
    _text(about["pathology"], "pathology", MOST_NAME)
    _text(about.get("licence", ""), "licence")
    sequences = _texts(about["modalities"], "modalities", MOST_SEQUENCES)
    for sequence in sequences:
        _name(sequence, "a sequence")
    _check(len(set(sequences)) == len(sequences), "modalities list a sequence twice")
    labels = about["labels"]
    _check(isinstance(labels, list) and len(labels) <= MOST_LABELS, "labels are not a list, or too many")
    for label in labels:
        _text(label["name"], "a label", MOST_NAME)
        _text(label["kind"], "a label's kind", MOST_NAME)
    for label in _texts(about.get("unlisted", []), "unlisted", MOST_LABELS):
        _text(label, "unlisted", MOST_NAME)
    size = len(json.dumps(_mapping(about.get("recipe", {}), "recipe", 100)))
    _check(size <= MOST_RECIPE, f"its recipe has {size} characters, more than {MOST_RECIPE}")


def _read_fingerprint(body: dict[str, Any], described: Databases | None) -> None:
    _only(body, "databases", "events")
    for name, value in _leaves_of(_mapping(body["databases"], "databases", MOST_DATABASES)):
        if isinstance(value, int | float):
            _number(value, name, -1e12, 1e12)
        else:
            _check(isinstance(value, str), f"{name} is {_kind(value)}, not a number")
    _check_databases(body["databases"], described, "databases")


def _read_round(body: dict[str, Any], described: Databases | None) -> None:
    _only(body, "num_cases", "exposure", "metrics", "seconds", "events", "releases", "damaged")
    metrics = _mapping(body["metrics"], "metrics", 20)
    _only(metrics, "validation", "loss", "bad_steps", "update_norm")
    _scores(metrics.get("validation", {}), described)
    _number(metrics.get("loss"), "loss", -1e30, 1e30)
    _number(metrics.get("update_norm"), "update_norm", 0.0, 1e30)
    _count(metrics.get("bad_steps", 0), "bad_steps", 10**9)
    _check_described(body.get("num_cases", 0), "num_cases", _described_cases(described, "train"))
    _count(body.get("releases", 0), "releases", MOST_RELEASES)
    for group, patches in _mapping(body.get("exposure", {}), "exposure", 10 * MOST_SEQUENCES).items():
        _count(patches, f"exposure/{group}", 10**12)
    for name, seconds in _mapping(body.get("seconds", {}), "seconds", 20).items():
        _number(seconds, f"seconds/{name}", 0.0, MOST_SECONDS)


def _read_evaluation(body: dict[str, Any], described: Databases | None) -> None:
    _only(body, "split", "metrics", "events", "damaged")
    split = body.get("split", "")
    _text(split, "split", 20)
    for name, about in _mapping(body["metrics"], "metrics", MOST_SCORES).items():
        _only(_mapping(about, f"metrics/{name}", 20), "dice", "num_cases")
        limit = _described_cases(described, split, name.partition("/")[0])
        _check_described(about.get("num_cases", 0), f"metrics/{name}/num_cases", limit)
    _scores({name: about.get("dice") for name, about in body["metrics"].items()}, described)


def _scores(scores: Any, described: Databases | None) -> None:
    """Dice by database, or by "database/SUBSET"."""
    for name, dice in _mapping(scores, "Dice", MOST_SCORES).items():
        _number(dice, f"Dice of {name}", 0.0, 1.0)
    _check_databases(scores, described, "Dice")


def _check_databases(names: Mapping[str, Any], described: Databases | None, what: str) -> None:
    unknown = sorted({name.partition("/")[0] for name in names} - described.keys()) if described else []
    _check(not unknown, f"{what} is of {unknown[:3]!r:.80}, and the site has described no such database")


def _described_cases(described: Databases | None, split: str, database: str = "") -> int:
    """How many cases a site has described, rounded up as it reports them."""
    if not described or split not in ("train", "val", "test"):
        return MOST_CASES
    return sum(about["num_cases"][split] for name, about in described.items() if database in ("", name))


def _check_described(count: Any, what: str, limit: int) -> None:
    _count(count, what, math.inf)
    _check(
        count <= limit,
        f"{what} is {count}, but the site has described {limit}. If its data have grown, submit the run again: it then "
        "asks for a new description",
    )


_READ: dict[str, Callable[[dict[str, Any], Databases | None], None]] = {
    DESCRIBE: _read_description,
    FINGERPRINT: _read_fingerprint,
    ROUND: _read_round,
    EVALUATE: _read_evaluation,
    FINISH: _read_evaluation,
}


def number_of(value: Any) -> float:
    """A number from JSON; NaN for null."""
    return math.nan if value is None else float(value)


def validation_of(answer: Answer) -> dict[str, float]:
    """A site's Dice of the model that a round started from, by database and perhaps subset."""
    return {str(name): number_of(value) for name, value in answer.body["metrics"].get("validation", {}).items()}


def dice_of(answer: Answer) -> dict[str, float]:
    """Dice of an evaluation, by database and perhaps subset."""
    return {str(name): number_of(entry.get("dice")) for name, entry in answer.body.get("metrics", {}).items()}
