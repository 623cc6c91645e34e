"""The voxels that windows may be centred on, of all cases of a database, in memory."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, Int16, Integer

from multiseg.labels import LabelSpace
from multiseg.store.reader import Case, Database

MOST_POINTS = 2**22
"""The most voxels kept of a database, 6 bytes each: 25 MB for any number of cases and structures."""
_BLOCK = 2**22
"""Numbers read at once, 2 bytes each."""


@dataclass(frozen=True, eq=False)
class Centres:
    """Sampled voxels, sorted by case and then by label of the space.

    Attributes:
        bounds: the points of label n (from 0) of case c start at bounds[c * num_labels + n] and end at the next bound.
    """

    points: Int16[np.ndarray, "point 3"]
    bounds: Int[np.ndarray, " bound"]
    num_labels: int

    def of_case(self, case: int) -> tuple[int, int]:
        """Start and stop of the points of all labels of a case."""
        first = case * self.num_labels
        return self.bounds.item(first), self.bounds.item(first + self.num_labels)

    def of_label(self, case: int, label: int) -> tuple[int, int]:
        """Start and stop of the points of one label of a case."""
        index = case * self.num_labels + label
        return self.bounds.item(index), self.bounds.item(index + 1)

    def holders(self) -> tuple[tuple[int, Int[np.ndarray, " _"]], ...]:
        """Each label that any case has points of, with those cases."""
        has = np.diff(self.bounds).reshape(-1, self.num_labels) > 0
        return tuple((label, np.flatnonzero(has[:, label])) for label in range(self.num_labels) if has[:, label].any())


def load_centres(
    database: Database, cases: Sequence[Case], space: LabelSpace, labels: Collection[int], most: int = MOST_POINTS
) -> Centres:
    """The sampled voxels of the structures in the target, for cases numbered as in `cases`.

    If two annotations of a case have a structure, its voxels come from the first of them, as in the target. Structures
    that a case does not have are not read.

    Args:
        labels: which labels of the space (from 0) to load.
        most: if there are more points, every structure of every case keeps the same number of them, spread evenly,
            and at least one.
    """
    parts = list(_parts(database, cases, space, labels))
    num_found = sum(int((_counts(cases, *part[:3]) > 0).sum()) for part in parts)
    share = max(1, most // max(1, num_found))
    points, keys = [np.empty((0, 3), np.int16)], [np.empty(0, np.int64)]
    for numbers, annotation, structures, label in parts:
        step = max(1, _BLOCK // (len(structures) * 3 * 256))
        for start in range(0, len(numbers), step):
            block = numbers[start : start + step]
            sampled = database.foreground_points([cases[n].row for n in block], annotation, structures.tolist())
            kept = _spread(sampled[..., 0] >= 0, share)
            points.append(sampled[kept])
            keys.append((block[:, None, None] * len(space.labels) + label[:, None] + np.zeros_like(kept, int))[kept])
    key = np.concatenate(keys)
    bounds = np.bincount(key + 1, minlength=len(cases) * len(space.labels) + 1).cumsum()
    return Centres(np.concatenate(points)[np.argsort(key, kind="stable")], bounds, len(space.labels))


def _parts(
    database: Database, cases: Sequence[Case], space: LabelSpace, labels: Collection[int]
) -> Iterator[tuple[Int[np.ndarray, " case"], int, Int[np.ndarray, " structure"], Int[np.ndarray, " structure"]]]:
    """What to read: cases, an annotation that they have, its structures in the target, and their labels."""
    by_annotations: dict[bytes, list[int]] = {}
    for number, case in enumerate(cases):
        by_annotations.setdefault(case.annotated.tobytes(), []).append(number)
    for numbers in by_annotations.values():
        for annotation, table in database.label_view(cases[numbers[0]], space).tables:
            # Code 255 marks ignored voxels, not a structure.
            label = table[1:255].astype(np.int64) - 1
            structures = np.flatnonzero(np.isin(label, list(labels)))
            # An annotation may have new structures that no case has yet.
            structures = structures[structures < cases[numbers[0]].foreground_count.shape[1]]
            has_voxels = _counts(cases, np.array(numbers), annotation, structures) > 0
            structures, holding = structures[has_voxels.any(0)], np.array(numbers)[has_voxels.any(1)]
            if len(structures):
                yield holding, annotation, structures, label[structures]


def _counts(
    cases: Sequence[Case], numbers: Int[np.ndarray, " case"], annotation: int, structures: Int[np.ndarray, " structure"]
) -> Integer[np.ndarray, "case structure"]:
    """Number of voxels that each case has of each structure of an annotation."""
    return np.stack([cases[number].foreground_count[annotation, structures] for number in numbers])


def _spread(is_point: Bool[np.ndarray, "case structure point"], most: int) -> Bool[np.ndarray, "case structure point"]:
    """Select at most this many of the points of each structure, evenly: they are sorted by position."""
    num = is_point.sum(-1, keepdims=True)
    share, index = np.minimum(num, most), np.arange(is_point.shape[-1])
    before, after = (n * share // np.maximum(num, 1) for n in (index, index + 1))
    kept: Bool[np.ndarray, "case structure point"] = is_point & (after > before)
    return kept
