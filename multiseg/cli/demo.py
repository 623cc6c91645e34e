"""The whole way once, on synthetic hospitals: what a user would type, and what comes of it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

FEDERATED_STEPS = 60
"""Of each site in each of two rounds."""
MARK = ".demo"
"""Says that a folder was made by a demo, which makes it once more; in any other folder nothing is written over."""


def demo_command(
    out: Annotated[Path, typer.Option(help="Folder for everything that is made.")] = Path("demo"),
    cases: Annotated[int, typer.Option(help="Cases a hospital.", min=3)] = 10,
    steps: Annotated[int, typer.Option(help="Training steps.", min=1)] = 400,
    seed: Annotated[int, typer.Option(help="Of the patients and of the training.")] = 0,
) -> int:
    """Run the main job on four synthetic hospitals: ingest, info, train, evaluate, predict. Minutes on two cores.

    Then three of them train one model together, as real processes over TLS, each with a store of its own.

    Example: multiseg demo --out demo
    """
    from multiseg.cli.app import run
    from multiseg.cli.console import output
    from multiseg.cli.federate.fed_demo import federated_demo
    from multiseg.store.catalogue import select
    from multiseg.store.reader import open_store

    again = _claimed(out)
    hospitals, store, joint = out / "hospitals", out / "brain.zarr", out / "joint"
    answer, picture = out / "lesions.nii.gz", out / "lesions.png"
    console = output()

    def walk() -> Iterator[list[str]]:
        yield ["phantoms", f"{hospitals}", "--cases", f"{cases}", "--seed", f"{seed}", *again]
        yield ["ingest", f"{hospitals / 'manifest.toml'}", "--store", f"{store}", "--spacing", "2.5"]
        yield ["info", f"{store}"]
        yield ["train", f"{store}", "--out", f"{joint}", "--steps", f"{steps}", "--seed", f"{seed}", "--device", "cpu"]
        yield ["evaluate", f"{joint}", "--device", "cpu"]
        held_out = select(open_store(str(store)), ["dogwood"], split="test")[0].name
        scan = hospitals / "dogwood" / "images" / f"{held_out}_FLAIR.nii.gz"
        yield ["predict", f"{joint}", f"FLAIR={scan}", "-o", f"{answer}", "--picture", f"{picture}", *again,
               "--device", "cpu"]  # fmt: skip

    def shown(command: list[str]) -> int:
        console.print(f"\n$ multiseg {shlex.join(command)}", style="bold green", soft_wrap=True, markup=False)
        return run(command)

    for command in walk():
        if code := shown(command):
            return code
    if code := federated_demo(out / "federation", min(steps, FEDERATED_STEPS), seed, again, shown):
        return code
    console.print(
        f"\nLook at {joint / 'evaluation-test' / 'montage.png'}: truth and prediction on held-out patients.\n"
        f"One patient's segmentation is {answer}, drawn in {picture}.\n"
        f"The store is {store}, the model {joint / 'model.safetensors'}.\n"
        f"What three hospitals learnt together is in {out / 'federation' / 'network' / 'centre' / 'runs' / 'demo'}.",
        soft_wrap=True,
    )
    return 0


def _claimed(out: Path) -> list[str]:
    """Mark the folder as a demo's; the flags that let what an earlier demo left in it be written over."""
    from multiseg.files import check_folder, write_atomically

    check_folder(out, own=(MARK,))
    again = ["--overwrite"] if (out / MARK).is_file() else []
    write_atomically(out / MARK, b"")
    return again
