"""BIDS file names: "sub-01_ses-2_acq-mp2rage_T1w.nii.gz" as entities and a suffix, and what such a file is.

https://bids-specification.readthedocs.io - also reads common names outside the standard: `_swi`, lower-case
suffixes, and at least five spellings of lesion masks, which the standard does not define.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from multiseg.modalities import canonical_modality
from multiseg.sequence_reading import MIN_B, Reading, b_values_in, contrast_in, kinds_in, read_role, sequences_in
from multiseg.sequence_words import words_in
from multiseg.store.sources.source_folder import SUFFIX, Folder

Kind = Literal["image", "lesion mask", "brain mask", "segmentation", "other mask", "not used"]

_PATH = re.compile(
    r"(?P<above>(?:.*?/)?)(?P<subject>sub-[^/_]+)/(?:(?P<session>ses-[^/_]+)/)?(?:(?P<datatype>[a-z]+)/)?"
    rf"(?P<stem>sub-[^/]+?){SUFFIX}"
)
_ELSEWHERE = frozenset({"func", "fmap", "perf", "eeg", "ieeg", "meg", "beh", "pet", "micr", "nirs", "motion", "mrs"})
_LESION = re.compile(r"l|lesions?|t1lesion", re.IGNORECASE)
_MANUAL_LESION = re.compile(r"lesion-manual(?:-?(?P<rater>rater\w*|\d+))?")
_NO_CONTRAST = re.compile(r"no\w*|pre\w*|0", re.IGNORECASE)
_PLAIN_VALUES = re.compile(r"\b(?:mp2rage|warped|native|\d+ ?dirs?|dir ?\d+)\b")
"""Values of entities that do not change what the suffix means, but would be ambiguous in other names."""
_NATIVE_SPACES = frozenset({"", "orig", "native", "individual", "scanner", "subject", "raw", "anat"})


@dataclass(frozen=True)
class BidsFile:
    """One volume of a BIDS dataset; `pipeline` is its folder in `derivatives`, "" in the raw data."""

    path: str
    above: str
    pipeline: str
    subject: str
    session: str
    datatype: str
    entities: Mapping[str, str]
    words: tuple[str, ...]
    suffix: str

    @property
    def case(self) -> str:
        return f"{self.subject}_{self.session}" if self.session else self.subject

    @property
    def space(self) -> str:
        """The template whose space the file is in, or "" for the patient's own space."""
        space = self.entities.get("space", "")
        return "" if space.lower() in _NATIVE_SPACES or canonical_modality(space) else space

    @cached_property
    def distinguishing(self) -> dict[str, str]:
        """The entities that distinguish this file from others of its session."""
        return {key: value for key, value in self.entities.items() if key not in ("sub", "ses")}

    @property
    def spelling(self) -> str:
        """What the file is called in messages and in --modality: "acq-mp2rage_run-2_T1w"."""
        return "_".join([*(f"{key}-{value}" for key, value in self.distinguishing.items()), *self.words, self.suffix])

    @property
    def rater(self) -> str:
        """ "rater3" if the name says the label's rater, else ""."""
        manual = _MANUAL_LESION.fullmatch(self.suffix)
        name = (manual["rater"] or "") if manual else self.entities.get("rater") or self.entities.get("desc", "")
        number = re.fullmatch(r"(?:rater)?-?(\w+)", name) if manual or "rater" in self.entities else None
        number = number or re.fullmatch(r"rater-?(\w+)", name)
        return f"rater{number[1]}" if number else ""


def bids_file(file: str) -> BidsFile | None:
    """The parts of a name, or None for a file outside of subjects' folders."""
    match = _PATH.fullmatch(file)
    if match is None:
        return None
    *parts, suffix = match["stem"].split("_")
    pairs = [part.partition("-") for part in parts]
    return BidsFile(
        path=file,
        above=match["above"],
        pipeline=_pipeline(match["above"]),
        subject=match["subject"],
        session=match["session"] or "",
        datatype=match["datatype"] or "",
        entities={key: value for key, dash, value in pairs if dash},
        words=tuple(word for word, dash, _ in pairs if not dash),
        suffix=suffix,
    )


def bids_files(folder: Folder) -> list[BidsFile]:
    return [bids for file in folder.volumes if (bids := bids_file(file)) is not None]


def _pipeline(above: str) -> str:
    """ "lst-ai" for "derivatives/lst-ai/"; "derivatives" for files directly in derivatives/."""
    _, found, tail = f"/{above}".partition("/derivatives/")
    return (tail.strip("/").replace("/", "-") or "derivatives") if found else ""


