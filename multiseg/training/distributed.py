"""One training by several processes, a card each, as `torchrun` starts them."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.nn  # imported later, it would hold on to the group of that moment for good
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from multiseg.errors import TrainingError, UsageError
from multiseg.loaders.batches import Share
from multiseg.models.builders import NETWORKS
from multiseg.models.devices import resolve_device

T = TypeVar("T")
PATIENCE = timedelta(hours=2)
"""How long one process waits for another, which may be at a validation or waiting for its data. One that ended is
noticed at once."""

WHOLE = tuple(known.module for known in NETWORKS.values() if known.uses_every_parameter)
"""Networks of which every batch uses every parameter."""


@dataclass(frozen=True)
class Peers:
    """The processes that train one model together: which of them this is, and what they do in common.

    Every process has to call the same methods in the same order, whatever happened in it.
    """

    rank: int = 0
    num: int = 1

    @property
    def share(self) -> Share:
        """This process's part of the stream."""
        return Share(self.rank, self.num)

    @property
    def is_first(self) -> bool:
        """Whether this is the one process that writes files and says something."""
        return self.rank == 0

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network as a step has to call it, so that every process ends up with the mean of all gradients."""
        if self.num == 1:
            return network
        device = next(network.parameters()).device
        cards = [device.index] if device.type == "cuda" else None
        # A network with parts for single sequences leaves out those of which a batch has none.
        may_skip = not isinstance(network, WHOLE)
        return DistributedDataParallel(network, device_ids=cards, find_unused_parameters=may_skip)

    def sums(self, numbers: Sequence[float]) -> list[float]:
        """Each number added up over the processes."""
        if self.num == 1:
            return list(numbers)
        added = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(added)
        return added.tolist()

    def gather(self, thing: T) -> list[T]:
        """What every process has, by rank."""
        if self.num == 1:
            return [thing]
        found: list[Any] = [None] * self.num
        dist.all_gather_object(found, thing)
        return found

    def part_ways(self, seed: int) -> None:
        """Give every process but the first random numbers of its own, so that dropout differs between them."""
        if self.rank:
            torch.manual_seed((seed + self.rank * 0x9E3779B97F4A7C15) % 2**63)

    def align_buffers(self, network: nn.Module) -> None:
        """Give every process the first one's buffers, such as the statistics of batch norm."""
        if self.num > 1:
            for buffer in network.buffers():
                dist.broadcast(buffer, 0)


ALONE = Peers()


def without_sync(network: nn.Module, quiet: bool) -> AbstractContextManager[None]:
    """While `quiet`, gradients add up in each process by itself; the first step outside sends them all."""
    if quiet and isinstance(network, DistributedDataParallel):
        held: AbstractContextManager[None] = network.no_sync()
        return held
    return nullcontext()


def bare(network: nn.Module) -> nn.Module:
    """The network itself, whatever it is wrapped in."""
    return network.module if isinstance(network, DistributedDataParallel) else network


def is_first_process() -> bool:
    """Whether this process speaks for all that `torchrun` started, or was started alone."""
    return _launched()[0] == 0


def _launched() -> tuple[int, int, int]:
    """Rank, number of processes and rank on this machine, as `torchrun` tells them."""
    told = [os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")]
    rank, num, local = (int(value) for value in told if value) if all(told) else (0, 1, 0)
    return rank, num, local


@contextmanager
def joined(device: str) -> Iterator[tuple[Peers, torch.device]]:
    """The peers of this process, and its device: the card of its rank where several train on CUDA.

    Raises:
        UsageError: the device is not there, or a single card is named for several processes.
        TrainingError: another process ended while this one waited for it.
    """
    rank, num, local = _launched()
    if num == 1:
        own = resolve_device(device)
        if own.type == "cuda" and own.index is not None:
            torch.cuda.set_device(own)  # the stream waits for copies to the current card
        yield ALONE, own
        return
    if device.startswith("cuda:"):
        raise UsageError(f"{num} processes take a card each, but the device is {device!r}: give cuda or auto.")
    own = resolve_device(device)
    if own.type == "cuda":
        own = resolve_device(f"cuda:{local}")
        torch.cuda.set_device(own)
    # Few numbers and all objects go over the CPU, where an end of the other side is noticed.
    dist.init_process_group("cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield Peers(rank, num), own
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise TrainingError(
                f"process {rank} of {num} lost the others: {error}. One of them has ended and said why; "
                "the same command goes on from the last save."
            ) from error
        raise
    # Not where something was raised: the others are waiting for this one, and an end is what they notice.
    _leave()


def _leave() -> None:
    """End the group together with its threads, which could not let go of a tensor once the interpreter is ending: it
    aborts then."""
    gc.collect()  # wrapped networks hold the group, in cycles
    dist.destroy_process_group()
