"""Verb: info."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from multiseg.cli.shared_flags import AsJson, Overwrite
from multiseg.errors import UsageError

if TYPE_CHECKING:
    from multiseg.store.preparation.grids import Grid
    from multiseg.store.reader import Case, Database, Store


def info_command(
    store: Annotated[str, typer.Argument(metavar="STORE|MODEL", help="The store; or a model file or run folder.")],
    of_store: Annotated[str, typer.Option("--store", help="Of a model: has it learnt from cases removed here?")] = "",
    cases: Annotated[bool, typer.Option("--cases", help="List every case, too.")] = False,
    case: Annotated[str, typer.Option(help="One case as DATABASE/CASE: its files and every step they took.")] = "",
    database: Annotated[list[str] | None, typer.Option(help="Only these databases.")] = None,
    modality: Annotated[list[str] | None, typer.Option(help="Only cases with these sequences.")] = None,
    split: Annotated[str, typer.Option(help="Only train, val or test.")] = "",
    pathology: Annotated[str, typer.Option(help="Only this pathology.")] = "",
    write: Annotated[
        Path | None, typer.Option(help="Write the case into this folder, as NIfTI on its files' own grid.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> int:
    """Say what a store holds: databases, cases, sequences, labels, sizes.

    Databases that are damaged are named, the others shown all the same; then the exit code is 3.

    Examples:

    multiseg info brain.zarr

    multiseg info brain.zarr --cases --modality FLAIR --split test

    multiseg info brain.zarr --case ms/patient07

    multiseg info brain.zarr --case ms/patient07 --write patient07

    multiseg info runs/joint --store brain.zarr
    """
    if is_model(Path(store)):
        from multiseg.cli.model import show_model

        return show_model(Path(store), of_store, as_json)
    if of_store:
        raise UsageError(f"--store goes with a model, and {store} is none.")
    from multiseg.cli.console import messages, plain, print_json, print_table
    from multiseg.store.catalogue import select, table
    from multiseg.store.reader import open_store

    if write and not case:
        raise UsageError("--write needs a case to write: --case DATABASE/CASE.")
    held = open_store(store)
    if case:
        return show_case(held, case, write, overwrite, as_json)
    meant = [name for name in held if not database or name in database]
    names = [name for name in meant if name not in held.damaged]
    damaged = {name: held.damaged[name] for name in meant if name in held.damaged}
    for name in database or ():
        if name not in meant:
            held[name]  # says which there are
    chosen = select(held, names, modality or (), pathology, split) if names else ()
    summary = [_summary(held, name, [c for c in chosen if c.database == name]) for name in names]
    listed = table(chosen)
    if as_json:
        held_cases = {"cases": listed.to_dict("records")} if cases else {}
        told = {name: {"file": error.file, "message": str(error)} for name, error in damaged.items()}
        head = {"store": store, "spacing_mm": list(held.spacing_mm), "damaged": told}
        print_json({**head, "databases": summary, **held_cases})
        return 3 if damaged else 0
    print_table(
        f"{store}: {len(chosen)} cases, voxels of {' x '.join(f'{mm:g}' for mm in held.spacing_mm)} mm",
        [
            "database",
            "pathology",
            "cases",
            "train/val/test",
            "sequences (cases)",
            "labels (cases)",
            "lesion ml",
            "MB",
        ],
        [_summary_row(one) for one in summary],
        right=["cases", "lesion ml", "MB"],
    )
    if cases and len(listed):
        print_table("Cases", list(listed.columns), [[_text(v) for v in row] for row in listed.itertuples(index=False)])
    for error in damaged.values():
        messages().print(f"[bold red]damaged[/] {plain(str(error))}", soft_wrap=True)
    return 3 if damaged else 0


def is_model(path: Path) -> bool:
    """Whether a path is a model file or a run folder, and no store."""
    # Path.is_file raises where the folder may not be read.
    return any(os.path.isfile(one) for one in (path, path / "run.toml"))  # noqa: PTH113


def _text(value: object) -> str:
    return "" if value is None or value != value else f"{value:g}" if isinstance(value, float) else str(value)


def _summary(store: Store, name: str, cases: Sequence[Any]) -> dict[str, Any]:
    import numpy as np

    database = store[name]
    ml = float(np.prod(store.spacing_mm)) / 1000
    labels = {}
    for at, (annotation, schema) in enumerate(database.schemas.items()):
        num = len(schema.structures)  # of another annotation there may be more
        counts = sum((c.foreground_count[at][:num] for c in cases), np.zeros(num))
        is_lesion = [one.kind == "lesion" for one in schema.structures]
        labels[annotation] = {
            "structures": list(schema.names),
            "kinds": [one.kind for one in schema.structures],
            "cases": sum(bool(c.annotated[at]) for c in cases),
            "ml_a_case": round(float(np.sum(counts)) * ml / max(1, len(cases)), 2),
            "lesion_ml_a_case": round(float(np.sum(counts[is_lesion])) * ml / max(1, len(cases)), 2),
        }
    return {
        "database": name,
        "pathology": database.pathology,
        "cases": len(cases),
        "splits": {split: sum(c.split == split for c in cases) for split in ("train", "val", "test")},
        "modalities": {m: sum(m in c.modalities for c in cases) for m in database.modalities},
        "annotations": labels,
        "recipe": database.recipe.to_json(),
        "licence": database.attributes.get("licence", ""),
        "bytes": store.size_on_disk(name),
    }


def _summary_row(one: dict[str, Any]) -> list[str]:
    labels = one["annotations"]
    return [
        one["database"],
        one["pathology"],
        str(one["cases"]),
        "/".join(str(n) for n in one["splits"].values()),
        " ".join(f"{name}({n})" for name, n in one["modalities"].items()),
        "; ".join(f"{name}: {', '.join(a['structures'])} ({a['cases']})" for name, a in labels.items()),
        " ".join(f"{a['lesion_ml_a_case']:g}" for a in labels.values() if "lesion" in a["kinds"]),
        "" if one["bytes"] is None else f"{one['bytes'] / 1e6:.1f}",
    ]


def show_case(store: Store, name: str, write: Path | None, overwrite: bool, as_json: bool) -> int:
    """Print one case, "DATABASE/CASE", and write it on its files' own grid where a folder is given."""
    from multiseg.cli.console import output, print_json, print_table
    from multiseg.store.native import write_native

    database_name, _, case_name = name.partition("/")
    database = store[database_name]
    case = database[case_name]
    written = [str(path) for path in write_native(database, case, write, overwrite)] if write else []
    native, _header = database.native(case)
    sources = database.sources(case)
    if as_json:
        print_json({"case": name, **_case_json(database, case, native), "sources": sources, "written": written})
        return 0
    print_table(
        f"{name}: subject {case.subject}, split {case.split}",
        ["what", "file", "shape", "mm", "axes", "steps", "sha256"],
        [
            [s["role"], s["file"], _by(s["shape"]), _by(s["voxel_mm"]), s["axes"],
             "; ".join(s["steps"]) or "as it was", s["sha256"][:16]]
            for s in sources
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
        "annotations": [name for name, there in zip(database.schemas, case.annotated, strict=True) if there],
        "extent": list(case.extent), "affine": case.grid.affine.tolist(),
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
