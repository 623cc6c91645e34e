"""Verb: demo. It runs the commands that a user would type, on synthetic hospitals."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

FEDERATED_STEPS = 60
"""Steps of each site in each of two rounds."""
MARK = ".demo"
"""File in a folder that a demo has made. Only such a folder is overwritten by another demo."""


def demo_command(
    out: Annotated[Path, typer.Option(help="Folder for all files of the demo.")] = Path("demo"),
    cases: Annotated[int, typer.Option(help="Cases per hospital.", min=3)] = 10,
    steps: Annotated[int, typer.Option(help="Training steps.", min=1)] = 400,
    seed: Annotated[int, typer.Option(help="Seed for patients and training.")] = 0,
) -> int:
    """Run all main commands on four synthetic hospitals: ingest, info, train, evaluate, predict. Minutes on two cores.

    Then three hospitals with a store each train one model together, as separate processes over TLS.

    Example: multiseg demo --out demo
    """
    from multiseg.cli.app import run
    from multiseg.cli.console import output
    from multiseg.cli.federate.fed_demo import federated_demo
    from multiseg.store.catalogue import select
    from multiseg.store.reader import open_store

    overwrite = _claim(out)
    hospitals, store, joint = out / "hospitals", out / "brain.zarr", out / "joint"
    segmentation, picture = out / "lesions.nii.gz", out / "lesions.png"
    console = output()

    # A generator, since the last command needs the store that the earlier ones make.
    def commands() -> Iterator[list[str]]:
        yield ["phantoms", f"{hospitals}", "--cases", f"{cases}", "--seed", f"{seed}", *overwrite]
        yield ["ingest", f"{hospitals / 'manifest.toml'}", "--store", f"{store}", "--spacing", "2.5"]
        yield ["info", f"{store}"]
        yield ["train", f"{store}", "--out", f"{joint}", "--steps", f"{steps}", "--seed", f"{seed}", "--device", "cpu"]
        yield ["evaluate", f"{joint}", "--device", "cpu"]
        held_out = select(open_store(str(store)), ["dogwood"], split="test")[0].name
        scan = hospitals / "dogwood" / "images" / f"{held_out}_FLAIR.nii.gz"
        yield ["predict", f"{joint}", f"FLAIR={scan}", "-o", f"{segmentation}", "--picture", f"{picture}", *overwrite,
               "--device", "cpu"]  # fmt: skip

    def run_shown(command: list[str]) -> int:
        console.print(f"\n$ multiseg {shlex.join(command)}", style="bold green", soft_wrap=True, markup=False)
        return run(command)

    for command in commands():
        if code := run_shown(command):
            return code
    if code := federated_demo(out / "federation", min(steps, FEDERATED_STEPS), seed, overwrite, run_shown):
        return code
    console.print(
        f"\nLook at {joint / 'evaluation-test' / 'montage.png'}: truth and prediction on held-out patients.\n"
        f"One patient's segmentation is {segmentation}, drawn in {picture}.\n"
        f"The store is {store}, the model {joint / 'model.safetensors'}.\n"
        f"The model of the three hospitals is in {out / 'federation' / 'network' / 'centre' / 'runs' / 'demo'}.",
        soft_wrap=True,
    )
    return 0


def _claim(out: Path) -> list[str]:
    """Mark the folder as a demo's, and return the flags that overwrite the files of an earlier demo in it."""
    from multiseg.files import check_folder, write_atomically

    check_folder(out, own=(MARK,))
    overwrite = ["--overwrite"] if (out / MARK).is_file() else []
    write_atomically(out / MARK, b"")
    return overwrite
