"""Put DICOM files together to volumes, and read their headers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

import numpy as np

from multiseg.errors import SourceError
from multiseg.store.cases import Series
from multiseg.store.formats.dicom_series import IMAGE_TYPE, SAME_DIRECTION, Slice, arrange, read_slice
from multiseg.store.sources.sequence import Acquisition
from multiseg.store.sources.source_folder import grouped

PATIENT, STUDY, STUDY_DATE, STUDY_TIME = "0010|0020", "0020|000d", "0008|0020", "0008|0030"
AGE, SEX, BIRTH = "0010|1010", "0010|0040", "0010|0030"
SERIES, NUMBER, DESCRIPTION, PROTOCOL = "0020|000e", "0020|0011", "0008|103e", "0018|1030"
MODALITY, ECHO, REPETITION, INVERSION = "0008|0060", "0018|0081", "0018|0080", "0018|0082"
CONTRAST, TIME_POINT, ACQUISITION = "0018|0010", "0020|0100", "0020|0012"
B_VALUE, B_SIEMENS, B_GE = "0018|9087", "0019|100c", "0043|1039"
TAGS = (
    PATIENT, STUDY, STUDY_DATE, STUDY_TIME, AGE, SEX, BIRTH, SERIES, NUMBER, DESCRIPTION, PROTOCOL, MODALITY,
    ECHO, REPETITION, INVERSION, CONTRAST, TIME_POINT, ACQUISITION, B_VALUE, B_SIEMENS, B_GE, "0008|0070",
)  # fmt: skip
"""All fields that are read of a header, besides its position: no names, no addresses, no hospital."""
SAME_PLACE_MM = 1e-2
Part: TypeAlias = tuple[str, list[Slice]]
"""Slices of a series, and what distinguishes them from the others."""


@dataclass(frozen=True, eq=False)
class Scan:
    """One volume. `name` is its description, and in brackets what distinguishes it from others of its study."""

    name: str
    description: str
    slices: tuple[Slice, ...]

    def tag(self, key: str) -> str:
        """A field of the header of its first slice, "" if missing."""
        return self.slices[0].tags.get(key, "")

    @cached_property
    def checked(self) -> tuple[Series, SourceError | None]:
        """Its files in order, and the error if they are not a complete volume."""
        try:
            ordered, _ = arrange(self.slices)
        except SourceError as error:
            return Series(tuple(item.path for item in self.slices)), error
        return Series(tuple(item.path for item in ordered)), None

    @property
    def acquisition(self) -> Acquisition:
        """How it was acquired, by its header."""
        return Acquisition(
            description=self.tag(DESCRIPTION),
            protocol=self.tag(PROTOCOL),
            image_type=tuple(self.tag(IMAGE_TYPE).split("\\")),
            modality=self.tag(MODALITY),
            echo_ms=number_in(self.tag(ECHO)),
            repetition_ms=number_in(self.tag(REPETITION)),
            inversion_ms=number_in(self.tag(INVERSION)),
            contrast=self.tag(CONTRAST),
            b_value=b_value_of(self.slices[0]),
        )


def read_slices(paths: Iterable[Path]) -> tuple[list[Slice], list[SourceError]]:
    """The headers of image files, and the errors of those that cannot be read."""
    slices, errors = [], []
    for path in paths:
        try:
            slices.append(read_slice(path, TAGS, private=True))
        except SourceError as error:
            errors.append(error)
    return slices, errors


def scans_of(slices: Sequence[Slice]) -> list[Scan]:
    """The volumes of one study, with unique names; repeats are numbered in the order of the scans."""
    by_series = grouped(slices, lambda item: item.tags.get(SERIES, str(item.path.parent)))
    scans: list[Scan] = []
    counts: Counter[str] = Counter()
    for series in sorted(by_series.values(), key=lambda series: order_of(series, NUMBER, SERIES)):
        tags = series[0].tags
        description = tags.get(DESCRIPTION) or tags.get(PROTOCOL) or f"series {tags.get(NUMBER, '?')}"
        for what, part in _volumes(series):
            name = description + (f" [{what}]" if what else "")
            counts[name] += 1
            number = f" [{counts[name]}]" if counts[name] > 1 else ""
            scans.append(Scan(name + number, description, tuple(part)))
    return scans


def number_in(text: str) -> float | None:
    """The first number in a text; None if it has none."""
    found = re.match(r"\s*([-+]?\d*\.?\d+(?:[eE][-+]?\d+)?)", text)
    return float(found[1]) if found else None


def b_value_of(item: Slice) -> float | None:
    """The diffusion weighting in s/mm2, from the standard's field or the older ones of Siemens and GE."""
    if (value := number_in(item.tags.get(B_VALUE, ""))) is not None:
        return value
    maker = item.tags.get("0008|0070", "").upper()
    if "SIEMENS" in maker:
        return number_in(item.tags.get(B_SIEMENS, ""))
    if "GE" in maker and (value := number_in(item.tags.get(B_GE, ""))) is not None:
        return value % 100_000  # GE adds 1e9 to some
    return None


