"""Left and right in the names of structures: which structures of a label space are each other's mirror image."""

from __future__ import annotations

import re

from multiseg.labels import LabelSpace, SpaceLabel

LEFT = frozenset({"left", "l", "lh", "lt", "links", "linke", "linker", "linkes", "gauche"})
RIGHT = frozenset({"right", "r", "rh", "rt", "rechts", "rechte", "rechter", "rechtes", "droit", "droite"})
UNPAIRED = -1
"""In the place of an index: a structure of one side whose counterpart is not in the space."""


def side_of(name: str) -> str:
    """The side that a structure's name says: "left", "right", or "" for neither or both.

    >>> side_of("Left-Hippocampus"), side_of("hippocampus_R"), side_of("ctx-lh-cuneus"), side_of("LHippocampus")
    ('left', 'right', 'left', 'left')
    >>> side_of("lateral ventricle"), side_of("left and right thalamus"), side_of("L1")
    ('', '', '')
    """
    sides = {side for side in map(_side, _words(name)) if side}
    return sides.pop() if len(sides) == 1 else ""


def mirrored(space: LabelSpace) -> tuple[int, ...]:
    """What each index of a space, 0 for background included, becomes where left and right change places.

    A structure of one side becomes the one of the same kind whose name differs in the side alone; `UNPAIRED` where the
    space has none, or several. Any other structure stays what it is.

    >>> mirrored(LabelSpace(tuple(SpaceLabel(n, "tissue") for n in ("L hippocampus", "stem", "hippocampus, right"))))
    (0, 3, 2, 1)
    """
    return (0, *(_counterpart(space, at) for at in range(1, len(space.labels) + 1)))


def unpaired(space: LabelSpace) -> tuple[str, ...]:
    """The structures of one side whose counterpart is not in the space."""
    return tuple(name for name, index in zip(space.names, mirrored(space)[1:], strict=True) if index == UNPAIRED)


def _counterpart(space: LabelSpace, index: int) -> int:
    label = space.labels[index - 1]
    side = side_of(label.name)
    if not side:
        glued = [at for at, name in enumerate(space.names, start=1) if _is_glued(label.name, name)]
        return glued[0] if len(glued) == 1 else index
    alike = [at for at, other in enumerate(space.labels, start=1) if _without_side(other) == _without_side(label)]
    others = [at for at in alike if side_of(space.names[at - 1]) not in ("", side)]
    own = [at for at in alike if side_of(space.names[at - 1]) == side]
    return others[0] if len(own) == len(others) == 1 else UNPAIRED


def _words(name: str) -> list[str]:
    """The words of a name in lower case; "LeftAmygdala", "LHippocampus" and "left1" are two each, "L1" is one."""
    apart = re.sub(r"(?<=[a-zà-ÿ])(?=[A-ZÀ-Þ])|(?<=[A-ZÀ-Þ])(?=[A-ZÀ-Þ][a-zà-ÿ])", " ", name)
    return re.findall(r"[^\W\d_]{2,}|[^\W_]+", apart.lower())


def _side(word: str) -> str:
    return "left" if word in LEFT else "right" if word in RIGHT else ""


def _without_side(label: SpaceLabel) -> tuple[str, list[str]]:
    return label.kind, [word for word in _words(label.name) if not _side(word)]


def _is_glued(one: str, other: str) -> bool:
    """Whether two names are "lthalamus" and "rthalamus", or "thalamusl" and "thalamusr": told by the pair alone."""
    a, b = one.lower(), other.lower()
    return len(a) > 2 and any(
        {x, y} == {"l", "r"} and p == q for x, y, p, q in ((a[0], b[0], a[1:], b[1:]), (a[-1], b[-1], a[:-1], b[:-1]))
    )
