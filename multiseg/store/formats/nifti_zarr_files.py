"""Write NIfTI-Zarr: see `nifti_zarr`. One level, chunks of 64 voxels a side, all chunks stored, also those of zeros."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec

from multiseg.errors import SourceError, UsageError
from multiseg.files import ZARR_SCAN, check_files
from multiseg.flushing import flush, flush_folders
from multiseg.store.formats.colour_tables import LabelRow
from multiseg.store.formats.nifti_zarr import HEADER, files_of, is_nifti_zarr, open_nifti_zarr
from multiseg.store.formats.volumes import voxel_size_mm

OME = "0.5"
CHUNK = 64


@dataclass(frozen=True, eq=False)
class ZarrContent:
    """What is written into one NIfTI-Zarr.

    Attributes:
        image: of nibabel: [x y z], or with several channels [x y z 1 channel].
        channels: the name of each channel.
        labels: label images on the same grid by name, and what their numbers mean.
    """

    image: Any
    channels: tuple[str, ...]
    labels: Mapping[str, tuple[Any, Sequence[LabelRow]]] = field(default_factory=dict)


def check_zarr_file(path: Path, overwrite: bool) -> None:
    """Check that a NIfTI-Zarr may be written here.

    Raises:
        UsageError: something is there that may not be replaced.
    """
    if not os.path.lexists(path):
        check_files([path], kinds=(ZARR_SCAN,))
        return
    if not overwrite:
        raise UsageError(f"{path} already exists. Choose another name, or pass --overwrite.")
    try:
        if path.is_symlink() or not is_nifti_zarr(path):
            raise SourceError("")
        open_nifti_zarr(path)
    except SourceError as error:
        raise UsageError(f"{path} is not a NIfTI-Zarr, and is not replaced. Choose another name.") from error


def write_nifti_zarr(path: Path, content: ZarrContent) -> None:
    """Write a NIfTI-Zarr. It appears whole, or not at all; one of the same name is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        new = beside / "new"
        group = zarr.create_group(new, zarr_format=3)
        _fill(group, content.image, content.channels)
        if content.labels:
            labels = group.create_group("labels", attributes={"ome": {"version": OME, "labels": list(content.labels)}})
            for name, (image, rows) in content.labels.items():
                _fill(labels.create_group(name), image, (), rows)
        for file in files_of(new):
            with file.open("rb") as opened:
                flush(opened.fileno())
        flush_folders({file.parent for file in files_of(new)})
        if path.exists():
            path.rename(beside / "old")
        try:
            new.rename(path)
        except OSError:
            if (beside / "old").exists():
                (beside / "old").rename(path)
            raise
        flush_folders({path.parent})
    finally:
        shutil.rmtree(beside)


def _fill(group: zarr.Group, image: Any, channels: Sequence[str], rows: Sequence[LabelRow] = ()) -> None:
    header = image.header.copy()
    header.set_slope_inter(1, 0)
    voxels = np.asarray(image.dataobj)
    axes = "zyx" if voxels.ndim == 3 else "czyx"
    stored = voxels.T if voxels.ndim == 3 else voxels[:, :, :, 0].transpose(3, 2, 1, 0)
    chunks = tuple(1 if axis == "c" else min(CHUNK, n) for axis, n in zip(axes, stored.shape, strict=True))
    array = group.create_array(
        "0", shape=stored.shape, chunks=chunks, dtype=stored.dtype, compressors=BloscCodec(), fill_value=0,
        dimension_names=tuple(axes), config={"write_empty_chunks": True},
    )  # fmt: skip
    array[...] = stored
    block = np.frombuffer(header.binaryblock, dtype=np.uint8)
    (size,) = block.shape
    group.create_array(HEADER, shape=(size,), chunks=(size,), dtype="uint8", compressors=None)[...] = block
    group.attrs["ome"] = _ome(axes, image.affine, channels, rows)


def _ome(axes: str, affine: Any, channels: Sequence[str], rows: Sequence[LabelRow]) -> dict[str, Any]:
    sizes = [float(mm) for mm in reversed(voxel_size_mm(affine))]
    space = {"type": "space", "unit": "millimeter"}
    scales = {
        "name": " ".join(channels),
        "axes": [{"name": axis, **({"type": "channel"} if axis == "c" else space)} for axis in axes],
        "datasets": [
            {
                "path": "0",
                "coordinateTransformations": [{"type": "scale", "scale": [*([1.0] * (len(axes) - 3)), *sizes]}],
            }
        ],
    }
    ome: dict[str, Any] = {"version": OME, "multiscales": [scales]}
    if channels:
        ome["omero"] = {"channels": [{"label": name, "active": True} for name in channels]}
    if rows:
        colours = [
            {"label-value": row.number, "rgba": [*bytes.fromhex(row.colour[1:]), 255]} for row in rows if row.kind
        ]
        names = [{"label-value": row.number, "name": row.name} for row in rows]
        ome["image-label"] = {"colors": colours, "properties": names, "source": {"image": "../../"}}
    return ome
