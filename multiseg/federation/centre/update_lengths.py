"""Refuses an update that is longer than training can make it, or far longer than the others.

The length of an update is its Euclidean norm. Running statistics, which no gradient moves, are measured separately and
only compared with those of other sites.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from torch import Tensor

from multiseg.federation.plan import FederationOptions
from multiseg.federation.privacy import update_norm
from multiseg.models.network_parts import Part

ADAM_STEP = 7.3
"""The largest step of Adam in learning rates: (1 - b1) / sqrt((1 - b2) (1 - b1^2 / b2)) with b1 = 0.9 and b2 = 0.999,
by the Cauchy-Schwarz inequality over its two moving averages."""
SLACK = 1.05
"""For rounding, on the wire and in the steps."""
ENOUGH = 3
"""With this many updates no single site can set their median."""
LOOK_BACK = 5
"""Earlier rounds to compare with if there are fewer updates."""

Lengths = tuple[float, float]
"""Norms of the weights and of the running statistics of an update."""


def lengths(update: Mapping[str, Tensor], parts: Sequence[Part]) -> Lengths:
    """The lengths of an update in float32."""
    statistics = {part.name for part in parts if part.is_statistic}
    weights = {name: tensor for name, tensor in update.items() if name not in statistics}
    return update_norm(weights), update_norm({name: update[name] for name in update.keys() & statistics})


def longest(num_values: int, options: FederationOptions) -> float:
    """The largest length of an update that these settings allow; infinite if no bound is known.

    Args:
        num_values: number of weights in the update.
    """
    local, privacy, fit = options.local, options.privacy, options.fit
    distance = local.steps * fit.learning_rate
    if local.optimiser == "adam":
        trained = distance * ADAM_STEP * math.sqrt(num_values)
    else:
        # FedProx's gradient is added before clipping, so clip_norm bounds it, too.
        trained = distance * fit.clip_norm if fit.clip_norm else math.inf
    sent = min(trained, privacy.clip or math.inf)
    # A normal vector of n numbers is practically never longer than sqrt(n) + 8.
    noise = privacy.noise * privacy.clip * (math.sqrt(num_values) + 8)
    return SLACK * (sent + noise)


def outliers(own: Mapping[str, Lengths], past: Sequence[Lengths], ratio: float) -> dict[str, str]:
    """The sites whose update is more than `ratio` times the reference length, and why.

    With three or more updates the reference is their median, which no single site can set. With fewer it is unclear
    who is wrong, so the reference is the longest accepted update of the last rounds; in the first round of two sites
    there is none.

    Args:
        own: lengths in this round, by site.
        past: of accepted updates in the rounds before.
        ratio: 0 for no comparison.
    """
    reasons: dict[str, str] = {}
    for index, what in enumerate(("its update", "its change of running statistics")):
        if len(own) >= ENOUGH:
            usual, reference = statistics.median(norms[index] for norms in own.values()), "the median of the sites"
        else:
            usual = max((norms[index] for norms in past), default=0.0)
            reference = "the longest of the rounds before"
        for site, norms in own.items():
            if ratio and usual > 0 and norms[index] > ratio * usual:
                reasons.setdefault(
                    site,
                    f"{what} is {norms[index]:.3g} long, {norms[index] / usual:.3g} times {reference} "
                    f"({usual:.3g}); the limit is aggregate.max_norm_ratio = {ratio:g}",
                )
    return reasons
