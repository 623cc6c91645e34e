"""The way home: what the store holds of a case, on the voxel grid and with the header of its reference image."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from jaxtyping import Num
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation, ornt_transform

from multiseg.errors import StoreError, UsageError
from multiseg.files import check_files
from multiseg.store.formats.label_table import LabelRow, rows_of_schema, table_files
from multiseg.store.formats.nifti import write_like, write_nifti
from multiseg.store.formats.volumes import same_grid
from multiseg.store.preparation.grids import Grid, resample, resample_codes
from multiseg.store.reader import Case, Database
from multiseg.types import Array, Codes, Voxels

_RAS = np.array([[0, 1], [1, 1], [2, 1]])


def ras_twin(native: Grid) -> Grid:
    """A grid of the same voxels with its axes permuted and flipped so that they run closest to right, front, up."""
    orientation = io_orientation(native.affine)
    i, j, k = (int(native.shape[np.flatnonzero(orientation[:, 0] == axis)[0]]) for axis in range(3))
    return Grid(native.affine @ inv_ornt_aff(orientation, native.shape), (i, j, k))


def turned_home(voxels: Voxels, native: Grid) -> Num[np.ndarray, "native_i native_j native_k"]:
    """Voxels on the RAS twin of a grid, in the order of the grid's own axes."""
    turn = ornt_transform(_RAS, io_orientation(native.affine))
    return np.ascontiguousarray(apply_orientation(voxels, turn))


def label_at_home(database: Database, case: Case, annotation: str) -> Codes:
    """An annotation's compact codes on the native grid of the case's reference image.

    Voxel for voxel what ingest read from a label on that grid where the store has the same voxel size;
    otherwise each voxel takes the code with the largest share, as on the way in.

    Raises:
        StoreError: the case does not have the annotation.
    """
    at = list(database.schemas).index(annotation) if annotation in database.schemas else -1
    if at < 0 or not case.annotated[at]:
        has = [name for name, there in zip(database.schemas, case.annotated, strict=True) if there]
        raise StoreError(
            f"case {case.name!r} of {database.name!r} has no annotation {annotation!r}. It has: "
            f"{', '.join(has) or 'none'}."
        )
    native, _ = database.native(case)
    codes = database.codes(case, (0, 0, 0), case.extent)[at]
    return turned_home(resample_codes(codes, case.grid, ras_twin(native)), native)


def image_at_home(database: Database, case: Case, modality: str) -> Num[np.ndarray, "native_i native_j native_k"]:
    """A sequence in its raw intensities on the native grid of the case's reference image; 0 outside the brain.

    As exact as float16 is, and only as sharp as the store's voxels; after N4 or on the histogram's standard scale
    where the recipe has those. A voxel of exactly the mean intensity cannot be told from one outside the brain and
    becomes 0.

    Raises:
        StoreError: the case does not have the sequence.
    """
    if modality not in case.modalities:
        raise StoreError(
            f"case {case.name!r} of {database.name!r} has no {modality!r}. It has: {', '.join(case.modalities)}."
        )
    at = database.modalities.index(modality)
    mean, std = (float(database.group[f"intensity_{name}"][case.row, at]) for name in ("mean", "std"))
    scored = database.image(case, (0, 0, 0), case.extent)[at].astype(np.float32)
    native, _ = database.native(case)
    target = ras_twin(native)
    # Not smoothed: where native voxels are larger, the store's were made from them and hold no finer detail.
    share = resample((scored != 0).astype(np.float32), case.grid, target, smooth=False)
    # At the brain's border, what the zeros around it took away is given back.
    raw = resample(scored, case.grid, target, smooth=False) / np.maximum(share, 0.25) * std + mean
    return turned_home(np.where(share > 0.5, raw, 0).astype(np.float32), native)


def write_native(database: Database, case: Case, folder: Path, overwrite: bool = False) -> tuple[Path, ...]:
    """Write all that the store has of a case into a folder, as NIfTI on its reference image's grid.

    Each sequence becomes NAME.nii.gz in raw intensities (float32), each annotation label-NAME.nii.gz in the
    source's own numbers, with their meaning in the file and in label-NAME.tsv: where several of the source's numbers
    had become one structure, the first of them stands for all. What is written comes back, the tables last.

    Raises:
        UsageError: a file of such a name is there already and `overwrite` does not say that it may be replaced, or it
            is one of the files that the database was read from.
    """
    native, header = database.native(case)
    annotations = [name for name, there in zip(database.schemas, case.annotated, strict=True) if there]
    images = {name: folder / f"{_plain(name)}.nii.gz" for name in case.modalities}
    labels = {name: folder / f"label-{_plain(name)}.nii.gz" for name in annotations}
    meanings = {name: rows_of_schema(database.schemas[name]) for name in annotations}
    tables = [file for name, path in labels.items() for file in table_files(path, meanings[name])]
    paths = (*images.values(), *labels.values(), *tables)
    if len(set(paths)) < len(paths):
        raise UsageError(f"the files of {case.name!r} in {folder} would get one name. Rename what it has.")
    check_files(paths, _sources_among(database, paths), overwrite)
    for name, path in images.items():
        _write(path, image_at_home(database, case, name), native, header)
    for name, path in labels.items():
        labelled = database.schemas[name].decode(label_at_home(database, case, name))
        _write(path, labelled, native, header, meanings[name])
    return paths


def _sources_among(database: Database, paths: Sequence[Path]) -> list[Path]:
    """Those of these files that some case was read from, as their contents tell."""
    known = {source["sha256"] for case in database.cases for source in database.sources(case)}
    return [path for path in paths if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() in known]


def _plain(name: str) -> str:
    return re.sub(r"[^\w.+ -]", "_", name)


def _write(path: Path, array: Array, native: Grid, header: bytes, labels: Sequence[LabelRow] = ()) -> None:
    if _places(header, native):
        write_like(path, array, header, labels)
    else:  # the reference was no NIfTI file, or its header was not believed
        write_nifti(path, array, native.affine, labels)


def _places(header: bytes, native: Grid) -> bool:
    """Whether a raw NIfTI header puts the grid where it is."""
    kind = {348: nib.Nifti1Header, 540: nib.Nifti2Header}.get(len(header))
    return kind is not None and same_grid(kind(header, check=False).get_best_affine(), native.affine, native.shape)
