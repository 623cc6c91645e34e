"""State dicts of the published Multi-Unet release and of FedUniBrain: read them, and map their names to ours."""

from __future__ import annotations

import io
import pickle
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from multiseg.errors import CheckpointError
from multiseg.models.unet import MultiUnet

WRAPPINGS = ("state_dict", "model_state_dict", "model")
"""Keys under which training scripts store a network's tensors."""
DAMAGED = (
    RuntimeError, LookupError, ValueError, EOFError, OSError, struct.error, TypeError, AttributeError, AssertionError,
    OverflowError,
)  # fmt: skip
"""What torch.load raises on damaged files, as found by damaging some thousands."""
NUMBERS = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64)
_PREFIX = re.compile(r"^(module\.|_orig_mod\.)+")
_UNITS = {"unit0": "first", "unit1": "second", "1": "keep", "2": "reduce"}
_PARTS = {"conv": "conv", "adn.A": "activation", "adn.N": "norm"}
_PART = r"(conv|adn\.A|adn\.N)\.(weight|bias|running_mean|running_var|num_batches_tracked)"


@dataclass(frozen=True)
class PublishedSize:
    """The size of a published network, from the names and shapes of its tensors; `norm` is "instance" or "batch"."""

    num_channels: int
    num_logits: int
    widths: tuple[int, ...]
    norm: str


def our_name(published: str) -> str:
    """Our name of a published tensor.

    >>> our_name("conv_1.conv.unit0.adn.A.weight"), our_name("up_stage_2.1.conv.bias")
    ('encoder.0.first.activation.weight', 'decoder.1.keep.conv.bias')

    Raises:
        CheckpointError: the published network has no tensor of this name.
    """
    encoder = re.fullmatch(rf"conv_(\d+)\.conv\.(unit[01])\.{_PART}", published)
    decoder = re.fullmatch(rf"up_stage_(\d+)\.([12])\.{_PART}", published)
    match = encoder or decoder
    if match is None or int(match[1]) < 1:
        raise CheckpointError(f"the published Multi-Unet has no tensor {published!r}.")
    side = "encoder" if encoder else "decoder"
    return f"{side}.{int(match[1]) - 1}.{_UNITS[match[2]]}.{_PARTS[match[3]]}.{match[4]}"


def their_name(ours: str) -> str:
    """The published name of one of our tensors.

    >>> their_name("encoder.0.first.activation.weight"), their_name("decoder.3.reduce.bias")
    ('conv_1.conv.unit0.adn.A.weight', 'up_stage_4.2.conv.bias')
    """
    side, number, unit, *part, end = ours.split(".")
    stage = f"conv_{int(number) + 1}.conv" if side == "encoder" else f"up_stage_{int(number) + 1}"
    units, parts = ({our: their for their, our in names.items()} for names in (_UNITS, _PARTS))
    return f"{stage}.{units[unit]}.{parts[part[0] if part else 'conv']}.{end}"


def read_published(path: Path) -> dict[str, Tensor]:
    """The tensors of a published file, without wrappings; no code in the file is run.

    Raises:
        CheckpointError: there is no such file, torch cannot read it, it holds more than tensors and plain
            values, or it holds no state dict.
    """
    try:
        data = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise CheckpointError(f"there is no file of weights at {path}.") from error
    if path.suffix == ".safetensors":
        raise CheckpointError(
            f"{path} is not a published state dict. If multiseg wrote it, it is already a model: use it."
        )
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} does not hold weights alone: {_first_sentence(error)} Either torch.save did not write it, or it "
            "holds objects whose loading would run code, which is never done: save only its state_dict()."
        ) from error
    except DAMAGED as error:
        raise CheckpointError(
            f"{path} was not written by torch.save, or is incomplete ({type(error).__name__}): check its origin."
        ) from error
    return _unwrapped(content, path)


def _first_sentence(error: Exception) -> str:
    line = str(error).strip().split("\n")[0]
    return line.split(". ")[0].rstrip(".") + "."


