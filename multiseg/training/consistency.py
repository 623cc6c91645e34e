"""Consistency of a network's answers to a patch with all its sequences and with fewer of them (Dorent et al. 2019)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from multiseg.errors import UsageError
from multiseg.labels import IGNORE
from multiseg.loaders.batches import Batch
from multiseg.loaders.chance import Chance
from multiseg.models.losses import jaccard_distance, weights_by_kind
from multiseg.models.presence import shown

RANDOM = "random"
KEY = 2019
"""Keeps these choices apart from those of other draws of the same patch."""


@dataclass(frozen=True, eq=False)
class Partners:
    """The patches of a batch that are shown a second time, with fewer sequences.

    Attributes:
        rows: their places in the batch.
        present: the sequences that are then left.
    """

    rows: Int[Tensor, " row"]
    present: Bool[Tensor, "row modality"]


@dataclass(frozen=True)
class Consistency:
    """A term that makes a network answer alike with all sequences of a patch and with fewer (eq. 3 and 5).

    Attributes:
        weight: above 0.
        first_step: the first step with the term; before it is 0.
        partner: what is left the second time: the name of a sequence, or "random" for a random part of the sequences.
        stop_gradient: whether the answer with all sequences gets no gradient of the term, and so teaches the other one.
        seed: of the random parts.
    """

    weight: float
    first_step: int = 0
    partner: str = "T1"
    stop_gradient: bool = False
    seed: int = 0

    def partners(self, batch: Batch, step: int) -> Partners | None:
        """The patches with a part to compare them with; None if there are none, or it is too early.

        A patch needs two sequences or more, among them the partner. A random part is drawn alike from all sets that
        are neither empty nor all of the patch's sequences; it depends only on the seed and the patch's own draw.

        Raises:
            UsageError: the partner is no sequence of the batch.
        """
        if self.partner != RANDOM and self.partner not in batch.sequences:
            raise UsageError(
                f"fit.consistency_partner is {self.partner!r}, but the sequences are {', '.join(batch.sequences)}: "
                f'give one of these or "{RANDOM}", or set fit.consistency to 0.'
            )
        if step < self.first_step:
            return None
        present = batch.present.tolist()
        parts = [self._part(flags, batch.sequences, draw) for flags, draw in zip(present, batch.draws, strict=True)]
        rows = [row for row, part in enumerate(parts) if part]
        if not rows:
            return None
        flags = torch.zeros(len(rows), batch.present.shape[1], dtype=torch.bool)
        for number, row in enumerate(rows):
            flags[number, parts[row]] = True
        return Partners(torch.tensor(rows).to(batch.images.device), flags.to(batch.present.device))

    def _part(self, present: list[bool], sequences: tuple[str, ...], draw: Int[Tensor, " 2"]) -> list[int]:
        """The channels that are left of a patch; none if it has no part to compare with."""
        channels = [channel for channel, is_present in enumerate(present) if is_present]
        if len(channels) < 2:
            return []
        if self.partner != RANDOM:
            return [channel for channel in channels if sequences[channel] == self.partner]
        bits = 1 + Chance(self.seed, KEY, *draw.tolist()).below(2 ** len(channels) - 2)
        return [channel for place, channel in enumerate(channels) if bits >> place & 1]

    def term(
        self, log_p: Float[Tensor, "both class i j k"], batch: Batch, partners: Partners | None
    ) -> Float[Tensor, ""]:
        """The weight times the mean over the compared patches of sum_c w_c J(p_c, q_c); 0 without any.

        p and q are the answers with all and with fewer sequences, J is `jaccard_distance` and w are the weights of
        `weights_by_kind`. The sum is over the tissues, or over the lesions if there are no tissues.

        Args:
            log_p: log-probabilities of the batch, followed by those of its partners.
        """
        if partners is None:
            return log_p.new_zeros(())
        num_labels = log_p.shape[1] - 1
        compared = list(batch.tissues or range(num_labels))
        p = log_p[: len(batch.target)][partners.rows][:, 1:][:, compared].exp()
        q = log_p[len(batch.target) :][:, 1:][:, compared].exp()
        if self.stop_gradient:
            p = p.detach()
        looked_at = (batch.target[partners.rows] != IGNORE)[:, None]
        distance = jaccard_distance(p * looked_at, q * looked_at)
        weights = weights_by_kind(num_labels, batch.tissues).to(distance)
        return self.weight * (distance * weights[compared]).sum(1).mean()


def with_partners(
    batch: Batch, partners: Partners | None
) -> tuple[Float[Tensor, "both modality i j k"], Bool[Tensor, "both modality"]]:
    """The batch's images and flags, followed by those of its partners.

    One pass for both: with several processes a network cannot run twice before its gradients are sent.
    """
    if partners is None:
        return batch.images, batch.present
    fewer = shown(batch.images[partners.rows], partners.present)
    return torch.cat([batch.images, fewer]), torch.cat([batch.present, partners.present])
