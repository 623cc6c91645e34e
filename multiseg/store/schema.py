"""The layout of a database on disk, as data: the arrays, their axes, types and meaning.

A store is one Zarr v3 hierarchy with one group per database. The arrays of a group share the axes named here. Cases of
different sizes are stored at the corner of one array, and empty chunks take no space.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

FORMAT = 3
CONVERTED = 2
"""The older format that `multiseg upgrade` converts."""
INNER = 32
"""Edge of a compressed chunk, in voxels: the unit that a patch is read in."""
SHARD = 256
"""Edge of a shard (one file), in voxels: large enough for any head at 1 mm, so that a case is one file."""
ROWS = 1024
"""Cases that share one chunk of a coordinate."""
HEADER_BYTES = 540
"""Room for a NIfTI-1 (348 bytes) or NIfTI-2 (540 bytes) header."""
FOREGROUND_POINTS = 256
"""Sampled voxels kept for each structure of each annotation."""

PENDING, COMMITTED, SUPERSEDED = 0, 1, 2
"""The states of a row. Only committed rows are data, and only pending rows are free. Superseded rows stay, since a
reader that opened the store before a case was replaced still reads its old row."""
STATUS_ROWS = 2**20
"""Cases in the one chunk of `status`: writing a single file commits or replaces a case."""
ROWS_OF = {"foreground": 1, "record": 1, "status": STATUS_ROWS}
"""Cases per chunk of the arrays where it is not `ROWS`."""


@dataclass(frozen=True)
class Variable:
    """One coordinate of a database."""

    axes: tuple[str, ...]
    dtype: str
    fill: Any
    meaning: str


COORDINATES: dict[str, Variable] = {
    "case": Variable(("case",), "string", "", "name of the case, unique in its database"),
    "subject": Variable(("case",), "string", "", "the person; splits never divide one"),
    "session": Variable(("case",), "string", "", "the visit"),
    "site": Variable(("case",), "string", "", "where it was acquired"),
    "split": Variable(("case",), "string", "", "train, val or test"),
    "split_given": Variable(("case",), "bool", False, "whether the split was given, not drawn"),
    "status": Variable(("case",), "uint8", PENDING, "0 pending, 1 committed, 2 superseded"),
    "extent": Variable(("case", "axis"), "int32", 0, "voxels of the case along i, j, k; it lies in the corner"),
    "affine": Variable(("case", "row", "column"), "float64", 0.0, "voxel indices to RAS+ millimetres"),
    "native_shape": Variable(("case", "axis"), "int32", 0, "shape of the reference image's file"),
    "native_affine": Variable(("case", "row", "column"), "float64", 0.0, "affine of the reference image's file"),
    "native_header": Variable(("case", "header_byte"), "uint8", 0, "raw NIfTI header of the reference image"),
    "source_sha256": Variable(("case",), "string", "", "digest over all source files and their roles"),
    "sources": Variable(("case",), "string", "", "JSON: every source file, its sha256 and each step it took"),
    "modality": Variable(("modality",), "string", "", "MRI sequence"),
    "available": Variable(("case", "modality"), "bool", False, "whether the case has the sequence"),
    "intensity_mean": Variable(("case", "modality"), "float64", float("nan"), "raw = image * std + mean"),
    "intensity_std": Variable(("case", "modality"), "float64", float("nan"), "raw = image * std + mean"),
    "content": Variable(("case", "modality"), "string", "", "digest of the sequence's voxels: equal for the same scan"),
    "annotation": Variable(("annotation",), "string", "", "what one rater or tool looked for"),
    "annotated": Variable(("case", "annotation"), "bool", False, "whether the case has the annotation"),
    "foreground_count": Variable(
        ("case", "annotation", "structure"), "int64", 0, "voxels of each structure (code - 1)"
    ),
    "foreground": Variable(
        ("case", "annotation", "structure", "point", "axis"), "int16", -1, "sampled voxels of each structure"
    ),
    "shards": Variable(("case",), "string", "", "files that the case has in image, label and foreground"),
    "revision": Variable(("case",), "int64", 0, "grows with each change in the database; negative during a change"),
    "record": Variable(("case",), "string", "", "JSON: all that the other coordinates say of the case"),
}
"""All arrays except the two big ones. Participants' columns are added along `case` as "string" or "float64"."""

