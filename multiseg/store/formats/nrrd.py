"""Parse the header of a NRRD file. https://teem.sourceforge.net/nrrd/format.html"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from multiseg.store.formats.text_header import TextHeader, numbers, whole_numbers

DTYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": ("longlong", "long long", "long long int", "signed long long", "signed long long int", "int64", "int64_t"),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}
"""NRRD's names of each type, by numpy's."""
ENCODINGS = {"raw": "raw", "gz": "gzip", "gzip": "gzip", "bz2": "bzip2", "bzip2": "bzip2"}
SPACES = {
    "right-anterior-superior": (1, 1, 1), "ras": (1, 1, 1), "left-anterior-superior": (-1, 1, 1), "las": (-1, 1, 1),
    "left-posterior-superior": (-1, -1, 1), "lps": (-1, -1, 1),
}  # fmt: skip
"""The signs that turn the axes of a space to RAS+. A space with "-time" has the same signs."""


def parse(fields: Mapping[str, str]) -> TextHeader:
    """The header that these fields describe.

    Raises:
        ValueError: a field is missing or invalid.
    """
    sizes = whole_numbers(fields, "sizes")
    if whole_numbers(fields, "dimension") != (len(sizes),):
        raise ValueError(f"dimension is {fields['dimension']} but sizes are {fields['sizes']}")
    encoding = ENCODINGS.get(fields.get("encoding", "").lower())
    if encoding is None:
        raise ValueError(f"encoding {fields.get('encoding')!r} is not supported; {', '.join(ENCODINGS)} are")
    kinds = fields.get("kinds", "").lower().split()
    vectors = _vectors(fields.get("space directions", ""), len(sizes))
    space = fields.get("space", "").lower().removesuffix("-time")
    axes, directions = _directed_axes(vectors) if vectors else _spaced_axes(fields, kinds, len(sizes))
    # ITK takes an unknown space as LPS, too.
    signs = np.array(SPACES.get(space, SPACES["lps"]), dtype=np.float64)
    origin = _vectors(fields.get("space origin", ""), 1) or [(0.0, 0.0, 0.0)]
    unplaced = f"no orientation in the header (its space is {space or 'not named'})"
    return TextHeader(
        sizes=sizes,
        space_axes=axes,
        dtype=_dtype(fields),
        directions=signs[:, None] * directions,
        origin=signs * _three(origin[0]),
        encoding=encoding,
        line_skip=_skip(fields, "line skip", "lineskip", lowest=0),
        byte_skip=_skip(fields, "byte skip", "byteskip", lowest=-1),
        units=frozenset(re.findall(r"[^\s\"]+", fields.get("space units", ""))),
        is_coloured=any("color" in kind for kind in kinds) or _is_coloured(sizes, kinds, fields.get("type", "")),
        is_complex="complex" in kinds,
        is_sized=bool(vectors or fields.get("spacings") or fields.get("thicknesses")),
        why_unplaced="" if space in SPACES and vectors else unplaced,
    )


def _dtype(fields: Mapping[str, str]) -> np.dtype:
    name = fields.get("type", "").lower()
    code = next((code for code, names in DTYPES.items() if name in names), None)
    if code is None:
        raise ValueError(f"type {name!r} is not supported")
    endian = {"little": "<", "big": ">"}.get(fields.get("endian", "").lower())
    # One-byte types have no byte order.
    if endian is None and not code.endswith("1"):
        raise ValueError("it does not give the byte order (endian)")
    return np.dtype((endian or "<") + code)


def _is_coloured(sizes: tuple[int, ...], kinds: list[str], name: str) -> bool:
    """Whether a voxel is a vector of three or four bytes, as ITK writes colours."""
    is_vector = [size in (3, 4) and "vector" in kind for size, kind in zip(sizes, kinds, strict=False)]
    return any(is_vector) and name.lower() in DTYPES["u1"]


def _vectors(text: str, count: int) -> list[tuple[float, ...] | None]:
    """Vectors such as "(1,0,0) none (0,0,3)"; an empty list if the text is empty."""
    if not text.strip():
        return []
    parts = re.findall(r"\([^()]*\)|none", text)
    if len(parts) != count:
        raise ValueError(f"{text!r} must be {count} vectors")
    return [None if part == "none" else numbers(part.strip("()").replace(",", " ")) for part in parts]


def _directed_axes(vectors: list[tuple[float, ...] | None]) -> tuple[tuple[int, ...], np.ndarray]:
    """The axes that have a direction in space, and their directions as columns."""
    axes = tuple(axis for axis, vector in enumerate(vectors) if vector is not None)[:3]
    if len(axes) < 3:
        return axes, np.eye(3)
    return axes, np.stack([_three(vectors[axis]) for axis in axes], axis=1)


def _spaced_axes(fields: Mapping[str, str], kinds: list[str], num_axes: int) -> tuple[tuple[int, ...], np.ndarray]:
    """Without directions: the first three axes of a spatial kind, and their spacing as a diagonal matrix."""
    if kinds and len(kinds) != num_axes:
        raise ValueError(f"kinds {' '.join(kinds)!r} must be {num_axes} words")
    axes = tuple(axis for axis in range(num_axes) if not kinds or kinds[axis] in ("domain", "space", "???", "none"))[:3]
    text = fields.get("spacings") or fields.get("thicknesses") or " ".join(["1"] * num_axes)
    sizes = text.lower().split()
    if len(sizes) != num_axes:
        raise ValueError(f"spacings {text!r} must be {num_axes} numbers")
    if len(axes) < 3:
        return axes, np.eye(3)
    return axes, np.diag([numbers(sizes[axis])[0] for axis in axes])


def _three(vector: tuple[float, ...] | None) -> np.ndarray:
    if vector is None or len(vector) < 3:
        raise ValueError(f"the vector {vector} must have three numbers")
    return np.array(vector[:3])


def _skip(fields: Mapping[str, str], *names: str, lowest: int) -> int:
    text = next((fields[name] for name in names if name in fields), "0")
    if not re.fullmatch(r"-?\d+", text) or int(text) < lowest:
        raise ValueError(f"{names[0]} is {text!r}")
    return int(text)
