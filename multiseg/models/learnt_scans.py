"""Which scans a model has learnt from, as digests of their voxels, which identify them in any store."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from multiseg.errors import DataError

DIGITS = 16
"""Hexadecimal digits that are kept of a digest: 64 bits. For 20,000 scans of a model and 20,000 others, the probability
of a collision is 20,000 * 20,000 / 2**64, about 2 in 100,000,000,000."""
TRAIN, VAL, NOT_LEARNT, NOT_KNOWN = "train", "val", "", "not known"


@dataclass(frozen=True)
class LearntScans:
    """The scans that a model, and the models it was fine-tuned from, have learnt from.

    A digest contains no name and no image, but anyone with the scan can recognise it. So it is written to model files,
    which stay where they were trained, and never to what a federation sends.

    Attributes:
        train: the first `DIGITS` digits of the digests of the training scans.
        val: those of the validation scans, by which the best step was chosen.
        is_complete: False if the model was fine-tuned from one that does not say what it learnt from.
    """

    train: frozenset[str] = frozenset()
    val: frozenset[str] = frozenset()
    is_complete: bool = True

    @classmethod
    def of(cls, train: Iterable[str], val: Iterable[str] = ()) -> LearntScans:
        """From the full digests of the scans."""
        return cls(frozenset(digest[:DIGITS] for digest in train), frozenset(digest[:DIGITS] for digest in val))

    def __or__(self, other: LearntScans) -> LearntScans:
        return LearntScans(self.train | other.train, self.val | other.val, self.is_complete and other.is_complete)

    def to_json(self) -> dict[str, Any]:
        """Each set is one text of concatenated digests, since there may be thousands."""
        return {
            "digits": DIGITS,
            "train": "".join(sorted(self.train)),
            "val": "".join(sorted(self.val)),
            "complete": self.is_complete,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LearntScans:
        """Raises DataError if the digests do not have `DIGITS` digits."""
        train, val = str(data["train"]), str(data["val"])
        if data["digits"] != DIGITS or len(train) % DIGITS or len(val) % DIGITS:
            raise DataError(
                f"digests have {data['digits']} digits, {len(train)} and {len(val)} in total, instead of {DIGITS} each."
            )
        return cls(_cut(train), _cut(val), bool(data["complete"]))


def _cut(text: str) -> frozenset[str]:
    return frozenset(text[start : start + DIGITS] for start in range(0, len(text), DIGITS))


def how_learnt(learnt: LearntScans | None, digests: Iterable[str]) -> str:
    """How a model used the scans with these digests: one scan is enough to identify a case.

    "train" (trained on one), "val" (chosen by one), "" (not at all), or "not known" if the model does not say, or not
    completely, or there is no digest.
    """
    short = {digest[:DIGITS] for digest in digests if digest}
    if learnt is not None and short & learnt.train:
        return TRAIN
    if learnt is not None and short & learnt.val:
        return VAL
    return NOT_LEARNT if learnt is not None and learnt.is_complete and short else NOT_KNOWN


def removed_among(learnt: LearntScans | None, removed: Mapping[str, str]) -> tuple[str, ...]:
    """The removal dates of the scans that a model has learnt from or was chosen by; `removed` maps digests to dates."""
    used = learnt.train | learnt.val if learnt is not None else frozenset()
    return tuple(sorted(date for digest, date in removed.items() if digest[:DIGITS] in used))


def describe_removed(
    learnt: LearntScans | None, url: str, removed: Mapping[str, str], damaged: Collection[str] = ()
) -> str:
    """A warning if a model has, or may have, learnt from cases that were removed from a store; otherwise "".

    Args:
        removed: digests of the removed scans, and the dates.
        damaged: databases of the store whose list of removed scans is damaged.
    """
    dates, sentences = removed_among(learnt, removed), []
    if dates:
        sentences.append(
            f"The model has learnt from {len(dates)} scans of cases that were removed from {url} "
            f"({', '.join(dict.fromkeys(dates))}). Train it again without them, from a model that has not seen them."
        )
    elif removed and (learnt is None or not learnt.is_complete):
        sentences.append(
            "The model does not say all that it has learnt from: it is not known whether cases that were removed from "
            f"{url} are part of it."
        )
    if damaged:
        sentences.append(
            f"It is not known whether it has learnt from cases that were removed from {', '.join(sorted(damaged))}, "
            f"since that is damaged. Run: multiseg repair {url}."
        )
    return " ".join(sentences)
