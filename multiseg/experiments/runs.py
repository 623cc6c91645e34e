"""A run as data: what is trained, from which other run, and what an experiment asks of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from multiseg.config import merged
from multiseg.experiments.ground import Ground
from multiseg.models.builders import NETWORKS, multi_unet_plus


@dataclass(frozen=True)
class Run:
    """One training. Two runs with equal settings and equal parents are one, trained once for all experiments.

    Attributes:
        name: for people; it does not count.
        settings: nested, as in a run file, without device and readers.
        parent: the run whose model this one starts from.
        federation: where every database is a site of its own: the tables of a federated run that a training has not.
    """

    name: str
    settings: Mapping[str, Any] = field(hash=False)
    parent: Run | None = None
    federation: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def key(self) -> str:
        """What makes this run itself, in 12 letters."""
        parent = self.parent.key if self.parent else ""
        told = [self.settings, parent, *([self.federation] if self.federation else [])]
        text = json.dumps(told, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def seed(self) -> int:
        return int(self.settings["seed"])

    @property
    def cost(self) -> float:
        """About how long it takes, in patches of a Multi-Unet; for the time that is left."""
        builder = self.settings["model"].get("builder", "multi_unet")
        if self.settings.get("start", {}).get("method") == "progressive":
            builder = "progressive"
        factor = NETWORKS[builder].cost if builder in NETWORKS else 1.0
        if self.federation:
            factor *= len(self.settings["databases"])
        return float(factor * self.settings["fit"]["num_steps"] * self.settings["stream"]["batch_size"])


@dataclass(frozen=True)
class Exam:
    """What a trained model is asked: which databases' cases, with which subsets of their sequences."""

    databases: tuple[str, ...]
    subsets: str = "full"
    split: str = "test"

    @property
    def key(self) -> str:
        text = json.dumps([self.databases, self.subsets, self.split])
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Arm:
    """A run under the name that it has in an experiment's tables, and its test there."""

    name: str
    run: Run
    exam: Exam


def training(
    ground: Ground, name: str, databases: Sequence[str], seed: int, more: Mapping[str, Any], parent: Run | None = None
) -> Run:
    """A run on these databases at the ground's scale, with `more` settings of its own."""
    settings = merged(ground.scale.settings(len(databases)), {"store": ground.store, "databases": list(databases)})
    return Run(f"{name}, seed {seed}", merged(settings, {"seed": seed, **more}), parent)


def joint(ground: Ground, seed: int, drop: str = "uniform", builder: str = "multi_unet") -> Run:
    """One model of all training databases."""
    numbers = {"widths": ground.scale.plus_widths, "norm": multi_unet_plus.norm} if builder == "multi_unet_plus" else {}
    more = {"model": {"builder": builder, **numbers}, "stream": {"draw": {"drop": drop}}}
    return training(ground, f"{builder} on all, drop {drop}", ground.training, seed, more)


def single(ground: Ground, database: str, seed: int, drop: str = "none") -> Run:
    """One database's own model. A database of one sequence has nothing to drop."""
    drop = drop if len(ground.sequences[database]) > 1 else "none"
    more = {"model": {"builder": "multi_unet"}, "stream": {"draw": {"drop": drop}}}
    return training(ground, f"{database} alone, drop {drop}", [database], seed, more)


def without(ground: Ground, database: str, seed: int) -> Run:
    """One model, with modality drop, of all training databases but one."""
    more = {"model": {"builder": "multi_unet"}, "stream": {"draw": {"drop": "uniform"}}}
    return training(ground, f"all but {database}", ground.others(database), seed, more)


def in_order(arms: Iterable[Arm]) -> list[Run]:
    """Every run once, parents before their children."""
    found: dict[str, Run] = {}
    for arm in arms:
        line = [arm.run]
        while (parent := line[-1].parent) is not None:
            line.append(parent)
        for run in reversed(line):
            found.setdefault(run.key, run)
    return list(found.values())
