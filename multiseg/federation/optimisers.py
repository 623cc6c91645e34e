"""What the server does with the mean update: a step of an optimiser whose gradient it is."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from multiseg.federation.plan import AggregateOptions


def stepped(
    update: Mapping[str, Tensor], state: Mapping[str, Tensor], options: AggregateOptions
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The change to add to the global model, by part, and the optimiser's state after it; the first state is empty."""
    raise NotImplementedError
