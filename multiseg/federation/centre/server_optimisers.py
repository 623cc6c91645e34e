"""What the server does with the mean update: a step of an optimiser, for which it stands in for the gradient."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor

from multiseg.federation.plan import AggregateOptions

State = dict[str, Tensor]
"""Moments by "kind:part", to be saved beside the weights."""


def stepped(
    update: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    options: AggregateOptions,
    statistics: Collection[str] = (),
) -> tuple[dict[str, Tensor], State]:
    """What to add to the global model, by part, and the optimiser's state for the next round.

    With D the mean update of a part and eta the learning rate, the change is
        eta D                                                            fedavg, trimmed_mean, median
        eta m,                      m = momentum m + D                   fedavgm (Hsu et al. 2019, arXiv:1909.06335)
        eta m / (sqrt(v) + tau),    m = beta1 m + (1 - beta1) D,
                                    v = beta2 v + (1 - beta2) D^2        fedadam (Reddi et al. 2021, arXiv:2003.00295)
    from m = 0 and v = tau^2, without correction for the start, as in Reddi's algorithm 2. A part without an update
    in this round neither changes nor forgets: its moments stay. A part that is new begins like one in round 1.

    Args:
        state: of the round before; empty at the beginning. It stays unchanged.
        statistics: parts that are averages, not learnt by descent: whatever the optimiser, their change is D.
    """
    step = _STEPS.get(options.strategy, _plain)
    new = dict(state)
    change = {}
    for name, mean in update.items():
        change[name] = mean if name in statistics else step(mean, name, new, options)
    return change, new


def _plain(mean: Tensor, name: str, state: State, options: AggregateOptions) -> Tensor:
    return options.learning_rate * mean


def _with_momentum(mean: Tensor, name: str, state: State, options: AggregateOptions) -> Tensor:
    first = options.momentum * state.get(f"first:{name}", torch.zeros_like(mean)) + mean
    state[f"first:{name}"] = first
    return options.learning_rate * first


def _adaptive(mean: Tensor, name: str, state: State, options: AggregateOptions) -> Tensor:
    before = state.get(f"first:{name}", torch.zeros_like(mean))
    first = options.beta1 * before + (1 - options.beta1) * mean
    before = state.get(f"second:{name}", torch.full_like(mean, options.tau**2))
    second = options.beta2 * before + (1 - options.beta2) * mean.square()
    state |= {f"first:{name}": first, f"second:{name}": second}
    return options.learning_rate * first / (second.sqrt() + options.tau)


_STEPS: dict[str, Callable[[Tensor, str, State, AggregateOptions], Tensor]] = {
    "fedavgm": _with_momentum,
    "fedadam": _adaptive,
}
