"""Verb: export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from multiseg.cli.shared_flags import AsJson, Overwrite
from multiseg.errors import UsageError

if TYPE_CHECKING:
    from multiseg.models.saved import ModelInfo


def export_command(
    model: Annotated[Path, typer.Argument(help="A run folder, a model file or a package.")],
    onnx: Annotated[bool, typer.Option("--onnx", help="Write the network as ONNX; --out names the file.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File for --onnx (.onnx); the preparation is written as .json.")
    ] = None,
    colours: Annotated[
        Path | None,
        typer.Option(help="Folder for colour tables: ITK-SNAP, FSLeyes, FreeSurfer and 3D Slicer."),
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> int:
    """Write a model in the forms of other programs: its network as ONNX, and the colours of its labels.

    The ONNX file is compared with the network before it is written. It needs the extra onnx:
    see docs/install.md.

    Examples:

    multiseg export runs/joint --onnx -o joint.onnx

    multiseg export runs/joint --colours colours
    """
    from multiseg.cli.console import print_json
    from multiseg.models.saved import model_path, read_info

    if onnx != (out is not None):
        raise UsageError("--onnx and --out belong together: --onnx --out model.onnx.")
    if not onnx and colours is None:
        raise UsageError("say what to write: --onnx --out model.onnx, or --colours DIR.")
    file = model_path(model)
    tables = _write_colours(read_info(file), colours, overwrite) if colours else []
    written = _write_onnx(file, out, overwrite) if out else None
    if as_json:
        print_json({"model": str(file), "onnx": written, "colours": [str(path) for path in tables]})
        return 0
    _print_written(written, tables)
    return 0


def _write_colours(info: ModelInfo, folder: Path, overwrite: bool) -> list[Path]:
    from multiseg.files import check_files, write_atomically
    from multiseg.store.formats.label_table import colour_files, rows_of_space

    tables = colour_files(folder / "labels", rows_of_space(info.space))
    check_files(tables, overwrite=overwrite)
    for path, text in tables.items():
        write_atomically(path, text.encode())
    return list(tables)


def _write_onnx(file: Path, out: Path, overwrite: bool) -> dict[str, Any]:
    from multiseg.cli.console import case_counter
    from multiseg.export.onnx_file import export_onnx
    from multiseg.models.saved import load_model

    with case_counter("export") as on_check:
        made = export_onnx(load_model(file), out, [file], overwrite, on_check)
    return {
        "path": str(made.path),
        "preparation": str(made.record),
        "largest_difference": made.largest_difference,
        "subsets": made.subsets,
        "sizes": [list(size) for size in made.sizes],
    }


def _print_written(onnx: dict[str, Any] | None, tables: list[Path]) -> None:
    from multiseg.cli.console import output

    if onnx is not None:
        output().print(
            f"{onnx['path']}: the same logits as the model within {onnx['largest_difference']:.1e}, for "
            f"{onnx['subsets']} sets of sequences. How to prepare a patient: {onnx['preparation']}",
            soft_wrap=True,
        )
    for path in tables:
        output().print(f"Written: {path}", soft_wrap=True, highlight=False)
