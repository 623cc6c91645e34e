"""The whole way once, on synthetic hospitals: what a user would type, and what comes of it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer


def demo_command(
    out: Annotated[Path, typer.Option(help="Folder for everything that is made.")] = Path("demo"),
    cases: Annotated[int, typer.Option(help="Cases a hospital.", min=3)] = 10,
    steps: Annotated[int, typer.Option(help="Training steps.", min=1)] = 400,
    seed: Annotated[int, typer.Option(help="Of the patients and of the training.")] = 0,
) -> int:
    """Run the main job on four synthetic hospitals: ingest, info, train, evaluate, predict. Minutes on two cores.

    Example: multiseg demo --out demo
    """
    from multiseg.cli.app import run
    from multiseg.cli.console import output

    hospitals, store, joint = out / "hospitals", out / "brain.zarr", out / "joint"
    patient = hospitals / "dogwood" / "images" / "D003"
    commands = [
        f"phantoms {hospitals} --cases {cases} --seed {seed}",
        f"ingest {hospitals / 'manifest.toml'} --store {store} --spacing 2.5",
        f"info {store}",
        f"train {store} --out {joint} --steps {steps} --seed {seed} --device cpu",
        f"evaluate {joint} --device cpu",
        f"predict {joint} FLAIR={patient}_FLAIR.nii.gz -o {out / 'lesions.nii.gz'} --device cpu",
    ]
    console = output()
    for command in commands:
        console.print(f"\n[bold green]$ multiseg {command}[/]", soft_wrap=True, highlight=False)
        code = run(shlex.split(command))
        if code:
            return code
    console.print(
        f"\nLook at {joint / 'evaluation-test' / 'montage.png'}: truth and prediction on held-out patients.\n"
        f"The store is {store}, the model {joint / 'model.safetensors'}, the segmentation {out / 'lesions.nii.gz'}.",
        soft_wrap=True,
    )
    return 0