def kind_of(file: BidsFile) -> Kind:
    """What a file is by its name."""
    suffix, label, what = file.suffix.lower(), file.entities.get("label", ""), file.entities.get("desc", "")
    if why_not_used(file):
        return "not used"
    if suffix == "msk" or _MANUAL_LESION.fullmatch(file.suffix):
        return "lesion mask"
    if suffix in ("mask", "roi", "seg"):
        if _LESION.fullmatch(label or what):
            return "lesion mask"
        return "brain mask" if "brain" in (label.lower(), what.lower()) else "other mask"
    return "segmentation" if suffix == "dseg" else "image"


def why_not_used(file: BidsFile) -> str:
    """The reason why a file is not part of a case, "" if it is."""
    suffix = file.suffix.lower()
    labels = ("msk", "mask", "roi", "seg", "dseg")
    is_label = suffix in labels or _MANUAL_LESION.fullmatch(file.suffix) is not None
    reasons = {
        "sourcedata/ has the data before conversion": "sourcedata" in file.above.split("/"),
        f"{file.datatype}/ has no structural scans": file.datatype in _ELSEWHERE,
        "probabilities (probseg) are not labels": suffix == "probseg",
        "reference images (sbref) are not diffusion-weighted": suffix == "sbref",
        f"part-{file.entities.get('part')} is not a magnitude image": file.entities.get("part", "mag") != "mag",
        "only labels and scans of known sequences are read from derivatives/": (
            file.pipeline != "" and not is_label and canonical_modality(file.suffix) is None
        ),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def mask_name(file: BidsFile) -> str:
    """What a mask marks, by its label- or desc-."""
    return file.entities.get("label") or file.entities.get("desc") or file.suffix


def sequence_of(file: BidsFile) -> str | None:
    """The sequence of a scan, or None if the name does not say it clearly."""
    return reading_of(file).sequence


def reading_of(file: BidsFile) -> Reading:
    """Which sequence a scan is, and why.

    A T1w with ce-<agent> is a T1c. If another suffix has an agent, or acq-, rec- or desc- contradict the suffix
    ("acq-postGd_T1w", "acq-stir_T2w"), the user has to name the sequence. Words without a key are read as in any name.
    """
    sequence, doubts = canonical_modality(file.suffix), _doubts(file)
    named = (sequence,) if sequence else ()
    if sequence is None:
        return Reading(None, read_role(file.suffix).why)
    if set(doubts) == {"ce"} and sequence == "T1" and not file.words and not _NO_CONTRAST.fullmatch(doubts["ce"]):
        return Reading("T1c", f"a T1w with ce-{doubts['ce']}", named)
    if doubts:
        entities = ", ".join(f"{key}-{value}" for key, value in doubts.items())
        return Reading(None, f"its suffix is {file.suffix}, but its name also has {entities}", named)
    if file.words:
        return read_role(" ".join([*file.words, file.suffix]))
    return Reading(sequence, f"its suffix is {file.suffix}", named)


def _doubts(file: BidsFile) -> dict[str, str]:
    """The entities that say more about the sequence than the suffix: an agent, or another kind of image."""
    entities = {key: file.entities.get(key, "") for key in ("ce", "acq", "rec", "desc")}
    return {key: value for key, value in entities.items() if value and (key == "ce" or _says_more(value, file.suffix))}


def _says_more(value: str, suffix: str) -> bool:
    words = _PLAIN_VALUES.sub(" ", words_in(value))
    if kinds_in(words, sequences_in(words)) or any(b < MIN_B for b in b_values_in(words)):
        return True
    return any(contrast_in(words)) or sequences_in(f"{words} {words_in(suffix)}") != {canonical_modality(suffix)}


def unnamed_spelling(file: BidsFile) -> str:
    """The shortest spelling for a scan of unknown sequence that matches no other sequence."""
    return "_".join([*(f"{key}-{value}" for key, value in _doubts(file).items()), *file.words, file.suffix])


def named_by(file: BidsFile, spellings: Mapping[str, str]) -> tuple[str, int] | None:
    """The user's most specific spelling that matches a file, and the number of the file's entities it does not name.

    "T1w" matches every T1w and "acq-mp2rage_T1w" those of that acquisition. A spelling without a contrast agent, or
    without a word that has no key, does not match a scan with one.
    """
    matches = []
    for spelling in spellings:
        *parts, suffix = spelling.split("_")
        entities = dict(part.split("-", 1) for part in parts if "-" in part)
        words = [part for part in parts if "-" not in part]
        is_same = suffix == file.suffix and words == list(file.words)
        if is_same and entities.items() <= file.distinguishing.items() and set(_doubts(file)) <= set(entities):
            matches.append((len(file.distinguishing) - len(entities), spelling))
    if not matches:
        return None
    num_open, spelling = min(matches)
    return spelling, num_open
