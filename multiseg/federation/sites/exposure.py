"""Counts the patches and cases that the steps of a round showed the network."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from itertools import compress

from multiseg.errors import FederationError
from multiseg.loaders.batches import Batch
from multiseg.models.saved import ModelInfo
from multiseg.training.fit import Stream

MOST_SHARE = 0.5
"""The largest share of patches from one case."""

Groups = dict[str, list[tuple[str, str]]]
"""By group of parts, the database and the case of each patch."""


class Counted:
    """A stream that counts its patches: all under "", by sequence those that show it, by label those annotated for it.

    Attributes:
        patches: by group.
        cases: by group, the patches of each case that the steps learnt from. `stepped` counts them: a step with a loss
            or gradient that is not finite learns from none.
    """

    def __init__(self, stream: Stream, info: ModelInfo) -> None:
        self.stream, self.info = stream, info
        labels = [f"label:{name}" for name in info.space.names] if info.space.num_logits > 1 else []
        self.patches = dict.fromkeys(["", *info.axis, *labels], 0)
        self.cases: dict[str, Counter[tuple[str, str]]] = {group: Counter() for group in self.patches}
        self._given: deque[Groups] = deque()

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        for batch in self.stream.batches(start, stop):
            groups = self._groups(batch)
            for group, cases in groups.items():
                self.patches[group] += len(cases)
            self._given.append(groups)
            yield batch

    def stepped(self, num_batches: int, has_learnt: bool) -> None:
        """Count a step that used the next `num_batches` batches."""
        for _ in range(num_batches):
            groups = self._given.popleft()
            for group, cases in groups.items() if has_learnt else ():
                self.cases[group].update(cases)

    def is_shown(self, group: str, least: int) -> bool:
        """Whether the steps learnt a group from at least `least` cases, and not mostly from one."""
        counts = self.cases[group]
        return least <= 1 or (len(counts) >= least and max(counts.values()) <= MOST_SHARE * counts.total())

    def _groups(self, batch: Batch) -> Groups:
        cases: list[tuple[str, str]] = list(zip(batch.database, batch.case, strict=True))
        groups = {"": cases}
        for index, name in enumerate(self.info.axis):
            groups[name] = list(compress(cases, batch.present[:, index].tolist()))
        for index, name in enumerate(self.info.space.names):
            if f"label:{name}" in self.patches:
                groups[f"label:{name}"] = list(compress(cases, batch.annotated[:, index].tolist()))
        return groups


def check_shown(counted: Counted, least: int) -> None:
    """Raises FederationError if the steps of a round learnt from too few cases for their update to leave."""
    if not counted.is_shown("", least):
        raise FederationError(
            f"the steps of the round learnt from fewer than {least} cases of this site, or took more than half of the "
            "patches from one case: give it more steps or larger batches (local.steps, stream.batch_size)."
        )
