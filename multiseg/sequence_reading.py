"""Recognise the sequence by the words of a name: of a file, folder, channel, column or DICOM series.

The first rule that applies decides:

1.  Words for a scanner's by-products, for other kinds of MR, or for computed images: not one of our sequences, even if
    one is named. "T1_pve_0" is a map, "SWI_minIP" a projection, "T2_STIR" another contrast.
2.  Names of an ADC may have words for diffusion, of an SWI T2 or T2*, of a FLAIR T2; a T2 with a gradient echo readout
    is T2*. Any other two sequences are ambiguous: "PD_T2" has two echoes, "T1_FLAIR" may be a FLAIR of visit T1.
3.  A T1 is T1c if words say that a contrast agent was given. Words for both, with and without, are ambiguous.
4.  In the name of a file, every word after the sequence has to be known: "T1_abc" may be anything.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from multiseg.sequence_words import (
    ACQUISITION,
    BY_PRODUCTS,
    DERIVED,
    NOT_OF_CONTRAST,
    OF_THE_CASE,
    OTHER_KINDS,
    PREPARED_READOUTS,
    SEQUENCES,
    T2_STAR_READOUTS,
    WITH_CONTRAST,
    WITHOUT_CONTRAST,
    is_word,
    whole,
    words_in,
)

SUFFIX = re.compile(r"\.(?:nii\.zarr|(?:nii|mgz|mgh|mha|mhd|nrrd|nhdr|hdr|img)(?:\.gz)*)$", re.IGNORECASE)
MIN_B = 500
"""The lowest diffusion weighting of a DWI, in s/mm2."""


@dataclass(frozen=True)
class Reading:
    """The meaning of some words.

    Attributes:
        sequence: None if it is ambiguous or not one of ours.
        why: the reason, for messages.
        named: the sequences that the words name, even if they are ambiguous.
        is_vague: whether nothing contradicts `named`, and the only problem is unknown or missing words.
    """

    sequence: str | None
    why: str
    named: tuple[str, ...] = ()
    is_vague: bool = False


def read_name(text: str) -> Reading:
    """Read the name of a file. Before the sequence it may have any words, such as the patient's name.

    >>> read_name("pat1_t1_mprage_KM.nii.gz").sequence, read_name("t2_tirm_tra_dark-fluid").sequence
    ('T1c', 'FLAIR')
    >>> read_name("pat1_mprage_FAST.nii.gz").why, read_name("T1_pre_post").why
    ('named T1, but also a segmentation, or a part of one', 'named T1 both with and without contrast')
    """
    return _read_known_words(text, leading=False)


def read_role(text: str) -> Reading:
    """Read a name for a sequence alone, such as of a channel or column. All its words have to be known."""
    return _read_known_words(text, leading=True)


def read_words(words: str) -> Reading:
    """Read the known words, and skip the others.

    Args:
        words: from `words_in`.
    """
    named = sequences_in(words)
    kinds = kinds_in(words, named)
    if kinds:
        also = f"named {' and '.join(sorted(named))}, but also " if named else ""
        return Reading(None, also + kinds[0], tuple(sorted(named)))
    if not named:
        return Reading(None, "its words name none", is_vague=True)
    if len(named) > 1:
        return Reading(None, f"named {' and '.join(sorted(named))}", tuple(sorted(named)))
    (name,) = named
    if name == "DWI" and (weightings := b_values_in(words)) and min(weightings) < MIN_B:
        return Reading(None, f"named DWI, but b = {min(weightings)} s/mm2 is too small for it", (name,))
    return with_contrast(name, words)


def sequences_in(words: str) -> set[str]:
    """The sequences that words name, without those that another one implies."""
    named = {name for name, pattern in _SEQUENCES.items() if pattern.search(words)}
    if "T2" in named and _T2_STAR_READOUTS.search(words):
        named.add("T2star")
    if "T1IR" in named and _PREPARED_READOUTS.search(words):
        named.discard("T1IR")
    implied = {"ADC": {"DWI"}, "SWI": {"T2star", "T2"}, "T2star": {"T2"}, "FLAIR": {"T2"}, "T1IR": {"T1"}}
    return named - {other for name in named for other in implied.get(name, ())}


def kinds_in(words: str, named: set[str], derived: bool = True) -> list[str]:
    """The kinds of images, other than our sequences, that words name.

    Args:
        named: the sequences that they name.
        derived: whether words for computed images count.
    """
    tables = (_OTHER_KINDS, _DERIVED) if derived else (_OTHER_KINDS,)
    kinds = [kind for table in tables for kind, pattern in table.items() if pattern.search(words)]
    if "ADC" in named and not _EXPONENTIAL.search(words):  # an ADC is a map of diffusion data
        kinds = [kind for kind in kinds if kind not in _OF_DIFFUSION]
    return by_products_in(words, named) + kinds


def by_products_in(words: str, named: set[str]) -> list[str]:
    """The by-products of a scanner that words name: localisers, projections, phase images ..."""
    kinds = [kind for kind, pattern in _BY_PRODUCTS.items() if pattern.search(words)]
    if _SUBTRACTED.search(words):
        kinds.append("a projection, reformat or subtraction")
    if ("SWI" in named and _MAGNITUDE.search(words)) or _MAGNITUDE_IMAGES.search(words):
        kinds.append("the magnitude image of an SWI")
    return kinds


def b_values_in(words: str) -> list[int]:
    """The diffusion weightings in the words, in s/mm2."""
    return [int(value) for value in re.findall(r"(?<!\S)b (\d+)(?!\S)", words)]


def contrast_in(words: str) -> tuple[bool, bool]:
    """Whether words say that there was no contrast agent, and whether they say that there was one."""
    words = _NOT_OF_CONTRAST.sub(".", words)
    return _WITHOUT.search(words) is not None, _WITH.search(_WITHOUT.sub(".", words)) is not None


def with_contrast(name: str, words: str) -> Reading:
    """Tell T1 from T1c. Other sequences keep their name with contrast."""
    without_agent, with_agent = contrast_in(words)
    if name == "T1" and without_agent and with_agent:
        return Reading(None, "named T1 both with and without contrast", (name,))
    if name == "T1" and with_agent:
        return Reading("T1c", "named T1 with contrast", (name,))
    return Reading(name, f"named {name}", (name,))


def is_of_a_role(word: str) -> bool:
    """Whether a word describes a file, and is not part of the name of a case.

    >>> [is_of_a_role(word) for word in ("T1wPre", "post", "FAST", "tra", "0053", "pat1", "Miller", "scan")]
    [True, True, True, True, False, False, False, False]
    """
    words = words_in(word).split()
    return any(len(part) > 1 and is_word(part) and not _OF_THE_CASE.fullmatch(part) for part in words)


def changes_sequence(word: str, role: str) -> bool:
    """Whether a word before a role changes its sequence, as "post" before "T1" does, or makes it unknown.

    >>> changes_sequence("post", "T1"), changes_sequence("phase", "SWI"), changes_sequence("T2", "FLAIR")
    (True, True, False)
    """
    words = words_in(word)
    if (len(word) < 3 and not any(contrast_in(words))) or sequences_in(words):
        return False
    return is_of_a_role(word) and read_role(f"{word} {role}").sequence != read_role(role).sequence


def _read_known_words(text: str, leading: bool) -> Reading:
    """As `read_words`, but ambiguous if there are unknown words, which may say that it is not a scan.

    Args:
        leading: whether words before the sequence have to be known, too.
    """
    words = words_in(SUFFIX.sub("", text))
    reading = read_words(words)
    if reading.sequence is None:
        return reading
    for pattern in (_NOT_OF_CONTRAST, _WITHOUT, _WITH):
        words = pattern.sub(".", words)
    if reading.sequence == "ADC":
        words = _MAP.sub(".", words)
    for pattern in (*_SEQUENCES.values(), _T2_STAR_READOUTS, _PREPARED_READOUTS):
        words = pattern.sub("#", words)
    # Sequences are now "#", and known words "."; the others are unknown.
    before, _, after = _HARMLESS.sub(".", words).partition("#")
    unknown = [word for word in after.split() if word not in ".#"]
    if leading:
        unknown += [word for word in before.split() if word != "." and word.isalpha()]
    if not unknown:
        return reading
    shown = " ".join(unknown)
    return Reading(None, f"{reading.why}, but {shown!r} is unknown", reading.named, is_vague=True)


def _compiled(table: Mapping[str, str]) -> dict[str, re.Pattern[str]]:
    return {name: whole(pattern) for name, pattern in table.items()}


_SEQUENCES = _compiled(SEQUENCES)
_BY_PRODUCTS = _compiled(BY_PRODUCTS)
_OTHER_KINDS = _compiled(OTHER_KINDS)
_DERIVED = _compiled(DERIVED)
_T2_STAR_READOUTS = whole(T2_STAR_READOUTS)
_PREPARED_READOUTS = whole(PREPARED_READOUTS)
_WITHOUT = whole(WITHOUT_CONTRAST)
_WITH = whole(WITH_CONTRAST)
_NOT_OF_CONTRAST = whole(NOT_OF_CONTRAST)
_HARMLESS = whole(f"{ACQUISITION}|{OF_THE_CASE}")
_OF_THE_CASE = whole(OF_THE_CASE)
_MAGNITUDE = whole(r"mag(?:nitude)?")
_MAGNITUDE_IMAGES = whole(r"mag images?")
_MAP = whole(r"maps?")
_EXPONENTIAL = whole(r"e(?:xp)? ?adc|exponential")
_SUBTRACTED = re.compile(
    r"(?<!\S)(?:(?:t[12]\w*|flair|post|pre|ce|gd|mprage) (?:\S+ )*sub|sub (?:t[12]\w*|flair|ce|gd))(?!\S)"
)
_OF_DIFFUSION = ("diffusion tensor data", "a map, not a scan")
