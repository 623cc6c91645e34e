"""Which case, which window, which sequences: every draw a pure function of (seed, epoch, index)."""

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
            "voxel" (default): of the case drawn, any sampled voxel of a structure of the label space; a
            structure has up to 256, so those that are not tiny count alike. A case with none gives a window
            anywhere.
            "label": first the label, with equal probability among those that the database has voxels of,
            then the case, among those that have it, then the voxel (Roulet et al. 2019, who draw databases
            and classes with equal probability; background is left to the other windows).
            "dilated": as "voxel", but of lesions only, and moved by an offset uniform in a ball of `dilation`
            voxels. This stands for the dilated lesion map that Dorent et al. 2019 weight their crops by. It is
            not flat as a dilated mask would be, but the sampled lesion voxels blurred with the ball: a place
            counts by how many of them lie within reach, and a small structure for more than its size.
        dilation: voxels, 0 to 64, 8 by default; only for "dilated".
        overhang: voxels by which a window may reach over the border of its case on each side, 0 by default.
            Along an axis half the window is the most: then any voxel of the case can be in the middle. A case
            smaller than the window lies wholly inside it, within this many voxels of the middle.
        databases: "drawn" (default: each patch from a database with equal probability, or by `weights`) or
            "each" (the databases in turn, so that a step has as many patches from each as from every other, and
            the size of a batch has to be a multiple of their number; Xu et al. 2024).
        weights: how often each database is drawn beside the others, by name; every one with cases has to
            be there, 0 leaves it out. Empty by default: all alike.
        drop: which of its case's sequences a patch keeps: "uniform" (default; Xu et al. 2024, section 2.1), "none",
            "bernoulli" or "subsets". drop.py says the law of each.
        drop_probability: of each sequence to be dropped, from 0 to below 1, 0.5 by default; only for "bernoulli".
        num_cases: at most so many training cases of each database, chosen by the seed; 0, the default, takes all.
        seed: from 0 to 2**63 - 1; None, the default, is the seed of the training, or 0 without one.
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
        kept: the sequences that stay.
        channels: where those are in the case's modalities.
        number: of the case among all of the plan, database after database.
    """

    case: Case
    corner: Index3
    kept: tuple[str, ...]
    channels: tuple[int, ...]
    number: int


@dataclass(frozen=True, eq=False)
class _Pool:
    """The cases of a database, the number of the first, and where windows may be centred.

    `holders` are the labels that some case has, each with those cases.
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
"""The case, and the first and last (exclusive) of the points that its window may be centred on."""


class DrawPlan:
    """The cases to draw from, by database, and the voxels that windows may be centred on.

    All that a draw needs is read here, once: drawing touches no file.

    Raises:
        DataError: there is no case to draw from.
        UsageError: an option's name is unknown, or a number out of its range.
    """

    def __init__(
        self, store: Store, cases: Mapping[str, Sequence[Case]], space: LabelSpace, options: DrawOptions
    ) -> None:
        self.store, self.space, self.options = store, space, options
        self.cases = {name: tuple(listed) for name, listed in cases.items()}
        filled = [name for name, listed in self.cases.items() if listed]
        if not filled:
            raise DataError("there is no case to draw patches from. Are the splits empty? See: multiseg info.")
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
        wanted = [at for at, label in enumerate(self.space.labels) if label.kind == "lesion" or not only_lesions]
        # Where no window is centred nothing has to be read.
        wanted = wanted if self.options.lesion_share > 0 else []
        centres = load_centres(self.store[name], self.cases[name], self.space, wanted)
        return _Pool(self.cases[name], first, centres, centres.holders())

    @property
    def numbered(self) -> tuple[Case, ...]:
        """All cases, as `Draw.number` counts them."""
        return tuple(case for listed in self.cases.values() for case in listed)

    @property
    def chances(self) -> tuple[float, ...]:
        """How likely each of them is drawn, as they are numbered; within a database all alike, though those with rare
        labels are drawn more often where centre is "label"."""
        filled = [name for name, listed in self.cases.items() if listed]
        shares = _shares(self.options, list(self.cases), filled)
        if self.options.databases == "each":
            shares = [1] * len(filled)
        of_name = dict(zip(filled, shares, strict=True))
        return tuple(of_name[name] / len(listed) for name, listed in self.cases.items() for _ in listed)

    def draw(self, epoch: int, index: int) -> Draw:
        """The patch at this place of the stream; the same for any number of workers and any resume."""
        options = self.options
        chance = Chance(options.seed or 0, epoch, index)
        if options.databases == "each":
            pool = self._pools[index % len(self._pools)]
        else:
            pool = self._pools[bisect_right(self._limits, chance.below(self._limits[-1]))]
        centre = None
        if chance.happens(options.lesion_share):
            at, start, stop = CENTRES[options.centre](pool, chance)
            if stop > start:
                centre = self._centre(pool.centres.points, start + chance.below(stop - start), chance)
        else:
            at = chance.below(len(pool.cases))
        case = pool.cases[at]
        corner = self._corner(case.extent, centre, chance)
        num = len(case.modalities)
        channels = kept(num, self._drops[num], chance)
        return Draw(case, corner, tuple([case.modalities[at] for at in channels]), channels, pool.first + at)

    def _centre(self, points: Int16[np.ndarray, "point 3"], at: int, chance: Chance) -> Sequence[int]:
        centre: list[int] = points[at].tolist()
        if self._ball is None:
            return centre
        offset: list[int] = self._ball[chance.below(len(self._ball))].tolist()
        return [place + moved for place, moved in zip(centre, offset, strict=True)]

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
    """At most `num_cases` of a database's cases, in their order; all where that is 0.

    Which ones is a function of the seed and of the cases' names alone, and a smaller number takes some of those that
    a larger one takes.
    """
    if options.num_cases <= 0:
        return list(cases)

    def rank(case: Case) -> bytes:
        return blake2b(f"{options.seed or 0}/{case.database}/{case.name}".encode()).digest()

    taken = {case.name for case in sorted(cases, key=rank)[: options.num_cases]}
    return [case for case in cases if case.name in taken]


