"""What a training starts from: fresh weights, or a model that is fine-tuned (Xu et al. 2024, section 3.4)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor, nn

from multiseg.errors import CheckpointError, UsageError
from multiseg.modalities import ModalityAxis
from multiseg.models.builders import NETWORKS
from multiseg.models.learnt_scans import LearntScans
from multiseg.models.progressive import ProgressiveUnet
from multiseg.models.saved import ModelInfo, load_weights, model_path, read_info, read_learnt
from multiseg.own import is_own

METHODS = ("finetune", "progressive")


@dataclass(frozen=True)
class StartOptions:
    """What to start from; network, label space and voxel size are then those of the model.

    Attributes:
        model: a model file or a run folder; "" (default) for fresh weights.
        method: "finetune" (default: its weights learn on) or "progressive" (they are frozen, and a second network
            beside them learns from what they see; appendix C).
        assign: new sequence = the sequence whose channel it takes. What is not named here takes the channel that
            fewest training cases had among those that the new data does not use; where none is free it gets a
            channel of its own, with fresh weights, at the end of the axis.
        grow: every new sequence that is not assigned gets a channel of its own.
        head_steps: so many steps at the beginning only the last layer learns, 0 by default.
    """

    model: str = ""
    method: str = "finetune"
    assign: Mapping[str, str] = field(default_factory=dict, hash=False)
    grow: bool = False
    head_steps: int = 0


@dataclass(frozen=True, eq=False)
class Parent:
    """The model that a training starts from; `learnt` is None where it does not say from which scans."""

    file: Path
    info: ModelInfo
    sha256: str
    learnt: LearntScans | None = None


@dataclass(frozen=True)
class Channels:
    """The axis that a model goes on with.

    Attributes:
        assigned: new sequence to the one whose channel it took.
        grown: new sequences with a channel of their own.
    """

    axis: ModalityAxis
    assigned: Mapping[str, str]
    grown: tuple[str, ...]


def parent_of(options: StartOptions) -> Parent | None:
    """The model to start from, or None for fresh weights.

    Raises:
        UsageError: an option says what cannot be, or is given without a model.
        CheckpointError: there is no model, or it is damaged.
    """
    if options.method not in METHODS:
        raise UsageError(f"start.method {options.method!r} is none of {', '.join(METHODS)}.")
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
        raise UsageError(f"progressive columns are built on a {first}, but {file} is a {info.builder}: finetune it.")
    if options.method == "progressive" and info.background != "zero":
        raise UsageError(
            f"{file} saw {info.background} values outside the brain, and training shows 0 there, which a frozen column "
            "cannot learn anew: finetune it without --progressive."
        )
    return Parent(file, info, hashlib.sha256(file.read_bytes()).hexdigest(), read_learnt(file))


def arranged(info: ModelInfo, wanted: Iterable[str], options: StartOptions) -> Channels:
    """Channels for the sequences of the new data: known ones keep theirs, see `StartOptions` for the others.

    Raises:
        UsageError: an assignment that cannot be: of a sequence that is not new, to a channel that is not there,
            that the new data needs itself, or that is given twice; or more channels than the network can have.
    """
    wanted = list(wanted)
    new = [name for name in wanted if name not in info.axis]
    _check(info, wanted, new, options.assign)
    assigned = dict(options.assign)
    unused = [name for name in info.axis if name not in wanted and name not in assigned.values()]
    # Stable: the order of the axis among equals.
    unused.sort(key=lambda name: (bool(info.trained_on.get(name)), _num_cases(info, name)))
    for name in new:
        if name not in assigned and unused and not options.grow:
            assigned[name] = unused.pop(0)
    taken = {old: name for name, old in assigned.items()}
    axis = ModalityAxis(tuple(taken.get(name, name) for name in info.axis))
    grown = tuple(name for name in new if name not in assigned)
    if grown and is_own(info.builder):
        raise UsageError(
            f"{info.builder} is not a network of multiseg's, so that nobody knows where weights for {', '.join(grown)} "
            "would go: give them channels that are not used any more, with --assign NEW=OLD."
        )
    network, num_sequences = NETWORKS.get(info.builder), len(axis) + len(grown)
    most = info.numbers["widths"][0] if network and network.is_bounded else num_sequences
    if num_sequences > most:
        raise UsageError(
            f"the network has room for {most} sequences, and {', '.join((*axis, *grown))} are more: give "
            f"{', '.join(grown)} channels that are not used any more, with --assign NEW=OLD, or leave out --grow."
        )
    return Channels(axis.grown(grown), assigned, grown)


def _num_cases(info: ModelInfo, name: str) -> int:
    return sum(int(info.databases[database]["num_cases"]) for database in info.trained_on.get(name, ()))


def _check(info: ModelInfo, wanted: list[str], new: list[str], assign: Mapping[str, str]) -> None:
    for name, old in assign.items():
        if name not in new:
            why = "the model has a channel for it" if name in wanted else "no training case has it"
            raise UsageError(f"{name} cannot be assigned to the channel of {old}: {why}.")
        if old not in info.axis:
            raise UsageError(f"{name} cannot take the channel of {old}: the model has {', '.join(info.axis)}.")
        if old in wanted:
            raise UsageError(f"{name} cannot take the channel of {old}: the new data has {old}, too. Name another.")
    if len(set(assign.values())) < len(assign):
        given = ", ".join(f"{name}={old}" for name, old in assign.items())
        raise UsageError(f"two sequences were assigned to one channel: {given}. Give each its own.")


def descended(info: ModelInfo, parent: Parent, channels: Channels, options: StartOptions) -> ModelInfo:
    """What the model will be: `info` says it of the new data alone, this one also of what came before."""
    held = parent.info
    numbers = dict(info.numbers)
    if options.method == "progressive":
        numbers["first_modalities"] = len(held.axis)
    elif "first_modalities" in held.numbers:
        numbers["first_modalities"] = held.numbers["first_modalities"]
    # The weights that a new column reads the images by are fresh, whatever the frozen one knows.
    known = {} if options.method == "progressive" else held.trained_on
    before = {name: known.get(name, ()) for name in channels.axis}  # nobody for a channel's new name
    step = {
        "model": parent.sha256,
        "step": held.step,
        "method": options.method,
        "axis": list(held.axis),
        "assigned": dict(channels.assigned),
        "grown": list(channels.grown),
        "head_steps": options.head_steps,
        "databases": {name: about["num_cases"] for name, about in info.databases.items()},
    }
    return replace(
        info,
        builder="progressive" if options.method == "progressive" else held.builder,
        numbers=numbers,
        trained_on={name: tuple(dict.fromkeys((*before[name], *info.trained_on[name]))) for name in channels.axis},
        databases={**held.databases, **info.databases},
        licence=held.licence,
        ancestry=(*held.ancestry, step),
    )


def take_weights(network: nn.Module, parent: Parent, method: str) -> None:
    """Put the parent's weights into a fresh network that has its channels and perhaps more.

    All networks keep what belongs to a channel together and in the order of the axis, so a tensor that has
    grown holds the parent's as its first part along every side; the rest stays fresh.

    Raises:
        CheckpointError: the weights do not fit.
    """
    state = load_weights(parent.file)
    if method == "progressive":
        assert isinstance(network, ProgressiveUnet)
        _lay_in(network.first, state, parent.file)
    else:
        _lay_in(network, state, parent.file)


def _lay_in(network: nn.Module, state: Mapping[str, Tensor], file: Path) -> None:
    own = network.state_dict()
    for name, tensor in state.items():
        place = own.get(name)
        if (
            place is None
            or place.dim() != tensor.dim()
            or any(n < m for n, m in zip(place.shape, tensor.shape, strict=True))
        ):
            raise CheckpointError(f"the weights of {file} do not fit its own network at {name!r}.")
        place[tuple(slice(n) for n in tensor.shape)] = tensor
    network.load_state_dict(own)
