"""The cases of a prediction folder on the page: each segmentation over the scans that it was made from."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from scipy.spatial import cKDTree

from multiseg.colours import PREDICTION_COLOUR, colour_of
from multiseg.errors import DataError, SourceError, UsageError
from multiseg.evaluation.cohort_records import CASES, RECORDS, RUN, CaseRecord, CohortFolder, digest_of_stored
from multiseg.evaluation.structure_tables import LesionRow
from multiseg.modalities import in_canonical_order
from multiseg.store.cases import CaseFiles
from multiseg.store.findings import Finding
from multiseg.store.formats.read_volume import read_volume
from multiseg.store.formats.volumes import Volume, same_grid, to_ras
from multiseg.store.preparation.grids import Grid, resample, resample_codes
from multiseg.types import Codes, Index3
from multiseg.viewer.case_view import (
    CaseView,
    LesionPlace,
    ListedCase,
    OverlayView,
    Planes,
    SequenceView,
    StructureView,
    central_voxel,
    seen_range,
    whole_numbers,
    with_answer,
)
from multiseg.viewer.stored_cases import StoredCases, listed

PREDICTION = "prediction"
CHANGED = (
    "The segmentation was changed after multiseg wrote it; what is listed beside the images is of the one it wrote."
)
OTHER_SCANS = "The store now holds other scans of this case, or other settings, than those that were segmented."


@runtime_checkable
class Scans(Protocol):
    """Where the scans of the segmented cases are."""

    def listed(self, record: CaseRecord) -> ListedCase | None:
        """The line of a case, without its prediction; None if the source does not have it."""

    def view(self, name: str, record: CaseRecord, answer: Volume) -> CaseView:
        """The case without its prediction."""


class PredictedCases:
    """The cases of a folder that `predict` has written.

    Raises:
        UsageError: the folder is not one, or none of its cases is in the source.
    """

    def __init__(self, root: Path, scans: Scans) -> None:
        self.folder, self.scans = CohortFolder(root), scans
        self.records = dict(check_predictions(root).all_records())
        self.title = str(root)
        expected = expected_dice(root / CASES)
        self.dice_word = "expected" if expected else ""
        self.listed: Sequence[ListedCase] = [
            self._listed(name, record, expected.get((record.database, record.case)))
            for name, record in self.records.items()
        ]

    def _listed(self, name: str, record: CaseRecord, dice: float | None) -> ListedCase:
        line = self.scans.listed(record)
        problem = "" if record.state == "done" else record.reason or "not finished: run predict again"
        problem = problem or ("" if line else "the source does not have this case")
        line = line or ListedCase(name, record.database, record.person, record.visit)
        learnt = dict.fromkeys(f"learnt from ({use})" for use in record.learnt.values() if use)
        doubts = dict.fromkeys(doubt.code for doubt in record.doubts)
        flags = {code: None for code in doubts if not (learnt and code == "LEARNT_FROM")} | learnt
        flags |= {} if any(row.ml for row in record.structures) or problem else {"nothing found": None}
        sequences = line.sequences or record.used
        return replace(line, name=name, sequences=sequences, flags=tuple(flags), dice=dice, problem=problem)

    def view(self, name: str) -> CaseView:
        record = self.records[name]
        if problem := next(line.problem for line in self.listed if line.name == name):
            raise DataError(f"{name} cannot be shown: {problem}.")
        answer = self._answer(record)
        view = self.scans.view(name, record, answer)
        codes = resample_codes(answer.voxels.astype(np.uint8), Grid(answer.affine, answer.shape), view.grid)
        notes = view.notes if self.folder.is_whole(record) else (*view.notes, CHANGED)
        found = np.argwhere(codes != 0)
        start = central_voxel(found) if len(found) else view.start
        return with_answer(replace(view, notes=notes, start=start), overlay_of(record), codes)

    def _answer(self, record: CaseRecord) -> Volume:
        file = next(iter(record.outputs), "")
        return to_ras(read_volume(self.folder.root / file))

    def findings(self, name: str) -> tuple[list[Finding], list[LesionPlace]]:
        record = self.records[name]
        answer = self._answer(record)
        grid = self.scans.view(name, record, answer).grid
        codes = resample_codes(answer.voxels.astype(np.uint8), Grid(answer.affine, answer.shape), grid)
        findings = [Finding.from_doubt(doubt, record.database, record.case) for doubt in record.doubts]
        return findings, list(_places(record, codes, grid))


def check_predictions(root: Path) -> CohortFolder:
    """The folder of a cohort's segmentations.

    Raises:
        UsageError: it is not one.
    """
    if not is_predictions(root):
        raise UsageError(f"{root} is no folder that multiseg predict has written: it has no {RECORDS}/{RUN}.")
    return CohortFolder(root)


def is_predictions(root: Path) -> bool:
    """Whether `predict` has written this folder."""
    return (root / RECORDS / RUN).is_file()


def expected_dice(table: Path) -> dict[tuple[str, str], float]:
    """The lowest expected Dice of a case's structures, by database and case; empty if the table has none."""
    lowest: dict[tuple[str, str], float] = {}
    if not table.is_file():
        return lowest
    with table.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if text := row.get("expected_dice"):
                key = (row["database"], row["case"])
                lowest[key] = min(float(text), lowest.get(key, 1.0))
    return lowest


