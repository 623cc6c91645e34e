"""The voxels that windows may be centred on, of all cases of a database at once and in memory."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, Int16, Integer

from multiseg.labels import LabelSpace
from multiseg.store.reader import Case, Database

MOST_POINTS = 2**22
"""Voxels kept of a database, 6 bytes each: 25 MB, however many cases and structures it has."""
_BLOCK = 2**22
"""Numbers read at once, 2 bytes each."""


@dataclass(frozen=True, eq=False)
class Centres:
    """Sampled voxels, sorted by case and then by label of the space.

    Attributes:
        bounds: where the points of label n (from 0) of case c begin, at c * num_labels + n; they end where
            the next begin.
    """

    points: Int16[np.ndarray, "point 3"]
    bounds: Int[np.ndarray, " bound"]
    num_labels: int

    def of_case(self, case: int) -> tuple[int, int]:
        """Where the points of all labels of a case begin and end."""
        first = case * self.num_labels
        return self.bounds.item(first), self.bounds.item(first + self.num_labels)

    def of_label(self, case: int, label: int) -> tuple[int, int]:
        """Where the points of one label of a case begin and end."""
        at = case * self.num_labels + label
        return self.bounds.item(at), self.bounds.item(at + 1)

    def holders(self) -> tuple[tuple[int, Int[np.ndarray, " _"]], ...]:
        """Each label that some case has points of, and those cases."""
        has = np.diff(self.bounds).reshape(-1, self.num_labels) > 0
        return tuple((label, np.flatnonzero(has[:, label])) for label in range(self.num_labels) if has[:, label].any())


def load_centres(
    database: Database, cases: Sequence[Case], space: LabelSpace, labels: Collection[int], most: int = MOST_POINTS
) -> Centres:
    """The sampled voxels of those structures that a target shows, for cases counted as in `cases`.

    A structure that two annotations of a case looked for comes from the first of them, as in the target. Of a
    structure that a case has not, nothing is read.

    Args:
        labels: which labels of the space (from 0) to load.
        most: when there are more points than this, every structure of every case keeps the same number of
            them, spread over those sampled, and at least one.
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
    """What to read: cases, an annotation that they have, its structures that count there, and their labels."""
    alike: dict[bytes, list[int]] = {}
    for number, case in enumerate(cases):
        alike.setdefault(case.annotated.tobytes(), []).append(number)
    for numbers in alike.values():
        for annotation, table in database.label_view(cases[numbers[0]], space).tables:
            # Code 255 says where not to look, it is no structure.
            label = table[1:255].astype(np.int64) - 1
            structures = np.flatnonzero(np.isin(label, list(labels)))
            # An annotation may have just been given structures that no case has.
            structures = structures[structures < cases[numbers[0]].foreground_count.shape[1]]
            found = _counts(cases, np.array(numbers), annotation, structures) > 0
            structures, holding = structures[found.any(0)], np.array(numbers)[found.any(1)]
            if len(structures):
                yield holding, annotation, structures, label[structures]


def _counts(
    cases: Sequence[Case], numbers: Int[np.ndarray, " case"], annotation: int, structures: Int[np.ndarray, " structure"]
) -> Integer[np.ndarray, "case structure"]:
    """Voxels that cases have of the structures of an annotation."""
    return np.stack([cases[number].foreground_count[annotation, structures] for number in numbers])


def _spread(there: Bool[np.ndarray, "case structure point"], most: int) -> Bool[np.ndarray, "case structure point"]:
    """At most this many of the points of each structure, evenly: they are sorted by place."""
    num = there.sum(-1, keepdims=True)
    share, at = np.minimum(num, most), np.arange(there.shape[-1])
    before, after = (n * share // np.maximum(num, 1) for n in (at, at + 1))
    kept: Bool[np.ndarray, "case structure point"] = there & (after > before)
    return kept
