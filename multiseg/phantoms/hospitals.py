"""Write synthetic hospitals: folders of NIfTI files that differ from each other as real databases do."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import tomli_w

from multiseg.errors import UsageError
from multiseg.files import check_files, check_folder, write_atomically
from multiseg.phantoms.known_hospitals import HOSPITALS, MORE_HOSPITALS, Hospital, Scan
from multiseg.phantoms.raw_head import RAW_CENTRE_MM, RAW_FIELD_OF_VIEW_MM
from multiseg.phantoms.surfaces import Points, Triple
from multiseg.phantoms.synthetic_head import (
    FIELD_OF_VIEW_MM,
    Anatomy,
    anatomy_on,
    codes_of,
    draw_head,
    draw_lesions,
    lesion_parts,
    measure,
)
from multiseg.store.formats.nifti import write_nifti
from multiseg.types import Affine, Index3, OnStep, Voxels, no_progress

MANIFEST = "manifest.toml"
ELDERLY = ("white matter hyperintensities", "ischaemic stroke", "chronic stroke")
"""Pathologies of old people, who have wide ventricles."""


def with_skull(hospital: Hospital) -> Hospital:
    """The same hospital before skulls were removed: raw scans of whole heads, each case with its brain mask."""
    mask = hospital.brain_mask or hospital.pattern.format(case="{case}", modality="brainmask")
    return replace(hospital, background="raw", brain_mask=mask)


def _grid(scan: Scan, hospital: Hospital, coarseness: float) -> tuple[Index3, Affine]:
    """Shape and affine of a grid, centred on the head, with axes in the hospital's directions, such as "LPS"."""
    is_raw = hospital.background == "raw"
    field_mm, centre_mm = (RAW_FIELD_OF_VIEW_MM, RAW_CENTRE_MM) if is_raw else (FIELD_OF_VIEW_MM, (0.0, 0.0, 0.0))
    orientation = hospital.orientation
    letters = ("LR", "PA", "IS")
    world_axes = [next(axis for axis in range(3) if code in letters[axis]) for code in orientation]
    signs = [1.0 if code in "RAS" else -1.0 for code in orientation]
    spacing = np.array(scan.spacing_mm) * coarseness
    shape = np.ceil(np.take(field_mm, world_axes) / spacing).astype(int)
    directions = np.eye(3)[:, world_axes] * signs
    pitch, yaw = np.deg2rad(scan.tilt_deg)
    turn_x = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
    turn_z = np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn_z @ turn_x @ directions * spacing
    affine[:3, 3] = centre_mm - affine[:3, :3] @ (shape - 1) / 2
    return (int(shape[0]), int(shape[1]), int(shape[2])), affine


def _world(shape: Index3, affine: Affine) -> Points:
    """The world coordinates of a grid's voxels, in mm."""
    turn, origin = affine[:3, :3].astype(np.float32), affine[:3, 3].astype(np.float32)
    points: Points = np.einsum("xa,a...->x...", turn, np.indices(shape, np.float32))
    return points + origin[:, None, None, None]


def _stored(signal: Voxels, anatomy: Anatomy, hospital: Hospital, gain: float) -> Voxels:
    """The intensities as this hospital stores them. Air is exactly 0, except in z-scored files and raw scans."""
    brain = anatomy.inside_brain
    if hospital.background == "z-score":
        stripped = np.where(brain, signal, 0)
        signal = (stripped - signal[brain].mean()) / signal[brain].std()
    elif hospital.background == "raw":
        signal = gain * signal  # with the noise of the air
    else:
        visible = brain if hospital.background == "zero" else anatomy.tissues.sum(axis=0) > 0.1
        signal = gain * np.where(visible, signal, 0)
    return np.rint(signal).astype(np.int16) if hospital.dtype == "int16" else signal.astype(np.float32)


def _write_case(hospital: Hospital, folder: Path, case: str, number: int, seed: int, coarseness: float) -> None:
    # Not hash(), which differs between processes.
    rng = np.random.default_rng([seed, zlib.crc32(hospital.name.encode()), number])
    head = draw_head(rng, old=hospital.pathology in ELDERLY)
    lesions = draw_lesions(rng, head, hospital.pathology)
    grids: dict[tuple[Triple, tuple[float, float]], tuple[Anatomy, Affine]] = {}
    for scan in hospital.scans:
        if scan.absent_every and number % scan.absent_every == 0:
            continue
        key = (scan.spacing_mm, scan.tilt_deg)
        if key not in grids:
            shape, affine = _grid(scan, hospital, coarseness)
            blur_mm = coarseness * float(np.mean(scan.spacing_mm))
            is_raw = hospital.background == "raw"
            grids[key] = anatomy_on(head, _world(shape, affine), blur_mm, is_raw), affine
        anatomy, affine = grids[key]
        gain = 400 * float(np.exp(rng.normal(0, 0.1)))
        signal = measure(scan.modality, anatomy, lesions, rng)
        path = folder / hospital.pattern.format(case=case, modality=scan.spelling)
        write_nifti(path, _stored(signal, anatomy, hospital, gain), affine)

    first = hospital.scans[0]
    anatomy, affine = grids[first.spacing_mm, first.tilt_deg]
    for annotation in hospital.annotations:
        tissues = dict(enumerate(anatomy.tissues[:3], start=1))
        codes = codes_of(tissues if annotation.name == "tissue" else lesion_parts(lesions, anatomy))
        write_nifti(folder / annotation.pattern.format(case=case), codes * anatomy.inside_brain, affine)
    if hospital.brain_mask:
        mask = anatomy.inside_brain.astype(np.uint8)
        write_nifti(folder / hospital.brain_mask.format(case=case), mask, affine)


