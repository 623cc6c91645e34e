"""A seeded source of lesions that are grafted into the healthy patches of a stream.

What a graft is: see `multiseg.loaders.graft`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from multiseg.loaders.batches import Batch
from multiseg.loaders.chance import Chance
from multiseg.loaders.graft import (
    MOST_OUTSIDE,
    Graft,
    Healthy,
    Lesion,
    check_graftable,
    is_same_person,
    lesion_cases,
    load_healthy,
    load_lesion,
    paste,
    share_outside,
    template_grid,
)
from multiseg.modalities import ModalityAxis
from multiseg.store.reader import Case, Store
from multiseg.types import Index3, Mask

TRIES = 8
"""Lesions that are drawn for a patch before it stays healthy."""
SALT = 0x6772616674
"""Sets the draws of lesions apart from those of patches with the same seed ("graft" in ASCII)."""

Item = TypeVar("Item")


class Kept(Generic[Item]):
    """The items that were used last, up to a number of them."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._items: OrderedDict[Hashable, Item] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Item]) -> Item:
        """The item of a key; made if it is not there."""
        if key not in self._items:
            self._items[key] = make()
        self._items.move_to_end(key)
        while len(self._items) > self.most:
            self._items.popitem(last=False)
        return self._items[key]


@dataclass(frozen=True, eq=False)
class Grafted:
    """A batch of healthy patches, and the same patches with a lesion.

    Attributes:
        healthy: as it was given. Its target is the full anatomy, and the target of both.
        pasted: the patches with a lesion where one fits; `present` only where both cases have the sequence.
        lesion: where a patch shows the lesion; nowhere in a patch that stayed healthy.
        lesion_cases: DATABASE/CASE of each patch's lesion; "" where it stayed healthy.
    """

    healthy: Batch
    pasted: Batch
    lesion: Bool[Tensor, "batch i j k"]
    lesion_cases: tuple[str, ...]

    @property
    def has_lesion(self) -> Bool[Tensor, " batch"]:
        """Which patches show a lesion."""
        return torch.tensor([bool(name) for name in self.lesion_cases])


class Grafts:
    """A seeded source of lesions for the healthy patches of a stream.

    >>> grafts = Grafts(store, stream.axis, lesions=["brats"], into=["anatomy"], seed=3)
    >>> for batch in stream.batches(0, 100): grafted = grafts.draw(batch)

    The lesion of a patch is a pure function of the seed, the patch's (epoch, index) and the cases, so a resumed
    training sees the same. It is drawn up to `TRIES` times until one is in the window and not mostly outside the
    brain; the window itself is drawn before, by the stream.

    It runs in the process that trains, after the stream's workers and before augmentation and `Batch.to`: what it
    needs of a patch is in its batch, and the crops around lesions are small and kept. Augment both batches: the same
    `draws` give the same movement.

    Args:
        axis: of the stream.
        lesions, into: databases; patches of other databases than `into` stay as they are.
        split: of the cases with lesions.
        kept: lesions and brain masks that are kept in memory.

    Raises:
        UsageError, StoreError: see `check_graftable`.
        DataError: there is no lesion to graft.
    """

    def __init__(
        self,
        store: Store,
        axis: ModalityAxis,
        lesions: Sequence[str],
        into: Sequence[str],
        split: str = "train",
        seed: int = 0,
        kept: int = 256,
    ) -> None:
        check_graftable(store, lesions, into)
        self.store, self.axis, self.into, self.seed = store, axis, tuple(into), seed
        self.cases = lesion_cases(store, lesions, split)
        self._lesions: Kept[Lesion] = Kept(kept)
        self._brains: Kept[tuple[UInt8[np.ndarray, " byte"], Index3]] = Kept(kept)
        self._fitting: dict[tuple[int, str, str], bool] = {}

    def __repr__(self) -> str:
        return f"<Grafts: {len(self.cases)} cases with lesions, into {', '.join(self.into)}>"

    def draw(self, batch: Batch) -> Grafted:
        """Graft a lesion into every patch of `into` that one fits. The batch must be on the CPU and not augmented."""
        images, present = batch.images.clone(), batch.present.clone()
        lesion = torch.zeros(batch.target.shape, dtype=torch.bool)
        names = []
        for sample in range(len(batch.case)):
            drawn = self._draw(batch, sample)
            names.append("" if drawn is None else f"{drawn[0].database}/{drawn[0].name}")
            if drawn is None:
                continue
            channels = self.axis.channels(drawn[1].modalities)
            images[sample], present[sample] = 0, False
            images[sample, channels] = torch.from_numpy(drawn[1].images).to(images.dtype)
            present[sample, channels] = True
            lesion[sample] = torch.from_numpy(drawn[1].lesion)
        return Grafted(batch, replace(batch, images=images, present=present), lesion, tuple(names))

    def _draw(self, batch: Batch, sample: int) -> tuple[Case, Graft] | None:
        """A case with a lesion, and the patch with it; None if the patch stays healthy."""
        database = batch.database[sample]
        case = self.store[database][batch.case[sample]] if database in self.into else None
        if case is None or case.to_template is None:
            return None
        epoch, index = (int(number) for number in batch.draws[sample])
        chance = Chance(self.seed, SALT, epoch, index)
        channels = [channel for channel in range(len(self.axis)) if batch.present[sample, channel]]
        names = tuple(self.axis[channel] for channel in channels)
        patch: Float[np.ndarray, "modality i j k"] = batch.images[sample, channels].float().numpy()
        i, j, k = (int(n) for n in batch.corner[sample])
        x, y, z = patch.shape[1:]
        grid = template_grid(case).cropped((i, j, k), (x, y, z))
        window = Healthy(names, patch, (patch != 0).any(axis=0), grid)
        for _ in range(TRIES):
            number = chance.below(len(self.cases))
            if not set(names) & set(self.cases[number].modalities) or not self._fits(number, case):
                continue
            pasted = paste(self._lesion(number), window)
            if pasted is not None:
                return self.cases[number], pasted
        return None

    def _lesion(self, number: int) -> Lesion:
        case = self.cases[number]
        return self._lesions.get(number, lambda: load_lesion(self.store[case.database], case))

    def _fits(self, number: int, case: Case) -> bool:
        """Whether a lesion is of somebody else and enough of it is in the brain of a healthy case."""
        key = (number, case.database, case.name)
        if is_same_person(self.cases[number], case):
            return False
        if key not in self._fitting:
            outside = share_outside(self._lesion(number), self._brain(case), template_grid(case))
            self._fitting[key] = outside <= MOST_OUTSIDE
        return self._fitting[key]

    def _brain(self, case: Case) -> Mask:
        def packed() -> tuple[UInt8[np.ndarray, " byte"], Index3]:
            healthy = load_healthy(self.store[case.database], case)
            return np.packbits(healthy.brain), healthy.grid.shape

        bits, shape = self._brains.get((case.database, case.name), packed)
        return np.unpackbits(bits, count=int(np.prod(shape))).reshape(shape).astype(bool)
