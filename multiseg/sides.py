"""Left and right in the names of structures: find the structures of a label space that mirror each other."""

from __future__ import annotations

import re

from multiseg.labels import LabelSpace, SpaceLabel

LEFT = frozenset({"left", "l", "lh", "lt", "links", "linke", "linker", "linkes", "gauche"})
RIGHT = frozenset({"right", "r", "rh", "rt", "rechts", "rechte", "rechter", "rechtes", "droit", "droite"})
UNPAIRED = -1
"""Replaces the index for a structure of one side whose counterpart is not in the space."""


def side_of(name: str) -> str:
    """The side in the name of a structure: "left", "right", or "" for neither or both.

    >>> side_of("Left-Hippocampus"), side_of("hippocampus_R"), side_of("ctx-lh-cuneus"), side_of("LHippocampus")
    ('left', 'right', 'left', 'left')
    >>> side_of("lateral ventricle"), side_of("left and right thalamus"), side_of("L1")
    ('', '', '')
    """
    sides = {side for side in map(_side, _words(name)) if side}
    return sides.pop() if len(sides) == 1 else ""


def mirrored(space: LabelSpace) -> tuple[int, ...]:
    """The new index for each index of a space (0 is background) when left and right are swapped.

    A structure of one side becomes the one of the same kind whose name differs only in the side, or `UNPAIRED` if the
    space has none or several. Other structures stay the same.

    >>> mirrored(LabelSpace(tuple(SpaceLabel(n, "tissue") for n in ("L hippocampus", "stem", "hippocampus, right"))))
    (0, 3, 2, 1)
    """
    return (0, *(_counterpart(space, index) for index in range(1, len(space.labels) + 1)))


def unpaired(space: LabelSpace) -> tuple[str, ...]:
    """The names of structures of one side whose counterpart is not in the space."""
    return tuple(name for name, index in zip(space.names, mirrored(space)[1:], strict=True) if index == UNPAIRED)


def _counterpart(space: LabelSpace, index: int) -> int:
    label = space.labels[index - 1]
    side = side_of(label.name)
    if not side:
        glued = [other for other, name in enumerate(space.names, start=1) if _are_glued_pair(label.name, name)]
        return glued[0] if len(glued) == 1 else index
    alike = [other for other, item in enumerate(space.labels, start=1) if _without_side(item) == _without_side(label)]
    opposite = [other for other in alike if side_of(space.names[other - 1]) not in ("", side)]
    same_side = [other for other in alike if side_of(space.names[other - 1]) == side]
    return opposite[0] if len(same_side) == len(opposite) == 1 else UNPAIRED


def _words(name: str) -> list[str]:
    """The words of a name in lower case. "LeftAmygdala", "LHippocampus" and "left1" have two words each, "L1" one."""
    apart = re.sub(r"(?<=[a-zà-ÿ])(?=[A-ZÀ-Þ])|(?<=[A-ZÀ-Þ])(?=[A-ZÀ-Þ][a-zà-ÿ])", " ", name)
    return re.findall(r"[^\W\d_]{2,}|[^\W_]+", apart.lower())


def _side(word: str) -> str:
    return "left" if word in LEFT else "right" if word in RIGHT else ""


def _without_side(label: SpaceLabel) -> tuple[str, list[str]]:
    return label.kind, [word for word in _words(label.name) if not _side(word)]


def _are_glued_pair(first: str, second: str) -> bool:
    """Whether two names are a pair like "lthalamus" and "rthalamus", or "thalamusl" and "thalamusr"."""
    a, b = first.lower(), second.lower()
    if len(a) <= 2 or not b:
        return False
    is_prefix = {a[0], b[0]} == {"l", "r"} and a[1:] == b[1:]
    is_suffix = {a[-1], b[-1]} == {"l", "r"} and a[:-1] == b[:-1]
    return is_prefix or is_suffix
