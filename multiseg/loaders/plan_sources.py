"""The cases and draws of a plan as the numbers that readers use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from multiseg.labels import LabelSpace, LabelView
from multiseg.loaders.draw import Draw, DrawPlan
from multiseg.loaders.patches import CaseSource, DatabaseSource, Sources, TargetTable
from multiseg.loaders.ring import Wanted
from multiseg.loaders.shards import Checksums
from multiseg.modalities import ModalityAxis
from multiseg.store.reader import Database


@dataclass(frozen=True, eq=False)
class PlanSources:
    """The sources of a plan's cases, and for each case, by its number, what is known without reading it."""

    sources: Sources
    annotated: Bool[Tensor, "case label"]
    bits: tuple[tuple[int, ...], ...]
    places: tuple[tuple[int, ...], ...]

    def wanted(self, draw: Draw) -> Wanted:
        """A draw as numbers."""
        bits = self.bits[draw.number]
        kept = 0
        for channel in draw.channels:
            kept |= bits[channel]
        return Wanted(draw.number, draw.corner, kept)

    def present(self, draws: Sequence[Draw]) -> Bool[Tensor, "batch modality"]:
        """Which channels hold a sequence."""
        present = np.zeros((len(draws), self.sources.num_places), dtype=np.bool_)
        for row, draw in enumerate(draws):
            places = self.places[draw.number]
            for channel in draw.channels:
                present[row, places[channel]] = True
        return torch.from_numpy(present)


def plan_sources(plan: DrawPlan, axis: ModalityAxis, checksums: Checksums) -> PlanSources:
    """The sources of the cases of a plan, whose modalities are all on the axis."""
    databases = {name: plan.store[name] for name in plan.cases}
    numbers = {name: number for number, name in enumerate(databases)}
    views = _Views(plan.space)
    cases, bits, places = [], [], []
    for case in plan.numbered:
        database = databases[case.database]
        bits.append(tuple(1 << database.modalities.index(name) for name in case.modalities))
        places.append(tuple(axis.channels(case.modalities)))
        cases.append(
            CaseSource(
                name=f"{case.database}/{case.name}",
                database=numbers[case.database],
                row=case.row,
                extent=case.extent,
                tables=views.number(database, case.annotated.tolist()),
                shards=case.shards,
            )
        )
    sources = Sources(
        url=plan.store.url,
        databases=tuple(_database(database, axis) for database in databases.values()),
        cases=tuple(cases),
        tables=tuple(views.tables),
        patch=plan.options.patch,
        num_places=len(axis),
        checksums=checksums,
    )
    annotated = torch.from_numpy(np.stack([views.annotated[case.tables] for case in cases]))
    return PlanSources(sources, annotated, tuple(bits), tuple(places))


def _database(database: Database, axis: ModalityAxis) -> DatabaseSource:
    places = tuple(axis.channels([name])[0] if name in axis else -1 for name in database.modalities)
    return DatabaseSource(database.layout("image"), database.layout("label"), places)


class _Views:
    """The distinct maps from annotations to targets: thousands of cases share a few."""

    def __init__(self, space: LabelSpace) -> None:
        self._space = space
        self._numbers: dict[tuple[str, tuple[bool, ...]], int] = {}
        self.tables: list[tuple[TargetTable, ...]] = []
        self.annotated: list[Bool[np.ndarray, " label"]] = []

    def number(self, database: Database, annotated: Sequence[bool]) -> int:
        key = (database.name, tuple(annotated))
        if key not in self._numbers:
            view = self._space.view(database.schemas, annotated, database.pathology)
            self._numbers[key] = len(self.tables)
            self.tables.append(_tables(database, view))
            self.annotated.append(view.annotated)
        return self._numbers[key]


def _tables(database: Database, view: LabelView) -> tuple[TargetTable, ...]:
    schemas = list(database.schemas.values())
    tables = []
    for annotation, table in view.tables:
        codes = np.arange(len(schemas[annotation].structures) + 1)
        tables.append(TargetTable(annotation, table, bool(np.array_equal(table[codes], codes))))
    return tuple(tables)
