"""Verb: info."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from multiseg.cli.shared_flags import AsJson, Overwrite
from multiseg.errors import UsageError, counted
from multiseg.files import ZARR_SCAN

if TYPE_CHECKING:
    from pandas import DataFrame

    from multiseg.store.preparation.grids import Grid
    from multiseg.store.reader import Case, Database, Store


COLUMNS = ("database", "pathology", "cases", "train/val/test", "sequences (cases)", "labels (cases)", "lesion ml", "MB")


def info_command(
    store: Annotated[str, typer.Argument(metavar="STORE|MODEL", help="The store; or a model file or run folder.")],
    of_store: Annotated[
        str, typer.Option("--store", help="For a model: check for scans that were removed from this store.")
    ] = "",
    cases: Annotated[bool, typer.Option("--cases", help="Also list every case.")] = False,
    case: Annotated[str, typer.Option(help="Show one case, DATABASE/CASE: its files and how they were prepared.")] = "",
    database: Annotated[list[str] | None, typer.Option(help="Only these databases.")] = None,
    modality: Annotated[list[str] | None, typer.Option(help="Only cases with these sequences.")] = None,
    split: Annotated[str, typer.Option(help="Only train, val or test.")] = "",
    pathology: Annotated[str, typer.Option(help="Only this pathology.")] = "",
    write: Annotated[
        Path | None,
        typer.Option(
            help="Write the case on the grid of its source files: as NIfTI into this folder, or as this X.nii.zarr."
        ),
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> int:
    """Show the contents of a store: databases, cases, sequences, labels, sizes.

    If a database is damaged, it is named, the others are shown, and the exit code is 3.

    Examples:

    multiseg info brain.zarr

    multiseg info brain.zarr --cases --modality FLAIR --split test

    multiseg info brain.zarr --case ms/patient07

    multiseg info brain.zarr --case ms/patient07 --write patient07

    multiseg info brain.zarr --case ms/patient07 --write patient07.nii.zarr

    multiseg info runs/joint --store brain.zarr
    """
    if is_model(Path(store)):
        from multiseg.cli.model import show_model

        return show_model(Path(store), of_store, as_json)
    if of_store:
        raise UsageError(f"--store is for a model, but {store} is not a model.")
    from multiseg.cli.console import print_json
    from multiseg.store.catalogue import select, table
    from multiseg.store.reader import open_store

    if write and not case:
        raise UsageError("--write needs a case to write: --case DATABASE/CASE.")
    opened = open_store(store)
    if case:
        return show_case(opened, case, write, overwrite, as_json)
    for name in database or ():
        if name not in opened.damaged:
            opened[name]  # raises an error that lists the databases if there is no such database
    wanted = [name for name in opened if not database or name in database]
    names = [name for name in wanted if name not in opened.damaged]
    damaged = {name: opened.damaged[name] for name in wanted if name in opened.damaged}
    selected = select(opened, names, modality or (), pathology, split) if names else ()
    summaries = [_summary(opened, name, [case for case in selected if case.database == name]) for name in names]
    records = table(selected) if cases else None
    if as_json:
        faults = {name: {"file": error.file, "message": str(error)} for name, error in damaged.items()}
        head = {"store": store, "spacing_mm": list(opened.spacing_mm), "damaged": faults, "databases": summaries}
        print_json(head if records is None else {**head, "cases": records.to_dict("records")})
    else:
        spacing = " x ".join(f"{mm:g}" for mm in opened.spacing_mm)
        title = f"{store}: {counted(len(selected), 'case')}, voxels of {spacing} mm"
        _print_tables(title, summaries, records, list(map(str, damaged.values())))
    return 3 if damaged else 0


def _print_tables(
    title: str, summaries: Sequence[dict[str, Any]], cases: DataFrame | None, damages: Sequence[str]
) -> None:
    """Print the databases, the cases if there is a table of them, and what is damaged."""
    from multiseg.cli.console import messages, output, plain, print_table
    from multiseg.store.preparation.template import Template

    print_table(title, COLUMNS, map(_summary_row, summaries), right=["cases", "lesion ml", "MB"])
    for summary in summaries:
        if template := summary["template"]:
            text = (
                f"{summary['database']}: {template['cases']} of {summary['cases']} cases are registered to the template"
            )
            output().print(f"{text} {Template.text(template)}.", soft_wrap=True, markup=False)
    if cases is not None and len(cases):
        rows = [list(map(_text, row)) for row in cases.itertuples(index=False)]
        print_table("Cases", list(cases.columns), rows)
    for text in damages:
        messages().print(f"[bold red]damaged[/] {plain(text)}", soft_wrap=True)


def is_model(path: Path) -> bool:
    """Whether a path is a model file or the folder of a run, rather than a store."""
    # Path.is_file raises an error if the folder is not readable.
    return any(os.path.isfile(file) for file in (path, path / "run.toml"))  # noqa: PTH113


def _text(value: object) -> str:
    if value is None or value != value:  # NaN
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _summary(store: Store, name: str, cases: Sequence[Any]) -> dict[str, Any]:
    import numpy as np

    database = store[name]
    ml = float(np.prod(store.spacing_mm)) / 1000
    labels = {}
    for index, (annotation, schema) in enumerate(database.schemas.items()):
        num = len(schema.structures)  # the counts are as long as the longest schema
        counts = sum((case.foreground_count[index][:num] for case in cases), np.zeros(num))
        kinds = [structure.kind for structure in schema.structures]
        is_lesion = [kind == "lesion" for kind in kinds]
        labels[annotation] = {
            "structures": list(schema.names),
            "kinds": kinds,
            "cases": sum(bool(case.annotated[index]) for case in cases),
            "ml_a_case": round(float(np.sum(counts)) * ml / max(1, len(cases)), 2),
            "lesion_ml_a_case": round(float(np.sum(counts[is_lesion])) * ml / max(1, len(cases)), 2),
        }
    return {
        "database": name,
        "pathology": database.pathology,
        "cases": len(cases),
        "splits": {split: sum(case.split == split for case in cases) for split in ("train", "val", "test")},
        "modalities": {name: sum(name in case.modalities for case in cases) for name in database.modalities},
        "annotations": labels,
        "recipe": database.recipe.to_json(),
        "template": None
        if database.template is None
        else {**database.template, "cases": sum(case.to_template is not None for case in cases)},
        "licence": database.attributes.get("licence", ""),
        "bytes": store.size_on_disk(name),
    }


def _summary_row(summary: dict[str, Any]) -> list[str]:
    labels = summary["annotations"]
    return [
        summary["database"],
        summary["pathology"],
        str(summary["cases"]),
        "/".join(map(str, summary["splits"].values())),
        " ".join(f"{name}({count})" for name, count in summary["modalities"].items()),
        "; ".join(f"{name}: {', '.join(label['structures'])} ({label['cases']})" for name, label in labels.items()),
        " ".join(f"{label['lesion_ml_a_case']:g}" for label in labels.values() if "lesion" in label["kinds"]),
        "" if summary["bytes"] is None else f"{summary['bytes'] / 1e6:.1f}",
    ]


def show_case(store: Store, name: str, write: Path | None, overwrite: bool, as_json: bool) -> int:
    """Print one case, "DATABASE/CASE", and if `write` is given, write it there on the grid of its source files."""
    from multiseg.cli.console import output, print_json, print_table
    from multiseg.store.native import write_native, write_native_zarr

    database_name, _, case_name = name.partition("/")
    database = store[database_name]
    case = database[case_name]
    written: list[str] = []
    if write:
        writer = write_native_zarr if write.name.lower().endswith(ZARR_SCAN) else write_native
        written = [str(path) for path in writer(database, case, write, overwrite)]
    native, _header = database.native(case)
    sources = database.sources(case)
    if as_json:
        print_json({"case": name, **_case_json(database, case, native), "sources": sources, "written": written})
        return 0
    print_table(
        f"{name}: subject {case.subject}, split {case.split}",
        ["what", "file", "shape", "mm", "axes", "steps", "sha256"],
        [
            [source["role"], source["file"], _by(source["shape"]), _by(source["voxel_mm"]), source["axes"],
             "; ".join(source["steps"]) or "unchanged", source["sha256"][:16]]
            for source in sources
        ],
    )  # fmt: skip
    print_table(
        "Grids: voxel indices to millimetres towards right, front, head",
        ["grid", "shape", "mm", "axes", "affine"],
        [_grid_row("native, of the reference image", native), _grid_row("in the store", case.grid)],
    )
    for path in written:
        output().print(f"Written: {path}", soft_wrap=True, highlight=False)
    return 0


def _case_json(database: Database, case: Case, native: Grid) -> dict[str, Any]:
    from multiseg.store.formats.volumes import axis_codes

    return {
        "subject": case.subject, "session": case.session, "site": case.site, "split": case.split,
        "modalities": list(case.modalities),
        "annotations": [name for name, marked in zip(database.schemas, case.annotated, strict=True) if marked],
        "extent": list(case.extent), "affine": case.grid.affine.tolist(),
        "to_template": None if case.to_template is None else case.to_template.tolist(),
        "native_shape": list(native.shape), "native_voxel_mm": list(native.spacing_mm),
        "native_axes": axis_codes(native.affine), "native_affine": native.affine.tolist(),
        "participant": dict(case.participant),
    }  # fmt: skip


def _grid_row(name: str, grid: Grid) -> list[str]:
    from multiseg.store.formats.volumes import axis_codes

    rows = "\n".join("  ".join(f"{value:.6g}" for value in row) for row in grid.affine[:3])
    return [name, _by(grid.shape), _by(grid.spacing_mm), axis_codes(grid.affine), rows]


def _by(numbers: Sequence[float]) -> str:
    return "x".join(f"{number:.6g}" for number in numbers)
