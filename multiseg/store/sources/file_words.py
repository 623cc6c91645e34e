"""What a volume is by the words of its name: a sequence, a label, a tissue, a brain mask, or unclear."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from multiseg.sequence_reading import is_of_a_role, read_role
from multiseg.sequence_words import (
    ANY_LABEL_WORDS,
    DERIVED,
    LESION_WORDS,
    ONE_TISSUE_WORDS,
    PREDICTED_WORDS,
    TISSUE_WORDS,
    TUMOUR_WORDS,
    whole,
)


class What(StrEnum):
    """What a volume is; `ONE_TISSUE` is a map of one tissue, such as csf or its probability."""

    IMAGE = "image"
    LABEL = "label"
    BRAIN_MASK = "brain mask"
    ONE_TISSUE = "one tissue"
    UNCLEAR = "unclear"


@dataclass(frozen=True)
class Meaning:
    """What a volume is by its name, and the sequence or annotation in the name.

    `named` are all sequences in the name, also if it is unclear which one the volume is; `why` is the reason for that.
    """

    what: What
    name: str = ""
    named: tuple[str, ...] = field(default=(), compare=False, repr=False)
    why: str = field(default="", compare=False, repr=False)


_LINKS = frozenset(["on", "in", "of", "to", "from", "space", "the", "final"])
_RATER = re.compile(r"(?:rater|expert|observer|reader|manual)_?(\d+)")


def words_of(stem: str) -> list[str]:
    """The words of a name in lower case.

    >>> words_of("lesion_on_FLAIR")
    ['lesion', 'on', 'flair']
    """
    return [word for word in re.split(r"[-_. +]+", stem.lower()) if word]


def meaning_of(stem: str) -> Meaning:
    """What a volume with this name is; unclear if the words say nothing, or two things.

    >>> meaning_of("T2_FLAIR"), meaning_of("lesion_on_FLAIR").name, meaning_of("T1_mask").what.value
    (Meaning(what=<What.IMAGE: 'image'>, name='FLAIR'), 'lesion', 'unclear')
    """
    words = " ".join(words_of(stem))
    reading = read_role(stem)
    unclear = Meaning(What.UNCLEAR, "", reading.named, reading.why if reading.sequence is None else "a map or a label")
    if _BRAIN_MASK.search(words):  # "brain_tumour_mask" is unclear
        is_drawn = _LESION.search(words) or _TUMOUR.search(words)
        return unclear if is_drawn else Meaning(What.BRAIN_MASK, "brain mask")
    is_tissue = _ONE_TISSUE.search(words) is not None
    if _COMPUTED.search(words):
        return Meaning(What.ONE_TISSUE) if is_tissue else unclear
    annotation = _annotation_in(words)
    if annotation:
        return Meaning(What.LABEL, annotation)
    if is_tissue or _ANY_LABEL.search(words):
        # "gm_mask" is one tissue; "T1_mask" may be of the head, "seg_left" a part of a label.
        return Meaning(What.ONE_TISSUE) if is_tissue else unclear
    return Meaning(What.IMAGE, reading.sequence, reading.named) if reading.sequence else unclear


_BRAIN_MASK = re.compile(r"(?<!\S)(?:brainmask|betmask|(?:brain|bet) (?:\S+ )*mask|mask (?:\S+ )*brain)(?!\S)")
_ONE_TISSUE = whole(ONE_TISSUE_WORDS)
_ANY_LABEL = whole(ANY_LABEL_WORDS)
_COMPUTED = whole(
    "|".join([PREDICTED_WORDS, *(words for kind, words in DERIVED.items() if "segmentation" not in kind)])
)
_LESION = whole(LESION_WORDS)
_TUMOUR = whole(TUMOUR_WORDS)
_TISSUE = whole(rf"{TISSUE_WORDS}|tissues?")


def _annotation_in(words: str) -> str:
    """The annotation that the words name, or ""; words such as "seg" and "mask" count only without other words."""
    rater = _RATER.search(words.replace(" ", "_"))
    tissue = re.search(r"(?<!\S)tissue\d+(?!\S)", words)
    if rater:
        return f"rater{int(rater[1])}"
    if _TUMOUR.search(words):
        return "tumour"
    if _LESION.search(words):
        return "lesion"
    if tissue or _TISSUE.search(words):
        return tissue[0] if tissue else "tissue"
    return words.replace(" ", "_") if all(_ANY_LABEL.fullmatch(word) for word in words.split()) else ""


def split_name(stem: str) -> tuple[str, str]:
    """Split a flat file's name into case and role. The role is the longest end with only known words.

    >>> split_name("scan_0053_T2_FLAIR"), split_name("scan_0053_Lesion"), split_name("scan_0053"), split_name("T1")
    (('scan_0053', 'T2_FLAIR'), ('scan_0053', 'Lesion'), ('scan_0053', ''), ('', 'T1'))
    """
    parts = re.split(r"([-_. +]+)", stem)  # words at even indices, separators at odd ones
    end = len(parts)
    while end > 0 and is_known(parts[end - 1], parts[end + 1 :]):
        end -= 2
    return "".join(parts[: max(end, 0)]), "".join(parts[max(end + 1, 0) :])


def is_known(word: str, following: Sequence[str] = ()) -> bool:
    """Whether a word can be part of a role's name; links ("on", "to") can only before other words of it."""
    lower = word.lower()
    return (
        is_of_a_role(word)
        or bool(following and lower in _LINKS)
        or re.fullmatch(r"tissues?\d*|brainmask|betmask|(?:rater|expert|observer|reader|manual)\d*", lower) is not None
    )
