"""Which case, which window, which sequences: every draw a pure function of (seed, epoch, index)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int

from multiseg.errors import DataError, UsageError
from multiseg.labels import LabelSpace
from multiseg.store.reader import Case, Store
from multiseg.types import Index3


@dataclass(frozen=True)
class DrawOptions:
    """How patches are drawn.

    Attributes:
        patch: window in voxels along i, j, k.
        lesion_share: share of windows centred on a voxel of an annotated structure.
        databases: "drawn" (each patch from a database with equal probability) or "each" (the databases
            in turn: a batch holds the same number from each where their number divides its size; Xu et
            al. 2024).
        drop: "uniform" (Xu et al. 2024, section 2.1) or "none".
        seed: 0 or more.
    """

    patch: Index3 = (64, 64, 64)
    lesion_share: float = 0.5
    databases: str = "drawn"
    drop: str = "uniform"
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Draw:
    """One patch: the case, the window's corner in its voxels (may be negative), the sequences kept."""

    case: Case
    corner: Index3
    kept: tuple[str, ...]


def uniform_drop(modalities: Sequence[str], rng: np.random.Generator) -> tuple[str, ...]:
    """The sequences that stay: n ~ U{0..m-1} of m are dropped without replacement, so one stays at least.

    Xu et al. 2024, section 2.1. For m = 4 the full set stays with probability 1/4, each triple and each
    single with 1/16, each pair with 1/24.
    """
    num_dropped = int(rng.integers(len(modalities)))
    dropped = set(rng.choice(len(modalities), num_dropped, replace=False).tolist())
    return tuple(name for at, name in enumerate(modalities) if at not in dropped)


def no_drop(modalities: Sequence[str], rng: np.random.Generator) -> tuple[str, ...]:
    """Every sequence stays."""
    return tuple(modalities)


DROPS: dict[str, Callable[[Sequence[str], np.random.Generator], tuple[str, ...]]] = {
    "uniform": uniform_drop,
    "none": no_drop,
}


@dataclass(frozen=True, eq=False)
class DrawPlan:
    """The cases to draw from, by database, and the voxels that windows may be centred on.

    Raises:
        DataError: there is no case to draw from.
        UsageError: an option's name is unknown, or a number out of its range.
    """

    store: Store
    cases: Mapping[str, Sequence[Case]]
    space: LabelSpace
    options: DrawOptions
    _points: dict[tuple[str, int], Int[np.ndarray, "point 3"]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not any(self.cases.values()):
            raise DataError("there is no case to draw patches from. Are the splits empty? See: multiseg info.")
        for value, known in ((self.options.drop, tuple(DROPS)), (self.options.databases, ("drawn", "each"))):
            if value not in known:
                raise UsageError(f"{value!r} is none of {', '.join(known)}.")
        patch, share, seed = self.options.patch, self.options.lesion_share, self.options.seed
        if min(patch) < 1 or not 0 <= share <= 1 or seed < 0:
            raise UsageError(
                f"patches of {list(patch)} voxels, a lesion_share of {share} and the seed {seed} cannot be drawn with: "
                "give sizes from 1, a share between 0 and 1, and a seed from 0."
            )

    def draw(self, epoch: int, index: int) -> Draw:
        """The patch at this place of the stream; the same for any number of workers and any resume."""
        rng = np.random.default_rng((self.options.seed, epoch, index))
        filled = [name for name, cases in self.cases.items() if cases]
        at = int(rng.integers(len(filled)))
        name = filled[index % len(filled) if self.options.databases == "each" else at]
        cases = self.cases[name]
        case = cases[int(rng.integers(len(cases)))]
        centred = rng.random() < self.options.lesion_share
        corner = self._window(case, rng, centred)
        return Draw(case, corner, DROPS[self.options.drop](case.modalities, rng))

    def _window(self, case: Case, rng: np.random.Generator, centred: bool) -> Index3:
        extent, patch = np.asarray(case.extent), np.asarray(self.options.patch)
        room = np.maximum(extent - patch, 0)
        points = self._centres(case) if centred else np.empty((0, 3), dtype=np.int64)
        if len(points):
            corner = np.clip(points[int(rng.integers(len(points)))] - patch // 2, 0, room)
        else:
            corner = rng.integers(0, room + 1)
        # A case smaller than the window lies in its middle.
        i, j, k = np.where(extent < patch, (extent - patch) // 2, corner)
        return int(i), int(j), int(k)

    def _centres(self, case: Case) -> Int[np.ndarray, "point 3"]:
        """Sampled voxels of the structures of the label space, as many of each structure."""
        key = (case.database, case.row)
        if key not in self._points:
            database = self.store[case.database]
            sampled = database.foreground(case)
            found = [
                sampled[annotation, at]
                for annotation, schema in enumerate(database.schemas.values())
                for at, structure in enumerate(schema.structures)
                if self.space.index_of(structure) is not None and case.annotated[annotation]
            ]
            points = np.concatenate(found) if found else np.empty((0, 3))
            self._points[key] = points[points[:, 0] >= 0].astype(np.int64)
        return self._points[key]