TEMPLATE = "template"
"""The attribute of a database whose cases were registered to a template: its name and sha256. Only such a database has
the coordinates of `OF_TEMPLATE`, so stores from before them open as they are. It is written after these coordinates."""
OF_TEMPLATE = {
    "to_template": Variable(
        ("case", "row", "column"), "float64", float("nan"), "RAS+ mm of the case to those of the template; NaN: unknown"
    )
}
"""The coordinates of a database whose cases were registered to a template."""

VOLUMES = {
    "image": Variable(("case", "modality", "i", "j", "k"), "float16", 0, "normalised intensity, 0 outside the brain"),
    "label": Variable(("case", "annotation", "i", "j", "k"), "uint8", 0, "codes of the structures"),
}
"""The two big arrays."""
FIXED_AXES = {"axis": 3, "row": 4, "column": 4, "header_byte": HEADER_BYTES, "point": FOREGROUND_POINTS}
"""The lengths of the axes that are the same in every database."""
BY_CASE = ("image", "label", "foreground")
"""The arrays with files of their own for each case, which its `shards` name. Of all other arrays, every chunk that
contains a committed or superseded row exists, even if it holds only fill values: a missing chunk is damage."""
BOOKKEEPING = ("shards", "revision", "record")
"""Coordinates for the store's own bookkeeping; they are left out of xarray datasets."""
REMOVED, REMOVING = "removed", "removing"
"""Attributes of a database: the date and digests of the scans that were removed from it; and the rows that are being
removed. Readers skip these rows, and the next writer empties them if the one that began to has died."""
NAMED_AXES = {"modality": "modalities", "annotation": "annotations"}
"""Axes with names, and the attributes that list these names for readers that cannot read arrays of texts."""
NUM_STRUCTURES = "num_structures"
"""The attribute with the length of the axis `structure`. Like the lists of names, it is written after every array has
grown, so that it tells which chunks must exist."""
IMAGE_ATTRIBUTES = {"long_name": VOLUMES["image"].meaning, "scale_factor": 1.0}
"""Attributes of the image array. By the CF conventions, the scale factor makes xarray decode to its type, float64: in
float16, sums above 65,504 overflow, and so do the means of large lesions. Our own readers use the stored float16."""
RESERVED = frozenset(
    name for array, variable in (COORDINATES | OF_TEMPLATE | VOLUMES).items() for name in (array, *variable.axes)
)
"""Names that no participants' column may have: those of arrays, and of axes, which xarray takes for coordinates."""
PARTICIPANT_COLUMNS = "participant_columns"
"""The attribute with the names of a database's own columns. A plain web server lists no files, so every name is stored:
databases in the root's attributes, arrays in `COORDINATES` and here."""

CODECS: dict[str, tuple[BloscCodec | Crc32cCodec, ...]] = {
    "none": (Crc32cCodec(),),
    "lz4": (BloscCodec(cname="lz4", clevel=5, shuffle="noshuffle"), Crc32cCodec()),
    "lz4hc": (BloscCodec(cname="lz4hc", clevel=5, shuffle="noshuffle"), Crc32cCodec()),
    "zstd": (BloscCodec(cname="zstd", clevel=3, shuffle="shuffle"), Crc32cCodec()),
}
"""Codecs of the image by name: faster and larger first. A label always uses the codec that decodes it fastest, since
its compressed size hardly matters."""
LABEL_CODEC = "lz4hc"
COORDINATE_CODECS = (ZstdCodec(level=0), Crc32cCodec())
"""Codecs of every other array: zarr's default, and a checksum."""


def coordinates_of_database(attributes: Mapping[str, Any]) -> dict[str, Variable]:
    """The coordinates of a database with these attributes, without participants' columns."""
    return COORDINATES | (OF_TEMPLATE if TEMPLATE in attributes else {})
