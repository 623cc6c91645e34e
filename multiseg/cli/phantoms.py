"""Verb: phantoms."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from multiseg.cli.shared_flags import AsJson, Overwrite


def phantoms_command(
    folder: Annotated[Path, typer.Argument(help="Folder for the hospitals.")],
    seed: Annotated[int, typer.Option(help="Seed for the patients.")] = 0,
    cases: Annotated[int, typer.Option(help="Cases per hospital.", min=1)] = 10,
    coarseness: Annotated[float, typer.Option(help="Factor of the voxel sizes; 2 is quick.", min=0.5)] = 1.0,
    hospital: Annotated[
        list[str] | None,
        typer.Option(help="Only these: alder, birch, cedar, dogwood (the defaults), elm, fir, gorse, hazel, ivy."),
    ] = None,
    skull: Annotated[
        bool,
        typer.Option("--skull", help="Raw scans of heads with skull, face and neck; each case has its brain mask."),
    ] = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> int:
    """Write synthetic hospitals as NIfTI files with a manifest: four pathologies, four sets of sequences.

    Examples:

    multiseg phantoms hospitals --cases 5

    multiseg phantoms more --hospital elm --hospital fir

    multiseg phantoms gliomas --hospital ivy (its tissue is known under the lesions, too)

    multiseg phantoms raw --skull --cases 3
    """
    from multiseg.cli.console import case_counter, output, print_json
    from multiseg.phantoms.hospitals import write_hospitals

    with case_counter("phantoms") as on_case:
        manifest = write_hospitals(folder, seed, cases, coarseness, hospital, overwrite, skull, on_case)
    if as_json:
        print_json({"manifest": str(manifest)})
        return 0
    output().print(f"Ingest them with: multiseg ingest {manifest} --store brain.zarr --spacing 2.5", soft_wrap=True)
    return 0
