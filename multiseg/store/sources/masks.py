"""Brain masks of a person who was scanned several times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from multiseg.store.sources.source_types import Role


def given_to_visits(masks: Sequence[Role], fields: Mapping[str, Mapping[str, str]]) -> list[Role]:
    """The roles of brain masks, a person's mask without a visit given to each of the person's visits without an own.

    Args:
        fields: subject, session and site of every case that has a scan.
    """
    own = {role.case for role in masks}
    given: list[Role] = []
    for role in masks:
        visits = [case for case, known in fields.items() if case not in own and _is_of(role, known)]
        given += [replace(role, case=visit, fields=fields[visit]) for visit in visits] or [role]
    return given


def _is_of(mask: Role, visit: Mapping[str, str]) -> bool:
    said = {key: text for key, text in mask.fields.items() if text}
    return "subject" in said and "session" not in said and said.items() <= visit.items()
