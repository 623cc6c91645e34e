"""Checking the structures of a label space against those that the databases of a store have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches

from multiseg.errors import UsageError
from multiseg.labels import TISSUE, LabelSchema, LabelSpace, SpaceLabel, Structure
from multiseg.store.reader import Case, Store


def written(kind: str, name: str) -> str:
    """A structure's name as users write it in a run's labels."""
    return f"{TISSUE if kind == 'tissue' else ''}{name}"


def schemas_of(store: Store, cases: Iterable[Case]) -> dict[str, tuple[LabelSchema, ...]]:
    """The annotations that some of the cases have, by database."""
    by_database: dict[str, dict[str, LabelSchema]] = {}
    for case in cases:
        schemas = by_database.setdefault(case.database, {})
        for (name, schema), has_it in zip(store[case.database].schemas.items(), case.annotated.tolist(), strict=True):
            if has_it:
                schemas[name] = schema
    return {database: tuple(schemas.values()) for database, schemas in by_database.items()}


def structures_of(schemas: Mapping[str, Sequence[LabelSchema]]) -> list[Structure]:
    """The structures of all annotations of all databases, one after the other."""
    return [structure for group in schemas.values() for schema in group for structure in schema.structures]


def check_named(space: LabelSpace, structures: Sequence[Structure], where: str) -> None:
    """Raises UsageError if a label of the space is none of the structures; the message lists them.

    Args:
        where: the data that the structures come from, for the message.
    """
    names = list(dict.fromkeys(written(structure.kind, structure.name) for structure in structures))
    indices = {space.index_of(structure) for structure in structures}
    missing = [label for index, label in enumerate(space.labels, start=1) if index not in indices]
    if not missing:
        return
    hints = [hint for label in missing if (hint := _hint(label, names))]
    raise UsageError(
        f"no case in {where} is annotated for {', '.join(written(label.kind, label.name) for label in missing)}. "
        f"Structures there: {', '.join(names) or 'none'}." + "".join(f" {hint}" for hint in hints)
    )


def _hint(label: SpaceLabel, names: Sequence[str]) -> str:
    """A suggestion: the same name with the other kind, or a similar spelling."""
    wanted = written(label.kind, label.name)
    lowered = {name.lower(): name for name in names} | {name.lower().removeprefix(TISSUE): name for name in names}
    near = [label.name.lower()] if label.name.lower() in lowered else []
    near = near or get_close_matches(wanted.lower(), lowered, n=1, cutoff=0.6)
    near = near or get_close_matches(label.name.lower(), lowered, n=1, cutoff=0.6)
    return f"Did you mean {lowered[near[0]]!r} by {wanted!r}?" if near else ""


def check_rest(space: LabelSpace, unlisted: Mapping[str, Sequence[str]]) -> None:
    """Raises UsageError if the data have lesion structures that the space leaves out, and the space has no `rest`.

    Args:
        unlisted: the names of these structures by database.
    """
    listed = "; ".join(f"{database}: {', '.join(names)}" for database, names in unlisted.items() if names)
    if listed and not space.rest:
        raise UsageError(
            f"the labels {', '.join(space.names)} leave out lesion structures that the data have ({listed}). Name them "
            'too, or add the label "lesion" for all that have no label of their own. Or choose what happens to their '
            "voxels: --rest ignore (they are masked out) or --rest background (they belong to none of the labels); "
            "from Python, LabelSpace.of(NAMES, rest=...)."
        )


def unlisted_of(space: LabelSpace, schemas: Mapping[str, Sequence[LabelSchema]]) -> dict[str, tuple[str, ...]]:
    """The lesion structures that a space leaves out, by database; see `LabelSpace.unlisted`."""
    unlisted = {database: space.unlisted(group) for database, group in schemas.items()}
    return {database: names for database, names in unlisted.items() if names}
