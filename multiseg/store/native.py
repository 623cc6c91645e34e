"""Exporting a case on its native grid: the voxel grid and NIfTI header of its reference image."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from jaxtyping import Num
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation, ornt_transform

from multiseg.errors import StoreError, UsageError
from multiseg.files import check_files, write_atomically
from multiseg.store.formats.colour_tables import LabelRow
from multiseg.store.formats.label_table import rows_of_schema, table_files
from multiseg.store.formats.nifti import image_like, new_image, write_like, write_nifti
from multiseg.store.formats.nifti_zarr import sha256_of_folder
from multiseg.store.formats.nifti_zarr_files import ZarrContent, check_zarr_file, write_nifti_zarr
from multiseg.store.formats.volumes import same_grid
from multiseg.store.preparation.grids import Grid, resample, resample_codes
from multiseg.store.reader import Case, Database
from multiseg.types import Array, Codes, Voxels

_RAS = np.array([[0, 1], [1, 1], [2, 1]])


WRITTEN_LABELS = ".multiseg-labels.json"
"""By the name of each written label the SHA-256 of its file."""


def ras_grid(native: Grid) -> Grid:
    """The grid of the same voxels with its axes permuted and flipped to be closest to right, anterior, superior."""
    orientation = io_orientation(native.affine)
    i, j, k = (int(native.shape[np.flatnonzero(orientation[:, 0] == axis)[0]]) for axis in range(3))
    return Grid(native.affine @ inv_ornt_aff(orientation, native.shape), (i, j, k))


def to_native_axes(voxels: Voxels, native: Grid) -> Num[np.ndarray, "native_i native_j native_k"]:
    """Permute and flip voxels on `ras_grid(native)` to the axes of the native grid."""
    turn = ornt_transform(_RAS, io_orientation(native.affine))
    return np.ascontiguousarray(apply_orientation(voxels, turn))


def native_label(database: Database, case: Case, annotation: str) -> Codes:
    """An annotation's compact codes on the native grid of the case's reference image.

    If the store has the same voxel size, these are exactly the voxels that ingest read. Otherwise each voxel gets the
    code with the largest share in it, as in ingest.

    Raises:
        StoreError: the case does not have the annotation.
    """
    annotations = _annotations_of(database, case)
    if annotation not in annotations:
        raise StoreError(
            f"case {case.name!r} of {database.name!r} has no annotation {annotation!r}. It has: "
            f"{', '.join(annotations) or 'none'}."
        )
    native, _ = database.native(case)
    codes = database.codes(case, (0, 0, 0), case.extent)[list(database.schemas).index(annotation)]
    return to_native_axes(resample_codes(codes, case.grid, ras_grid(native)), native)


def native_image(database: Database, case: Case, modality: str) -> Num[np.ndarray, "native_i native_j native_k"]:
    """A sequence in its raw intensities on the native grid of the case's reference image; 0 outside the brain.

    Values have the precision of float16 and the resolution of the store's voxels. If the recipe has N4 or histogram
    standardisation, they are those after it. A voxel of exactly the mean intensity is stored as 0, like one outside the
    brain, and so becomes 0.

    Raises:
        StoreError: the case does not have the sequence.
    """
    if modality not in case.modalities:
        message = f"case {case.name!r} of {database.name!r} has no {modality!r}. It has: {', '.join(case.modalities)}."
        raise StoreError(message)
    channel = database.modalities.index(modality)
    mean, std = case.intensity[modality]
    normalised = database.image(case, (0, 0, 0), case.extent)[channel].astype(np.float32)
    native, _ = database.native(case)
    target = ras_grid(native)
    # No smoothing: where native voxels are larger, the store's were interpolated from them and hold no finer detail.
    share = resample((normalised != 0).astype(np.float32), case.grid, target, smooth=False)
    # At the brain's border, undo the averaging with the zeros outside.
    raw = resample(normalised, case.grid, target, smooth=False) / np.maximum(share, 0.25) * std + mean
    return to_native_axes(np.where(share > 0.5, raw, 0).astype(np.float32), native)


def write_native(database: Database, case: Case, folder: Path, overwrite: bool = False) -> tuple[Path, ...]:
    """Write all volumes of a case to a folder, as NIfTI on its reference image's grid.

    Each sequence becomes NAME.nii.gz in raw intensities (float32), and each annotation label-NAME.nii.gz in the
    source's own numbers. Their meanings are in the file and in label-NAME.tsv. If several of the source's numbers
    became one structure, the first of them stands for all. `WRITTEN_LABELS` tells later which labels somebody changed.

    Returns:
        The paths of the written volumes and tables, the tables last.

    Raises:
        UsageError: a file exists and `overwrite` is false, or it is one of the files that the database was read from.
    """
    native, header = database.native(case)
    annotations = _annotations_of(database, case)
    images = {name: folder / f"{_file_name(name)}.nii.gz" for name in case.modalities}
    labels = {name: folder / f"label-{_file_name(name)}.nii.gz" for name in annotations}
    meanings = {name: rows_of_schema(database.schemas[name]) for name in annotations}
    tables = [file for name, path in labels.items() for file in table_files(path, meanings[name])]
    paths = (*images.values(), *labels.values(), *tables)
    if len(set(paths)) < len(paths):
        raise UsageError(
            f"two files of {case.name!r} in {folder} would have the same name. Rename its sequences or annotations."
        )
    check_files(paths, _sources_among(database, paths), overwrite)
    for name, path in images.items():
        write_on_native(path, native_image(database, case, name), native, header)
    for name, path in labels.items():
        labelled = database.schemas[name].decode(native_label(database, case, name))
        write_on_native(path, labelled, native, header, meanings[name])
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in labels.values()}
    write_atomically(folder / WRITTEN_LABELS, (json.dumps(digests, indent=1) + "\n").encode())
    return paths


def is_as_written(label: Path) -> bool:
    """Whether a label is still the file that `write_native` wrote; False where nothing tells."""
    try:
        digests = json.loads((label.parent / WRITTEN_LABELS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    written = digests.get(label.name) if isinstance(digests, dict) else None
    return bool(written == hashlib.sha256(label.read_bytes()).hexdigest())


def write_native_zarr(database: Database, case: Case, path: Path, overwrite: bool = False) -> tuple[Path, ...]:
    """Write a case as one NIfTI-Zarr on its reference image's grid: its sequences are the channels, in their order.

    Each annotation is a label image in it, labels/NAME, in the source's own numbers; see `write_native`.

    Returns:
        The path of the written folder.

    Raises:
        UsageError: something is there that may not be replaced.
    """
    check_zarr_file(path, overwrite)
    if path.exists() and sha256_of_folder(path) in _source_digests(database):
        raise UsageError(f"{path} is a file that {database.name} was read from, which is never overwritten.")
    native, header = database.native(case)
    images = [native_image(database, case, name) for name in case.modalities]
    array = images[0] if len(images) == 1 else np.stack(images, axis=-1)[:, :, :, None]
    labels = {}
    for name in _annotations_of(database, case):
        schema = database.schemas[name]
        codes = schema.decode(native_label(database, case, name))
        labels[_file_name(name)] = (_image_on_native(codes, native, header), rows_of_schema(schema))
    write_nifti_zarr(path, ZarrContent(_image_on_native(array, native, header), tuple(case.modalities), labels))
    return (path,)


def _annotations_of(database: Database, case: Case) -> list[str]:
    """The names of the annotations that a case has."""
    return [name for name, has_it in zip(database.schemas, case.annotated, strict=True) if has_it]


def _sources_among(database: Database, paths: Sequence[Path]) -> list[Path]:
    """The files among these that a case was read from, by their contents."""
    digests = _source_digests(database)
    return [path for path in paths if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() in digests]


def _source_digests(database: Database) -> set[str]:
    return {source["sha256"] for case in database.cases for source in database.sources(case)}


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.+ -]", "_", name)


def write_on_native(
    path: Path, array: Array, native: Grid, header: bytes, labels: Sequence[LabelRow] = (), tables: bool = True
) -> None:
    """Write an array on a native grid, with the reference's NIfTI header if that has the grid's affine.

    It has not if the reference was no NIfTI file, or if its header was not trusted.

    Args:
        labels, tables: as in `nifti.write_like`.
    """
    if _has_affine_of(header, native):
        write_like(path, array, header, labels, tables)
    else:
        write_nifti(path, array, native.affine, labels, tables)


def _image_on_native(array: Array, native: Grid, header: bytes) -> nib.Nifti1Image | nib.Nifti2Image:
    """The image that `write_on_native` writes."""
    return image_like(array, header) if _has_affine_of(header, native) else new_image(array, native.affine)


def _has_affine_of(header: bytes, native: Grid) -> bool:
    """Whether a raw NIfTI header has the affine of the grid."""
    kind = {348: nib.Nifti1Header, 540: nib.Nifti2Header}.get(len(header))
    return kind is not None and same_grid(kind(header, check=False).get_best_affine(), native.affine, native.shape)
