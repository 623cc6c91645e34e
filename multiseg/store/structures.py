"""The structures that a label space names, held against those that the databases of a store know."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches

from multiseg.errors import UsageError
from multiseg.labels import TISSUE, LabelSchema, LabelSpace, SpaceLabel, Structure
from multiseg.store.reader import Case, Store


def written(kind: str, name: str) -> str:
    """A structure as the labels of a run name it."""
    return f"{TISSUE if kind == 'tissue' else ''}{name}"


def schemas_of(store: Store, cases: Iterable[Case]) -> dict[str, tuple[LabelSchema, ...]]:
    """The annotations that some of the cases have, by database."""
    found: dict[str, dict[str, LabelSchema]] = {}
    for case in cases:
        schemas = store[case.database].schemas.items()
        there = found.setdefault(case.database, {})
        there |= {name: schema for (name, schema), has in zip(schemas, case.annotated.tolist(), strict=True) if has}
    return {database: tuple(schemas.values()) for database, schemas in found.items()}


def structures_of(schemas: Mapping[str, Sequence[LabelSchema]]) -> list[Structure]:
    """The structures of all annotations of all databases, one after the other."""
    return [structure for some in schemas.values() for schema in some for structure in schema.structures]


def check_named(space: LabelSpace, structures: Sequence[Structure], where: str) -> None:
    """Raises UsageError where a label of the space is none of the structures, and lists these.

    Args:
        where: somebody looked for the structures.
    """
    names = list(dict.fromkeys(written(one.kind, one.name) for one in structures))
    found = {space.index_of(one) for one in structures}
    missing = [label for at, label in enumerate(space.labels, start=1) if at not in found]
    if not missing:
        return
    hints = [hint for label in missing if (hint := _hint(label, names))]
    raise UsageError(
        f"nobody looked for {', '.join(written(one.kind, one.name) for one in missing)} in {where}. "
        f"Structures there: {', '.join(names) or 'none'}." + "".join(f" {hint}" for hint in hints)
    )


def _hint(label: SpaceLabel, names: Sequence[str]) -> str:
    """What was perhaps meant: the same name of the other kind, or one that is spelt nearly so."""
    asked = written(label.kind, label.name)
    lowered = {name.lower(): name for name in names} | {name.lower().removeprefix(TISSUE): name for name in names}
    near = [label.name.lower()] if label.name.lower() in lowered else []
    near = near or get_close_matches(asked.lower(), lowered, n=1, cutoff=0.6)
    near = near or get_close_matches(label.name.lower(), lowered, n=1, cutoff=0.6)
    return f"Did you mean {lowered[near[0]]!r} by {asked!r}?" if near else ""


def check_rest(space: LabelSpace, unlisted: Mapping[str, Sequence[str]]) -> None:
    """Raises UsageError where lesion structures are not in the space and nothing says what becomes of them.

    Args:
        unlisted: their names by database.
    """
    listed = "; ".join(f"{database}: {', '.join(names)}" for database, names in unlisted.items() if names)
    if listed and not space.rest:
        raise UsageError(
            f"the labels {', '.join(space.names)} leave out lesion structures that the data have ({listed}). Name them "
            'too, or take "lesion" for all that have no label of their own. Or say what their voxels are: '
            "--rest ignore (nobody looks at them) or --rest background (they are none of the labels); from Python, "
            "LabelSpace.of(NAMES, rest=...)."
        )


def unlisted_of(space: LabelSpace, schemas: Mapping[str, Sequence[LabelSchema]]) -> dict[str, tuple[str, ...]]:
    """The lesion structures that a space does not list, by database; see `LabelSpace.unlisted`."""
    found = {database: space.unlisted(some) for database, some in schemas.items()}
    return {database: names for database, names in found.items() if names}
