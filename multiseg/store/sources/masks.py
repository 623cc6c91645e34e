"""Brain masks of a subject with several visits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from multiseg.store.sources.source_types import Role


def share_with_visits(masks: Sequence[Role], fields: Mapping[str, Mapping[str, str]]) -> list[Role]:
    """The roles of brain masks, with a subject's mask repeated for each visit of the subject without its own mask.

    Args:
        fields: subject, session and site of every case that has a scan.
    """
    masked = {role.case for role in masks}
    shared: list[Role] = []
    for role in masks:
        visits = [case for case, visit in fields.items() if case not in masked and _is_of_subject(role, visit)]
        shared += [replace(role, case=case, fields=fields[case]) for case in visits] or [role]
    return shared


def _is_of_subject(mask: Role, visit: Mapping[str, str]) -> bool:
    fields = {key: text for key, text in mask.fields.items() if text}
    return "subject" in fields and "session" not in fields and fields.items() <= visit.items()
