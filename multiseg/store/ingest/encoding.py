"""Encoding a prepared case into the bytes of its shards. Many workers encode; one process writes."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

import numpy as np
import zarr
from jaxtyping import Float, Int, Int16, UInt8
from numcodecs import Zstd
from zarr.storage import MemoryStore

from multiseg.labels import LabelSchema
from multiseg.store import schema
from multiseg.store.ingest.packing import shards_of, with_checksum
from multiseg.store.preparation.grids import Grid, sample_foreground
from multiseg.store.preparation.prepare import PreparedCase
from multiseg.types import Affine

Index5: TypeAlias = tuple[int, int, int, int, int]


@dataclass(frozen=True)
class ArrayPlan:
    """The chunks and codec of a database's two big arrays, and the names along their first axes.

    `modality_chunk`, `annotation_shard` and `structure_chunk` (of the coordinates) were fixed when the arrays were
    created; the axes may have grown since.
    """

    modalities: tuple[str, ...]
    annotations: tuple[str, ...]
    schemas: Mapping[str, LabelSchema]
    modality_chunk: int
    annotation_shard: int
    codec: str
    structure_chunk: int = 1

    @property
    def num_structures(self) -> int:
        return max((len(labels.structures) for labels in self.schemas.values()), default=0)

    def chunks(self, name: str) -> tuple[Index5, Index5]:
        """The shapes of an inner chunk and of a shard of "image" or "label"."""
        inner, shard = schema.INNER, schema.SHARD
        in_chunk, in_shard = (self.modality_chunk,) * 2 if name == "image" else (1, self.annotation_shard)
        return (1, in_chunk, inner, inner, inner), (1, in_shard, shard, shard, shard)

    def template(self, name: str) -> zarr.Array:
        """The array "image" or "label" without rows, in memory."""
        return _template(name, *self.chunks(name), self.codec if name == "image" else schema.LABEL_CODEC)


@cache
def _template(name: str, chunks: Index5, shards: Index5, codec: str) -> zarr.Array:
    variable, attributes = schema.VOLUMES[name], schema.IMAGE_ATTRIBUTES if name == "image" else None
    return zarr.create_array(
        MemoryStore(), shape=(0,) * 5, chunks=chunks, shards=shards, dtype=variable.dtype, fill_value=variable.fill,
        dimension_names=variable.axes, attributes=attributes, compressors=schema.CODECS[codec],
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class EncodedCase:
    """Everything that a store keeps of a case.

    `shards` are the non-empty files of "image", "label" and "foreground", by the array's name and the part of the key
    after the row, such as "image/0/0/0/0".
    """

    modalities: tuple[str, ...]
    labels: tuple[str, ...]
    shards: Mapping[str, bytes]
    foreground_count: Int[np.ndarray, "annotation structure"]
    grid: Grid
    native: Grid
    native_header: bytes
    mean: Float[np.ndarray, " modality"]
    std: Float[np.ndarray, " modality"]
    content: tuple[str, ...]
    sources: tuple[dict[str, Any], ...]
    to_template: Affine | None = None


def encode(case: str, prepared: PreparedCase, plan: ArrayPlan, to_template: Affine | None = None) -> EncodedCase:
    """Encode a case. The same case always gives the same bytes, on any worker and for any row."""
    counts, points = points_of(case, prepared.labels, plan.annotations, plan.schemas)
    return EncodedCase(
        modalities=prepared.modalities,
        labels=tuple(prepared.labels),
        shards=_shards(prepared, plan) | packed_points(points, plan.structure_chunk),
        foreground_count=counts,
        grid=prepared.grid,
        native=prepared.native,
        native_header=prepared.native_header,
        mean=prepared.mean,
        std=prepared.std,
        content=prepared.content,
        sources=prepared.sources,
        to_template=to_template,
    )


def points_of(
    case: str,
    labels: Mapping[str, UInt8[np.ndarray, "i j k"]],
    annotations: Sequence[str],
    schemas: Mapping[str, LabelSchema],
) -> tuple[Int[np.ndarray, "annotation structure"], Int16[np.ndarray, "annotation structure point 3"]]:
    """The number of voxels of each structure, and up to 256 of these voxels, sampled at random.

    The seed is made from the names of case and annotation, so that the same labels give the same points.

    Args:
        labels: the compact codes of the annotations that the case has.
        annotations: all annotations of the database, in their order.
    """
    shape = (len(annotations), max((len(codes.structures) for codes in schemas.values()), default=0))
    counts = np.zeros(shape, dtype=np.int64)
    points = np.full((*shape, schema.FOREGROUND_POINTS, 3), -1, dtype=np.int16)
    for name, codes in labels.items():
        index, num_structures = annotations.index(name), len(schemas[name].structures)
        seed = zlib.crc32(f"{case}/{name}".encode())
        sampled = sample_foreground(codes, num_structures, schema.FOREGROUND_POINTS, seed)
        counts[index, :num_structures], points[index, :num_structures] = sampled
    return counts, points


def _shards(prepared: PreparedCase, plan: ArrayPlan) -> dict[str, bytes]:
    """The shards of both arrays."""
    extent = prepared.grid.shape
    images = np.zeros((len(plan.modalities), *extent), dtype=np.float16)
    for name, volume in zip(prepared.modalities, prepared.images, strict=True):
        images[plan.modalities.index(name)] = volume
    codes = np.zeros((max(1, len(plan.annotations)), *extent), dtype=np.uint8)
    for name, volume in prepared.labels.items():
        codes[plan.annotations.index(name)] = volume
    packed = {}
    for name, voxels, codec in (("image", images, plan.codec), ("label", codes, schema.LABEL_CODEC)):
        chunk, shard = plan.chunks(name)
        for place, shard_bytes in shards_of(voxels, chunk[1:], shard[1:], codec):
            packed[f"{name}/{place}"] = shard_bytes
    return packed


def packed_points(points: Int16[np.ndarray, "annotation structure point 3"], chunk: int) -> dict[str, bytes]:
    """The non-empty chunks of "foreground", encoded as zarr does with `schema.COORDINATE_CODECS`."""
    packed = {}
    for annotation, of_annotation in enumerate(points):
        for number, start in enumerate(range(0, len(of_annotation), chunk)):
            block = np.full((chunk, *of_annotation.shape[1:]), -1, dtype="<i2")
            part = of_annotation[start : start + chunk]
            block[: len(part)] = part
            if (block >= 0).any():
                packed[f"foreground/{annotation}/{number}/0/0"] = with_checksum(Zstd(level=0).encode(block))
    return packed