def order_of(slices: Sequence[Slice], number: str, identifier: str) -> tuple[float, str]:
    """Where slices come in an order by the values of two tags."""
    tags = slices[0].tags
    return number_in(tags.get(number, "")) or 0.0, tags.get(identifier, "")


def _volumes(slices: Sequence[Slice]) -> list[Part]:
    """The volumes of a series: split by direction and, if slices share a position, by what distinguishes volumes."""
    directions = _by_direction(slices)
    parts = []
    for number, group in enumerate(directions, start=1):
        direction = f"direction {number}" if len(directions) > 1 else ""
        parts += [(", ".join(filter(None, (direction, what))), part) for what, part in _by_repeats(group, _SPLITS)]
    return parts


def _by_direction(slices: Sequence[Slice]) -> list[list[Slice]]:
    groups: list[list[Slice]] = []
    for item in slices:
        group = next((group for group in groups if _is_parallel(group[0], item)), None)
        if group is None:
            groups.append([item])
        else:
            group.append(item)
    return groups


def _is_parallel(a: Slice, b: Slice) -> bool:
    if a.place is None or b.place is None:
        return a.place is b.place
    return bool(np.abs(a.place.axes - b.place.axes).max() <= SAME_DIRECTION)


def _by_repeats(slices: list[Slice], splits: Sequence[tuple[str, Callable[[Slice], str]]]) -> list[Part]:
    if not splits or not _share_position(slices):
        return [("", slices)]
    (label, value_of), *rest = splits
    groups = grouped(slices, value_of)
    parts = []
    for value, group in sorted(groups.items(), key=lambda item: (number_in(item[0]) or 0, item[0])):
        text = f"{label} {value}".strip() if len(groups) > 1 else ""
        parts += [(", ".join(filter(None, (text, what))), part) for what, part in _by_repeats(group, rest)]
    return parts


def _share_position(slices: Sequence[Slice]) -> bool:
    """Whether any two of these parallel slices are at the same position."""
    places = [item.place for item in slices if item.place is not None]
    if len(places) < 2:
        return False
    offsets = np.sort([place.position @ places[0].axes[2] for place in places])
    return bool(np.diff(offsets).min() < SAME_PLACE_MM)


def _rounded(key: str) -> Callable[[Slice], str]:
    def value_of(item: Slice) -> str:
        number = number_in(item.tags.get(key, ""))
        return "" if number is None else f"{round(number, 1):g}"

    return value_of


def _b_text(item: Slice) -> str:
    value = b_value_of(item)
    return "" if value is None else f"{value:g}"


_SPLITS: tuple[tuple[str, Callable[[Slice], str]], ...] = (
    ("TE", _rounded(ECHO)),
    ("b", _b_text),
    ("time", _rounded(TIME_POINT)),
    ("", lambda item: " ".join(item.tags.get(IMAGE_TYPE, "").split("\\")[2:])),
    ("TI", _rounded(INVERSION)),
    ("acquisition", _rounded(ACQUISITION)),
)
"""What distinguishes the volumes of a series, in the order in which it is tried."""
