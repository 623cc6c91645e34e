"""State dicts of the published Multi-Unet release: its names of tensors against ours."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from multiseg.errors import CheckpointError
from multiseg.models.unet import MultiUnet

_UNITS = {"unit0": "first", "unit1": "second", "1": "keep", "2": "reduce"}
_PARTS = {"conv": "conv", "adn.A": "activation"}


def our_name(published: str) -> str:
    """Our name of a published tensor.

    >>> our_name("conv_1.conv.unit0.adn.A.weight"), our_name("up_stage_2.1.conv.bias")
    ('encoder.0.first.activation.weight', 'decoder.1.keep.conv.bias')

    Raises:
        CheckpointError: the published network has no tensor of such a name.
    """
    encoder = re.fullmatch(r"conv_(\d+)\.conv\.(unit[01])\.(conv|adn\.A)\.(weight|bias)", published)
    decoder = re.fullmatch(r"up_stage_(\d+)\.([12])\.(conv|adn\.A)\.(weight|bias)", published)
    match = encoder or decoder
    if match is None:
        raise CheckpointError(f"the published Multi-Unet has no tensor {published!r}.")
    side = "encoder" if encoder else "decoder"
    return f"{side}.{int(match[1]) - 1}.{_UNITS[match[2]]}.{_PARTS[match[3]]}.{match[4]}"


def load_published(network: MultiUnet, state: Mapping[str, Tensor]) -> None:
    """Copy a published state dict into a network of the same size.

    Raises:
        CheckpointError: a tensor is missing, left over or of another shape.
    """
    own = network.state_dict()
    last = f"decoder.{len(network.decoder) - 1}.reduce"
    renamed = {our_name(name).replace(f"{last}.conv.", f"{last}."): tensor for name, tensor in state.items()}
    wrong = sorted(set(own) ^ set(renamed))
    wrong += [name for name in set(own) & set(renamed) if own[name].shape != renamed[name].shape]
    if wrong:
        raise CheckpointError(
            f"the state dict does not fit the network at {', '.join(wrong[:5])} ({len(wrong)} tensors)."
        )
    network.load_state_dict(renamed)
