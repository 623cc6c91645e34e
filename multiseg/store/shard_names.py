"""The compact text that names the files of a case in the arrays that lie by case."""

from __future__ import annotations

from collections.abc import Iterable

MISSING_FILE = "MISSING_FILE"
"""The code of the error for a file that has to be there and is not."""


def shards_text(keys: Iterable[str]) -> str:
    """The text for keys such as "image/0/0/0/0", an array's name and the part of its key behind the row.

    >>> shards_text(["label/0/0/0/0", "image/0/0/0/1", "image/0/0/0/0"])
    'image:0/0/0/0,0/0/0/1 label:0/0/0/0'
    """
    by_array: dict[str, list[str]] = {}
    for key in sorted(keys):
        array, _, place = key.partition("/")
        by_array.setdefault(array, []).append(place)
    return " ".join(f"{array}:{','.join(places)}" for array, places in by_array.items())


def shards_named(text: str, array: str) -> frozenset[str]:
    """The places of an array's files that such a text names.

    >>> sorted(shards_named("image:0/0/0/0,0/0/0/1 label:0/0/0/0", "image"))
    ['0/0/0/0', '0/0/0/1']
    """
    held = dict(part.split(":", 1) for part in text.split() if ":" in part)
    return frozenset(held.get(array, "").split(",")) - {""}
