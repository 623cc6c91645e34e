"""Losses for targets in which not every structure was annotated, as pure functions.

All of them take log-probabilities [batch class i j k], class 0 being background. If a case is not annotated for some
structures, a background voxel may be any of them: their probabilities are added to that of background (Roulet et al.
2019, adaptive cross entropy), so predicting them is never punished. Outside the brain there is no structure: there a
background voxel is background.

`multiseg.evaluation.decision` turns these probabilities into labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own idiom)
from einops import rearrange, reduce
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from multiseg.labels import IGNORE


def log_probabilities(logits: Float[Tensor, "batch logit i j k"]) -> Float[Tensor, "batch class i j k"]:
    """Log-probabilities in float32: of a sigmoid for a single logit (two classes), else of a softmax."""
    logits = logits.float()
    if logits.shape[1] == 1:
        return torch.cat([F.logsigmoid(-logits), F.logsigmoid(logits)], dim=1)
    return F.log_softmax(logits, dim=1)


def outside_brain(
    images: Float[Tensor, "batch modality i j k"], target: UInt8[Tensor, "batch i j k"]
) -> Bool[Tensor, "batch i j k"]:
    """The voxels that are certainly background: without a label, and exactly 0 in every sequence that is shown.

    Stores are 0 outside the brain and outside the case. Augmentation preserves this, and labels what it brings in from
    outside the window with 255, not 0. A dropped sequence does not count: where the remaining ones are 0, a model
    should predict nothing. A labelled voxel keeps its label.
    """
    return (images == 0).all(dim=1) & (target == 0)


def marginal(
    log_p: Float[Tensor, "batch class i j k"],
    annotated: Bool[Tensor, "batch label"],
    outside: Bool[Tensor, "batch i j k"] | None = None,
) -> Float[Tensor, "batch class i j k"]:
    """Log-probabilities in which background includes every structure that a case is not annotated for.

    log p'_0 = log(p_0 + sum of p_l over labels l that are not annotated)   (Roulet et al. 2019, eq. 2)

    Args:
        outside: the voxels at which p'_0 = p_0, see `outside_brain`; None for none.
    """
    if bool(annotated.all()):
        return log_p
    unknown = rearrange(~annotated, "b l -> b l 1 1 1")
    if outside is not None:
        unknown = unknown & rearrange(~outside, "b i j k -> b 1 i j k")
    may_be = torch.where(unknown, log_p[:, 1:], torch.full_like(log_p[:, 1:], -torch.inf))
    background = torch.logsumexp(torch.cat([log_p[:, :1], may_be], dim=1), dim=1, keepdim=True)
    return torch.cat([background, log_p[:, 1:]], dim=1)


def cross_entropy(
    log_p: Float[Tensor, "batch class i j k"],
    target: UInt8[Tensor, "batch i j k"],
    weights: Float[Tensor, " class"] | None = None,
) -> Float[Tensor, ""]:
    """Minus the mean log-probability of the target over all voxels that are not ignored; 0 if all are.

    Args:
        weights: of the voxels of each class in the mean.
    """
    looked_at = target != IGNORE
    index = torch.where(looked_at, target, 0).long()
    picked = torch.gather(log_p, 1, rearrange(index, "b i j k -> b 1 i j k"))[:, 0]
    if weights is None:
        return -(picked * looked_at).sum() / looked_at.sum().clamp(min=1)
    weight = weights[index] * looked_at
    return -(picked * weight).sum() / weight.sum().clamp(min=torch.finfo(weight.dtype).tiny)


def unsearched_outside(
    log_p: Float[Tensor, "batch class i j k"],
    target: UInt8[Tensor, "batch i j k"],
    annotated: Bool[Tensor, "batch label"],
    outside: Bool[Tensor, "batch i j k"],
) -> Float[Tensor, ""]:
    """The loss of structures without annotation outside the brain, for objectives that otherwise ignore them.

    With q the sum of their probabilities: the sum of -log(1 - q) over the voxels `outside`, divided by the number of
    voxels that are not ignored; 0 if every structure is annotated.

    Args:
        log_p: of the network, not `marginal`.
    """
    if bool(annotated.all()):
        return log_p.new_zeros(())
    kept = rearrange(F.pad(annotated, (1, 0), value=True), "b c -> b c 1 1 1")
    certain = torch.logsumexp(torch.where(kept, log_p, torch.full_like(log_p, -torch.inf)), dim=1)
    return -(certain * outside).sum() / (target != IGNORE).sum().clamp(min=1)


def soft_dice_loss(
    log_p: Float[Tensor, "batch class i j k"],
    target: UInt8[Tensor, "batch i j k"],
    annotated: Bool[Tensor, "batch label"],
    over_batch: bool,
    eps: float = 1e-5,
) -> Float[Tensor, ""]:
    """One minus the soft Dice overlap of the annotated structures.

    With p the probabilities and t the one-hot targets (Milletari 2016, arXiv:1606.04797, without squares):
        loss = 1 - mean[(2 sum p t + eps) / (sum p + sum t + eps)]
    The sums run over each sample's voxels and the mean over samples and labels (Xu et al. 2024, as
    released); with `over_batch` the sums run over the whole batch, so patches without lesion count too.

    Args:
        eps: makes the loss 0 instead of 0/0 if a label is absent and not predicted.
    """
    p, truth = maps(log_p, target)
    counts = annotated.float()
    both = reduce(p * truth, "b l i j k -> b l", "sum") * counts
    total = (reduce(p, "b l i j k -> b l", "sum") + reduce(truth.float(), "b l i j k -> b l", "sum")) * counts
    if over_batch:
        both, total, counts = both.sum(0), total.sum(0), (counts.sum(0) > 0).float()
    dice = (2 * both + eps) / (total + eps)
    return 1 - (dice * counts).sum() / counts.sum().clamp(min=1)


def maps(
    log_p: Float[Tensor, "batch class i j k"], target: UInt8[Tensor, "batch i j k"]
) -> tuple[Float[Tensor, "batch label i j k"], Bool[Tensor, "batch label i j k"]]:
    """The probabilities of the structures and where they are, both 0 at voxels to ignore."""
    looked_at = rearrange(target != IGNORE, "b i j k -> b 1 i j k")
    labels = torch.arange(1, log_p.shape[1], device=target.device)
    truth = (rearrange(target, "b i j k -> b 1 i j k") == rearrange(labels, "l -> 1 l 1 1 1")) & looked_at
    return log_p[:, 1:].exp() * looked_at, truth


def jaccard_distance(
    p: Float[Tensor, "batch label i j k"], q: Float[Tensor, "batch label i j k"], eps: float = 1e-5
) -> Float[Tensor, "batch label"]:
    """The Jaccard distance of two soft maps, in the form that is a metric (Dorent et al. 2021, as released).

    With D = sum |p - q| and S = sum p + sum q over the voxels:
        J = 2 D / (S + D + eps)
    For binary maps it is 1 - |both| / |either|. It is Steinhaus' transform of the distance D, for the point at which a
    map is 0 and one voxel more is -eps / 2; such a transform satisfies the triangle inequality.

    Args:
        p, q: from 0 to 1.
        eps: makes the distance of two empty maps 0 instead of 0/0.
    """
    apart = reduce((p - q).abs(), "b l i j k -> b l", "sum")
    size = reduce(p + q, "b l i j k -> b l", "sum")
    return 2 * apart / (size + apart + eps)


def squared_jaccard_distance(
    p: Float[Tensor, "batch label i j k"], q: Float[Tensor, "batch label i j k"], eps: float = 1e-5
) -> Float[Tensor, "batch label"]:
    """One minus the Tanimoto index of two soft maps (Dorent et al. 2019, eq. 6); the arguments of `jaccard_distance`.

        1 - (sum p q + eps) / (sum p^2 + q^2 - p q + eps)
    For binary maps it is the Jaccard distance, too, but between soft maps it violates the triangle inequality.
    """
    both = reduce(p * q, "b l i j k -> b l", "sum")
    either = reduce(p.square() + q.square() - p * q, "b l i j k -> b l", "sum")
    return 1 - (both + eps) / (either + eps)


def weights_by_kind(num_labels: int, tissues: Sequence[int]) -> Float[Tensor, " label"]:
    """The weight of each structure: tissues share 1/2 and lesions 1/2, or the only kind that there is shares 1."""
    is_tissue = [label in tissues for label in range(num_labels)]
    num_kinds = len(set(is_tissue))
    return torch.tensor([1 / (num_kinds * is_tissue.count(kind)) for kind in is_tissue])


def consistency_loss(
    p: Float[Tensor, "batch class i j k"], q: Float[Tensor, "batch class i j k"], eps: float = 1e-5
) -> Float[Tensor, ""]:
    """One minus the soft Dice overlap of two answers, over all voxels of the batch, averaged over the structures.

    With p and q the probabilities of two answers (Himmetoglu et al. 2025, equation 5):
        loss = 1 - mean over structures[(2 sum p q + eps) / (sum p + sum q + eps)]
    Background, class 0, is left out. Two equal answers have a loss of 0 only if they are certain everywhere.

    Args:
        eps: keeps 0/0 at a loss of 0 where both answers leave out a structure.
    """
    p, q = p[:, 1:], q[:, 1:]
    both = reduce(p * q, "b l i j k -> l", "sum")
    total = reduce(p, "b l i j k -> l", "sum") + reduce(q, "b l i j k -> l", "sum")
    return 1 - ((2 * both + eps) / (total + eps)).mean()
