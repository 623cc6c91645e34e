"""Train one model with several processes, one GPU each, started by `torchrun`."""

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
import torch.distributed.nn  # imported later, it would keep a reference to the process group of that moment
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from multiseg.errors import TrainingError, UsageError
from multiseg.loaders.batches import Share
from multiseg.models.builders import NETWORKS
from multiseg.models.devices import resolve_device

T = TypeVar("T")
PATIENCE = timedelta(hours=2)
"""How long one process waits for another that validates or waits for data. A process that ended is noticed at once."""

WHOLE = tuple(known.module for known in NETWORKS.values() if known.uses_every_parameter)
"""Networks in which every batch uses every parameter."""


@dataclass(frozen=True)
class Peers:
    """The processes that train one model together, with the rank of this one.

    Every process must call the same methods in the same order.
    """

    rank: int = 0
    num: int = 1

    @property
    def share(self) -> Share:
        """This process's share of the stream."""
        return Share(self.rank, self.num)

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and reports."""
        return self.rank == 0

    def wrap(self, network: nn.Module) -> nn.Module:
        """Wrap the network so that a backward pass gives every process the mean gradient of all."""
        if self.num == 1:
            return network
        device = next(network.parameters()).device
        device_ids = [device.index] if device.type == "cuda" else None
        # A network with parts for single sequences skips the parts of sequences that a batch lacks.
        may_skip = not isinstance(network, WHOLE)
        return DistributedDataParallel(network, device_ids=device_ids, find_unused_parameters=may_skip)

    def sums(self, numbers: Sequence[float]) -> list[float]:
        """Each number summed over the processes."""
        if self.num == 1:
            return list(numbers)
        totals = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(totals)
        return totals.tolist()

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank."""
        if self.num == 1:
            return [value]
        values: list[Any] = [None] * self.num
        dist.all_gather_object(values, value)
        return values

    def diversify_seeds(self, seed: int) -> None:
        """Reseed every process but the first, so that dropout differs between them."""
        if self.rank:
            torch.manual_seed((seed + self.rank * 0x9E3779B97F4A7C15) % 2**63)

    def align_buffers(self, network: nn.Module) -> None:
        """Give every process the first one's buffers, such as the statistics of batch norm."""
        if self.num > 1:
            for buffer in network.buffers():
                dist.broadcast(buffer, 0)


ALONE = Peers()


def without_sync(network: nn.Module, quiet: bool) -> AbstractContextManager[None]:
    """While `quiet`, each process adds up its own gradients; the next backward pass outside sends them all."""
    if quiet and isinstance(network, DistributedDataParallel):
        no_sync: AbstractContextManager[None] = network.no_sync()
        return no_sync
    return nullcontext()


def bare(network: nn.Module) -> nn.Module:
    """The network without its wrapper."""
    return network.module if isinstance(network, DistributedDataParallel) else network


def is_first_process() -> bool:
    """Whether this process reports for all that `torchrun` started; true for a process started alone."""
    return _torchrun_ranks()[0] == 0


def num_started() -> int:
    """How many processes `torchrun` started; 1 for a process started alone."""
    return _torchrun_ranks()[1]


def _torchrun_ranks() -> tuple[int, int, int]:
    """Rank, number of processes and rank on this machine, from the environment that `torchrun` sets."""
    values = [os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")]
    rank, num, local = (int(value) for value in values if value) if all(values) else (0, 1, 0)
    return rank, num, local


@contextmanager
def joined(name: str) -> Iterator[tuple[Peers, torch.device]]:
    """The peers of this process and its device; on CUDA each of several processes gets the GPU of its local rank.

    Raises:
        UsageError: the device does not exist, or one GPU is named for several processes.
        TrainingError: another process ended while this one waited for it.
    """
    rank, num, local = _torchrun_ranks()
    if num > 1 and name.startswith("cuda:"):
        raise UsageError(f"{num} processes need a GPU each, but the device is {name!r}: give cuda or auto.")
    device = resolve_device(name)
    if num > 1 and device.type == "cuda":
        device = resolve_device(f"cuda:{local}")
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # the stream waits for copies to the current GPU
    if num == 1:
        yield ALONE, device
        return
    # Small tensors and all objects go over the CPU, where the end of another process is noticed.
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield Peers(rank, num), device
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise TrainingError(
                f"process {rank} of {num} lost the others: {error}. One of them ended; see its own message. "
                "The same command resumes from the last save."
            ) from error
        raise
    # Not after an exception: the others wait for this process, and only its end tells them.
    _leave()


def _leave() -> None:
    """End the group and its threads now: a thread that frees a tensor while the interpreter exits aborts it."""
    gc.collect()  # wrapped networks refer to the group, in reference cycles
    dist.destroy_process_group()
