"""Which parts of a network belong to one sequence or one label, so that those who have it may learn it together."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from multiseg.errors import FederationError, UsageError
from multiseg.labels import BACKGROUND
from multiseg.models.builders import NETWORKS, PartRules, build
from multiseg.models.saved import ModelInfo

SHARED = ""
"""The group of what belongs to all."""
VARIANCE = ".running_var"
"""How the name of a tensor of running variances ends."""


@dataclass(frozen=True)
class Part:
    """A tensor of a network, or a slice of one, that belongs to one group.

    Attributes:
        name: the tensor's where it belongs whole to all, else "tensor[sequence]", "tensor[label:NAME]" or, for the
            row of a head that belongs to the background, "tensor[background]".
        tensor: its name in the state dict.
        dim, start, length: the slice; `dim` is None for a whole tensor, whose start and length are 0.
        group: "" (all), a sequence's name, or "label:NAME".
        shape: of the part, not of the tensor.
    """

    name: str
    tensor: str
    dim: int | None
    start: int
    length: int
    group: str
    shape: tuple[int, ...]

    @property
    def is_statistic(self) -> bool:
        """Whether it is a running mean or variance of batch normalisation, which no gradient moves."""
        return self.tensor.endswith((".running_mean", VARIANCE))


def parts(info: ModelInfo) -> tuple[Part, ...]:
    """Every floating-point tensor of the network that `info` describes, once and whole, in the network's order.

    Counters (`num_batches_tracked`) are no parts. In a space of one label, whose one logit is everybody's, no part
    belongs to a label.

    Raises:
        UsageError: the network is of a kind that has no rules here.
    """
    known = {name: network.parts for name, network in NETWORKS.items() if network.parts}
    if info.builder not in known:
        raise UsageError(f"no rules say which parts of a {info.builder} belong to whom; there are {', '.join(known)}.")
    rules, space = known[info.builder], info.space
    with torch.device("meta"):
        state = build(info.builder, len(info.axis), space.num_logits, **info.numbers).state_dict()
    rows: dict[str, str] = {}
    if space.num_logits > 1:
        rows = {BACKGROUND: SHARED} | {f"label:{label}": f"label:{label}" for label in space.names}
    found: list[Part] = []
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            continue
        dim = next((dim for pattern, dim in rules.sliced if re.fullmatch(pattern, name)), None)
        if dim is not None:
            found += _slices(name, tensor, dim, {modality: modality for modality in info.axis})
        elif rows and re.fullmatch(rules.heads, name):
            found += _slices(name, tensor, 0, rows)
        else:
            found.append(_whole(name, tensor, _owner(name, rules, tuple(info.axis))))
    return tuple(found)


def _slices(name: str, tensor: Tensor, dim: int, groups: Mapping[str, str]) -> list[Part]:
    """A part for each index along `dim`; `groups` says by what stands in brackets to whom it belongs."""
    assert tensor.shape[dim] == len(groups), name
    shape = (*tensor.shape[:dim], 1, *tensor.shape[dim + 1 :])
    return [
        Part(f"{name}[{owner}]", name, dim, at, 1, group, shape) for at, (owner, group) in enumerate(groups.items())
    ]


def _whole(name: str, tensor: Tensor, owner: str) -> Part:
    return Part(f"{name}[{owner}]" if owner else name, name, None, 0, 0, owner, tuple(tensor.shape))


def _owner(name: str, rules: PartRules, axis: Sequence[str]) -> str:
    for pattern in rules.own:
        match = re.fullmatch(pattern, name)
        if match:
            return axis[int(match[1])]
    return SHARED


def _piece(tensor: Tensor, part: Part) -> Tensor:
    return tensor if part.dim is None else tensor.narrow(part.dim, part.start, part.length)


def split(state: Mapping[str, Tensor], parts: Iterable[Part]) -> dict[str, Tensor]:
    """The parts of a state dict by name; they share its memory."""
    return {part.name: _piece(state[part.tensor], part) for part in parts}


def joined(pieces: Mapping[str, Tensor], state: Mapping[str, Tensor], parts: Iterable[Part]) -> dict[str, Tensor]:
    """A new state dict with these pieces in their places; what is not among them is as in `state`.

    Tensors that get no piece are `state`'s own, not copies. Pieces of another precision are cast.

    Raises:
        FederationError: a piece is no part, or not of its part's shape.
    """
    return _placed(pieces, state, parts, Tensor.copy_)


def moved(change: Mapping[str, Tensor], state: Mapping[str, Tensor], parts: Iterable[Part]) -> dict[str, Tensor]:
    """A new state dict, to which a change of some parts was added; otherwise as `joined`."""
    return _placed(change, state, parts, Tensor.add_)


def sound(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same state dict with no running variance below 0, where noise or rounding may have left one."""
    return {name: tensor.clamp(min=0) if name.endswith(VARIANCE) else tensor for name, tensor in state.items()}


def _placed(
    pieces: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    parts: Iterable[Part],
    place: Callable[[Tensor, Tensor], Tensor],
) -> dict[str, Tensor]:
    known = {part.name: part for part in parts}
    new = dict(state)
    for name, piece in pieces.items():
        part = known.get(name)
        if part is None or tuple(piece.shape) != part.shape:
            expected = f"{part.shape} in it" if part else "no part of it"
            raise FederationError(f"{name!r} of shape {tuple(piece.shape)} does not fit the network: it is {expected}.")
        if new[part.tensor] is state[part.tensor]:
            new[part.tensor] = state[part.tensor].clone()
        place(_piece(new[part.tensor], part), piece)
    return new


def difference(new: Mapping[str, Tensor], old: Mapping[str, Tensor], parts: Iterable[Part]) -> dict[str, Tensor]:
    """New minus old of every given part, float32."""
    chosen = tuple(parts)
    before = split(old, chosen)
    return {name: (piece.float() - before[name].float()).detach() for name, piece in split(new, chosen).items()}


def leaves(part: Part, personal_patterns: Iterable[str], personal_parts: Collection[str] = ()) -> bool:
    """Whether a part is for all: it is not personal, by a pattern of its tensor's name or by its own name."""
    return part.name not in personal_parts and not any(fnmatchcase(part.tensor, one) for one in personal_patterns)


def trained_parts(
    parts: Iterable[Part],
    modalities: Collection[str],
    labels: Collection[str],
    personal_patterns: Iterable[str] = (),
    personal_parts: Collection[str] = (),
) -> tuple[Part, ...]:
    """Those that a site trains for all: what belongs to everybody, to its sequences and to its annotated labels.

    Args:
        modalities: sequences of the site's training cases.
        labels: names of the model's labels that somebody looked for in them.
        personal_patterns: of tensor names, as of the shell; these tensors are the site's own.
        personal_parts: names of parts that are the site's own.
    """
    groups = {SHARED, *modalities, *(f"label:{name}" for name in labels)}
    patterns = tuple(personal_patterns)
    return tuple(part for part in parts if part.group in groups and leaves(part, patterns, personal_parts))