def _unwrapped(content: Any, path: Path) -> dict[str, Tensor]:
    """The state dict within common wrappings, without the prefixes of data-parallel training."""
    for _ in WRAPPINGS:
        if isinstance(content, Mapping):
            content = next((content[key] for key in WRAPPINGS if isinstance(content.get(key), Mapping)), content)
    if not isinstance(content, Mapping) or not content:
        found = "nothing" if isinstance(content, Mapping) else f"a {type(content).__name__}"
        raise CheckpointError(f"{path} holds no state dict (names with their tensors), but {found}.")
    other = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if other:
        raise CheckpointError(
            f"{path} holds no state dict: {', '.join(other[:5])} ({len(other)} entries) are not tensors. Known "
            f"wrappings: {', '.join(WRAPPINGS)}."
        )
    tensors = {_PREFIX.sub("", str(name)): tensor for name, tensor in content.items()}
    if len(tensors) < len(content):
        raise CheckpointError(f"{path} holds some tensors twice, with and without a prefix such as 'module.'.")
    return tensors


def size_of(state: Mapping[str, Tensor]) -> PublishedSize:
    """The size of the network that a published state dict belongs to, from its names and shapes.

    Raises:
        CheckpointError: it belongs to a variant with weight standardisation or group norm, or to another network.
    """
    _refuse_variants(state)
    widths: list[int] = []
    while (name := f"conv_{len(widths) + 1}.conv.unit0.conv.weight") in state:
        widths.append(_shape(state, name)[0])
    if len(widths) < 2:
        raise CheckpointError(
            f"the state dict has no tensor {name!r}, so it is not a published Multi-Unet; it has "
            f"{', '.join(list(state)[:3])}, ..."
        )
    return PublishedSize(
        num_channels=_shape(state, "conv_1.conv.unit0.conv.weight")[1],
        num_logits=_shape(state, f"up_stage_{len(widths) - 1}.2.conv.weight")[0],
        widths=tuple(widths),
        norm="batch" if any(name.endswith(".adn.N.running_mean") for name in state) else "instance",
    )


def _refuse_variants(state: Mapping[str, Tensor]) -> None:
    gain = next((name for name in state if name.endswith(".gain")), None)
    if gain is not None:
        raise CheckpointError(
            f"the tensor {gain!r} belongs to FedUniBrain's variants with weight standardisation (WSConv, "
            "ScaledStdConv), which multiseg does not have. Import one with instance or batch norm."
        )
    norm = next((name for name in state if ".adn.N." in name), None)
    if norm is not None and not any(name.endswith(".adn.N.running_mean") for name in state):
        raise CheckpointError(
            f"the tensor {norm!r} belongs to a norm without running statistics (FedUniBrain's GROUP), which multiseg "
            "does not import. Import one with instance or batch norm."
        )


def _shape(state: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    """The shape of a convolution's weight."""
    if name not in state:
        raise CheckpointError(f"the state dict has no tensor {name!r}: it is incomplete.")
    shape = tuple(state[name].shape)
    if len(shape) != 5:
        raise CheckpointError(f"the tensor {name!r} of shape {list(shape)} is not the weight of a 3-D convolution.")
    return shape


def load_published(network: MultiUnet, state: Mapping[str, Tensor]) -> None:
    """Copy a published state dict into a network of the same size.

    Raises:
        CheckpointError: a tensor is missing, unknown, of another shape or type, or has values that are not finite.
    """
    own = network.state_dict()
    # Our last convolution is not wrapped in a unit: it has neither norm nor activation.
    last = f"decoder.{len(network.decoder) - 1}.reduce"
    published = {our_name(name).replace(f"{last}.conv.", f"{last}."): name for name in state}
    common = [name for name in own if name in published]
    faults = {
        "missing": [their_name(name) for name in own if name not in published],
        "left over": [published[name] for name in published if name not in own],
        "of another shape": [published[name] for name in common if own[name].shape != state[published[name]].shape],
        "no plain numbers": [published[name] for name in common if state[published[name]].dtype not in NUMBERS],
    }
    listed = [f"{fault}: {', '.join(names[:5])} ({len(names)} tensors)" for fault, names in faults.items() if names]
    if listed:
        raise CheckpointError(f"the state dict does not fit the network. {'; '.join(listed)}.")
    not_finite = [
        published[name] for name in common if not bool(torch.isfinite(state[published[name]].to(own[name].dtype)).all())
    ]
    if not_finite:
        raise CheckpointError(
            f"{', '.join(not_finite[:5])} ({len(not_finite)} tensors) hold values that are not finite: the training "
            "that wrote them failed, or the copy is damaged."
        )
    network.load_state_dict({name: state[published[name]] for name in common})
