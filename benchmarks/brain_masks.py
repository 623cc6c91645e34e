"""Dice of the brain masks that a network finds in raw scans. Run: python -m benchmarks.brain_masks NETWORK MANIFEST

The manifest lists raw scans with their brain masks, such as those of `multiseg phantoms raw --skull`. Each sequence of
a case is masked alone, and all of a case together.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from multiseg.evaluation.brain_finding import find_brain
from multiseg.evaluation.metrics import dice
from multiseg.models.brain_network import brain_network_at
from multiseg.models.saved import Model
from multiseg.store.cases import CaseFiles
from multiseg.store.preparation.grids import resample
from multiseg.store.preparation.journal import Journal
from multiseg.store.preparation.places import grid_of
from multiseg.store.preparation.prepare import read_scene
from multiseg.store.preparation.recipe import Recipe
from multiseg.store.sources.manifest import find_manifest


def dices_of(network: Model, files: CaseFiles) -> dict[str, tuple[float, int]]:
    """The Dice and the number of doubts, by sequence and for "all", in the voxels of the case's mask."""
    scene = read_scene(replace(files, labels={}), {}, Recipe(reference=next(iter(files.images))), Journal())
    truth = scene.volumes["brain_mask"]
    grid, brain = grid_of(truth), truth.voxels > 0.5
    found = {}
    for name in (*scene.names, "all"):
        volumes = {one: scene.volumes[one] for one in (scene.names if name == "all" else (name,))}
        home = grid_of(scene.volumes[scene.names[0] if name == "all" else name])
        answer = find_brain(network, volumes, home)
        mask = resample(answer.probability, answer.grid, grid, smooth=False) > 0.5
        found[name] = (dice(mask & home.contains(grid), brain & home.contains(grid)), len(answer.faults))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", type=Path, help="a brain network, or a model that carries one")
    parser.add_argument("manifest", type=Path)
    arguments = parser.parse_args()
    network = brain_network_at(arguments.network)
    if network is None:
        raise SystemExit(f"{arguments.network} carries no brain network")
    scores: dict[str, list[tuple[float, int]]] = {}
    for database in find_manifest(arguments.manifest):
        for files in database.cases:
            for name, score in dices_of(network, files).items():
                scores.setdefault(name, []).append(score)
                print(f"{database.name}/{files.case} {name}: Dice {score[0]:.3f}, {score[1]} doubts")
    for name, values in scores.items():
        dices = [value for value, _ in values]
        print(f"{name}: {len(dices)} masks, Dice {np.mean(dices):.3f} (least {min(dices):.3f})")


if __name__ == "__main__":
    main()
