"""Verb: graft."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from multiseg.cli.shared_flags import AsJson, Overwrite


def graft_command(
    store: Annotated[str, typer.Argument(help="A store whose databases were ingested with --template.")],
    lesions: Annotated[list[str], typer.Option(help="Databases with lesions.")],
    into: Annotated[list[str], typer.Option(help="Databases of healthy people with tissues.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the cases.")],
    split: Annotated[str, typer.Option(help='Healthy cases: train, val, test or "all".')] = "test",
    lesion_split: Annotated[
        str, typer.Option(help='Cases with lesions: train, val, test or "all" (default: as --split).')
    ] = "",
    seed: Annotated[int, typer.Option(help="Seed for which lesion goes where.", min=0)] = 0,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> int:
    """Write healthy cases with a real lesion grafted in, so that the tissue under the lesion is known.

    Each case gets a folder of NIfTI files. manifest.csv is for ingest, grafts.json says which case came from which.

    Examples:

    multiseg graft brain.zarr --lesions brats --into anatomy --out grafted

    multiseg ingest grafted/manifest.csv --store grafted.zarr --spacing 1
    """
    from rich.progress import TaskID

    from multiseg.cli.console import messages, output, print_json, progress_bar
    from multiseg.evaluation.grafted_cases import GraftOptions, write_grafted_cases
    from multiseg.store.reader import open_store

    of_lesions = lesion_split or split
    options = GraftOptions(
        tuple(lesions), tuple(into), "" if split == "all" else split, "" if of_lesions == "all" else of_lesions, seed
    )
    with progress_bar("graft", 1) as bar:

        def on_case(done: int, total: int, case: str) -> None:
            bar.update(TaskID(0), completed=done, total=total, details=case)
            if bar.disable and not as_json:
                messages().print(f"{done + 1}/{total} {case}", soft_wrap=True, markup=False)

        result = write_grafted_cases(open_store(store), options, out, on_case, overwrite)
    if as_json:
        cases = [vars(origin) for origin in result.origins]
        print_json({
            "manifest": str(result.manifest), "cases": cases, "without": list(result.without),
            "with_lesions": list(result.with_lesions),
        })  # fmt: skip
        return 0
    for origin in result.origins:
        text = f"{origin.case}: {origin.lesion} ({origin.lesion_ml:.1f} ml) in {origin.healthy}"
        output().print(text, soft_wrap=True, markup=False)
    for name in result.without:
        messages().print(
            f"{name}: left out, no lesion of another person fits into its brain.", soft_wrap=True, markup=False
        )
    for name in result.with_lesions:
        messages().print(f"{name}: left out, it has lesions of its own.", soft_wrap=True, markup=False)
    spacing = ",".join(f"{mm:g}" for mm in open_store(store).spacing_mm)
    to_do = f"Ingest them with: multiseg ingest {result.manifest} --store grafted.zarr --spacing {spacing}"
    output().print(to_do, soft_wrap=True, markup=False)
    return 0