def overlay_of(record: CaseRecord) -> OverlayView:
    """The prediction of a case: code n + 1 is its structure n."""
    num = len(record.structures)
    return OverlayView(
        PREDICTION,
        True,
        tuple(
            StructureView(
                index + 1, row.structure, row.kind, PREDICTION_COLOUR if num == 1 else colour_of(index), row.ml
            )
            for index, row in enumerate(record.structures)
        ),
    )


def _places(record: CaseRecord, codes: Codes, grid: Grid) -> list[LesionPlace]:
    """The lesions of a record, each with the voxel of its structure that is nearest to its centre of mass."""
    code_of = {row.structure: code for code, row in enumerate(record.structures, start=1)}
    trees: dict[str, tuple[np.ndarray, cKDTree]] = {}
    places = []
    for row in record.lesions:
        if row.structure not in trees:
            voxels = np.argwhere(codes == code_of[row.structure])
            trees[row.structure] = voxels, cKDTree(voxels) if len(voxels) else None
        voxels, tree = trees[row.structure]
        if tree is not None:
            voxel = _nearest(row, voxels, tree, grid)
            places.append(LesionPlace(PREDICTION, row.structure, row.ml, voxel, row.mean_probability))
    return sorted(places, key=lambda place: -place.ml)


def _nearest(row: LesionRow, voxels: np.ndarray, tree: cKDTree, grid: Grid) -> Index3:
    centre = np.linalg.solve(grid.affine, [row.x_mm, row.y_mm, row.z_mm, 1])[:3]
    i, j, k = voxels[tree.query(centre)[1]]
    return int(i), int(j), int(k)


class ScansOfStore:
    """Scans of a store: with the annotations that it has."""

    def __init__(self, stored: StoredCases) -> None:
        self.stored = stored

    def listed(self, record: CaseRecord) -> ListedCase | None:
        case = self.stored.cases.get(f"{record.database}/{record.case}")
        return None if case is None else listed(self.stored.store[case.database], case)

    def view(self, name: str, record: CaseRecord, answer: Volume) -> CaseView:
        view = self.stored.view(f"{record.database}/{record.case}")
        case = self.stored.cases[f"{record.database}/{record.case}"]
        is_same = digest_of_stored(self.stored.store[case.database], case) == record.sources
        return replace(view, name=name, notes=() if is_same else (OTHER_SCANS,))


class ScansOfFiles:
    """Scans in files, placed by their headers on the grid of the segmentation.

    Args:
        files: by database and case.
    """

    def __init__(self, files: Mapping[tuple[str, str], CaseFiles]) -> None:
        self.files = files

    def listed(self, record: CaseRecord) -> ListedCase | None:
        files = self.files.get((record.database, record.case))
        if files is None:
            return None
        sequences = tuple(in_canonical_order(files.images))
        return ListedCase(record.case, record.database, record.person, record.visit, sequences=sequences)

    def view(self, name: str, record: CaseRecord, answer: Volume) -> CaseView:
        files, grid = self.files[record.database, record.case], Grid(answer.affine, answer.shape)
        images, sequences = [], []
        for modality in in_canonical_order(files.images):
            volume = to_ras(read_volume(files.images[modality]))
            if modality == record.reference and not (
                volume.shape == grid.shape and same_grid(volume.affine, grid.affine, grid.shape)
            ):
                raise SourceError(
                    f"{volume.path} has another grid than the segmentation of {name}, which was made on it. Is this "
                    "the scan that was segmented? Name the right source: --source.",
                    file=str(volume.path),
                )
            scan = resample(volume.voxels.astype(np.float32), Grid(volume.affine, volume.shape), grid, smooth=False)
            numbers, slope, intercept = whole_numbers(scan)
            black, white = (number * slope + intercept for number in seen_range(numbers[..., grid.shape[2] // 2]))
            images.append(numbers)
            sequences.append(SequenceView(modality, slope, intercept, black, white))
        voxels = np.stack(images)
        nothing = np.zeros((0, *grid.shape), dtype=np.uint8)

        def planes(first: int, last: int) -> Planes:
            return voxels[..., first:last], nothing[..., first:last]

        i, j, k = grid.shape
        facts = {"Person": record.person, "Visit": record.visit, "Reference": record.reference}
        return CaseView(
            name, grid, (i // 2, j // 2, k // 2), tuple(sequences), (), planes,
            facts={key: value for key, value in facts.items() if value},
        )  # fmt: skip
