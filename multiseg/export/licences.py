"""What the licences of training data ask for: a small table, in which an unknown licence stays unknown.

It says what a licence's own text says. Whether it binds a model that learnt from the data is a question for a lawyer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

UNKNOWN = "unknown"
_BY, _SA, _NC, _ND = "attribution", "share alike", "non-commercial use only", "no derivatives"


@dataclass(frozen=True)
class Licence:
    """A licence by its SPDX identifier.

    Attributes:
        hub: its identifier on the Hugging Face Hub.
        conditions: what it asks of those who use the data.
    """

    name: str
    hub: str
    conditions: frozenset[str]


def _creative_commons(terms: str, conditions: Iterable[str]) -> list[Licence]:
    versions = ("2.0", "2.5", "3.0", "4.0")
    made = frozenset(conditions)
    return [Licence(f"CC-{terms}-{number}", f"cc-{terms.lower()}-{number}", made) for number in versions]


LICENCES = {
    licence.name.lower(): licence
    for licence in (
        Licence("CC0-1.0", "cc0-1.0", frozenset()),
        Licence("PDDL-1.0", "pddl", frozenset()),
        *_creative_commons("BY", [_BY]),
        *_creative_commons("BY-SA", [_BY, _SA]),
        *_creative_commons("BY-NC", [_BY, _NC]),
        *_creative_commons("BY-NC-SA", [_BY, _NC, _SA]),
        *_creative_commons("BY-ND", [_BY, _ND]),
        *_creative_commons("BY-NC-ND", [_BY, _NC, _ND]),
        Licence("ODC-By-1.0", "odc-by", frozenset([_BY])),
        Licence("ODbL-1.0", "odbl", frozenset([_BY, _SA])),
    )
}
_ALIASES = {"cc0": "cc0-1.0", "pddl": "pddl-1.0", "odc-by": "odc-by-1.0", "odbl": "odbl-1.0"}


def licence_of(text: str) -> Licence | None:
    """The licence that a database's text names; None if it is empty, or not in the table.

    A Creative Commons licence without its version is not known: their conditions differ in detail.

    >>> licence_of("CC BY-SA 4.0").name, licence_of("free for research")
    ('CC-BY-SA-4.0', None)
    """
    key = re.sub(r"[\s_-]+", "-", text.strip().lower())
    return LICENCES.get(_ALIASES.get(key, key))


@dataclass(frozen=True)
class Terms:
    """The licences of several databases together.

    Attributes:
        strictest: the licence that asks for all that the others ask; None if a licence is unknown, or none does.
        conditions: what all known ones ask for together.
        unknown: the databases whose licence is not known.
    """

    strictest: Licence | None
    conditions: tuple[str, ...]
    unknown: tuple[str, ...]


def together(texts: dict[str, str]) -> Terms:
    """The terms of several databases, from the texts of their licences by name."""
    found = {name: licence_of(text) for name, text in texts.items()}
    known = [licence for licence in found.values() if licence is not None]
    unknown = tuple(name for name, licence in found.items() if licence is None)
    asked = frozenset().union(*(licence.conditions for licence in known))
    covering = [licence for licence in known if licence.conditions == asked]
    # A work under one share-alike licence cannot be passed on under another.
    one_way = len({licence.name for licence in known if _SA in licence.conditions}) <= 1
    strictest = max(covering, key=lambda licence: licence.name) if covering and one_way and not unknown else None
    order = (_BY, _SA, _NC, _ND)
    return Terms(strictest, tuple(condition for condition in order if condition in asked), unknown)
