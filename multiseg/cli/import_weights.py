"""Verb: import-weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from multiseg.cli.shared_flags import AsJson
from multiseg.cli.source_flags import spacing_of


def import_weights_command(
    weights: Annotated[Path, typer.Argument(help="A state dict saved by torch.save (.pth), plain or wrapped.")],
    channels: Annotated[
        str,
        typer.Option(
            help="The sequence of each input channel, in the order of the file. For the released Multi-Unet it is "
            "PD,FLAIR,SWI,T1,T1c,T2. This is not the alphabetical order, since its code spells PD as DP."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for model.safetensors.")],
    untrained: Annotated[str, typer.Option(help="Channels that no training database had, such as SWI.")] = "",
    spacing: Annotated[str, typer.Option(help="Voxel size of its training, in mm: 1, or 1,1,3.")] = "1",
    patch: Annotated[int, typer.Option(help="Edge of the sliding windows, in voxels.", min=1)] = 128,
    background: Annotated[
        str, typer.Option(help='Values outside the brain in training: "shifted" (-mean/std, as published) or "zero".')
    ] = "shifted",
    trained_on: Annotated[
        list[str] | None, typer.Option(help="A database of its training, for the record (default: imported).")
    ] = None,
    licence: Annotated[str, typer.Option(help="Licence of the weights, for the record.")] = "",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing model, and delete its brain network.")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Convert published weights to a multiseg model: those of Multi-Unet, or of FedUniBrain with batch norm.

    No code in the file is run. A tensor that is missing, unexpected or not finite is an error.

    Example:

    multiseg import-weights x.pth --channels PD,FLAIR,SWI,T1,T1c,T2 --out models/published
    """
    from multiseg.cli.console import output, print_json
    from multiseg.models.imported import ImportOptions, import_weights
    from multiseg.models.saved import BEST

    options = ImportOptions(
        _listed(channels), _listed(untrained), spacing_of(spacing), (patch, patch, patch),
        tuple(trained_on or ("imported",)), background, licence,
    )  # fmt: skip
    info = import_weights(weights, out, options, overwrite)
    if as_json:
        print_json({"path": str(out / BEST), **info.to_json()})
        return 0
    named = ", ".join(name if info.trained_on[name] else f"{name} (untrained: never used)" for name in info.axis)
    text = f"{info.numbers['norm']} norm. Channels: {named}. Background: {info.background}."
    output().print(f"Written to {out / BEST}, {text}", soft_wrap=True)
    return 0


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
