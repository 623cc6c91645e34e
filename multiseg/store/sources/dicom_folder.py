"""The one DICOM series in a folder."""

from __future__ import annotations

from pathlib import Path

from multiseg.errors import SourceError, few
from multiseg.store.cases import ScanFile, Series
from multiseg.store.formats.nifti_zarr import is_nifti_zarr
from multiseg.store.sources.dicom_layout import is_scan
from multiseg.store.sources.dicom_scans import read_slices, scans_of


def scan_at(path: Path) -> ScanFile:
    """What a path names: a file, a NIfTI-Zarr, or the series in a folder.

    Raises:
        SourceError: as `series_in`.
    """
    return series_in(path) if path.is_dir() and not is_nifti_zarr(path) else path


def series_in(path: Path) -> Series:
    """The files of the series in a folder, without those of folders in it; or a file of many images alone.

    Raises:
        SourceError: there is no series or several, or a file is damaged.
    """
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    images = [file for file in files if file.is_file() and is_scan(file)]
    slices, errors = read_slices(images)
    if errors:
        raise errors[0]
    scans = scans_of(slices)
    if len(scans) != 1:
        names = few([scan.name for scan in scans], 5)
        found = f"has {len(scans)} series or volumes ({names})" if scans else "has no DICOM images"
        message = f"{path} {found}. Give the folder of one series."
        raise SourceError(message, code="NO_SERIES", file=str(path))
    return scans[0].checked[0]
