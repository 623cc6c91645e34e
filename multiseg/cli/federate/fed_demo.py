"""The federated part of the demo: three synthetic hospitals, real processes, two rounds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from multiseg.errors import FederationError
from multiseg.files import check_files

SITES = ("alder", "birch", "cedar")
"""T1 T2 FLAIR PD of multiple sclerosis; FLAIR T1 T1c T2 of glioma; DWI ADC and sometimes FLAIR of stroke."""

TEMPLATE = Path(__file__).with_suffix(".toml.template")


def federated_demo(
    out: Path, steps: int, seed: int, overwrite: list[str], run_command: Callable[[list[str]], int]
) -> int:
    """Run the demo in a folder, and return its exit code.

    Args:
        overwrite: the flags that overwrite the files of an earlier demo, if there was one.
        run_command: runs a command line of multiseg, and returns its exit code.

    Raises:
        FederationError: the server or a site did not start.
    """
    from multiseg.federation.local_deployment import prepared, staged

    stores = {name: str((out / f"{name}.zarr").resolve()) for name in SITES}
    for name, store in stores.items():
        folder = out / "hospitals" / name
        for command in (
            ["phantoms", f"{folder}", "--hospital", name, "--cases", "6", "--coarseness", "2", "--seed", f"{seed}",
             *overwrite],
            ["ingest", f"{folder / 'manifest.toml'}", "--store", store, "--spacing", "4", "--split",
             "train=0.5,val=0.25,test=0.25"],
        ):  # fmt: skip
            if code := run_command(command):
                return code
    network = out / "network"
    if overwrite:
        shutil.rmtree(network, ignore_errors=True)  # the keys and ports of the earlier demo are no longer valid
    check_files([network, out / "run.toml"], overwrite=bool(overwrite))
    rehearsal = prepared(network, stores, device="cpu", least=1)  # six synthetic cases per site
    settings = TEMPLATE.read_text(encoding="utf-8").format(sites=json.dumps(SITES), steps=steps, seed=seed)
    (out / "run.toml").write_text(settings, encoding="utf-8")
    with staged(rehearsal):
        for command in (
            ["fed", "status", f"{rehearsal.home}"],
            ["fed", "run", f"{rehearsal.home}", f"{out / 'run.toml'}", "--follow"],
        ):
            if code := run_command(command):
                return code
    run = rehearsal.home / "runs" / "demo"
    if not (run / "model.safetensors").is_file():
        raise FederationError(f"the run has written no model to {run}: see the logs in the same folder.")
    return run_command(["fed", "report", f"{run}"]) or run_command(["fed", "audit", f"{rehearsal.sites[SITES[0]]}"])
