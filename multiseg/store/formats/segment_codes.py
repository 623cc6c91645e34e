"""What a structure is in SNOMED CT, for programs that do not know its name."""

from __future__ import annotations

import re
from typing import NamedTuple


class Concept(NamedTuple):
    """A concept of SNOMED CT, with its meaning as DICOM's tables of codes spell it."""

    value: str
    meaning: str


ABNORMAL = Concept("49755003", "Morphologically Abnormal Structure")
ANATOMY = Concept("91723000", "Anatomical Structure")
TISSUE = Concept("85756007", "Tissue")
SUBSTANCE = Concept("91720002", "Body Substance")
LESION = Concept("52988006", "Lesion")
BRAIN = Concept("12738006", "Brain")

_GREY = Concept("389081007", "Gray Matter")
_WHITE = Concept("389080008", "White Matter")
_LESIONS: tuple[tuple[str, Concept], ...] = (
    (r"o?edema", Concept("79654002", "Edema")),
    (r"necro(?:sis|tic.*)", Concept("6574001", "Necrosis")),
    (r"tumou?r|neoplasm|glioma|meningioma|metastas[ei]s", Concept("108369006", "Neoplasm")),
)
_TISSUES: tuple[tuple[str, Concept, Concept], ...] = (
    (r"csf|cerebrospinal fluid", SUBSTANCE, Concept("65216001", "Cerebrospinal Fluid")),
    (r"wm|(?:cerebral |normal-appearing )?white(?: matter)?", TISSUE, _WHITE),
    (r"gm|(?:cerebral |cortical |deep |subcortical )?gr[ae]y(?: matter)?|basal ganglia", TISSUE, _GREY),
    (r"(?:cerebral )?cortex", ANATOMY, Concept("40146001", "Cerebral cortex")),
    (r"ventricles?", ANATOMY, Concept("35764002", "Brain ventricle")),
    (r"cerebellum", ANATOMY, Concept("113305005", "Cerebellum")),
    (r"brain[- ]?stem", ANATOMY, Concept("119238007", "Brain Stem")),
    (r"thalamus", ANATOMY, Concept("42695009", "Thalamus")),
    (r"putamen", ANATOMY, Concept("89278009", "Putamen")),
    (r"hippocampus", ANATOMY, Concept("5366008", "Hippocampus")),
    (r"amygdala", ANATOMY, Concept("4958002", "Amygdala")),
    (r"caudate(?: nucleus)?", ANATOMY, Concept("11000004", "Caudate Nucleus")),
    (r"brain", ANATOMY, BRAIN),
)


def codes_of(name: str, kind: str) -> tuple[Concept, Concept]:
    """The category and the type of a structure. Only a whole name is recognised: part of one may mean something else.

    Args:
        kind: "lesion", of which any unknown name is a lesion; or "tissue", of which any unknown name is a tissue.

    >>> codes_of("white matter", "tissue")[1].meaning, codes_of("white matter", "lesion")[1].meaning
    ('White Matter', 'Lesion')
    """
    spelt = " ".join(name.lower().split())
    if kind == "lesion":
        return ABNORMAL, next((code for words, code in _LESIONS if re.fullmatch(words, spelt)), LESION)
    known = ((category, code) for words, category, code in _TISSUES if re.fullmatch(words, spelt))
    return next(known, (TISSUE, TISSUE))