def _participants(hospital: Hospital, cases: Sequence[str], seed: int) -> str:
    rows = ["case,age,sex,scanner"]
    for number, case in enumerate(cases, start=1):
        rng = np.random.default_rng([seed, zlib.crc32(hospital.name.encode()), number, 1])
        age, sex, scanner = rng.integers(55, 89), rng.choice(["F", "M"]), rng.choice(["north", "south"])
        rows.append(f"{case},{age},{sex},{scanner}")
    return "\n".join(rows) + "\n"


def write_hospital(
    hospital: Hospital,
    root: Path,
    seed: int = 0,
    num_cases: int = 10,
    coarseness: float = 1.0,
    on_case: Callable[[str], None] = lambda case: None,
) -> Path:
    """Write one hospital into the folder `root / hospital.name`, and return the folder.

    The same arguments give the same bytes. Case n does not depend on the number of cases.

    Args:
        coarseness: a factor for every voxel size; 2.0 gives an eighth of the voxels.
        on_case: called after each case with its name.

    Raises:
        UsageError: the number of cases, the seed or the coarseness is out of range.
    """
    if num_cases < 1 or seed < 0 or not coarseness > 0:
        raise UsageError(
            f"cannot make a hospital with num_cases={num_cases}, seed={seed}, coarseness={coarseness}. "
            "Give at least one case, a seed of 0 or more, and a coarseness above 0."
        )
    folder = root / hospital.name
    folder.mkdir(parents=True, exist_ok=True)
    cases = [f"{hospital.name[0].upper()}{number:03d}" for number in range(1, num_cases + 1)]
    for number, case in enumerate(cases, start=1):
        _write_case(hospital, folder, case, number, seed, coarseness)
        on_case(f"{hospital.name}/{case}")
    if hospital.participants:
        table = _participants(hospital, cases, seed)
        (folder / hospital.participants).write_text(table, encoding="utf-8")
    return folder


def write_hospitals(
    root: Path,
    seed: int = 0,
    num_cases: int = 10,
    coarseness: float = 1.0,
    names: Sequence[str] | None = None,
    overwrite: bool = False,
    skull: bool = False,
    on_case: OnStep = no_progress,
) -> Path:
    """Write hospitals into `root`, with a `manifest.toml` for ingest; returns the path of the manifest.

    Args:
        names: of HOSPITALS and MORE_HOSPITALS; None for all HOSPITALS. The other arguments are as in `write_hospital`.
        overwrite: whether an existing manifest and hospitals may be overwritten.
        skull: whether the scans are raw, see `with_skull`.
        on_case: called after each case.

    Raises:
        UsageError: a hospital is unknown, an argument of `write_hospital` is out of range, or files exist.
    """
    known = {hospital.name: hospital for hospital in (*HOSPITALS, *MORE_HOSPITALS)}
    wanted = [hospital.name for hospital in HOSPITALS] if names is None else list(dict.fromkeys(names))
    unknown = [name for name in wanted if name not in known]
    if unknown or not wanted:
        raise UsageError(f"no hospital {', '.join(unknown)!r}: choose some of {', '.join(known)}.")
    manifest = root / MANIFEST
    _check_writable([manifest, *(root / name for name in wanted)], overwrite)
    if skull:
        known = {name: with_skull(hospital) for name, hospital in known.items()}
    total, steps = num_cases * len(wanted), count(1)
    for name in wanted:
        write_hospital(known[name], root, seed, num_cases, coarseness, lambda case: on_case(next(steps), total, case))
    text = tomli_w.dumps({"database": [_manifest_entry(known[name]) for name in wanted]})
    write_atomically(manifest, text.encode())
    return manifest


def _check_writable(paths: Sequence[Path], overwrite: bool) -> None:
    """Check that the manifest, the first path, and the hospitals' folders may be written."""
    check_folder(paths[0].parent, own=[path.name for path in paths])
    existing = [path for path in paths if path.exists()]
    if existing and not overwrite:
        raise UsageError(f"{existing[0]} already exists. Choose another folder, or pass --overwrite.")
    check_files(paths[:1], overwrite=overwrite)
    for path in paths[1:]:
        check_folder(path, own=("*",))  # own="*" allows scans there


def _manifest_entry(hospital: Hospital) -> dict[str, object]:
    optional = {"brain_mask": hospital.brain_mask, "participants": hospital.participants}
    return {
        "name": hospital.name,
        "root": hospital.name,
        "pathology": hospital.pathology,
        "pattern": hospital.pattern,
        "licence": "CC0-1.0",
        "source": "multiseg phantoms",
        **{key: value for key, value in optional.items() if value},
        "labels": {annotation.name: annotation.pattern for annotation in hospital.annotations},
        "codes": {annotation.name: annotation.codes for annotation in hospital.annotations},
    }
