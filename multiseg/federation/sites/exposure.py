"""What the steps of a round showed the network: how many patches, and of how many cases."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator

from multiseg.errors import FederationError
from multiseg.loaders.batches import Batch
from multiseg.models.saved import ModelInfo
from multiseg.training.fit import Stream

MOST_SHARE = 0.5
"""Of the patches that come from one case."""

Groups = dict[str, list[tuple[str, str]]]
"""By group of parts, the database and the case of each patch."""


class Counted:
    """A stream that counts the patches it gives: under "" all, by sequence those that show it, by label those of
    cases in which somebody looked for it.

    Attributes:
        patches: by group.
        cases: likewise, how many patches of each case the steps learnt from. Told by `stepped`: a step whose loss or
            gradient is not finite learns from none.
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
        """A step was made with the next so many batches."""
        for _ in range(num_batches):
            groups = self._given.popleft()
            for group, cases in groups.items() if has_learnt else ():
                self.cases[group].update(cases)

    def is_shown(self, group: str, least: int) -> bool:
        """Whether the steps learnt a group from `least` cases or more, from none of them more than its share."""
        counts = self.cases[group]
        return least <= 1 or (len(counts) >= least and max(counts.values()) <= MOST_SHARE * counts.total())

    def _groups(self, batch: Batch) -> Groups:
        cases: list[tuple[str, str]] = list(zip(batch.database, batch.case, strict=True))
        found = {"": cases}
        for at, name in enumerate(self.info.axis):
            found[name] = _those(cases, batch.present[:, at].tolist())
        for at, name in enumerate(self.info.space.names):
            if f"label:{name}" in self.patches:
                found[f"label:{name}"] = _those(cases, batch.annotated[:, at].tolist())
        return found


def _those(cases: list[tuple[str, str]], are_so: list[bool]) -> list[tuple[str, str]]:
    return [case for case, is_so in zip(cases, are_so, strict=True) if is_so]


def check_shown(counted: Counted, least: int) -> None:
    """Raises FederationError where the steps of a round learnt from too few cases for what they changed to leave."""
    if not counted.is_shown("", least):
        raise FederationError(
            f"the steps of the round learnt from fewer than {least} cases of this site, or for more than half of its "
            "patches from a single one: give it more steps or larger batches (local.steps, stream.batch_size)."
        )
