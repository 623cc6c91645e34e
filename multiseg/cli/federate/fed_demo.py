"""The federated part of the demo: three synthetic hospitals, real processes, two rounds."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from multiseg.errors import FederationError
from multiseg.files import check_files

SITES = ("alder", "birch", "cedar")
"""T1 T2 FLAIR PD of multiple sclerosis; FLAIR T1 T1c T2 of glioma; DWI ADC and perhaps FLAIR of stroke."""

RUN_TOML = """\
experiment = "demo"
sites = ["alder", "birch", "cedar"]
seed = {seed}

[schedule]
rounds = 2
validation_cases = 1

[local]
steps = {steps}

[model]
widths = [8, 16, 32]
dropout = 0.1

[stream]
batch_size = 4
draw = {{ patch = [24, 24, 24] }}

[augment]
preset = "none"

[fit]
learning_rate = 2e-3
"""


def federated_demo(out: Path, steps: int, seed: int, again: list[str], walk: Callable[[list[str]], int]) -> int:
    """Run it in a folder, with `walk` to run a command line of ours; the exit code.

    Args:
        again: flags that let an earlier demo's files be written over.

    Raises:
        FederationError: the server or a site did not come up.
    """
    from multiseg.federation.local_deployment import prepared, staged

    stores = {name: str((out / f"{name}.zarr").resolve()) for name in SITES}
    for name, store in stores.items():
        folder = out / "hospitals" / name
        for command in (
            ["phantoms", f"{folder}", "--hospital", name, "--cases", "6", "--coarseness", "2", "--seed", f"{seed}",
             *again],
            ["ingest", f"{folder / 'manifest.toml'}", "--store", store, "--spacing", "4", "--split",
             "train=0.5,val=0.25,test=0.25"],
        ):  # fmt: skip
            if code := walk(command):
                return code
    network = out / "network"
    if again:
        shutil.rmtree(network, ignore_errors=True)  # of an earlier demo: its keys and ports are of no use any more
    check_files([network, out / "run.toml"], overwrite=bool(again))
    rehearsal = prepared(network, stores, device="cpu", least=1)  # six synthetic cases a site
    (out / "run.toml").write_text(RUN_TOML.format(steps=steps, seed=seed), encoding="utf-8")
    with staged(rehearsal):
        for command in (
            ["fed", "status", f"{rehearsal.home}"],
            ["fed", "run", f"{rehearsal.home}", f"{out / 'run.toml'}", "--follow"],
        ):
            if code := walk(command):
                return code
    if not (rehearsal.home / "runs" / "demo" / "model.safetensors").is_file():
        raise FederationError(f"the run left no model in {rehearsal.home / 'runs' / 'demo'}: see the logs beside it.")
    return walk(["fed", "report", f"{rehearsal.home / 'runs' / 'demo'}"]) or walk(
        ["fed", "audit", f"{rehearsal.sites[SITES[0]]}"]
    )