def corner_range(extent: int, size: int, overhang: int) -> tuple[int, int]:
    """The first and the last place of a window's corner along an axis; see `DrawOptions.overhang`."""
    beyond, room = min(overhang, size // 2), extent - size
    if room >= 0:
        return -beyond, room + beyond
    return max(room // 2 - beyond, room), min(room // 2 + beyond, 0)


def ball(radius: int) -> Int16[np.ndarray, "offset 3"]:
    """Every offset in whole voxels that is no longer than `radius`."""
    squares = np.arange(-radius, radius + 1) ** 2
    inside = squares[:, None, None] + squares[:, None] + squares <= radius**2
    return (np.argwhere(inside) - radius).astype(np.int16)


def _check(options: DrawOptions, space: LabelSpace) -> None:
    """Raises UsageError for an option that cannot be meant."""
    names = (options.drop, tuple(DROPS)), (options.centre, tuple(CENTRES)), (options.databases, ("drawn", "each"))
    for value, known in names:
        if value not in known:
            raise UsageError(f"{value!r} is none of {', '.join(known)}.")
    patch, share, seed = options.patch, options.lesion_share, options.seed or 0
    if min(patch) < 1 or not 0 <= share <= 1 or not 0 <= seed < 2**63:
        raise UsageError(
            f"patches of {list(patch)} voxels, a lesion_share of {share} and the seed {seed} cannot be drawn with: "
            "give sizes from 1, a share between 0 and 1, and a seed from 0 to 2**63 - 1."
        )
    if options.num_cases < 0 or not 0 <= options.drop_probability < 1:
        raise UsageError(
            f"{options.num_cases} cases a database and a drop_probability of {options.drop_probability} cannot be "
            "drawn with: give a num_cases from 0 (all), and a probability from 0 to below 1."
        )
    if options.overhang < 0 or not 0 <= options.dilation <= MOST_DILATION:
        raise UsageError(
            f"an overhang of {options.overhang} and a dilation of {options.dilation} voxels cannot be drawn with: "
            f"give an overhang from 0 and a dilation from 0 to {MOST_DILATION}."
        )
    if options.centre == "dilated" and all(label.kind != "lesion" for label in space.labels):
        raise UsageError(
            f"centre 'dilated' is for lesions, but the labels are {', '.join(space.names)}, none of them a lesion. "
            "Take 'voxel' or 'label'."
        )


def _shares(options: DrawOptions, names: Sequence[str], filled: Sequence[str]) -> list[int]:
    """How often each database that has cases is drawn, in whole numbers: those add up without rounding.

    Raises:
        UsageError: the weights do not fit the databases.
    """
    weights = options.weights
    if not weights:
        return [1] * len(filled)
    listed = ", ".join(f"{name} = {weight:g}" for name, weight in weights.items())
    if options.databases != "drawn":
        raise UsageError(f"weights ({listed}) are for databases = 'drawn', not {options.databases!r}. Leave one out.")
    unknown, missing = sorted(set(weights) - set(names)), sorted(set(filled) - set(weights))
    if unknown or missing:
        raise UsageError(
            f"the weights ({listed}) do not fit the databases {', '.join(names)}: "
            f"unknown are {unknown}, without a weight {missing}. Name each database once; 0 leaves it out."
        )
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights.values()):
        raise UsageError(f"the weights of the databases are {listed}: give finite numbers from 0.")
    largest = max(weights[name] for name in filled)
    if largest == 0:
        raise UsageError(f"the weights ({listed}) leave nothing of {', '.join(filled)}: give one of them more than 0.")
    return [int(weights[name] / largest * 2**53) for name in filled]
