"""The losses of the stage joint: of the whole network, and of its anatomy branch, whose features the stage moves.

Himmetoglu et al. 2025, section 3.3.3, keeps the losses of equation 9 on the anatomy branch in this stage. Without one
the branch's head would not fit its features any more, and both adaptations and `--branch anatomy` read that head.
"""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from multiseg.labels import IGNORE
from multiseg.loaders.batches import Batch
from multiseg.models.losses import consistency_loss, log_probabilities, soft_dice_loss
from multiseg.models.two_branch import BESIDE
from multiseg.training.objectives import Objective

VERSION = 2
"""Of the losses of this stage: models that were trained by different ones are not comparable. 1 had no loss on the
anatomy branch."""


def soft_dice(network: nn.Module, batch: Batch, step: int) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """The sum of the Dice losses of the whole network and of its anatomy branch against soft targets.

    The targets of the whole network are 1 for a true lesion, otherwise the tissues' probabilities `batch.soft`; those
    of the anatomy branch are these probabilities everywhere, since it says which tissue is under a lesion. Dice is over
    all voxels of the batch that are not ignored. A lesion that nobody searched for in a case does not count there, as
    in `losses.soft_dice_loss`; tissues always do.
    """
    assert batch.soft is not None
    whole, anatomy = _beside(network, batch)
    looked_at = (batch.target != IGNORE)[:, None]
    counts = torch.ones(len(batch.target), whole.shape[1], dtype=torch.bool, device=whole.device)
    counts[:, 1:] = batch.annotated
    counts[:, [1 + tissue for tissue in batch.tissues]] = True
    kept = counts.any(dim=0)
    both = looked_at & rearrange(counts, "b c -> b c 1 1 1")
    p, target = log_probabilities(whole).exp() * both, soft_targets(batch) * both
    tissues = torch.cat([torch.zeros_like(batch.soft[:, :1]), batch.soft], dim=1)  # Dice leaves background out
    terms = {
        "soft_dice": consistency_loss(p[:, kept], target[:, kept]),
        "anatomy": consistency_loss(log_probabilities(anatomy).exp() * looked_at, tissues * looked_at),
    }
    return torch.stack(list(terms.values())).sum(), {name: value.detach() for name, value in terms.items()}


def soft_targets(batch: Batch) -> Float[Tensor, "batch class i j k"]:
    """The soft targets of the whole network, background first; 0 where a voxel is ignored."""
    assert batch.soft is not None
    num_labels = batch.annotated.shape[1]
    soft = batch.soft.new_zeros(len(batch.soft), 1 + num_labels, *batch.soft.shape[2:])
    soft[:, [1 + tissue for tissue in batch.tissues]] = batch.soft
    soft[:, 0] = (1 - batch.soft.sum(dim=1)).clamp(min=0)
    lesions = [label for label in range(num_labels) if label not in batch.tissues]
    is_lesion = torch.stack([batch.target == 1 + lesion for lesion in lesions], dim=1)
    soft = torch.where(is_lesion.any(dim=1, keepdim=True), torch.zeros_like(soft), soft)
    soft[:, [1 + lesion for lesion in lesions]] = is_lesion.to(soft.dtype)
    return torch.where((batch.target == IGNORE)[:, None], torch.zeros_like(soft), soft)


def with_anatomy(objective: Objective) -> Objective:
    """An objective of the whole network, and the Dice loss of the anatomy branch against the annotated tissues.

    Which tissue is under a lesion is not known, so that lesions are ignored there. A batch in which no case is
    annotated for tissues has no second term.
    """

    def both(network: nn.Module, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        whole = Listening(network, batch)
        loss, terms = objective(whole, batch, step)
        anatomy = whole.of_anatomy if whole.of_anatomy is not None else _beside(network, batch)[1]
        log_p = log_probabilities(anatomy)
        annotated = batch.annotated[:, list(batch.tissues)]
        of_anatomy = soft_dice_loss(log_p, _tissue_target(batch), annotated, over_batch=True)
        if not annotated.any():
            of_anatomy = of_anatomy * 0
        return loss + of_anatomy, {**terms, "anatomy": of_anatomy.detach()}

    return both


class Listening(nn.Module):
    """The whole network, which keeps what its anatomy branch answers to a batch: one pass serves both.

    An objective of one's own uses it like the network itself: it answers as a branch where one is named, and what it
    does not have, such as `anatomy`, is that of the network.

    Attributes:
        of_anatomy: the logits of the anatomy branch for the batch; None until the batch was shown as it is, with
            gradients. From a pass without them, as of a teacher, the head of the branch could not learn.
    """

    def __init__(self, network: nn.Module, batch: Batch) -> None:
        super().__init__()
        self.network, self._batch = network, batch
        self.of_anatomy: Float[Tensor, "batch label i j k"] | None = None

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "network":  # of a copy that is not complete yet
                raise
            return getattr(self.network, name)

    def forward(
        self, images: Float[Tensor, "batch modality i j k"], present: Bool[Tensor, "batch modality"], branch: str = ""
    ) -> Float[Tensor, "batch label i j k"]:
        if branch:
            answer: Tensor = self.network(images, present, branch=branch)
            return answer
        num, num_logits = len(self._batch.images), 1 + self._batch.annotated.shape[1]
        logits: Tensor = self.network(images, present, branch=BESIDE)
        is_batch = torch.equal(images[:num], self._batch.images) and torch.equal(present[:num], self._batch.present)
        if self.of_anatomy is None and is_batch and logits.requires_grad:
            self.of_anatomy = logits[:num, num_logits:]
        return logits[:, :num_logits]


def _beside(network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """The logits of the whole network and of the anatomy branch."""
    logits: Tensor = network(batch.images, batch.present, branch=BESIDE)
    num_logits = 1 + batch.annotated.shape[1]
    return logits[:, :num_logits], logits[:, num_logits:]


def _tissue_target(batch: Batch) -> Tensor:
    """The target of the anatomy branch: the tissues, counted as its logits are; lesions are ignored."""
    codes = torch.full((256,), IGNORE, dtype=torch.uint8, device=batch.target.device)
    codes[0] = 0
    for index, tissue in enumerate(batch.tissues, start=1):
        codes[1 + tissue] = index
    return codes[batch.target.long()]
