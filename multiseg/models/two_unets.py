"""Two U-Nets, one that segments tissues from T1 and one that segments lesions from all sequences, in one network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own idiom)
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from multiseg.errors import UsageError
from multiseg.labels import LabelSpace
from multiseg.modalities import ModalityAxis
from multiseg.models.presence import shown
from multiseg.models.unet import MultiUnet, check_size

ANATOMY_SEQUENCES = ("T1",)
"""The sequences that the anatomy branch sees, of those that a model has."""
BRANCHES = {"anatomy": "tissue", "lesion": "lesion"}
"""The branches, and the kind of the structures that each of them segments."""
PASTED = "pasted"
"""The lesions of one branch over the tissues of the other."""
BLIND = -20.0
"""Log-probability of a tissue where a sample has none of the sequences of the anatomy branch: it is background."""


class Branches(nn.Module):
    """A branch that segments tissues from few sequences, and one that segments lesions from all of them.

    Networks that have both derive from it, and say how they answer together.

    Args:
        widths: of both branches, as of `MultiUnet`.
        anatomy_channels: the sequences that the anatomy branch sees, as indices of the axis.
        lesion_logits: the logits that are lesions; all others but background are tissues. By default the last one.

    Raises:
        UsageError: see MultiUnet; or a channel or a logit does not exist.
    """

    def __init__(
        self,
        num_modalities: int,
        num_logits: int,
        widths: Sequence[int],
        dropout: float,
        norm: str = "instance_affine",
        anatomy_channels: Sequence[int] = (0,),
        lesion_logits: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.lesion_logits = tuple(lesion_logits) or (num_logits - 1,)
        _check_indices("anatomy_channels", anatomy_channels, 0, num_modalities)
        _check_indices("lesion_logits", self.lesion_logits, min(1, num_logits - 1), num_logits)
        self.anatomy_channels = tuple(anatomy_channels)
        num_lesions = len(self.lesion_logits)
        self.num_tissues = max(num_logits - 1, 1) - num_lesions
        self.anatomy = MultiUnet(num_modalities, 1 + self.num_tissues, widths, dropout, norm)
        self.lesion = MultiUnet(num_modalities, 1 + num_lesions, widths, dropout, norm)
        self.num_modalities, self.num_logits = num_modalities, num_logits
        self.multiple = self.anatomy.multiple

    def shown_to_anatomy(self, present: Bool[Tensor, "batch modality"]) -> Bool[Tensor, "batch modality"]:
        """The present sequences that the anatomy branch sees."""
        channels = list(self.anatomy_channels)
        seen = torch.zeros_like(present)
        seen[:, channels] = present[:, channels]
        return seen

    def answer_of(
        self, branch: str, images: Float[Tensor, "batch modality i j k"], present: Bool[Tensor, "batch modality"]
    ) -> Float[Tensor, "batch label i j k"]:
        """The logits of one of `BRANCHES`, background first, or of `PASTED`."""
        if branch == PASTED:
            return self.pasted(images, present)
        of_branch: Tensor
        if branch == "lesion":
            of_branch = self.lesion(images, present)
        else:
            of_branch = self.anatomy.head(self.tissue_features(images, present))
        return of_branch

    def pasted(
        self, images: Float[Tensor, "batch modality i j k"], present: Bool[Tensor, "batch modality"]
    ) -> Float[Tensor, "batch label i j k"]:
        """Log-probabilities of all structures, a lesion in the place of a tissue; background where T1 is missing."""
        tissue = F.log_softmax(self.anatomy.head(self.tissue_features(images, present)).float(), dim=1)
        blind = torch.full_like(tissue, BLIND)
        blind[:, 0] = 0
        tissue = torch.where(self._has_anatomy(present).to(images.device), tissue, blind)
        lesion = F.log_softmax(self.lesion(images, present).float(), dim=1)
        others = [index for index in range(self.num_logits) if index not in self.lesion_logits]
        places = [*others, *self.lesion_logits]
        both = torch.cat([tissue + lesion[:, :1], lesion[:, 1:]], dim=1)
        return both[:, [places.index(logit) for logit in range(self.num_logits)]]

    def tissue_features(
        self, images: Float[Tensor, "batch modality i j k"], present: Bool[Tensor, "batch modality"]
    ) -> Float[Tensor, "batch width i j k"]:
        """The features of the anatomy branch; 0 for a sample without any of its sequences.

        Norms would blow up the rounding errors of an empty image.
        """
        features = self.anatomy.features(shown(images, self.shown_to_anatomy(present)))
        return torch.where(self._has_anatomy(present).to(images.device), features, torch.zeros_like(features))

    def _has_anatomy(self, present: Bool[Tensor, "batch modality"]) -> Bool[Tensor, "batch 1 1 1 1"]:
        """The samples of which the anatomy branch sees something."""
        return rearrange(self.shown_to_anatomy(present).any(dim=1), "b -> b 1 1 1 1")


class TwoUnets(Branches):
    """Both branches, each a U-Net of its own; lesions take the place of tissues.

    With t the tissues and 0 the background of the first, and l the lesions and 0' the background of the second:
        p(l) = p'(l),   p(t) = p(t) p'(0'),   p(0) = p(0) p'(0')
    as of two models that answer as one (`models.fused`). The logits are the logarithms of these. In the brain
    of a case that is not annotated for tissues the anatomy branch has no gradient: all but p(l) is background there.

    Args: see `Branches`.

    Raises:
        UsageError: see `Branches`; or there is a single logit.
    """

    def __init__(self, num_modalities: int, num_logits: int, **numbers: Any) -> None:
        super().__init__(num_modalities, num_logits, **numbers)
        if num_logits < 2:
            raise UsageError(f"{num_logits} logit is too few: a two_unets network has one of background, too.")

    @property
    def head(self) -> nn.ModuleList:
        """The last convolutions of both branches."""
        return nn.ModuleList([self.anatomy.head, self.lesion.head])

    def forward(
        self, images: Float[Tensor, "batch modality i j k"], present: Bool[Tensor, "batch modality"], branch: str = ""
    ) -> Float[Tensor, "batch label i j k"]:
        """Logits on the grid of the images; channels that are not present count as 0.

        Args:
            branch: one of `BRANCHES`, to compute the logits of this branch alone: background, and its structures in
                the order of the label space; "" or `PASTED` for those of all structures.

        Raises:
            UsageError: the size does not fit, see MultiUnet.
        """
        check_size(images, self.multiple)
        return self.answer_of(branch or PASTED, images, present)


class Branch(nn.Module):
    """One of the `Branches` of a network, or both pasted, as a network of its own, which answers in `branch_space`."""

    def __init__(self, network: nn.Module, branch: str) -> None:
        super().__init__()
        self.network, self.branch = network, branch

    def forward(
        self, images: Float[Tensor, "batch modality i j k"], present: Bool[Tensor, "batch modality"]
    ) -> Float[Tensor, "batch label i j k"]:
        logits: Tensor = self.network(images, present, branch=self.branch)
        return logits


def branch_space(space: LabelSpace, branch: str) -> LabelSpace:
    """The structures that a branch segments; all of them for `PASTED`.

    Raises:
        UsageError: there are none.
    """
    if branch == PASTED:
        return space
    kind = BRANCHES[branch]
    labels = tuple(label for label in space.labels if label.kind == kind)
    if not labels:
        raise UsageError(
            f"this network segments tissues and lesions in branches of their own, but there is no {kind} among the "
            f"labels {', '.join(space.names)}: give both, such as --labels tissues+lesion."
        )
    return LabelSpace(labels, space.rest)


def numbers_from(axis: ModalityAxis, space: LabelSpace) -> dict[str, Any]:
    """The numbers of `Branches` that follow from its axis and its label space.

    Raises:
        UsageError: there is no sequence for the anatomy branch, or no tissue, or no lesion.
    """
    for branch in BRANCHES:
        branch_space(space, branch)
    seen = [index for index, name in enumerate(axis) if name in ANATOMY_SEQUENCES]
    if not seen:
        raise UsageError(
            f"the anatomy branch of this network sees {', '.join(ANATOMY_SEQUENCES)}, but the training cases have "
            f"only {', '.join(axis)}: begin with databases that have it."
        )
    lesions = [index for index, label in enumerate(space.labels, start=1) if label.kind == "lesion"]
    return {"anatomy_channels": seen, "lesion_logits": lesions}


def _check_indices(name: str, indices: Sequence[int], first: int, stop: int) -> None:
    if not indices or len(set(indices)) < len(indices) or not all(first <= index < stop for index in indices):
        raise UsageError(f"{name} is {list(indices)}: give distinct numbers from {first} to {stop - 1}.")
