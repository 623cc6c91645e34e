"""Which scans a model has learnt from, by digests of their voxels: it knows them again under any name, in any store."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from multiseg.errors import DataError

DIGITS = 16
"""Hexadecimal digits that are kept of a digest: 64 bits. Between 20,000 scans of a model and 20,000 others, the chance
that any two differ and yet agree in these is 20,000 * 20,000 / 2**64, about 2 in 100,000,000,000."""
TRAIN, VAL, NOT_LEARNT, NOT_KNOWN = "train", "val", "", "not known"


@dataclass(frozen=True)
class LearntScans:
    """The scans that a model, and the models it was fine-tuned from, have learnt from.

    A digest holds no name, and no image can be made from it; but whoever has the scan recognises it. So it is
    written into model files that stay where they were trained, and never into what a federation sends.

    Attributes:
        train: of the scans of training cases, the first `DIGITS` digits of their content's digest.
        val: of those of the validation cases, by which the best step was chosen.
        is_complete: whether all that it learnt from is here; not where it comes from a model that does not say.
    """

    train: frozenset[str] = frozenset()
    val: frozenset[str] = frozenset()
    is_complete: bool = True

    @classmethod
    def of(cls, train: Iterable[str], val: Iterable[str] = ()) -> LearntScans:
        """From whole digests, a scan each."""
        return cls(frozenset(one[:DIGITS] for one in train), frozenset(one[:DIGITS] for one in val))

    def __or__(self, other: LearntScans) -> LearntScans:
        return LearntScans(self.train | other.train, self.val | other.val, self.is_complete and other.is_complete)

    def to_json(self) -> dict[str, Any]:
        """One text for each set, digest after digest, since there may be thousands."""
        return {
            "digits": DIGITS,
            "train": "".join(sorted(self.train)),
            "val": "".join(sorted(self.val)),
            "complete": self.is_complete,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LearntScans:
        """Raises DataError where the digests are not of the length that this multiseg compares."""
        train, val = str(data["train"]), str(data["val"])
        if data["digits"] != DIGITS or len(train) % DIGITS or len(val) % DIGITS:
            raise DataError(
                f"digests of {data['digits']} digits, {len(train)} and {len(val)} in all, are not of {DIGITS}."
            )
        return cls(_cut(train), _cut(val), bool(data["complete"]))


def _cut(text: str) -> frozenset[str]:
    return frozenset(text[at : at + DIGITS] for at in range(0, len(text), DIGITS))


def how_learnt(learnt: LearntScans | None, digests: Iterable[str]) -> str:
    """What a model did with the scans of these digests: one scan is enough to know a case.

    "train" (it was trained on one), "val" (it was chosen by one), "" (it has seen none of them), or "not known" where
    the model does not say, or not all, or there is no digest.
    """
    short = {digest[:DIGITS] for digest in digests if digest}
    if learnt is not None and short & learnt.train:
        return TRAIN
    if learnt is not None and short & learnt.val:
        return VAL
    return NOT_LEARNT if learnt is not None and learnt.is_complete and short else NOT_KNOWN


def removed_among(learnt: LearntScans | None, removed: Mapping[str, str]) -> tuple[str, ...]:
    """Of the scans that were removed from a store, by digest with their dates: those that a model has learnt from, or
    was chosen by, as their dates."""
    known = learnt.train | learnt.val if learnt is not None else frozenset()
    return tuple(sorted(date for digest, date in removed.items() if digest[:DIGITS] in known))


def describe_removed(
    learnt: LearntScans | None, url: str, removed: Mapping[str, str], damaged: Collection[str] = ()
) -> str:
    """What a person should know of a model and the cases that were removed from a store; "" where it is nothing.

    Args:
        removed: digests of the scans that were removed, and when.
        damaged: databases of the store that do not tell what was removed from them.
    """
    dates, said = removed_among(learnt, removed), []
    if dates:
        said.append(
            f"The model has learnt from {len(dates)} scans of cases that were removed from {url} "
            f"({', '.join(dict.fromkeys(dates))}). Train it again without them, from a model that has not seen them."
        )
    elif removed and (learnt is None or not learnt.is_complete):
        said.append(
            f"The model does not say all that it has learnt from: whether cases that were removed from {url} are among "
            "it is not known."
        )
    if damaged:
        said.append(
            f"Whether it has learnt from cases that were removed from {', '.join(sorted(damaged))} is not known, since "
            f"that is damaged. Run: multiseg repair {url}."
        )
    return " ".join(said)
