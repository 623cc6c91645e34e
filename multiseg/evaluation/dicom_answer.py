"""The answer as a DICOM SEG, on the series that the patient's reference image comes from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import UInt8
from numpy import ndarray

from multiseg.errors import UsageError
from multiseg.evaluation.voting import Voters
from multiseg.models.saved import BEST, LAST, model_path
from multiseg.store.cases import ScanFile, Series
from multiseg.store.findings import Doubt, Severity
from multiseg.store.formats.dicom_seg import Algorithm, check_installed, write_dicom_seg
from multiseg.store.formats.dicom_source import SegSource, check_same_image, read_seg_source, turned
from multiseg.store.formats.label_table import rows_of_space
from multiseg.store.formats.read_volume import read_volume
from multiseg.store.preparation.grids import Grid
from multiseg.store.sources.dicom_folder import series_in

SOURCE = "source"
"""Instead of a folder: the reference is itself read from DICOM."""


@dataclass(frozen=True, eq=False)
class SegTarget:
    """The series that a SEG refers to, and what a person should check."""

    source: SegSource
    doubts: tuple[Doubt, ...] = ()


def seg_target(reference: ScanFile, series: Path | str) -> SegTarget:
    """The series for the SEG of a patient with this reference image, checked before any work is done.

    Args:
        series: its folder, or `SOURCE`.

    Raises:
        UsageError: packages are missing, or the reference is not DICOM.
        SourceError: the series cannot be used, or shows something else than the reference.
    """
    check_installed()
    if series != SOURCE:
        source = read_seg_source(series_in(Path(series)))
        doubt = check_same_image(read_volume(reference), source)
        return SegTarget(source, (Doubt(Severity.WARNING, "OTHER_INTENSITIES", doubt),) if doubt else ())
    if not isinstance(reference, Series):
        raise UsageError(
            f"the reference {reference.name} is not read from DICOM. Name the folder of the series that it was "
            "converted from: --dicom-seg SERIES_DIR."
        )
    return SegTarget(read_seg_source(reference))


def write_seg(path: Path, labels: UInt8[ndarray, "x y z"], native: Grid, target: SegTarget, voters: Voters) -> None:
    """Write labels on the native grid as a DICOM SEG.

    Raises:
        SourceError: the grid is not that of the series.
    """
    on_source = turned(labels, native.affine, target.source, "the reference image")
    write_dicom_seg(path, on_source, rows_of_space(voters.space), target.source, _algorithm(voters.files))


def _algorithm(files: Sequence[Path]) -> Algorithm:
    names = [_name(path) for path in files]
    digests = [hashlib.sha256(model_path(path).read_bytes()).hexdigest() for path in files]
    return Algorithm(" + ".join(names) or "a model in memory", tuple(digests))


def _name(path: Path) -> str:
    """The name of a model: that of its run folder, its package or its file."""
    where = path.resolve()
    if where.is_dir():
        return where.name
    return where.parent.name if where.name in (BEST, LAST) else where.stem
