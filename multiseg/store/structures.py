"""Checking the structures of a label space against those that the databases of a store have."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches

from multiseg.errors import UsageError
from multiseg.labels import LESION, PATHOLOGY, TISSUE, WORDS, LabelSchema, LabelSpace, SpaceLabel, Structure
from multiseg.store.reader import Case, Store


def written(kind: str, name: str, pathology: str = "") -> str:
    """A structure's name as users write it in a run's labels."""
    if pathology:
        return f"{PATHOLOGY}{pathology}"
    return f"{TISSUE if kind == 'tissue' else ''}{name}"


def listed_labels(labels: Sequence[str], store: Store, cases: Sequence[Case]) -> tuple[str, ...]:
    """The labels of a run with each word (`multiseg.labels.WORDS`) replaced by the structures that it means.

    "tissues" means every tissue that some of the cases are annotated for, database after database;
    "tissues+lesion" means these and "lesion"; "lesions-by-pathology" means a label for the lesions of each pathology.
    What a tool for healthy anatomy marks as "tissue:lesion" is not among the tissues: nobody looked for lesions there.

    Args:
        cases: those that a model will learn from.

    Raises:
        UsageError: no case has a structure that a word means.
    """
    if not set(labels) & set(WORDS):
        return tuple(labels)
    schemas = schemas_of(store, cases)
    tissues = [written(one.kind, one.name) for one in structures_of(schemas) if one.kind == "tissue"]
    tissues = [name for name in tissues if name != written("tissue", LESION.name)]
    meanings = {
        "tissues": tissues,
        "tissues+lesion": [*tissues, "lesion"] if tissues else [],
        "lesions-by-pathology": [written("lesion", name, name) for name in pathologies_of(store, schemas)],
    }
    for word in WORDS:
        if word in labels and not meanings[word]:
            raise UsageError(
                f"the labels are {word!r}, but no training case of {store.url} is annotated for "
                f"{'a lesion of a known pathology' if word == 'lesions-by-pathology' else 'a tissue'}."
            )
    return tuple(dict.fromkeys(name for label in labels for name in meanings.get(label, [label])))


def pathologies_of(store: Store, schemas: Mapping[str, Sequence[LabelSchema]]) -> list[str]:
    """The pathologies of the databases that have an annotation of a lesion."""
    with_lesion = [name for name, group in schemas.items() if any(one.kind == "lesion" for one in _all(group))]
    return list(dict.fromkeys(store[name].pathology for name in with_lesion if store[name].pathology))


def _all(schemas: Iterable[LabelSchema]) -> list[Structure]:
    return [structure for schema in schemas for structure in schema.structures]


def hide(store: Store, names: Sequence[str]) -> None:
    """Take annotations and sequences away from this open store; its files do not change.

    Args:
        names: as "DATABASE/ANNOTATION" or "DATABASE/SEQUENCE".

    Raises:
        UsageError: a name is not one of an annotation or a sequence of the store, or is that of both.
    """
    annotations = [f"{name}/{schema}" for name in store for schema in store[name].schemas]
    sequences = [f"{name}/{modality}" for name in store for modality in store[name].modalities]
    for name in names:
        if name not in (*annotations, *sequences):
            raise UsageError(
                f"hide has {name!r}, but the annotations of {store.url} are {', '.join(annotations) or 'none'}, and "
                f"its sequences are {', '.join(sequences) or 'none'}."
            )
        if name in annotations and name in sequences:
            raise UsageError(f"hide has {name!r}, which is an annotation and a sequence of {store.url}.")
        database, _, hidden = name.partition("/")
        store[database].hide(hidden)


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
    return [structure for group in schemas.values() for structure in _all(group)]


def check_named(
    space: LabelSpace, structures: Sequence[Structure], where: str, pathologies: Collection[str] = ()
) -> None:
    """Raises UsageError if a label of the space is none of the structures; the message lists them.

    Args:
        where: the data that the structures come from, for the message.
        pathologies: of the databases that have an annotation of a lesion.
    """
    names = list(dict.fromkeys(written(structure.kind, structure.name) for structure in structures))
    names += [written("lesion", name, name) for name in pathologies]
    indices = {space.index_of(structure, name) for structure in structures for name in ("", *pathologies)}
    missing = [label for index, label in enumerate(space.labels, start=1) if index not in indices]
    if not missing:
        return
    hints = [hint for label in missing if (hint := _hint(label, names))]
    raise UsageError(
        f"no case in {where} is annotated for {', '.join(map(_written, missing))}. "
        f"Structures there: {', '.join(names) or 'none'}." + "".join(f" {hint}" for hint in hints)
    )


def _written(label: SpaceLabel) -> str:
    return written(label.kind, label.name, label.pathology)


def _hint(label: SpaceLabel, names: Sequence[str]) -> str:
    """A suggestion: the same name with the other kind, or a similar spelling."""
    wanted = _written(label)
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


def unlisted_of(
    space: LabelSpace, store: Store, schemas: Mapping[str, Sequence[LabelSchema]]
) -> dict[str, tuple[str, ...]]:
    """The lesion structures that a space leaves out, by database; see `LabelSpace.unlisted`."""
    unlisted = {database: space.unlisted(group, store[database].pathology) for database, group in schemas.items()}
    return {database: names for database, names in unlisted.items() if names}
