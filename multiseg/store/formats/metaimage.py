"""Parse the header of a MetaImage file. https://itk.org/Wiki/ITK/MetaIO/Documentation"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from multiseg.store.formats.text_header import TextHeader, numbers, whole_numbers

LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])
DTYPES = {
    "CHAR": "i1", "UCHAR": "u1", "SHORT": "i2", "USHORT": "u2", "INT": "i4", "UINT": "u4", "LONG": "i4", "ULONG": "u4",
    "LONG_LONG": "i8", "ULONG_LONG": "u8", "FLOAT": "f4", "DOUBLE": "f8",
}  # fmt: skip
"""numpy's types by MetaImage's names. A LONG has 4 bytes."""
_TRUE = ("true", "t", "1")


def parse(fields: Mapping[str, str]) -> TextHeader:
    """The header that these fields describe.

    Raises:
        ValueError: a field is missing or invalid.
    """
    sizes = whole_numbers(fields, "dimsize")
    num_axes = len(sizes)
    if whole_numbers(fields, "ndims") != (num_axes,):
        raise ValueError(f"NDims is {fields['ndims']} but DimSize is {fields['dimsize']}")
    if fields.get("binarydata", "true").lower() not in _TRUE:
        raise ValueError("text voxels (BinaryData = False) are not supported")
    (channels,) = whole_numbers(fields, "elementnumberofchannels", "1")
    kind = fields.get("elementtype", "").upper().removeprefix("MET_").removesuffix("_ARRAY")
    if kind not in DTYPES:
        raise ValueError(f"ElementType {fields.get('elementtype')!r} is not supported")
    is_big_endian = _first(fields, ("elementbyteordermsb", "binarydatabyteordermsb"), "false").lower() in _TRUE
    spacing = _numbers(_first(fields, ("elementspacing", "elementsize"), " ".join(["1"] * num_axes)), num_axes)
    # MetaIO reads all of these names.
    matrix = _first(fields, ("transformmatrix", "rotation", "orientation"), "")
    rotation = np.array(_numbers(matrix, num_axes**2)) if matrix else np.eye(num_axes)
    origin = _numbers(_first(fields, ("offset", "position", "origin"), " ".join(["0"] * num_axes)), num_axes)
    skip = _numbers(fields.get("headersize") or "0", 1)[0]
    is_flat = num_axes < 3
    directions = np.eye(3) if is_flat else rotation.reshape(num_axes, num_axes)[:3, :3].T * spacing[:3]
    has_channels = channels > 1
    return TextHeader(
        sizes=(channels, *sizes) if has_channels else sizes,
        space_axes=tuple(range(has_channels, has_channels + min(3, num_axes))),
        dtype=np.dtype((">" if is_big_endian else "<") + DTYPES[kind]),
        directions=LPS_TO_RAS[:, None] * directions,
        origin=np.zeros(3) if is_flat else LPS_TO_RAS * origin[:3],
        encoding="zlib" if fields.get("compresseddata", "false").lower() in _TRUE else "raw",
        byte_skip=max(-1, int(skip)),
        slope=numbers(fields.get("elementtointensityfunctionslope") or "1")[0],
        intercept=numbers(fields.get("elementtointensityfunctionoffset") or "0")[0],
        units=frozenset(fields.get("distanceunits", "").split()),
        is_coloured=channels in (3, 4) and kind == "UCHAR",
        is_sized=bool(_first(fields, ("elementspacing", "elementsize"), "")),
        why_unplaced="" if matrix else "no orientation in the header (no TransformMatrix)",
    )


def _first(fields: Mapping[str, str], names: tuple[str, ...], default: str) -> str:
    return next((fields[name] for name in names if fields.get(name)), default)


def _numbers(text: str, count: int) -> tuple[float, ...]:
    values = numbers(text)
    if len(values) != count:
        raise ValueError(f"{text!r} must be {count} numbers")
    return values
