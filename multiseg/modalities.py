"""Names of MRI sequences, and the ordered axis of sequences that a run, a model and a store share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from multiseg.errors import ModalityError
from multiseg.sequence_reading import read_name

CANONICAL_ORDER = ("PD", "FLAIR", "SWI", "T1", "T1c", "T2", "DWI", "ADC", "T2star")

# Spellings in public databases, compared without case, '-', '_', '.' and spaces.
_SPELLINGS = {
    "PD": ("pd", "dp", "pdw", "protondensity"),
    "FLAIR": ("flair", "t2f", "t2flair", "3dflair", "flairw"),
    "SWI": ("swi",),
    "T1": ("t1", "t1w", "t1n", "3dt1", "mprage", "t1mprage"),
    "T1c": ("t1c", "t1ce", "t1gd", "t1post", "gado", "3dt1gado", "t1wks", "cet1w", "t1wgd", "t1wce"),
    "T2": ("t2", "t2w", "t2tse", "t2wtse"),
    "DWI": ("dwi", "trace", "mrdwi"),
    "ADC": ("adc",),
    "T1IR": ("t1ir",),
    "T2star": ("t2star", "t2starw", "t2*", "t2*w"),
}
_BY_SPELLING = {spelling: name for name, spellings in _SPELLINGS.items() for spelling in spellings}


def canonical_modality(name: str) -> str | None:
    """The canonical name of a sequence; None if the spelling is unknown.

    >>> canonical_modality("t1ce"), canonical_modality("T2_FLAIR"), canonical_modality("lesion")
    ('T1c', 'FLAIR', None)
    """
    return _BY_SPELLING.get(_plain(name))


def _plain(spelling: str) -> str:
    return re.sub(r"[-_. ]", "", spelling).lower()


def known_spelling_like(name: str, more: Iterable[str] = ()) -> str | None:
    """The name of the sequence, a known one or one of `more`, whose spelling is nearest; None if none is near.

    >>> known_spelling_like("FLIAR"), known_spelling_like("T1cee"), known_spelling_like("qms", ["QSM"])
    ('FLAIR', 'T1c', 'QSM')
    """
    spellings = _BY_SPELLING | {_plain(other): other for other in more}
    near = get_close_matches(_plain(name), spellings, n=1)
    return spellings[near[0]] if near else None


def modality_of_file_name(file_name: str) -> str | None:
    """The sequence in a file's name; None if it has none or several, or is not the name of a scan.

    'sub-01_T2_FLAIR.nii.gz' is FLAIR and 'sub-01_ce-gadolinium_T1w.nii.gz' is T1c, but 'P1_T1_FLAIR.nii.gz' names two
    sequences and 'T1_pve_0.nii.gz' is a tissue map. `sequence_reading.read_name` gives the reason.
    """
    return read_name(file_name).sequence


def as_names(names: str | Iterable[str]) -> tuple[str, ...]:
    """Names as a tuple. A single string is one name.

    >>> as_names("FLAIR"), as_names(["FLAIR", "T1"])
    (('FLAIR',), ('FLAIR', 'T1'))
    """
    return (names,) if isinstance(names, str) else tuple(names)


def in_canonical_order(names: Iterable[str]) -> tuple[str, ...]:
    """Distinct names: first the canonical ones in their order, then the others in the given order."""
    distinct = list(dict.fromkeys(names))
    canonical = [name for name in CANONICAL_ORDER if name in distinct]
    return tuple(canonical + [name for name in distinct if name not in CANONICAL_ORDER])


@dataclass(frozen=True)
class ModalityAxis:
    """An ordered tuple of sequence names: input channel c of a model is `axis[c]`.

    Raises:
        ModalityError: there is no name, or a name is empty or occurs twice.
    """

    names: str | tuple[str, ...]

    def __post_init__(self) -> None:
        # The dataclass is frozen.
        object.__setattr__(self, "names", as_names(self.names))
        if not self.names or "" in self.names or len(set(self.names)) != len(self.names):
            raise ModalityError(f"a modality axis needs one or more distinct names, but got {list(self.names)}.")

    @classmethod
    def union(cls, lists: Iterable[Iterable[str]]) -> ModalityAxis:
        """The union of several databases' sequences, in canonical order, then unknown names."""
        return cls(in_canonical_order(name for names in lists for name in names))

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __getitem__(self, channel: int) -> str:
        return self.names[channel]

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def channels(self, names: Sequence[str]) -> list[int]:
        """The channel of each name.

        Raises:
            ModalityError: a name is not on the axis.
        """
        missing = [name for name in names if name not in self.names]
        if missing:
            raise ModalityError(f"no channel for {', '.join(missing)}: the axis has {', '.join(self.names)}.")
        return [self.names.index(name) for name in names]

    def grown(self, names: Iterable[str]) -> ModalityAxis:
        """This axis with new names appended; existing channels keep their index."""
        new = in_canonical_order(name for name in names if name not in self.names)
        return ModalityAxis((*self, *new))
