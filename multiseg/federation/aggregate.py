"""How the updates of many sites become one: part by part, over the sites that trained it."""

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
    """The sites' updates as one.

    Attributes:
        update: by part, float32; a part that nobody sent, or only sites of weight 0, is left out.
        contributors: by part, the sites whose updates count in it, in order of their names.
        scaled: sites whose update was longer than allowed, and was scaled down.
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
    """Why an update cannot be used, or "" where it can. A part that is missing is no reason.

    Args:
        update: new minus received, by name of the part.
        shapes: of all parts that the site may send.
        masked: the update is masked: whole numbers of 32 bits, which are all finite.
        dtypes: that the update may have, unless it is masked; its values have to be finite in float32, too, in which
            updates are added up.
    """
    for name in sorted(update):
        tensor, shape = update[name], shapes.get(name)
        if shape is None:
            return f"it holds {name!r:.80}, which is no part that this site trains"
        if tuple(tensor.shape) != tuple(shape):
            return f"{name!r} is of shape {tuple(tensor.shape)}, but the part is {tuple(shape)}"
        known = (torch.int32,) if masked else dtypes
        if tensor.dtype not in known:
            expected = "floating point" if known == FLOATS else " or ".join(map(str, known))
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
    """The updates as one, the same bits in whatever order they came: sites count in the order of their names.

    A part's update is the mean of what the sites sent of it, weighted by the weight that each has for the part's
    group. "trimmed_mean" leaves out the smallest and the largest floor(trim * n) of the n values of every element,
    so it is the plain mean over fewer than 1 / trim sites, and "median" leaves out all but the one or two in the
    middle (Yin et al. 2018, arXiv:1803.01498, definitions 1 and 2); both take every site alike.

    With the unit "tensors", what a site did not send counts as an update of 0 and a site weighs the same in every
    part, as in averaging that does not know of parts.

    Args:
        updates: by site and part, of any floating-point precision.
        weights: by site and group; a group that is missing weighs as the group "" does.

    Raises:
        FederationError: a site sent what is no part, or has no weight of 0 or more.
    """
    sites = sorted(updates)
    _check(updates, weights, parts)
    factors = {site: _factor(updates[site], options.max_update_norm) for site in sites}
    is_whole, left_out = options.unit == "tensors", STRATEGIES[options.strategy].left_out
    update, contributors = {}, {}
    for part in parts:
        own = {site: _weight(weights[site], SHARED if is_whole else part.group) for site in sites}
        counted = dict.fromkeys(sites, 1.0) if left_out else own
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
    known = {part.name for part in parts}
    for site, update in updates.items():
        strange = sorted(set(update) - known)
        if strange:
            raise FederationError(f"{site} sent {strange[0]!r}, which is no part of the network: refuse its update.")
        own = weights.get(site, {})
        wrong = {group: weight for group, weight in own.items() if not (math.isfinite(weight) and weight >= 0)}
        if SHARED not in own or wrong:
            raise FederationError(f"{site} has the weights {dict(own)}: give each site one of 0 or more, also for ''.")


def _factor(update: Mapping[str, Tensor], limit: float) -> float:
    """What brings an update down to the norm that is the limit; 1 where it is no longer, or there is none.

    Raises:
        FederationError: the update has no finite norm.
    """
    norm = update_norm(update) if limit else 0.0
    if not math.isfinite(norm):
        raise FederationError(f"an update has the norm {norm}, which nothing scales down: refuse it.")
    return limit / norm if norm > limit else 1.0


def _weight(own: Mapping[str, float], group: str) -> float:
    return own.get(group, own[SHARED])


def _mean(scaled: Mapping[str, tuple[Tensor, float]], weights: Mapping[str, float]) -> Float[Tensor, "*part"]:
    """The mean of each site's tensor times its factor, over all sites that have a weight."""
    total = math.fsum(weights.values())
    like = next(iter(scaled.values()))[0]
    mean = torch.zeros(like.shape, dtype=torch.float64)
    for site, (tensor, factor) in scaled.items():
        mean.add_(tensor, alpha=factor * weights[site] / total)
    return mean.float()


def _robust(scaled: Mapping[str, tuple[Tensor, float]], num_sites: int, left_out: int) -> Float[Tensor, "*part"]:
    """The mean without the outer values, of each site's tensor times its factor and 0 for the sites without one.

    Args:
        left_out: how many values at either end.
    """
    like = next(iter(scaled.values()))[0]
    values = np.zeros((num_sites, like.numel()), dtype=np.float32)
    for row, (tensor, factor) in zip(values, scaled.values(), strict=False):
        row[:] = tensor.float().reshape(-1).numpy() * np.float32(factor)
    values.sort(axis=0)  # not torch's sort, which also makes an index of 8 bytes for every value
    kept = values[left_out : num_sites - left_out].mean(axis=0, dtype=np.float64)
    return torch.from_numpy(kept.astype(np.float32)).reshape(like.shape)
