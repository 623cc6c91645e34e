"""Letting only the last layer of a network learn, for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn

from multiseg.errors import UsageError


@contextmanager
def head_alone(network: nn.Module, wanted: bool) -> Iterator[Callable[[], bool]]:
    """Freeze all parameters but those of `network.head`, until the function that this gives is called, or the end.

    The function says whether it had anything to let go. What was frozen before, such as the first column of a
    progressive network, stays so. Dropout goes on in the frozen layers, and so do the statistics of batch norm.

    Raises:
        UsageError: the network has no head.
    """
    head = getattr(network, "head", None)
    if wanted and not isinstance(head, nn.Module):
        raise UsageError(f"{type(network).__name__} has no head to learn first: set head_steps to 0.")
    own = {id(parameter) for parameter in head.parameters()} if isinstance(head, nn.Module) else set()
    frozen = [p for p in network.parameters() if p.requires_grad and id(p) not in own] if wanted else []
    for parameter in frozen:
        parameter.requires_grad_(False)

    def let_go() -> bool:
        had = bool(frozen)
        for parameter in frozen:
            parameter.requires_grad_(True)
        frozen.clear()
        return had

    try:
        yield let_go
    finally:
        let_go()
