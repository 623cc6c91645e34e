"""Verb: import-weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from multiseg.cli.shared_flags import AsJson
from multiseg.cli.source_flags import spacing_of

if TYPE_CHECKING:
    from multiseg.models.saved import ModelInfo


def import_weights_command(
    weights: Annotated[Path, typer.Argument(help="A state dict of torch.save (.pth), bare or wrapped.")],
    channels: Annotated[
        str,
        typer.Option(
            help="The sequence of every input channel, in the file's order. That of the released Multi-Unet is "
            "PD,FLAIR,SWI,T1,T1c,T2, which is not the alphabetical order: its code spells PD as DP."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder that gets model.safetensors.")],
    untrained: Annotated[str, typer.Option(help="Channels that no training database had, such as SWI.")] = "",
    spacing: Annotated[str, typer.Option(help="Voxel size it was trained on, in mm: 1, or 1,1,3.")] = "1",
    patch: Annotated[int, typer.Option(help="Edge of the windows it is used with, in voxels.", min=1)] = 128,
    background: Annotated[
        str, typer.Option(help='What it saw outside the brain: "shifted" (-mean/std, as published) or "zero".')
    ] = "shifted",
    trained_on: Annotated[
        list[str] | None, typer.Option(help="A database it learnt from, for the record (default: imported).")
    ] = None,
    licence: Annotated[str, typer.Option(help="Of the weights, for the record.")] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model that is there.")] = False,
    as_json: AsJson = False,
) -> int:
    """Make a model of ours from published weights: the Multi-Unet's, or FedUniBrain's with batch norm.

    Nothing in the file is executed; a tensor that is missing, left over or not finite is refused.

    Example:

    multiseg import-weights x.pth --channels PD,FLAIR,SWI,T1,T1c,T2 --out models/published
    """
    from multiseg.models.imported import ImportOptions, import_weights

    options = ImportOptions(
        _listed(channels), _listed(untrained), spacing_of(spacing), (patch, patch, patch),
        tuple(trained_on or ("imported",)), background, licence,
    )  # fmt: skip
    info = import_weights(weights, out, options, overwrite)
    _say(out, info, as_json)
    return 0


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _say(out: Path, info: ModelInfo, as_json: bool) -> None:
    from multiseg.cli.console import output, print_json
    from multiseg.models.saved import BEST

    if as_json:
        print_json({"path": str(out / BEST), **info.to_json()})
        return
    channels = ", ".join(name if info.trained_on[name] else f"{name} (untrained: never used)" for name in info.axis)
    output().print(
        f"Written to {out / BEST}, {info.numbers['norm']} norm. Channels: {channels}. Background: {info.background}.",
        soft_wrap=True,
    )
