"""The cases of a store on the page: voxels are read window by window."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int16

from multiseg.colours import PALETTE, TRUTH_COLOUR, colour_of
from multiseg.labels import LabelSchema
from multiseg.store.checks.one_case import findings_of_case
from multiseg.store.findings import Finding
from multiseg.store.reader import Case, Database, Store
from multiseg.types import Index3
from multiseg.viewer.case_view import (
    MOST_LESIONS,
    OUTSIDE,
    CaseView,
    LesionPlace,
    ListedCase,
    OverlayView,
    Planes,
    SequenceView,
    StructureView,
    central_voxel,
    lesion_places,
    seen_range,
)

STEPS = 256
"""Whole numbers to one standard deviation of a sequence."""
LESION_COLOURS = (TRUTH_COLOUR, *PALETTE)
"""Of annotations with a single structure, in their order."""


class StoredCases:
    """Cases of a store, in the order of their names."""

    def __init__(self, store: Store, cases: Sequence[Case]) -> None:
        self.store, self.title, self.dice_word = store, store.url, ""
        self.cases = {f"{case.database}/{case.name}": case for case in cases}
        self.listed: Sequence[ListedCase] = [listed(store[case.database], case) for case in cases]

    def view(self, name: str) -> CaseView:
        case = self.cases[name]
        database = self.store[case.database]
        start, overlays = start_of(database, case), overlays_of(self.store, case)
        channels = [database.modalities.index(modality) for modality in case.modalities]
        marked = np.flatnonzero(case.annotated)

        def read(first: int, last: int) -> Planes:
            corner, size = (0, 0, first), (*case.extent[:2], last - first)
            images = database.image(case, corner, size)[channels]
            return _TABLE[images.view(np.uint16)], database.codes(case, corner, size)[marked]

        first_slice = (start[2], start[2] + 1)
        shown = read(*first_slice)

        def planes(first: int, last: int) -> Planes:
            return shown if (first, last) == first_slice else read(first, last)  # the page asks for it next

        return CaseView(
            name=name,
            grid=case.grid,
            start=start,
            sequences=tuple(
                _sequence(case, modality, volume[..., 0])
                for modality, volume in zip(case.modalities, shown[0], strict=True)
            ),
            overlays=overlays,
            planes=planes,
            slab=database.layout("image").chunk[-1],
            facts=facts_of(case),
        )

    def findings(self, name: str) -> tuple[list[Finding], list[LesionPlace]]:
        case = self.cases[name]
        codes = self.store[case.database].codes(case, (0, 0, 0), case.extent)[np.flatnonzero(case.annotated)]
        ml = float(np.prod(self.store.spacing_mm)) / 1000
        overlays = overlays_of(self.store, case)
        places = [
            place for one, volume in zip(overlays, codes, strict=True) for place in lesion_places(volume, one, ml)
        ]
        return findings_of_case(self.store, case), places[:MOST_LESIONS]


def listed(database: Database, case: Case) -> ListedCase:
    """The line of a stored case."""
    return ListedCase(
        name=f"{case.database}/{case.name}",
        database=case.database,
        person=case.subject,
        visit=case.session,
        split=case.split,
        pathology=case.pathology,
        sequences=case.modalities,
        flags=tuple(_flags(database, case)),
    )


def _flags(database: Database, case: Case) -> list[str]:
    names = [name for name, has_it in zip(database.schemas, case.annotated, strict=True) if has_it]
    counts = [
        int(case.foreground_count[index][number])
        for index, schema in enumerate(database.schemas.values())
        if case.annotated[index]
        for number, part in enumerate(schema.structures)
        if part.kind == "lesion"
    ]
    flags = [] if names else ["not annotated"]
    flags += ["no lesion"] if counts and not any(counts) else []
    flags += ["corrected"] if "corrected" in names else []
    return flags


def start_of(database: Database, case: Case) -> Index3:
    """A voxel to begin with: in the middle of the slice with most of the lesions' sampled voxels, else the centre."""
    points = database.foreground(case)
    lesions = [
        points[index, number]
        for index, schema in enumerate(database.schemas.values())
        if case.annotated[index]
        for number, part in enumerate(schema.structures)
        if part.kind == "lesion"
    ]
    voxels = np.concatenate([np.zeros((0, 3), dtype=np.int16), *lesions])
    voxels = voxels[voxels[:, 0] >= 0]
    i, j, k = case.extent
    return central_voxel(voxels) if len(voxels) else (i // 2, j // 2, k // 2)


def overlays_of(store: Store, case: Case) -> tuple[OverlayView, ...]:
    """The annotations of a case, with the volumes that ingest counted."""
    ml = float(np.prod(store.spacing_mm)) / 1000
    overlays: list[OverlayView] = []
    for index, (name, schema) in enumerate(store[case.database].schemas.items()):
        if case.annotated[index]:
            colours = colours_of(schema, LESION_COLOURS[len(overlays) % len(LESION_COLOURS)])
            structures = tuple(
                StructureView(code, part.name, part.kind, colours[code - 1], float(count) * ml)
                for code, (part, count) in enumerate(
                    zip(schema.structures, case.foreground_count[index].tolist(), strict=False), start=1
                )
            )
            overlays.append(OverlayView(name, False, structures))
    return tuple(overlays)


def colours_of(schema: LabelSchema, single: str) -> list[str]:
    """A colour for each structure; `single` for the one of an annotation that has only one."""
    num = len(schema.structures)
    return [single] if num == 1 else [colour_of(index) for index in range(num)]


def facts_of(case: Case) -> dict[str, str]:
    """What is known of a case, for people."""
    size = " × ".join(str(n) for n in case.extent)
    spacing = " × ".join(f"{mm:g}" for mm in case.grid.spacing_mm)
    facts: dict[str, Any] = {
        "Person": case.subject, "Visit": case.session, "Site": case.site, "Pathology": case.pathology,
        "Split": case.split, "Size": f"{size} voxels of {spacing} mm",
    }  # fmt: skip
    facts |= {name: f"{value:g}" if isinstance(value, float) else value for name, value in case.participant.items()}
    return {name: str(value) for name, value in facts.items() if value not in ("", "nan")}


def _sequence(case: Case, modality: str, plane: Int16[np.ndarray, "i j"]) -> SequenceView:
    mean, std = case.intensity[modality]
    slope = std / STEPS
    black, white = (number * slope + mean for number in seen_range(plane))
    return SequenceView(modality, slope, mean, black, white)


def _table() -> Int16[np.ndarray, "65536"]:
    """The whole number of every float16, by its bits: `STEPS` times it, and OUTSIDE for 0 and what is no number."""
    values: Float[np.ndarray, "65536"] = np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float32)
    inside = np.isfinite(values) & (values != 0)
    numbers = np.clip(np.rint(np.where(inside, values, 0) * STEPS), OUTSIDE + 1, 32767)
    return np.where(inside, numbers, OUTSIDE).astype(np.int16)


_TABLE = _table()
