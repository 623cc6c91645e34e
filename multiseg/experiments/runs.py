"""Runs, their exams and the arms of experiments, as data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from multiseg.config import merged
from multiseg.evaluation.adaptation import FOUND
from multiseg.evaluation.evaluation_result import EvaluateOptions
from multiseg.experiments.ground import Ground
from multiseg.models.builders import NETWORKS, multi_unet_plus
from multiseg.training import joint_loss


@dataclass(frozen=True)
class Run:
    """One training, or models that answer as one. Runs with equal settings and parents are trained only once.

    A stage of a two_branch network is a run of its own (`stage` in its settings), and the next stage has it as parent.
    The stage pseudo_label trains nothing: it writes the targets that a stage joint learns from.

    Attributes:
        name: for people; it does not change the key.
        settings: nested, as in a run file, without the device and the number of workers.
        parent: the run whose model this one starts from.
        federation: if every database is a site: the tables of a federated run that a training does not have.
        fused: if not empty, nothing is trained: the models of these two runs answer together, one for the tissues and
            one for the lesions (`multiseg.models.fused`).
        pseudo_labels: the run of the stage pseudo_label that this one learns from.
    """

    name: str
    settings: Mapping[str, Any] = field(hash=False)
    parent: Run | None = None
    federation: Mapping[str, Any] = field(default_factory=dict, hash=False)
    fused: tuple[Run, ...] = ()
    pseudo_labels: Run | None = None

    @property
    def needs(self) -> tuple[Run, ...]:
        """The runs that have to be done first."""
        return (*(one for one in (self.parent, self.pseudo_labels) if one), *self.fused)

    @property
    def key(self) -> str:
        """The digest of settings and federation and of the runs that it needs, in 12 letters.

        Of a stage joint it also holds the version of the losses, so that kept runs of other losses are not mixed in.
        """
        parent = self.parent.key if self.parent else ""
        content = [self.settings, parent, *([self.federation] if self.federation else [])]
        content += [[run.key for run in self.fused]] if self.fused else []
        content += [{"pseudo_labels": self.pseudo_labels.key}] if self.pseudo_labels else []
        content += [{"joint_loss": joint_loss.VERSION}] if self.settings.get("stage") == "joint" else []
        return _digest(json.dumps(content, sort_keys=True))

    @property
    def seed(self) -> int:
        return int(self.settings["seed"])

    @property
    def cost(self) -> float:
        """The approximate time of the training, in patches of a Multi-Unet; 0 if nothing is trained."""
        if self.fused:
            return 0.0
        builder = self.settings["model"].get("builder", "multi_unet")
        if self.settings.get("start", {}).get("method") == "progressive":
            builder = "progressive"
        factor = NETWORKS[builder].cost if builder in NETWORKS else 1.0
        if self.federation:
            factor *= len(self.settings["databases"])
        return float(factor * self.settings["fit"]["num_steps"] * self.settings["stream"]["batch_size"])


@dataclass(frozen=True)
class Exam:
    """A test of a trained model: on which cases, with which subsets of their sequences.

    Attributes:
        zones, adapt, branch, adapt_to: as of `EvaluateOptions`.
        store: of the cases; "" for that of the training.
    """

    databases: tuple[str, ...]
    subsets: str = "full"
    split: str = "test"
    zones: bool = False
    adapt: bool = False
    branch: str = ""
    adapt_to: str = FOUND
    store: str = ""

    @property
    def key(self) -> str:
        more = {name: value for name in ("zones", "adapt", "branch", "store") if (value := getattr(self, name))}
        more |= {"adapt_to": self.adapt_to} if self.adapt_to != FOUND else {}
        return _digest(json.dumps([self.databases, self.subsets, self.split, *([more] if more else [])]))

    def options(self, overlap: float) -> EvaluateOptions:
        """The options of the evaluation, whose windows overlap by this share."""
        return EvaluateOptions(
            self.split,
            self.databases,
            self.subsets,
            overlap,
            zones=self.zones,
            adapt=self.adapt,
            branch=self.branch,
            adapt_to=self.adapt_to,
        )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Arm:
    """A run and an exam, with their name in the tables of an experiment."""

    name: str
    run: Run
    exam: Exam


def training(
    ground: Ground, name: str, databases: Sequence[str], seed: int, more: Mapping[str, Any], parent: Run | None = None
) -> Run:
    """A run on these databases at the ground's scale, with `more` settings."""
    settings = merged(ground.scale.settings(len(databases)), {"store": ground.store, "databases": list(databases)})
    return Run(f"{name}, seed {seed}", merged(settings, {"seed": seed, **more}), parent)


def joint(
    ground: Ground, seed: int, drop: str = "uniform", builder: str = "multi_unet", fit: Mapping[str, Any] | None = None
) -> Run:
    """One model of all training databases."""
    numbers = {"widths": ground.scale.plus_widths, "norm": multi_unet_plus.norm} if builder == "multi_unet_plus" else {}
    more: dict[str, Any] = {"model": {"builder": builder, **numbers}, "stream": {"draw": {"drop": drop}}}
    name = f"{builder} on all, drop {drop}" + "".join(f", {key} {value}" for key, value in (fit or {}).items())
    return training(ground, name, ground.training, seed, merged(more, {"fit": fit} if fit else {}))


def single(ground: Ground, database: str, seed: int, drop: str = "none") -> Run:
    """A model of one database. If that has only one sequence, there is none to drop."""
    drop = drop if len(ground.sequences[database]) > 1 else "none"
    more = {"model": {"builder": "multi_unet"}, "stream": {"draw": {"drop": drop}}}
    return training(ground, f"{database} alone, drop {drop}", [database], seed, more)


def without(ground: Ground, database: str, seed: int) -> Run:
    """One model, with modality drop, of all training databases except one."""
    more = {"model": {"builder": "multi_unet"}, "stream": {"draw": {"drop": "uniform"}}}
    return training(ground, f"all but {database}", ground.others(database), seed, more)


def in_order(arms: Iterable[Arm]) -> list[Run]:
    """Every run once, after the runs that it needs."""
    runs: dict[str, Run] = {}

    def add(run: Run) -> None:
        for needed in run.needs:
            add(needed)
        runs.setdefault(run.key, run)

    for arm in arms:
        add(arm.run)
    return list(runs.values())
