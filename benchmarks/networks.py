"""Every network's size: parameters, arithmetic and memory, as a table. Run: python -m benchmarks.networks

Nothing is computed: on torch's meta device tensors have shapes but no values, so any machine gives the same figures.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from multiseg.models.builders import NETWORKS, build

TITLES = ("network", "sequences", "parameters", "that learn", "GFLOP forward", "GiB kept for backward")


@dataclass(frozen=True)
class Figures:
    """Of one network and one patch; `kept` is in bytes, `flop` counts a multiplication and an addition as two."""

    parameters: int
    trainable: int
    flop: int
    kept: int


def figures(name: str, num_modalities: int, edge: int, present: Tensor | None = None) -> Figures:
    """Of the network at its published size, all sequences present unless `present` [modality] says less.

    It has one logit; `two_unets` has two, since a branch of lesions has one of background, too.
    """
    with torch.device("meta"):
        network = build(name, num_modalities, 2 if name == "two_unets" else 1)
    images = torch.empty(1, num_modalities, edge, edge, edge, device="meta")
    # On the CPU, since which sequences are there decides what is computed, and that must be known.
    flags = torch.ones(num_modalities, dtype=torch.bool) if present is None else present
    with FlopCounterMode(display=False) as counter:
        kept = kept_for_backward(network.train(), images, flags[None])
    sizes = [(p.numel(), p.requires_grad) for p in network.parameters()]
    learning = sum(n for n, learns in sizes if learns)
    return Figures(sum(n for n, _ in sizes), learning, counter.get_total_flops(), kept)


def kept_for_backward(network: nn.Module, images: Tensor, present: Tensor) -> int:
    """Bytes of all tensors that autograd keeps from a forward pass in float32, the weights aside.

    Storages are counted once, however many operations keep them. Dropout's mask counts 4 bytes a voxel as on a
    CPU; on CUDA it has 1.
    """
    weights = {p.untyped_storage()._cdata for p in network.parameters()}
    kept: dict[int, Tensor] = {}  # the tensors too, or another could get a freed one's storage

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network(images, present)
    return sum(t.untyped_storage().nbytes() for at, t in kept.items() if at not in weights)


def row(label: str, num_modalities: int, found: Figures) -> str:
    cells = [
        label, str(num_modalities), f"{found.parameters:,}", f"{found.trainable:,}",
        f"{found.flop / 1e9:,.1f}", f"{found.kept / 2**30:.2f}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def table(edge: int) -> Iterator[str]:
    """Lines of Markdown, for patches of this edge in voxels."""
    yield f"| {' | '.join(TITLES)} |"
    yield f"|{'---|' * len(TITLES)}"
    yield row("multi_unet, one database", 1, figures("multi_unet", 1, edge))
    whole = {name: figures(name, 6, edge) for name in NETWORKS}
    for name, found in whole.items():
        yield row(name, 6, found)
    one = torch.arange(6) == 0
    for name, network in NETWORKS.items():
        if not network.uses_every_parameter:  # perhaps it computes only the sequences that are there
            found = figures(name, 6, edge, one)
            if found.flop < whole[name].flop:
                yield row(f"{name}, 1 present", 6, found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--edge", type=int, default=128, help="of the patch, in voxels")
    for line in table(parser.parse_args().edge):
        print(line, flush=True)


if __name__ == "__main__":
    main()
