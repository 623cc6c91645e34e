"""How long an update may be: longer than training can make it, or far longer than the others', it is refused.

The length of an update is its Euclidean norm. Running statistics, which no gradient moves, are a second update of their
own: only the comparison with others holds for them.
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
"""The most that Adam moves a weight in one step, in learning rates: (1 - b1) / sqrt((1 - b2) (1 - b1^2 / b2)) with
b1 = 0.9 and b2 = 0.999, by the inequality of Cauchy and Schwarz over its two moving averages."""
SLACK = 1.05
"""For rounding, on the wire and in the steps."""
ENOUGH = 3
"""Updates of one round whose median no single site can move as it likes."""
LOOK_BACK = 5
"""Rounds before that are compared with where there are fewer."""

Lengths = tuple[float, float]
"""Of the weights and of the running statistics of an update."""


def lengths(update: Mapping[str, Tensor], parts: Sequence[Part]) -> Lengths:
    """Of an update in float32."""
    still = {part.name for part in parts if part.is_statistic}
    moved = {name: tensor for name, tensor in update.items() if name not in still}
    return update_norm(moved), update_norm({name: update[name] for name in update.keys() & still})


def longest(num_values: int, options: FederationOptions) -> float:
    """A length that no round of these settings can pass at a site that keeps to them; infinite where none is known.

    Args:
        num_values: numbers in the update that are weights.
    """
    local, privacy, fit = options.local, options.privacy, options.fit
    far = local.steps * fit.learning_rate
    if local.optimiser == "adam":
        trained = far * ADAM_STEP * math.sqrt(num_values)
    else:
        # FedProx's gradient is added before gradients are clipped, so it is within their norm.
        trained = far * fit.clip_norm if fit.clip_norm else math.inf
    sent = min(trained, privacy.clip or math.inf)
    # A normal vector of n numbers is as good as never longer than sqrt(n) + 8.
    noise = privacy.noise * privacy.clip * (math.sqrt(num_values) + 8)
    return SLACK * (sent + noise)


def outliers(own: Mapping[str, Lengths], past: Sequence[Lengths], ratio: float) -> dict[str, str]:
    """The sites whose update is more than `ratio` times as long as what it is compared with, and why.

    That is the median of this round's where they are three or more, which one site alone cannot move as it likes. Among
    fewer nobody can say who is wrong, so it is the longest of the last rounds' that were accepted; in the first round
    of two sites there is none.

    Args:
        own: lengths in this round, by site.
        past: of accepted updates in the rounds before.
        ratio: 0 for no comparison.
    """
    found: dict[str, str] = {}
    for index, what in enumerate(("its update", "its change of running statistics")):
        here = {site: some[index] for site, some in own.items()}
        before = [some[index] for some in past]
        if len(here) >= ENOUGH:
            usual, of = statistics.median(here.values()), "the median of the sites"
        else:
            usual, of = max(before, default=0.0), "the longest of the rounds before"
        if not (ratio and usual > 0):
            continue
        for site, length in here.items():
            if length > ratio * usual:
                found.setdefault(
                    site,
                    f"{what} is {length:.3g} long, {length / usual:.3g} times {of} ({usual:.3g}), and more than "
                    f"aggregate.max_norm_ratio = {ratio:g} is refused",
                )
    return found
