"""The strategies of aggregation by name: what each does with the sites' updates, and with what they come to."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from multiseg.errors import UsageError

Moments: TypeAlias = dict[str, Tensor]
"""A server optimiser's state by "kind:part", to be saved beside the weights."""


@dataclass(frozen=True)
class AggregateOptions:
    """How the sites' updates become one.

    Attributes:
        strategy: "fedavg" (weighted mean; McMahan et al. 2017, arXiv:1602.05629), "fedavgm" and "fedadam" (a server
            optimiser on that mean; Reddi et al. 2021, arXiv:2003.00295), "trimmed_mean" or "median" (element by
            element, every site alike; Yin et al. 2018, arXiv:1803.01498).
        weights: of a site in a mean: its "cases" (rounded, as it told them), "equal", or "exposure": the patches of
            the round in which it showed the network the sequence that a part belongs to, or looked for its label.
        unit: "parts" (a part of the network that belongs to one sequence is averaged over the sites that have the
            sequence) or "tensors" (every tensor whole over all sites, as stock federated averaging does).
        learning_rate: of the server optimisers. The default fits fedavg and fedavgm; fedadam moves every weight by
            about as much as this says, whatever the sites sent, and has to be given less: 0.01 is a beginning.
            None of them moves running statistics of batch normalisation, which always follow the plain mean.
        momentum, beta1, beta2, tau: of the server optimisers; tau is the term that keeps FedAdam from dividing by 0.
        trim: share of the sites whose values are left out at either end of a trimmed mean.
        max_update_norm: a site's update is scaled down to this Euclidean norm; 0 leaves it.
        max_norm_ratio: an update that is more than so many times as long as the median of the round's is refused, see
            `centre.lengths.outliers`; 0 compares none.
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
        step: from the mean update of a part, its name and the moments to what is added to the model.
        left_out: from the number of sites to how many of an element's values are left out at either end of the mean,
            in which all sites then weigh alike; None for the mean weighted by `AggregateOptions.weights`. It needs
            every site's own update, so it does not go with masks.
        largest_rate: the learning rate above which a step is no small one any more.
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

    The mean update stands in for the gradient. With D that of a part and eta the learning rate, the change is
        eta D                                                            fedavg, trimmed_mean, median
        eta m,                      m = momentum m + D                   fedavgm (Hsu et al. 2019, arXiv:1909.06335)
        eta m / (sqrt(v) + tau),    m = beta1 m + (1 - beta1) D,
                                    v = beta2 v + (1 - beta2) D^2        fedadam (Reddi et al. 2021, arXiv:2003.00295)
    from m = 0 and v = tau^2, without correction for the start, as in Reddi's algorithm 2. A part without an update
    in this round neither changes nor forgets: its moments stay. A part that is new begins like one in round 1.

    Args:
        moments: of the round before; empty at the beginning. They stay unchanged.
        statistics: parts that are averages, not learnt by descent: whatever the optimiser, their change is D.
    """
    step = STRATEGIES[options.strategy].step
    new = dict(moments)
    change = {}
    for name, mean in update.items():
        change[name] = mean if name in statistics else step(mean, name, new, options)
    return change, new


def check_aggregate(options: AggregateOptions) -> None:
    """Raises UsageError for a number that is out of its range. The names are checked before."""
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
    most = STRATEGIES[options.strategy].largest_rate
    if options.learning_rate > most:
        raise UsageError(
            f"aggregate.learning_rate is {options.learning_rate}, by which {options.strategy} would move every weight "
            f"in a round: give {most} or less, such as {most / 10}."
        )
