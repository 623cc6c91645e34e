"""Held-out healthy cases with real lesions grafted in, written as files: the tissue under the lesion is known."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from multiseg.errors import DataError, UsageError, few
from multiseg.files import check_files, check_folder, write_atomically
from multiseg.labels import LabelSchema, is_correction
from multiseg.loaders.chance import Chance
from multiseg.loaders.graft import (
    MOST_OUTSIDE,
    Healthy,
    Lesion,
    check_graftable,
    has_lesion,
    is_same_person,
    lesion_cases,
    load_healthy,
    load_lesion,
    paste,
    share_outside,
)
from multiseg.loaders.graft_source import SALT
from multiseg.store.catalogue import select
from multiseg.store.formats.nifti import write_nifti
from multiseg.store.reader import Case, Database, Store

MANIFEST, ORIGINS, UNFINISHED = "manifest.csv", "grafts.json", "grafts.unfinished"
TISSUE, LESION, BRAIN = "tissue", "lesion", "brain"
SHUFFLED = 1 << 32


@dataclass(frozen=True)
class GraftOptions:
    """What to graft into what.

    Attributes:
        lesions, into: databases.
        split: of the healthy cases; "" takes all.
        lesion_split: of the cases with lesions; "" takes all.
    """

    lesions: tuple[str, ...]
    into: tuple[str, ...]
    split: str = "test"
    lesion_split: str = "test"
    seed: int = 0


@dataclass(frozen=True)
class Origin:
    """Where a written case comes from: DATABASE/CASE of the anatomy and of the lesion."""

    case: str
    healthy: str
    lesion: str
    lesion_ml: float
    share_outside: float


@dataclass(frozen=True)
class GraftedCases:
    """What was written: the manifest for ingest, and the origins of the cases.

    `without` are the healthy cases that no lesion of another person fits, `with_lesions` those that were left out since
    they have annotated lesions of their own.
    """

    manifest: Path
    origins: tuple[Origin, ...]
    without: tuple[str, ...]
    with_lesions: tuple[str, ...] = ()


def write_grafted_cases(
    store: Store,
    options: GraftOptions,
    folder: Path,
    on_case: Callable[[int, int, str], None] = lambda done, total, case: None,
    overwrite: bool = False,
) -> GraftedCases:
    """Graft one lesion into every healthy case of a split, and write the cases as NIfTI on the store's grid.

    Each case is a folder with a file for every sequence that both cases have (in the raw intensities of the healthy
    one: lesions keep their z-score), `tissue` (the healthy case's own, also under the lesion), `lesion` and `brain`.
    The manifest puts all cases into the split "test", and has one database for each healthy one and pathology. Until it
    is written, the file `UNFINISHED` marks the folder, so that an interrupted run can be started again.

    Left out are healthy cases with annotated lesions of their own; no case gets a lesion of the same person.

    Raises:
        UsageError, StoreError: see `check_graftable`; or the folder holds other scans.
        DataError: no case can be grafted.
    """
    check_graftable(store, options.lesions, options.into)
    donors = lesion_cases(store, options.lesions, options.lesion_split)
    hosts, with_lesions = _hosts(store, options)
    check_folder(folder, own=(MANIFEST, UNFINISHED))
    check_files([folder / MANIFEST, folder / ORIGINS], overwrite=overwrite)
    rows: list[dict[str, str]] = []
    origins: list[Origin] = []
    without: list[str] = []
    new_names = case_names(hosts)
    for number, host in enumerate(hosts):
        name = f"{host.database}/{host.name}"
        on_case(number, len(hosts), name)
        found = None if host.to_template is None else _first_fitting(store, donors, host, options.seed, number)
        if found is None:
            without.append(name)
            continue
        if not rows:
            _begin(folder)
        row, origin = _write_graft(store, folder, new_names[number], host, *found)
        rows.append(row)
        origins.append(origin)
    if not rows:
        raise DataError(
            f"no lesion of another person fits into {few(without)}: more than a fifth of each would be outside the "
            "brain. Look at the notes of ingest --template."
        )
    content = {
        "seed": options.seed, "spacing_mm": list(store.spacing_mm), "without": without, "with_lesions": with_lesions,
        "cases": [asdict(origin) for origin in origins],
    }  # fmt: skip
    write_atomically(folder / ORIGINS, json.dumps(content, indent=1).encode())
    _write_table(folder / MANIFEST, named_by_pathology(rows))
    (folder / UNFINISHED).unlink()
    return GraftedCases(folder / MANIFEST, tuple(origins), tuple(without), tuple(with_lesions))


def _hosts(store: Store, options: GraftOptions) -> tuple[list[Case], list[str]]:
    """The healthy cases with tissues, and DATABASE/CASE of those that are left out for lesions of their own.

    Raises:
        DataError: there is no healthy case.
    """
    cases = [case for case in select(store, options.into, split=options.split) if _tissue_of(store, case) is not None]
    hosts: list[Case] = []
    with_lesions: list[str] = []
    for case in cases:
        if has_lesion(store[case.database], case, even_hidden=True):
            with_lesions.append(f"{case.database}/{case.name}")
        else:
            hosts.append(case)
    if not hosts:
        text = f"{', '.join(options.into)} has no {options.split or 'single'} case with an annotation of tissues"
        text += f" and without lesions of its own ({few(with_lesions)} have some)" if with_lesions else ""
        raise DataError(f"{text}. Name another split (multiseg info), or ingest its tissues.")
    return hosts, with_lesions


def _begin(folder: Path) -> None:
    """Mark the folder as ours until its manifest is written; an older manifest would describe other images."""
    write_atomically(folder / UNFINISHED, b"")
    for name in (MANIFEST, ORIGINS):
        (folder / name).unlink(missing_ok=True)


def named_by_pathology(rows: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """The rows of a manifest with a database for each pathology, since a database has one.

    A database whose rows have one pathology keeps its name.
    """
    found: dict[str, set[str]] = {}
    for row in rows:
        found.setdefault(row["database"], set()).add(row["pathology"])
    names: dict[tuple[str, str], str] = {}
    for database, pathologies in found.items():
        for pathology in sorted(pathologies):
            ending = re.sub(r"[^\w]+", "-", pathology).strip("-_") if len(pathologies) > 1 else ""
            name = f"{database}-{ending}" if ending else database
            while name in names.values():  # "MS (RR)" and "MS RR" are spelt alike
                name += "-2"
            names[database, pathology] = name
    return [{**row, "database": names[row["database"], row["pathology"]]} for row in rows]


def case_names(hosts: Sequence[Case]) -> list[str]:
    """A name for the grafted case of each host, which is its folder's, too: all differ, also where letters differ only
    in case, which some disks do not tell apart."""
    names: list[str] = []
    taken: set[str] = set()
    for host in hosts:
        name = re.sub(r"[^\w.+-]", "_", f"{host.database}-{host.name}")
        while name.casefold() in taken:  # "a-b"/"c" and "a"/"b-c", "c 1" and "c_1"
            name += "-2"
        taken.add(name.casefold())
        names.append(name)
    return names


def _first_fitting(
    store: Store, donors: Sequence[Case], host: Case, seed: int, number: int
) -> tuple[Case, Lesion, Healthy] | None:
    """The first of the cases with a lesion, in a seeded order, whose lesion fits into a healthy case."""
    chance = Chance(seed, SALT, number)
    order = sorted(range(len(donors)), key=lambda _: chance.below(SHUFFLED))
    healthy = load_healthy(store[host.database], host)
    for index in order:
        donor = donors[index]
        if is_same_person(donor, host) or not set(donor.modalities) & set(host.modalities):
            continue
        lesion = load_lesion(store[donor.database], donor)
        if share_outside(lesion, healthy.brain, healthy.grid) <= MOST_OUTSIDE and paste(lesion, healthy) is not None:
            return donor, lesion, healthy
    return None


def _tissue_of(store: Store, case: Case) -> str | None:
    """The annotation that a case's tissues are read from: a correction if there is one, otherwise the first."""
    annotated = zip(store[case.database].schemas.items(), case.annotated.tolist(), strict=True)
    names = [name for (name, schema), has_it in annotated if has_it and _has_tissue(schema)]
    return next(iter(sorted(names, key=is_correction, reverse=True)), None)


def _has_tissue(schema: LabelSchema) -> bool:
    return any(structure.kind == "tissue" for structure in schema.structures)


def _write_graft(
    store: Store, folder: Path, case: str, host: Case, donor: Case, lesion: Lesion, healthy: Healthy
) -> tuple[dict[str, str], Origin]:
    """Write the files of a case; returns its row of the manifest, and where it comes from."""
    row, num_voxels = _write_case(store, folder, case, host, lesion, healthy)
    ml = num_voxels * float(np.prod(store.spacing_mm)) / 1000
    outside = share_outside(lesion, healthy.brain, healthy.grid)
    name, lesion_name = (f"{case.database}/{case.name}" for case in (host, donor))
    return {**row, "pathology": donor.pathology}, Origin(
        row["case"], name, lesion_name, round(ml, 3), round(outside, 4)
    )


def _write_case(
    store: Store, folder: Path, case: str, host: Case, lesion: Lesion, healthy: Healthy
) -> tuple[dict[str, str], int]:
    """Write the files of a case; returns its row of the manifest, and the number of its lesion's voxels."""
    database, annotation = store[host.database], _tissue_of(store, host)
    grafted = paste(lesion, healthy)
    assert grafted is not None
    assert annotation is not None
    row = {"database": f"{host.database}-grafted", "case": case, "subject": host.subject, "split": "test"}
    affine = host.grid.affine
    for name, image in zip(grafted.modalities, grafted.images, strict=True):
        row[f"image:{name}"] = f"{case}/{name}.nii.gz"
        write_nifti(folder / row[f"image:{name}"], _raw(image, host, name, healthy), affine)
    index = list(database.schemas).index(annotation)
    volumes = {
        f"label:{TISSUE}": database.codes(host, (0, 0, 0), host.extent)[index],
        f"label:{LESION}": grafted.lesion.astype(np.uint8),
        "brain_mask": healthy.brain.astype(np.uint8),
    }
    for column, voxels in volumes.items():
        row[column] = f"{case}/{column.removeprefix('label:').removesuffix('_mask')}.nii.gz"
        write_nifti(folder / row[column], np.ascontiguousarray(voxels), affine)
    row[f"codes:{TISSUE}"], row[f"codes:{LESION}"] = _codes_text(database, annotation), "1=lesion"
    return row, int(grafted.lesion.sum())


def _raw(image: Float[np.ndarray, "i j k"], host: Case, name: str, healthy: Healthy) -> Float[np.ndarray, "i j k"]:
    """The healthy case's raw intensities: z-scores of a pasted lesion count in its deviations, from its mean."""
    mean, std = host.intensity[name]
    return np.where(healthy.brain, image * std + mean, 0).astype(np.float32)


def _codes_text(database: Database, annotation: str) -> str:
    """The compact codes of an annotation, as `--labels` takes them."""
    schema = database.schemas[annotation]
    parts = [f"{code}={one.kind}:{one.name}" for code, one in enumerate(schema.structures, start=1)]
    text = ",".join([*parts, "255=ignore"])
    if [one.name for one in LabelSchema.parse(text, "tissue").structures] != list(schema.names):
        raise UsageError(f"a structure of {database.name}/{annotation} has a comma or '=' in its name: rename it.")
    return text


def _write_table(path: Path, rows: Sequence[dict[str, str]]) -> None:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO()
    table = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_atomically(path, text.getvalue().encode())
