"""The compact text that names a case's files in the arrays with files of their own for each case."""

from __future__ import annotations

from collections.abc import Iterable

MISSING_FILE = "MISSING_FILE"
"""The code of the error for a missing file."""


def shards_text(keys: Iterable[str]) -> str:
    """The text for keys such as "image/0/0/0/0": an array's name and the part of its key after the row.

    >>> shards_text(["label/0/0/0/0", "image/0/0/0/1", "image/0/0/0/0"])
    'image:0/0/0/0,0/0/0/1 label:0/0/0/0'
    """
    by_array: dict[str, list[str]] = {}
    for key in sorted(keys):
        array, _, position = key.partition("/")
        by_array.setdefault(array, []).append(position)
    return " ".join(f"{array}:{','.join(positions)}" for array, positions in by_array.items())


def key_of(database: str, row: int, shard: str) -> str:
    """The key in the store of a row's file.

    >>> key_of("ms", 7, "image/0/0/0/0")
    'ms/image/c/7/0/0/0/0'
    """
    array, _, position = shard.partition("/")
    return f"{database}/{array}/c/{row}/{position}"


def shards_named(text: str, array: str) -> frozenset[str]:
    """The positions of an array's files that a text of `shards_text` names.

    >>> sorted(shards_named("image:0/0/0/0,0/0/0/1 label:0/0/0/0", "image"))
    ['0/0/0/0', '0/0/0/1']
    """
    positions = dict(part.split(":", 1) for part in text.split() if ":" in part)
    return frozenset(positions.get(array, "").split(",")) - {""}
