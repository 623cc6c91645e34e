"""Which parts of a network belong to one sequence or one label, so that the sites that have it train them together."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from multiseg.errors import FederationError, UsageError
from multiseg.labels import BACKGROUND, LabelSpace
from multiseg.models.builders import NETWORKS, PartRules, build
from multiseg.models.saved import ModelInfo

SHARED = ""
"""The group of parts that belong to all."""
OF_LABEL, OF_KIND = "label:", "kind:"
"""Begin the names of groups of one label, and of one kind of labels."""
VARIANCE = ".running_var"
"""The suffix of tensors of running variances."""


@dataclass(frozen=True)
class Part:
    """A tensor of a network, or a slice of one, that belongs to one group.

    Attributes:
        name: the tensor's name if all of it belongs to all, otherwise "tensor[sequence]", "tensor[label:NAME]" or, for
            the background's row of a head, "tensor[background]".
        tensor: its name in the state dict.
        dim, start, length: the slice; None, 0 and 0 for a whole tensor.
        group: one of `groups_of`.
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
        """Whether it is a running mean or variance of batch normalisation, which has no gradient."""
        return self.tensor.endswith((".running_mean", VARIANCE))


def parts(info: ModelInfo) -> tuple[Part, ...]:
    """The parts of the network that `info` describes, which together are all its floating-point tensors, in order.

    Counters (`num_batches_tracked`) are not parts. With a single label, whose logit belongs to all, no part belongs to
    a label.

    Raises:
        UsageError: the network has no rules for its parts.
    """
    rules_by_name = {name: network.parts for name, network in NETWORKS.items() if network.parts}
    if info.builder not in rules_by_name:
        raise UsageError(
            f"multiseg does not know which parts of a {info.builder} belong to a sequence or a label: choose one of "
            f"{', '.join(rules_by_name)}."
        )
    rules, space = rules_by_name[info.builder], info.space
    with torch.device("meta"):
        state = build(info.builder, len(info.axis), space.num_logits, **info.numbers).state_dict()
    all_parts: list[Part] = []
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            continue
        dim = next((dim for pattern, dim in rules.sliced if re.fullmatch(pattern, name)), None)
        kind = next((kind for pattern, kind in rules.kinds if re.fullmatch(pattern, name)), "")
        if dim is not None:
            seen = NETWORKS[info.builder].sees.get(kind, tuple(info.axis))
            groups = {name: of_sequence(name, kind) if name in seen else _of_kind(kind) for name in info.axis}
            all_parts += _slices(name, tensor, dim, groups)
        elif space.num_logits > 1 and re.fullmatch(rules.heads, name):
            all_parts += _slices(name, tensor, 0, _rows(space, kind))
        else:
            owner = _owner(name, rules, tuple(info.axis))
            label = f"{name}[{owner}]" if owner else name
            all_parts.append(Part(label, name, None, 0, 0, owner or _of_kind(kind), tuple(tensor.shape)))
    return tuple(all_parts)


def groups_of(modalities: Iterable[str], labels: Collection[str], space: LabelSpace) -> frozenset[str]:
    """The groups of parts that cases train which have these sequences and are annotated for these labels.

    They are "" (all), "label:NAME", a sequence, and, for a network with a branch for each kind of labels, "kind:KIND"
    and "kind:KIND/SEQUENCE".
    """
    sequences = tuple(modalities)
    kinds = {label.kind for label in space.labels if label.name in labels}
    of_sequences = {of_sequence(name, kind) for name in sequences for kind in ("", *kinds)}
    return frozenset({SHARED, *of_sequences, *(OF_LABEL + name for name in labels), *map(_of_kind, kinds)})


def of_sequence(modality: str, kind: str = "") -> str:
    """The group of a sequence; with a kind, of the branch of this kind."""
    return f"{OF_KIND}{kind}/{modality}" if kind else modality


def sequence_in(group: str) -> str:
    """The sequence that a group belongs to; "" if it belongs to none."""
    if group.startswith(OF_KIND):
        return group.partition("/")[2]
    return "" if group.startswith(OF_LABEL) else group


def _of_kind(kind: str) -> str:
    return OF_KIND + kind if kind else SHARED


