"""`multiseg info STORE --case`: where one case came from, what was done to it, and its way home."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from multiseg.cli.console import output, print_json, print_table
from multiseg.store.formats.volumes import axis_codes
from multiseg.store.native import write_native
from multiseg.store.preparation.grids import Grid
from multiseg.store.reader import Case, Database, Store


def show_case(store: Store, name: str, write: Path | None, overwrite: bool, as_json: bool) -> int:
    """Print one case, "DATABASE/CASE", and write it on its files' own grid where a folder is given."""
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
    rows = "\n".join("  ".join(f"{value:.6g}" for value in row) for row in grid.affine[:3])
    return [name, _by(grid.shape), _by(grid.spacing_mm), axis_codes(grid.affine), rows]


def _by(numbers: Sequence[float]) -> str:
    return "x".join(f"{number:.6g}" for number in numbers)
