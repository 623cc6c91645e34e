"""Verb: brain-mask."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from multiseg.cli.shared_flags import AsJson, Device, Overwrite


def brain_mask_command(
    model: Annotated[Path, typer.Argument(help="A model that carries a brain network: a run, a file or a package.")],
    image: Annotated[
        list[str], typer.Argument(help="Images of one person: FLAIR=scan.nii.gz, or a name that has the sequence.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="File for the mask (.nii.gz).")],
    device: Device = "auto",
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> int:
    """Write the brain mask that the model's network finds in scans with their skull, in the voxels of the first image.

    It is the mask of `predict --brain-mask model`: to look at it, and to correct it by hand. As a command of `ingest`
    it strips skulls: any name will do for the sequence, since the network knows none.

    Examples:

    multiseg brain-mask runs/joint T1=t1.nii.gz FLAIR=flair.nii.gz -o mask.nii.gz

    multiseg ingest study --brain-mask "command multiseg brain-mask runs/joint any={image} -o {mask}"
    """
    from multiseg.cli.console import messages, output, print_json
    from multiseg.evaluation.brain_mask_file import write_brain_mask
    from multiseg.evaluation.prediction_inputs import name_images
    from multiseg.models.devices import resolve_device

    written = write_brain_mask(model, name_images(image), out, device=str(resolve_device(device)), overwrite=overwrite)
    if as_json:
        doubts = [{"severity": str(d.severity), "code": d.code, "message": d.message} for d in written.doubts]
        print_json({"path": str(out), "ml": written.ml, "reference": written.reference, "doubts": doubts})
        return 0
    for doubt in written.doubts:
        messages().print(f"{doubt.code}: {doubt.message}", soft_wrap=True, markup=False)
    output().print(f"{out}: {written.ml:.0f} ml, on the grid of {written.reference}", soft_wrap=True, markup=False)
    return 0
