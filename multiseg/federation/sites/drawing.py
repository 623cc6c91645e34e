"""The cases that a round draws from at a site, and the parts of the network that at least `least` of them train."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

from multiseg.federation.plan import FederationOptions
from multiseg.federation.sites.learning import derived
from multiseg.federation.sites.site import Order, Site, databases_of, labelled
from multiseg.labels import LabelSpace, Structure
from multiseg.loaders.batches import StreamOptions
from multiseg.loaders.draw import chosen
from multiseg.modalities import ModalityAxis
from multiseg.models.network_parts import Part, groups_of, trained_parts
from multiseg.store.reader import Case, Store

Item = TypeVar("Item", bound=Hashable)


def stream_options(site: Site, store: Store, options: FederationOptions) -> StreamOptions:
    """The run's options with the site's own machine, databases and seed."""
    draw, least = options.stream.draw, site.leaves.least
    databases = databases_of(site, store)
    draw = replace(
        draw,
        weights={name: weight for name, weight in draw.weights.items() if name in databases},
        num_cases=-(-draw.num_cases // least) * least,
        seed=derived(draw.seed or 0, options.experiment, site.name, "draw"),
    )
    return replace(options.stream, draw=draw, workers=site.workers, cache=site.cache, disk_cache="")


def training_cases(
    store: Store, site: Site, options: FederationOptions, space: LabelSpace, axis: ModalityAxis | None = None
) -> list[Case]:
    """The cases that a run may draw at a site, from databases with at least `least` of them.

    Args:
        axis: only cases with one of its sequences; None if it is not known yet.
    """
    draw, found = stream_options(site, store, options).draw, []
    for name in databases_of(site, store):
        usable = [
            case
            for case in labelled(store, name, space, "train")
            if axis is None or not set(axis).isdisjoint(case.modalities)
        ]
        cases = chosen(usable, draw) if draw.weights.get(name, 1) > 0 else []
        found += cases if len(cases) >= site.leaves.least else []
    return found


def drawn_in_round(order: Order, store: Store, site: Site) -> list[Case]:
    """The cases that a round may draw from; unlike the stream's plan, without databases of weight 0."""
    return training_cases(store, site, order.options, order.info.space, order.info.axis)


def drawing(order: Order, store: Store, site: Site, cases: Sequence[Case]) -> tuple[StreamOptions, tuple[str, ...]]:
    """The stream's options and databases for a round that draws only from these cases."""
    options = stream_options(site, store, order.options)
    names = tuple(dict.fromkeys(case.database for case in cases))
    weights = {name: weight for name, weight in options.draw.weights.items() if name in names}
    return replace(options, draw=replace(options.draw, weights=weights)), names


def sequences_of(cases: Sequence[Case], least: int) -> set[str]:
    """The sequences that at least `least` cases of one database have."""
    return _frequent(((case.database, name) for case in cases for name in case.modalities), least)


def structures_of(cases: Sequence[Case], store: Store, least: int) -> dict[tuple[str, str], None]:
    """Name and kind of the structures that are annotated in at least `least` cases of one database, in order."""
    annotated = [
        (case.database, (structure.name, structure.kind))
        for case in cases
        for schema, is_annotated in zip(store[case.database].schemas.values(), case.annotated.tolist(), strict=True)
        if is_annotated
        for structure in dict.fromkeys(schema.structures)
    ]
    frequent = _frequent(annotated, least)
    return {structure: None for _, structure in annotated if structure in frequent}


def _labels_of(cases: Sequence[Case], store: Store, space: LabelSpace, least: int) -> set[str]:
    """The labels of a space that have one of these structures."""
    indices = {space.index_of(Structure(name, kind, ())) for name, kind in structures_of(cases, store, least)}
    return {label for index, label in enumerate(space.names, start=1) if index in indices}


def _frequent(occurrences: Iterable[tuple[str, Item]], least: int) -> set[Item]:
    """The items that occur at least `least` times with the same database."""
    return {item for (_, item), count in Counter(occurrences).items() if count >= least}


def trained_by(order: Order, cases: Sequence[Case], store: Store, least: int) -> tuple[Part, ...]:
    """The shared parts of the network that these cases train."""
    space, groups = order.info.space, set[str]()
    for name in dict.fromkeys(case.database for case in cases):
        own = [case for case in cases if case.database == name]
        groups |= groups_of(sequences_of(own, least), _labels_of(own, store, space, least), space)
    return trained_parts(
        order.parts,
        groups,
        order.options.local.personal,
        order.personal_parts,
    )
