"""Draw patches: case, window and sequences; every draw is a pure function of (seed, epoch, index)."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import accumulate

import numpy as np
from jaxtyping import Int, Int16

from multiseg.errors import DataError, UsageError
from multiseg.labels import LabelSpace
from multiseg.loaders.centres import Centres, load_centres
from multiseg.loaders.chance import Chance
from multiseg.loaders.modality_drop import DROPS, kept, limits
from multiseg.store.reader import Case, Store
from multiseg.types import Index3

MOST_DILATION = 64


@dataclass(frozen=True)
class DrawOptions:
    """How patches are drawn.

    Attributes:
        patch: window in voxels along i, j, k.
        lesion_share: share of windows centred on a voxel of an annotated structure, 0.5 by default.
        centre: which voxel that is.
            "voxel" (default): any sampled voxel of a structure of the label space in the drawn case. A structure has
            up to 256, so all but tiny ones are equally likely. If the case has none, the window is anywhere.
            "label": first the label, with equal probability among those that the database has voxels of,
            then the case, among those that have it, then the voxel (Roulet et al. 2019, who draw databases
            and classes with equal probability; background is left to the other windows).
            "dilated": as "voxel", but only of lesions, and moved by an offset uniform in a ball of `dilation`
            voxels, for the dilated lesion map with which Dorent et al. 2019 weight their crops. The probability is
            not flat as a dilated mask would be, but the sampled lesion voxels blurred with the ball: a position
            counts by their number within reach, and a small structure for more than its size.
        dilation: voxels, 0 to 64, 8 by default; only for "dilated".
        overhang: voxels by which a window may extend beyond its case on each side, 0 by default, limited to half the
            window: then any voxel of the case can be in the middle. A case smaller than the window is completely
            inside it, within this many voxels of the middle.
        databases: "drawn" (default: each patch from a database with equal probability, or by `weights`) or
            "each" (the databases in turn, so that a step has equally many patches from each, and the batch size must
            be a multiple of their number; Xu et al. 2024).
        weights: relative frequency of each database by name; every database with cases must be named, 0 leaves it
            out. Empty by default: equal frequencies.
        drop: which of its case's sequences a patch keeps: "uniform" (default; Xu et al. 2024, section 2.1), "none",
            "bernoulli" or "subsets"; see `multiseg.loaders.modality_drop`.
        drop_probability: of each sequence to be dropped, from 0 to below 1, 0.5 by default; only for "bernoulli".
        num_cases: largest number of training cases of each database, chosen by the seed; 0, the default, takes all.
        seed: from 0 to 2**63 - 1; None, the default, takes the seed of the training, or 0 without one.
    """

    patch: Index3 = (64, 64, 64)
    lesion_share: float = 0.5
    centre: str = "voxel"
    dilation: int = 8
    overhang: int = 0
    databases: str = "drawn"
    weights: Mapping[str, float] = field(default_factory=dict, hash=False)
    drop: str = "uniform"
    drop_probability: float = 0.5
    num_cases: int = 0
    seed: int | None = None


@dataclass(frozen=True, eq=False, slots=True)
class Draw:
    """One patch.

    Attributes:
        corner: the window's first voxel in the case; may be negative.
        kept: the sequences that are not dropped.
        channels: their indices in the case's modalities.
        number: of the case among all cases of the plan, database after database.
    """

    case: Case
    corner: Index3
    kept: tuple[str, ...]
    channels: tuple[int, ...]
    number: int


@dataclass(frozen=True, eq=False)
class _Pool:
    """The cases of a database, the number of the first, and the points that windows may be centred on.

    `holders` are the labels that any case has, each with those cases.
    """

    cases: tuple[Case, ...]
    first: int
    centres: Centres
    holders: tuple[tuple[int, Int[np.ndarray, " _"]], ...]


def _case_first(pool: _Pool, chance: Chance) -> tuple[int, int, int]:
    case = chance.below(len(pool.cases))
    return case, *pool.centres.of_case(case)


def _label_first(pool: _Pool, chance: Chance) -> tuple[int, int, int]:
    if not pool.holders:
        return _case_first(pool, chance)
    label, cases = pool.holders[chance.below(len(pool.holders))]
    case = cases.item(chance.below(len(cases)))
    return case, *pool.centres.of_label(case, label)


CENTRES: dict[str, Callable[[_Pool, Chance], tuple[int, int, int]]] = {
    "voxel": _case_first,
    "label": _label_first,
    "dilated": _case_first,
}
"""Draw the case, and the start and stop of the points that its window may be centred on."""


class DrawPlan:
    """The cases to draw from, by database, and the voxels that windows may be centred on.

    All that a draw needs is read here, so that drawing reads no file.

    Raises:
        DataError: there is no case to draw from.
        UsageError: a name in the options is unknown, or a number is out of its range.
    """

    def __init__(
        self, store: Store, cases: Mapping[str, Sequence[Case]], space: LabelSpace, options: DrawOptions
    ) -> None:
        self.store, self.space, self.options = store, space, options
        self.cases = {name: tuple(listed) for name, listed in cases.items()}
        filled = [name for name, listed in self.cases.items() if listed]
        if not filled:
            raise DataError("there is no case to draw patches from. Check the splits: multiseg info.")
        _check(options, space)
        self._limits = list(accumulate(_shares(options, list(self.cases), filled)))
        self._pools = [self._pool(name) for name in filled]
        self._ball = ball(options.dilation) if options.centre == "dilated" else None
        nums = {len(case.modalities) for case in self.numbered}
        self._drops = {num: limits(options.drop, num, options.drop_probability) for num in nums if num}

    def _pool(self, name: str) -> _Pool:
        names = list(self.cases)
        first = sum(len(self.cases[before]) for before in names[: names.index(name)])
        only_lesions = self.options.centre == "dilated"
        labels = [n for n, label in enumerate(self.space.labels) if label.kind == "lesion" or not only_lesions]
        if not self.options.lesion_share > 0:
            labels = []  # no window is centred, so nothing has to be read
        centres = load_centres(self.store[name], self.cases[name], self.space, labels)
        return _Pool(self.cases[name], first, centres, centres.holders())

    @property
    def numbered(self) -> tuple[Case, ...]:
        """All cases, as `Draw.number` counts them."""
        return tuple(case for listed in self.cases.values() for case in listed)

    @property
    def chances(self) -> tuple[float, ...]:
        """The relative probability of each case, in their order; equal within a database, although centre "label"
        draws cases with rare labels more often."""
        filled = [name for name, listed in self.cases.items() if listed]
        shares = _shares(self.options, list(self.cases), filled)
        if self.options.databases == "each":
            shares = [1] * len(filled)
        by_name = dict(zip(filled, shares, strict=True))
        return tuple(by_name[name] / len(listed) for name, listed in self.cases.items() for _ in listed)

    def draw(self, epoch: int, index: int) -> Draw:
        """The patch at this position of the stream; the same for any number of workers and after a resume."""
        options = self.options
        chance = Chance(options.seed or 0, epoch, index)
        if options.databases == "each":
            pool = self._pools[index % len(self._pools)]
        else:
            pool = self._pools[bisect_right(self._limits, chance.below(self._limits[-1]))]
        centre = None
        if chance.happens(options.lesion_share):
            number, start, stop = CENTRES[options.centre](pool, chance)
            if stop > start:
                centre = self._centre(pool.centres.points, start + chance.below(stop - start), chance)
        else:
            number = chance.below(len(pool.cases))
        case = pool.cases[number]
        corner = self._corner(case.extent, centre, chance)
        num = len(case.modalities)
        channels = kept(num, self._drops[num], chance)
        names = tuple([case.modalities[channel] for channel in channels])
        return Draw(case, corner, names, channels, pool.first + number)

    def _centre(self, points: Int16[np.ndarray, "point 3"], index: int, chance: Chance) -> Sequence[int]:
        centre: list[int] = points[index].tolist()
        if self._ball is None:
            return centre
        offset: list[int] = self._ball[chance.below(len(self._ball))].tolist()
        return [voxel + shift for voxel, shift in zip(centre, offset, strict=True)]

    def _corner(self, extent: Index3, centre: Sequence[int] | None, chance: Chance) -> Index3:
        corner = []
        for axis, size in enumerate(self.options.patch):
            low, high = corner_range(extent[axis], size, self.options.overhang)
            if centre is None:
                corner.append(low + chance.below(high - low + 1))
            else:
                corner.append(min(max(centre[axis] - size // 2, low), high))
        return corner[0], corner[1], corner[2]


def chosen(cases: Sequence[Case], options: DrawOptions) -> list[Case]:
    """At most `num_cases` of a database's cases, in their order; all if that is 0.

    The choice depends only on the seed and the cases' names, and a smaller number takes a subset of what a larger one
    takes.
    """
    if options.num_cases <= 0:
        return list(cases)

    def rank(case: Case) -> bytes:
        return blake2b(f"{options.seed or 0}/{case.database}/{case.name}".encode()).digest()

    names = {case.name for case in sorted(cases, key=rank)[: options.num_cases]}
    return [case for case in cases if case.name in names]


def corner_range(extent: int, size: int, overhang: int) -> tuple[int, int]:
    """The first and the last position of a window's corner along an axis; see `DrawOptions.overhang`."""
    beyond, room = min(overhang, size // 2), extent - size
    if room >= 0:
        return -beyond, room + beyond
    return max(room // 2 - beyond, room), min(room // 2 + beyond, 0)


def ball(radius: int) -> Int16[np.ndarray, "offset 3"]:
    """Every offset in whole voxels that is at most `radius` long."""
    squares = np.arange(-radius, radius + 1) ** 2
    inside = squares[:, None, None] + squares[:, None] + squares <= radius**2
    return (np.argwhere(inside) - radius).astype(np.int16)


def _check(options: DrawOptions, space: LabelSpace) -> None:
    """Raises UsageError for an invalid option."""
    choices = {"drop": tuple(DROPS), "centre": tuple(CENTRES), "databases": ("drawn", "each")}
    for name, values in choices.items():
        if getattr(options, name) not in values:
            raise UsageError(f"draw.{name} is {getattr(options, name)!r}: give one of {', '.join(values)}.")
    patch, seed = list(options.patch), options.seed or 0
    checks = (
        ("patch", patch, min(patch) >= 1, "sizes of at least 1 voxel"),
        ("lesion_share", options.lesion_share, 0 <= options.lesion_share <= 1, "a share from 0 to 1"),
        ("seed", seed, 0 <= seed < 2**63, "a whole number from 0 to 2**63 - 1"),
        ("num_cases", options.num_cases, options.num_cases >= 0, "0 (all) or more"),
        ("drop_probability", options.drop_probability, 0 <= options.drop_probability < 1, "from 0 to below 1"),
        ("overhang", options.overhang, options.overhang >= 0, "0 or more voxels"),
        ("dilation", options.dilation, 0 <= options.dilation <= MOST_DILATION, f"0 to {MOST_DILATION} voxels"),
    )
    for name, value, is_valid, hint in checks:
        if not is_valid:
            raise UsageError(f"draw.{name} is {value}: give {hint}.")
    if options.centre == "dilated" and all(label.kind != "lesion" for label in space.labels):
        raise UsageError(
            f"draw.centre is 'dilated', but none of the labels {', '.join(space.names)} is a lesion: give 'voxel' or "
            "'label'."
        )


def _shares(options: DrawOptions, names: Sequence[str], filled: Sequence[str]) -> list[int]:
    """The relative frequency of each database with cases, as integers, whose sums have no rounding errors.

    Raises:
        UsageError: the weights do not fit the databases.
    """
    weights = options.weights
    if not weights:
        return [1] * len(filled)
    listed = ", ".join(f"{name} = {weight:g}" for name, weight in weights.items())
    if options.databases != "drawn":
        raise UsageError(f"the weights ({listed}) need databases = 'drawn', not {options.databases!r}. Leave one out.")
    unknown, missing = sorted(set(weights) - set(names)), sorted(set(filled) - set(weights))
    if unknown or missing:
        raise UsageError(
            f"the weights ({listed}) do not fit the databases {', '.join(names)}: "
            f"{unknown} are unknown, and {missing} have no weight. Name each database once; 0 leaves it out."
        )
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights.values()):
        raise UsageError(f"the weights of the databases are {listed}: give finite numbers from 0.")
    largest = max(weights[name] for name in filled)
    if largest == 0:
        raise UsageError(f"the weights of {', '.join(filled)} are all 0: give one of them more than 0.")
    return [int(weights[name] / largest * 2**53) for name in filled]