def _rows(space: LabelSpace, kind: str) -> dict[str, str]:
    """The group of each row of a head, by the text in brackets of its name; of one kind's labels if there is a kind."""
    names = [OF_LABEL + label.name for label in space.labels if kind in ("", label.kind)]
    return {BACKGROUND: _of_kind(kind)} | {name: name for name in names}


def _slices(name: str, tensor: Tensor, dim: int, groups: Mapping[str, str]) -> list[Part]:
    """A part for each index along `dim`; `groups` maps the text in brackets of its name to its group."""
    assert tensor.shape[dim] == len(groups), name
    shape = (*tensor.shape[:dim], 1, *tensor.shape[dim + 1 :])
    return [
        Part(f"{name}[{owner}]", name, dim, index, 1, group, shape)
        for index, (owner, group) in enumerate(groups.items())
    ]


def _owner(name: str, rules: PartRules, axis: Sequence[str]) -> str:
    matches = [match for pattern in rules.own if (match := re.fullmatch(pattern, name))]
    return axis[int(matches[0][1])] if matches else SHARED


def _piece(tensor: Tensor, part: Part) -> Tensor:
    return tensor if part.dim is None else tensor.narrow(part.dim, part.start, part.length)


def split(state: Mapping[str, Tensor], parts: Iterable[Part]) -> dict[str, Tensor]:
    """The parts of a state dict by name; they share its memory."""
    return {part.name: _piece(state[part.tensor], part) for part in parts}


def joined(pieces: Mapping[str, Tensor], state: Mapping[str, Tensor], parts: Iterable[Part]) -> dict[str, Tensor]:
    """A new state dict with these pieces in their places, and otherwise as `state`.

    Tensors without a piece are not copied. Pieces of another precision are cast.

    Raises:
        FederationError: a piece is not a part, or does not have its shape.
    """
    return _placed(pieces, state, parts, Tensor.copy_)


def moved(change: Mapping[str, Tensor], state: Mapping[str, Tensor], parts: Iterable[Part]) -> dict[str, Tensor]:
    """A new state dict with the changes of some parts added; otherwise as `joined`."""
    return _placed(change, state, parts, Tensor.add_)


def sound(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A new state dict in which running variances are at least 0: noise or rounding may have made them negative."""
    return {name: tensor.clamp(min=0) if name.endswith(VARIANCE) else tensor for name, tensor in state.items()}


def _placed(
    pieces: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    parts: Iterable[Part],
    place: Callable[[Tensor, Tensor], Tensor],
) -> dict[str, Tensor]:
    by_name = {part.name: part for part in parts}
    new = dict(state)
    for name, piece in pieces.items():
        part = by_name.get(name)
        if part is None or tuple(piece.shape) != part.shape:
            expected = f"its shape is {part.shape}" if part else "there is no such part"
            raise FederationError(f"{name!r} of shape {tuple(piece.shape)} does not fit the network: {expected}.")
        if new[part.tensor] is state[part.tensor]:
            new[part.tensor] = state[part.tensor].clone()
        place(_piece(new[part.tensor], part), piece)
    return new


def difference(new: Mapping[str, Tensor], old: Mapping[str, Tensor], parts: Iterable[Part]) -> dict[str, Tensor]:
    """New minus old of every given part, float32."""
    parts = tuple(parts)
    before = split(old, parts)
    return {name: (piece.float() - before[name].float()).detach() for name, piece in split(new, parts).items()}


def leaves(part: Part, personal_patterns: Iterable[str], personal_parts: Collection[str] = ()) -> bool:
    """Whether a part is sent to others: neither its tensor's name nor its own name is personal."""
    is_personal = any(fnmatchcase(part.tensor, pattern) for pattern in personal_patterns)
    return part.name not in personal_parts and not is_personal


def trained_parts(
    parts: Iterable[Part],
    groups: Collection[str],
    personal_patterns: Iterable[str] = (),
    personal_parts: Collection[str] = (),
) -> tuple[Part, ...]:
    """The parts that a site trains for all.

    Args:
        groups: those that the site's training cases train, see `groups_of`.
        personal_patterns: shell patterns of the names of tensors that stay at the site.
        personal_parts: names of parts that stay at the site.
    """
    patterns = tuple(personal_patterns)
    return tuple(part for part in parts if part.group in groups and leaves(part, patterns, personal_parts))
