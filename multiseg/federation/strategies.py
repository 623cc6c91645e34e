"""Aggregation strategies by name: how the sites' updates are averaged, and how the server follows the mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from multiseg.errors import UsageError

Moments: TypeAlias = dict[str, Tensor]
"""A server optimiser's state by "kind:part", saved with the weights."""


@dataclass(frozen=True)
class AggregateOptions:
    """How the sites' updates are combined into one.

    Attributes:
        strategy: "fedavg" (weighted mean; McMahan et al. 2017, arXiv:1602.05629), "fedavgm" and "fedadam" (a server
            optimiser on that mean; Reddi et al. 2021, arXiv:2003.00295), "trimmed_mean" or "median" (element by
            element, every site alike; Yin et al. 2018, arXiv:1803.01498).
        weights: of a site in a mean: its "cases" (rounded, as the site reports them), "equal", or "exposure": the
            patches of the round that showed the network the sequence of a part, or were annotated for its label.
        unit: "parts" (a part of the network that belongs to one sequence is averaged over the sites that have the
            sequence) or "tensors" (every whole tensor over all sites, as standard federated averaging does).
        learning_rate: of the server optimisers. The default fits fedavg and fedavgm. fedadam moves every weight by
            about this much, whatever the sites sent, so it needs less: start with 0.01. Running statistics of batch
            normalisation always follow the plain mean.
        momentum, beta1, beta2, tau: of the server optimisers; tau keeps FedAdam from dividing by 0.
        trim: share of the sites whose values are left out at either end of a trimmed mean.
        max_update_norm: a site's update is scaled down to this Euclidean norm; 0 for no limit.
        max_norm_ratio: an update is refused if it is longer than this many times the median of the round, see
            `centre.combine.outliers`; 0 for no comparison.
    """

    strategy: str = "fedavg"
    weights: str = "cases"
    unit: str = "parts"
    learning_rate: float = 1.0
    momentum: float = 0.9
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3
    trim: float = 0.2
    max_update_norm: float = 0.0
    max_norm_ratio: float = 20.0


def follow(mean: Tensor, name: str, moments: Moments, options: AggregateOptions) -> Tensor:
    """The mean update itself, scaled by the learning rate."""
    return options.learning_rate * mean


def follow_momentum(mean: Tensor, name: str, moments: Moments, options: AggregateOptions) -> Tensor:
    """FedAvgM's change of a part; its moment is updated in place."""
    first = options.momentum * moments.get(f"first:{name}", torch.zeros_like(mean)) + mean
    moments[f"first:{name}"] = first
    return options.learning_rate * first


def follow_adam(mean: Tensor, name: str, moments: Moments, options: AggregateOptions) -> Tensor:
    """FedAdam's change of a part; its two moments are updated in place."""
    before = moments.get(f"first:{name}", torch.zeros_like(mean))
    first = options.beta1 * before + (1 - options.beta1) * mean
    before = moments.get(f"second:{name}", torch.full_like(mean, options.tau**2))
    second = options.beta2 * before + (1 - options.beta2) * mean.square()
    moments |= {f"first:{name}": first, f"second:{name}": second}
    return options.learning_rate * first / (second.sqrt() + options.tau)


def middle(num_sites: int, options: AggregateOptions) -> int:
    """How many values a median leaves out at either end: all but the one or two in the middle."""
    return (num_sites - 1) // 2


def trimmed(num_sites: int, options: AggregateOptions) -> int:
    """How many values a trimmed mean leaves out at either end; one at least is kept."""
    # 1e-9: 0.29 * 100 is a little less than 29.
    return min(middle(num_sites, options), math.floor(options.trim * num_sites + 1e-9))


@dataclass(frozen=True)
class Strategy:
    """One way to turn the sites' updates into a change of the global model.

    Attributes:
        step: maps the mean update of a part, its name and the moments to what is added to the model.
        left_out: maps the number of sites to how many values of an element are left out at either end of the mean, in
            which all sites weigh the same; None for the mean weighted by `AggregateOptions.weights`. It needs every
            site's own update, so it cannot be combined with masks.
        largest_rate: the largest learning rate that still makes small steps.
    """

    step: Callable[[Tensor, str, Moments, AggregateOptions], Tensor] = follow
    left_out: Callable[[int, AggregateOptions], int] | None = None
    largest_rate: float = math.inf


STRATEGIES: dict[str, Strategy] = {
    "fedavg": Strategy(),
    "fedavgm": Strategy(step=follow_momentum),
    "fedadam": Strategy(step=follow_adam, largest_rate=0.1),
    "trimmed_mean": Strategy(left_out=trimmed),
    "median": Strategy(left_out=middle),
}


def stepped(
    update: Mapping[str, Tensor],
    moments: Mapping[str, Tensor],
    options: AggregateOptions,
    statistics: Collection[str] = (),
) -> tuple[dict[str, Tensor], Moments]:
    """What to add to the global model, by part, and the server optimiser's moments for the next round.

    The mean update takes the place of the gradient. With D that of a part and eta the learning rate, the change is
        eta D                                                            fedavg, trimmed_mean, median
        eta m,                      m = momentum m + D                   fedavgm (Hsu et al. 2019, arXiv:1909.06335)
        eta m / (sqrt(v) + tau),    m = beta1 m + (1 - beta1) D,
                                    v = beta2 v + (1 - beta2) D^2        fedadam (Reddi et al. 2021, arXiv:2003.00295)
    starting from m = 0 and v = tau^2, without bias correction, as in Reddi's algorithm 2. A part without an update in
    this round keeps its values and moments. A new part starts as in round 1.

    Args:
        moments: of the round before; empty at the start. They stay unchanged.
        statistics: parts that are running averages, not learnt by descent: their change is D with every optimiser.
    """
    step = STRATEGIES[options.strategy].step
    new = dict(moments)
    change = {}
    for name, mean in update.items():
        change[name] = mean if name in statistics else step(mean, name, new, options)
    return change, new


def check_aggregate(options: AggregateOptions) -> None:
    """Raises UsageError for a number out of range. The caller has checked the names."""
    for name, is_valid, limits in (
        ("trim", 0 <= options.trim < 0.5, "from 0 to below 0.5"),
        ("max_update_norm", 0 <= options.max_update_norm < math.inf, "0 or more"),
        ("max_norm_ratio", options.max_norm_ratio == 0 or 2 <= options.max_norm_ratio < math.inf, "2 or more, or 0"),
        ("learning_rate", 0 < options.learning_rate < math.inf, "above 0"),
        ("momentum", 0 <= options.momentum < 1, "from 0 to below 1"),
        ("beta1", 0 <= options.beta1 < 1, "from 0 to below 1"),
        ("beta2", 0 <= options.beta2 < 1, "from 0 to below 1"),
        ("tau", 0 < options.tau < math.inf, "above 0"),
    ):
        if not is_valid:
            raise UsageError(f"aggregate.{name} is {getattr(options, name)}: give a number {limits}.")
    largest_rate = STRATEGIES[options.strategy].largest_rate
    if options.learning_rate > largest_rate:
        raise UsageError(
            f"aggregate.learning_rate is {options.learning_rate}, and {options.strategy} moves every weight by about "
            f"that much in a round: give {largest_rate} or less, such as {largest_rate / 10}."
        )
