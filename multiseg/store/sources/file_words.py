"""What a volume is by the words of its name: a sequence, a label, tissues, a brain mask; or nothing that is clear."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from multiseg.modalities import canonical_modality, modality_of_file_name


class What(StrEnum):
    """What a name says; `ONE_TISSUE` is a map of one tissue, such as csf or its probability."""

    IMAGE = "image"
    LABEL = "label"
    BRAIN_MASK = "brain mask"
    ONE_TISSUE = "one tissue"
    UNCLEAR = "unclear"


@dataclass(frozen=True)
class Meaning:
    """What a name says, and the sequence or annotation that it names."""

    what: What
    name: str = ""


_DERIVED = frozenset(
    [
        "prob",
        "probability",
        "probabilities",
        "probseg",
        "pve",
        "warp",
        "warped",
        "xfm",
        "jacobian",
        "jac",
        "bias",
        "biasfield",
        "field",
        "inverse",
        "diff",
        "filled",
        "inpainted",
        "std",
        "mean",
        "difference",
        "uncertainty",
    ]
)
"""Words of what was computed from scans and is neither a scan nor a label."""
_LESION = frozenset(
    [
        "lesion",
        "lesions",
        "lesionmask",
        "wmh",
        "wmhs",
        "consensus",
        "infarct",
        "infarction",
        "gt",
        "groundtruth",
        "msk",
        "manual",
        "annotation",
    ]
)
_TUMOUR = frozenset(["tumour", "tumours", "tumor", "tumors", "gtv"])
_TISSUE = frozenset(
    [
        "aseg",
        "aparc",
        "wmparc",
        "dlmuse",
        "muse",
        "parcellation",
        "parcellations",
        "parc",
        "dseg",
        "synthseg",
        "dkt",
        "dktatlas",
        "freesurfer",
        "neuromorphometrics",
    ]
)
_ONE_TISSUE = frozenset(["csf", "gm", "wm", "gray", "grey", "white"])
_ANY_LABEL = frozenset(["seg", "segmentation", "mask", "label", "labels", "roi"])
"""Words of labels that say nothing about what was drawn, and of much else besides."""
_LINKS = frozenset(["on", "in", "of", "to", "from", "space", "the", "final"])
_RATER = re.compile(r"(?:rater|expert|observer|reader|manual)_?(\d+)")


def words_of(stem: str) -> list[str]:
    """The words of a name in lower case.

    >>> words_of("lesion_on_FLAIR")
    ['lesion', 'on', 'flair']
    """
    return [word for word in re.split(r"[-_. +]+", stem.lower()) if word]


def meaning_of(stem: str) -> Meaning:
    """What a volume of this name is; unclear where the words say nothing, or two things.

    >>> meaning_of("T2_FLAIR"), meaning_of("lesion_on_FLAIR").name, meaning_of("T1_mask").what.value
    (Meaning(what=<What.IMAGE: 'image'>, name='FLAIR'), 'lesion', 'unclear')
    """
    words = set(words_of(stem))
    if words & {"brainmask", "betmask"} or {"brain", "mask"} <= words:
        return Meaning(What.BRAIN_MASK, "brain mask")
    if words & _DERIVED:
        return Meaning(What.ONE_TISSUE if words & _ONE_TISSUE else What.UNCLEAR)
    annotation = _annotation_in(words_of(stem))
    if annotation:
        return Meaning(What.LABEL, annotation)
    if words & (_ONE_TISSUE | _ANY_LABEL):
        # "gm_mask" is of one tissue; "T1_mask" may be of the head, "seg_left" a part of a label.
        return Meaning(What.ONE_TISSUE if words & _ONE_TISSUE else What.UNCLEAR)
    sequence = modality_of_file_name(f"{stem}.nii")
    return Meaning(What.IMAGE, sequence) if sequence else Meaning(What.UNCLEAR)


def _annotation_in(words: Sequence[str]) -> str:
    """The annotation that words name, or ""; such as "seg" and "mask" only where they stand alone."""
    rater = _RATER.search("_".join(words))
    own = next((word for word in words if re.fullmatch(r"tissue\d+", word)), "")
    if rater:
        return f"rater{int(rater[1])}"
    if not _TUMOUR.isdisjoint(words):
        return "tumour"
    if not _LESION.isdisjoint(words):
        return "lesion"
    if own or not (_TISSUE | {"tissue", "tissues"}).isdisjoint(words):
        return own or "tissue"
    return "_".join(words) if set(words) <= _ANY_LABEL else ""


def split_name(stem: str) -> tuple[str, str]:
    """A flat file's name as that of its case and that of its role, the longest end of which every word is known.

    >>> split_name("scan_0053_T2_FLAIR"), split_name("scan_0053_Lesion"), split_name("scan_0053"), split_name("T1")
    (('scan_0053', 'T2_FLAIR'), ('scan_0053', 'Lesion'), ('scan_0053', ''), ('', 'T1'))
    """
    parts = re.split(r"([-_. +]+)", stem)  # words at even places, what stands between them at odd ones
    end = len(parts)
    while end > 0 and is_known(parts[end - 1], parts[end + 1 :]):
        end -= 2
    return "".join(parts[: max(end, 0)]), "".join(parts[max(end + 1, 0) :])


def is_known(word: str, behind: Sequence[str] = ()) -> bool:
    """Whether a word belongs to the name of a role; links ("on", "to") do only before other words of it."""
    lower = word.lower()
    known = _DERIVED | _LESION | _TUMOUR | _TISSUE | _ONE_TISSUE | _ANY_LABEL | {"brain", "brainmask", "betmask"}
    return (
        lower in known
        or bool(behind and lower in _LINKS)
        or canonical_modality(word) is not None
        or re.fullmatch(r"tissues?\d*|(?:rater|expert|observer|reader|manual)\d*", lower) is not None
        or bool(behind and canonical_modality(word + behind[0]))
    )
