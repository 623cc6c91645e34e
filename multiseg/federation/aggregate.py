"""Averages the sites' updates: each part of the network over the sites that trained it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from multiseg.errors import FederationError
from multiseg.federation.privacy import update_norm
from multiseg.federation.strategies import STRATEGIES, AggregateOptions
from multiseg.models.network_parts import SHARED, Part

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True, eq=False)
class Mean:
    """The mean of the sites' updates.

    Attributes:
        update: by part, float32; a part that nobody sent, or only sites of weight 0, is left out.
        contributors: by part, the sites whose updates count, sorted by name.
        scaled: sites whose update was too long and was scaled down.
    """

    update: Mapping[str, Tensor]
    contributors: Mapping[str, tuple[str, ...]]
    scaled: tuple[str, ...] = ()


def refused(
    update: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    masked: bool = False,
    dtypes: Sequence[torch.dtype] = FLOATS,
) -> str:
    """Why an update cannot be used; "" if it can. A missing part is not a reason.

    Args:
        update: new minus received, by name of the part.
        shapes: of all parts that the site may send.
        masked: the update is masked: 32-bit integers, which are all finite.
        dtypes: allowed unless the update is masked. Values must also be finite in float32, in which updates are summed.
    """
    for name in sorted(update):
        tensor, shape = update[name], shapes.get(name)
        if shape is None:
            return f"it holds {name!r:.80}, which is not a part that this site trains"
        if tuple(tensor.shape) != tuple(shape):
            return f"{name!r} is of shape {tuple(tensor.shape)}, but the part is {tuple(shape)}"
        allowed = (torch.int32,) if masked else dtypes
        if tensor.dtype not in allowed:
            expected = "floating point" if allowed == FLOATS else " or ".join(map(str, allowed))
            return f"{name!r} holds {tensor.dtype}, but {expected} is expected"
        num_bad = 0 if masked else int((~torch.isfinite(tensor.float())).sum())
        if num_bad:
            return f"{name!r} holds {num_bad} values of {tensor.numel()} that are not finite"
    return ""


def aggregated(
    updates: Mapping[str, Mapping[str, Tensor]],
    weights: Mapping[str, Mapping[str, float]],
    parts: Sequence[Part],
    options: AggregateOptions,
) -> Mean:
    """The mean update, bit for bit the same in whatever order updates arrive: sites are sorted by name.

    A part's update is the mean over the sites that sent it, weighted by each site's weight for the part's group.
    "trimmed_mean" leaves out the smallest and the largest floor(trim * n) of the n values of every element, so with
    fewer than 1 / trim sites it is the plain mean. "median" leaves out all but the one or two in the middle (Yin et
    al. 2018, arXiv:1803.01498, definitions 1 and 2). Both weigh all sites the same.

    With the unit "tensors", a missing part counts as an update of 0 and a site has one weight for all parts, as in
    standard federated averaging.

    Args:
        updates: by site and part, of any floating-point precision.
        weights: by site and group; a missing group has the weight of the group "".

    Raises:
        FederationError: a site sent an unknown part, or a weight is missing, negative or not finite.
    """
    sites = sorted(updates)
    _check(updates, weights, parts)
    factors = {site: _factor(updates[site], options.max_update_norm) for site in sites}
    is_whole, left_out = options.unit == "tensors", STRATEGIES[options.strategy].left_out
    update, contributors = {}, {}
    for part in parts:
        group = SHARED if is_whole else part.group
        counted = {site: 1.0 if left_out else weights[site].get(group, weights[site][SHARED]) for site in sites}
        senders = tuple(site for site in sites if part.name in updates[site] and counted[site] > 0)
        if not senders:
            continue
        contributors[part.name] = senders
        scaled = {site: (updates[site][part.name], factors[site]) for site in senders}
        counts = counted if is_whole else {site: counted[site] for site in senders}
        if left_out:
            update[part.name] = _robust(scaled, len(counts), left_out(len(counts), options))
        else:
            update[part.name] = _mean(scaled, counts)
    return Mean(update, contributors, tuple(site for site in sites if factors[site] < 1))


def _check(
    updates: Mapping[str, Mapping[str, Tensor]], weights: Mapping[str, Mapping[str, float]], parts: Sequence[Part]
) -> None:
    names = {part.name for part in parts}
    for site, update in updates.items():
        unknown = sorted(set(update) - names)
        if unknown:
            raise FederationError(f"{site} sent {unknown[0]!r}, which is not a part of the network: refuse its update.")
        site_weights = weights.get(site, {})
        are_valid = all(math.isfinite(weight) and weight >= 0 for weight in site_weights.values())
        if SHARED not in site_weights or not are_valid:
            raise FederationError(
                f"{site} has the weights {dict(site_weights)}: give each site weights of 0 or more, also for ''."
            )


def _factor(update: Mapping[str, Tensor], limit: float) -> float:
    """The factor that scales an update down to the limit; 1 if it is within it or there is no limit (0)."""
    norm = update_norm(update) if limit else 0.0
    if not math.isfinite(norm):
        raise FederationError(f"an update has the norm {norm} and cannot be scaled down: refuse it.")
    return limit / norm if norm > limit else 1.0


def _mean(scaled: Mapping[str, tuple[Tensor, float]], weights: Mapping[str, float]) -> Float[Tensor, "*part"]:
    """The weighted mean of each site's tensor times its factor."""
    total = math.fsum(weights.values())
    like = next(iter(scaled.values()))[0]
    mean = torch.zeros(like.shape, dtype=torch.float64)
    for site, (tensor, factor) in scaled.items():
        mean.add_(tensor, alpha=factor * weights[site] / total)
    return mean.float()


def _robust(scaled: Mapping[str, tuple[Tensor, float]], num_sites: int, left_out: int) -> Float[Tensor, "*part"]:
    """The mean without the `left_out` outer values at either end; sites that sent nothing count as 0."""
    like = next(iter(scaled.values()))[0]
    values = np.zeros((num_sites, like.numel()), dtype=np.float32)
    for row, (tensor, factor) in zip(values, scaled.values(), strict=False):
        row[:] = tensor.float().reshape(-1).numpy() * np.float32(factor)
    values.sort(axis=0)  # torch's sort would also allocate an index of 8 bytes per value
    middle_mean = values[left_out : num_sites - left_out].mean(axis=0, dtype=np.float64)
    return torch.from_numpy(middle_mean.astype(np.float32)).reshape(like.shape)
