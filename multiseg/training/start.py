"""What a training starts from: fresh weights, or a model that is fine-tuned (Xu et al. 2024, section 3.4)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import nn

from multiseg.errors import CheckpointError, UsageError
from multiseg.modalities import ModalityAxis
from multiseg.models.builders import NETWORKS
from multiseg.models.learnt_scans import LearntScans
from multiseg.models.progressive import ProgressiveUnet
from multiseg.models.saved import ModelInfo, load_weights, model_path, read_info, read_learnt
from multiseg.models.two_branch import ANCHOR_PREFIX
from multiseg.own import is_own

METHODS = ("finetune", "progressive")


@dataclass(frozen=True)
class StartOptions:
    """What to start from; network, label space and voxel size are then those of the model.

    Attributes:
        model: a model file or a run folder; "" (default) for fresh weights.
        method: "finetune" (default: train its weights further) or "progressive" (they are frozen, and a second
            network learns from their features; appendix C).
        assign: new sequence = old sequence whose channel it takes. A new sequence that is not named here takes, of
            the channels that the new data does not use, the one with the fewest training cases; if none is free it
            gets a new channel with fresh weights at the end of the axis.
        grow: give every new sequence that is not assigned a new channel.
        head_steps: number of first steps in which only the last layer learns, 0 by default.
    """

    model: str = ""
    method: str = "finetune"
    assign: Mapping[str, str] = field(default_factory=dict, hash=False)
    grow: bool = False
    head_steps: int = 0


@dataclass(frozen=True, eq=False)
class Parent:
    """The model that a training starts from; `learnt` is None if it does not say from which scans it learnt."""

    file: Path
    info: ModelInfo
    sha256: str
    learnt: LearntScans | None = None


@dataclass(frozen=True)
class Channels:
    """The modality axis of a fine-tuned model.

    Attributes:
        assigned: new sequence to the one whose channel it took.
        grown: new sequences with a new channel.
    """

    axis: ModalityAxis
    assigned: Mapping[str, str]
    grown: tuple[str, ...]


def parent_of(options: StartOptions) -> Parent | None:
    """The model to start from, or None for fresh weights.

    Raises:
        UsageError: an option is invalid, or set without a model.
        CheckpointError: there is no model, or it is damaged.
    """
    if options.method not in METHODS:
        raise UsageError(f"start.method is {options.method!r}: give one of {', '.join(METHODS)}.")
    if options.head_steps < 0:
        raise UsageError(f"start.head_steps is {options.head_steps}: give 0 or more.")
    if not options.model:
        if replace(options, method="finetune") != StartOptions():
            raise UsageError("[start] has settings but names no model to start from: set start.model.")
        return None
    file = model_path(Path(options.model))
    info = read_info(file)
    first = NETWORKS["progressive"].trained_first
    if options.method == "progressive" and info.builder != first:
        raise UsageError(
            f"a progressive column is built on a {first}, but {file} is a {info.builder}: finetune it without "
            "--progressive."
        )
    if options.method == "progressive" and info.background != "zero":
        raise UsageError(
            f"{file} was trained with {info.background} values outside the brain, but they are 0 now, and a frozen "
            "column cannot adapt: finetune it without --progressive."
        )
    return Parent(file, info, hashlib.sha256(file.read_bytes()).hexdigest(), read_learnt(file))


def arrange_channels(info: ModelInfo, sequences: Iterable[str], options: StartOptions) -> Channels:
    """Channels for the sequences of the new data: known ones keep theirs, see `StartOptions` for the others.

    Raises:
        UsageError: an assignment is invalid: of a sequence that is not new, to a channel that does not exist, that
            the new data needs, or that is given twice; or there are more channels than the network can have.
    """
    sequences = list(sequences)
    new = [name for name in sequences if name not in info.axis]
    _check_assigned(info, sequences, new, options.assign)
    assigned = dict(options.assign)
    unused = [name for name in info.axis if name not in sequences and name not in assigned.values()]
    # The sort is stable, so equal channels stay in the order of the axis.
    unused.sort(key=lambda name: (bool(info.trained_on.get(name)), _num_cases(info, name)))
    for name in new:
        if name not in assigned and unused and not options.grow:
            assigned[name] = unused.pop(0)
    renamed = {old: name for name, old in assigned.items()}
    axis = ModalityAxis(tuple(renamed.get(name, name) for name in info.axis))
    grown = tuple(name for name in new if name not in assigned)
    if grown and is_own(info.builder):
        raise UsageError(
            f"{info.builder} is not a network of multiseg, so it cannot get new channels for {', '.join(grown)}: "
            "assign them to channels that the new data does not use, with --assign NEW=OLD."
        )
    network, num_sequences = NETWORKS.get(info.builder), len(axis) + len(grown)
    limit = info.numbers["widths"][0] if network and network.is_bounded else num_sequences
    if num_sequences > limit:
        raise UsageError(
            f"the network can have {limit} sequences, but there are {num_sequences}: {', '.join((*axis, *grown))}. "
            f"Assign {', '.join(grown)} to channels that the new data does not use, with --assign NEW=OLD, or leave "
            "out --grow."
        )
    return Channels(axis.grown(grown), assigned, grown)


def _num_cases(info: ModelInfo, name: str) -> int:
    return sum(int(info.databases[database]["num_cases"]) for database in info.trained_on.get(name, ()))


def _check_assigned(info: ModelInfo, sequences: list[str], new: list[str], assign: Mapping[str, str]) -> None:
    for name, old in assign.items():
        if name not in new:
            why = "the model has a channel for it" if name in sequences else "no training case has it"
            raise UsageError(f"{name} cannot be assigned to the channel of {old}: {why}.")
        if old not in info.axis:
            raise UsageError(f"{name} cannot take the channel of {old}: the model has {', '.join(info.axis)}.")
        if old in sequences:
            raise UsageError(f"{name} cannot take the channel of {old}: the new data has {old}, too. Name another.")
    if len(set(assign.values())) < len(assign):
        pairs = ", ".join(f"{name}={old}" for name, old in assign.items())
        raise UsageError(f"two sequences are assigned to one channel: {pairs}. Give each its own.")


def descended(info: ModelInfo, parent: Parent, channels: Channels, options: StartOptions) -> ModelInfo:
    """What the model will be: `info`, which covers the new data alone, with the history of the parent."""
    old = parent.info
    # Numbers that no option sets, such as those of the parent's axis, stay.
    numbers = {**old.numbers, **info.numbers}
    if options.method == "progressive":
        numbers["first_modalities"] = len(old.axis)
    # A new column reads the images with fresh weights, so it has learnt from no database yet.
    learnt = {} if options.method == "progressive" else old.trained_on
    before = {name: learnt.get(name, ()) for name in channels.axis}  # none for a renamed channel
    step = {
        "model": parent.sha256,
        "step": old.step,
        "method": options.method,
        "axis": list(old.axis),
        "assigned": dict(channels.assigned),
        "grown": list(channels.grown),
        "head_steps": options.head_steps,
        "databases": {name: attributes["num_cases"] for name, attributes in info.databases.items()},
    }
    return replace(
        info,
        builder="progressive" if options.method == "progressive" else old.builder,
        numbers=numbers,
        trained_on={name: tuple(dict.fromkeys((*before[name], *info.trained_on[name]))) for name in channels.axis},
        databases={**old.databases, **info.databases},
        licence=old.licence,
        ancestry=(*old.ancestry, step),
    )


def take_weights(network: nn.Module, parent: Parent, method: str, takes_anchor: bool = True) -> None:
    """Put the parent's weights into a fresh network that has its channels and perhaps more.

    All networks keep the channels in the order of the axis, so the parent's tensor is the first part of a larger one
    along every axis; the rest stays fresh.

    Args:
        takes_anchor: whether to take the parent's labelled healthy image, too; not if the network gets another one.

    Raises:
        CheckpointError: the weights do not fit.
    """
    if method == "progressive":
        assert isinstance(network, ProgressiveUnet)
        network = network.first
    state = network.state_dict()
    for name, tensor in load_weights(parent.file).items():
        if name.startswith(ANCHOR_PREFIX) and not takes_anchor:
            continue
        target = state.get(name)
        if (
            target is None
            or target.dim() != tensor.dim()
            or any(n < m for n, m in zip(target.shape, tensor.shape, strict=True))
        ):
            raise CheckpointError(f"the weights of {parent.file} do not fit its network at {name!r}.")
        target[tuple(slice(n) for n in tensor.shape)] = tensor
    network.load_state_dict(state)
