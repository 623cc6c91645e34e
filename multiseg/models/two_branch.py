"""Two U-Nets, one for anatomy and one for lesions, and their fusion (Himmetoglu et al. 2025, arXiv:2503.18840)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from multiseg.errors import UsageError
from multiseg.labels import LabelSpace
from multiseg.modalities import ModalityAxis
from multiseg.models.blocks import norm_layer
from multiseg.models.losses import log_probabilities
from multiseg.models.presence import shown
from multiseg.models.unet import MultiUnet, check_size

ANATOMY_SEQUENCES = ("T1",)
"""The sequences that the anatomy branch sees, of those that a model has."""
CONSTANTS = (-5.0, -2.0, -1.0, 1.0, 2.0, 5.0)
"""The values that a lesion is replaced with, in standard deviations of the brain (section 3.3.2)."""
ANCHOR_PREFIX = "anchor_"
"""Begins the names of the tensors of the labelled healthy image."""
BRANCHES = {"anatomy": "tissue", "lesion": "lesion"}
"""The branches, and the kind of the structures that each of them segments."""
PASTED = "pasted"
"""The lesions of one branch over the tissues of the other."""
BESIDE = "beside"
"""The logits of the whole network, and behind them those of the anatomy branch, from one pass."""
PARTS = ("anatomy", "lesion", "attention", "head")
ANSWERED_BY: dict[str, tuple[str, ...]] = {
    "": PARTS,
    "anatomy": ("anatomy",),
    "lesion": ("lesion",),
    PASTED: ("anatomy", "lesion"),
}
"""What can answer, "" being the fusion of both branches, and the parts that must have learnt for that."""


@dataclass(frozen=True, eq=False)
class Anchor:
    """A labelled healthy image, a batch of one: see `multiseg.evaluation.adaptation`.

    Attributes:
        target: index among the tissues; 255 is ignored.
        annotated: the tissues that it is annotated for.
    """

    images: Float[Tensor, "1 modality i j k"]
    present: Bool[Tensor, "1 modality"]
    target: UInt8[Tensor, "1 i j k"]
    annotated: Bool[Tensor, "1 label"]


class TwoBranch(nn.Module):
    """A branch that segments tissues from few sequences, one that segments lesions from all, and their fusion.

    With w_A and w_L the features of the two branches before their last convolutions (section 3.2; w_T1 and w_F there):
        a = convs([w_A, w_L]),   w = w_A + a * w_L,   logits = conv(w)
    where convs are three convolutions (3^3) with norm and ReLU between them, and a has a channel for each of w_L. The
    last convolution of each branch, a "shallow head", gives the branch's own logits, background first; the logits of
    the whole network do not use it.

    Args:
        widths: of both branches, as of `MultiUnet`.
        anatomy_channels: the sequences that the anatomy branch sees, as indices of the axis.
        lesion_logits: the logits that are lesions; all others but background are tissues. By default the last one.
        anchor: size of the labelled healthy image that the weights hold, see `put_anchor`; empty for none.

    Raises:
        UsageError: see MultiUnet; or a channel or a logit does not exist.
    """

    anchor_images: Tensor
    anchor_target: Tensor
    anchor_annotated: Tensor

    def __init__(
        self,
        num_modalities: int,
        num_logits: int,
        widths: Sequence[int],
        dropout: float,
        norm: str = "instance_affine",
        anatomy_channels: Sequence[int] = (0,),
        lesion_logits: Sequence[int] = (),
        anchor: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.lesion_logits = tuple(lesion_logits) or (num_logits - 1,)
        _check_indices("anatomy_channels", anatomy_channels, 0, num_modalities)
        _check_indices("lesion_logits", self.lesion_logits, min(1, num_logits - 1), num_logits)
        num_lesions = len(self.lesion_logits)
        num_tissues = max(num_logits - 1, 1) - num_lesions
        self.anatomy = MultiUnet(num_modalities, 1 + num_tissues, widths, dropout, norm)
        self.lesion = MultiUnet(num_modalities, 1 + num_lesions, widths, dropout, norm)
        width = self.anatomy.head.in_channels
        layers: list[nn.Module] = []
        for in_width in (2 * width, width):
            layers += [nn.Conv3d(in_width, width, 3, padding=1), norm_layer(norm, width), nn.ReLU()]
        self.attention = nn.Sequential(*layers, nn.Conv3d(width, width, 3, padding=1))
        self.head = nn.Conv3d(width, num_logits, 1)
        self.anatomy_channels = tuple(anatomy_channels)
        if anchor:
            self.register_buffer("anchor_images", torch.zeros(len(self.anatomy_channels), *anchor))
            self.register_buffer("anchor_target", torch.zeros(*anchor, dtype=torch.uint8))
            self.register_buffer("anchor_annotated", torch.zeros(num_tissues, dtype=torch.bool))
        self.has_anchor = bool(anchor)
        self.num_modalities = num_modalities
        self.multiple = self.anatomy.multiple
        self._resting: tuple[str, ...] = ()

    @property
    def anchor(self) -> Anchor | None:
        """The labelled healthy image, if there is one."""
        if not self.has_anchor:
            return None
        size = self.anchor_target.shape
        images = torch.zeros(1, self.num_modalities, *size, device=self.anchor_images.device)
        images[0, list(self.anatomy_channels)] = self.anchor_images
        present = torch.zeros(1, self.num_modalities, dtype=torch.bool)
        present[0, list(self.anatomy_channels)] = True
        return Anchor(images, present, self.anchor_target[None], self.anchor_annotated[None])

    def put_anchor(
        self,
        images: Float[Tensor, "channel i j k"],
        target: UInt8[Tensor, "i j k"],
        annotated: Bool[Tensor, " label"],
    ) -> None:
        """Hold a labelled healthy image of the size that the network was made for; images of the anatomy's channels."""
        for name, value in (("images", images), ("target", target), ("annotated", annotated)):
            getattr(self, f"{ANCHOR_PREFIX}{name}").copy_(value)

    def learn_only(self, parts: Sequence[str]) -> None:
        """Freeze all parts but these, of anatomy, lesion, attention and head; the frozen ones stay in eval mode."""
        for name, part in self.named_children():
            part.requires_grad_(name in parts)
        self._resting = tuple(name for name, _ in self.named_children() if name not in parts)
        self.train(self.training)

    def train(self, mode: bool = True) -> TwoBranch:
        """Set the mode; frozen parts stay in eval mode, so that norm and dropout do not change."""
        super().train(mode)
        for name in self._resting:
            getattr(self, name).eval()
        return self

    def shown_to_anatomy(self, present: Bool[Tensor, "batch modality"]) -> Bool[Tensor, "batch modality"]:
        """The present sequences that the anatomy branch sees."""
        channels = list(self.anatomy_channels)
        seen = torch.zeros_like(present)
        seen[:, channels] = present[:, channels]
        return seen

    def forward(
        self, images: Float[Tensor, "batch modality i j k"], present: Bool[Tensor, "batch modality"], branch: str = ""
    ) -> Float[Tensor, "batch label i j k"]:
        """Logits on the grid of the images; channels that are not present count as 0.

        Args:
            branch: one of `BRANCHES`, to compute the logits of this branch alone: background, and its structures in
                the order of the label space; or `PASTED`, for those of all structures without the fusion; or `BESIDE`,
                for those of the whole network and of the anatomy branch.

        Raises:
            UsageError: the size does not fit, see MultiUnet.
        """
        check_size(images, self.multiple)
        if branch == PASTED:
            return self._pasted(images, present)
        logits: Tensor
        if branch == "lesion":
            logits = self.lesion(images, present)
            return logits
        tissue = self._tissue_features(images, present)
        if branch == "anatomy":
            logits = self.anatomy.head(tissue)
            return logits
        lesion = self.lesion.features(shown(images, present))
        logits = self.head(tissue + self.attention(torch.cat([tissue, lesion], dim=1)) * lesion)
        return torch.cat([logits, self.anatomy.head(tissue)], dim=1) if branch == BESIDE else logits

    def _pasted(
        self, images: Float[Tensor, "batch modality i j k"], present: Bool[Tensor, "batch modality"]
    ) -> Float[Tensor, "batch label i j k"]:
        """Log-probabilities of which a lesion takes the place of a tissue, as in `models.fused.LesionOverTissue`."""
        tissue = log_probabilities(self(images, present, branch="anatomy"))
        lesion = log_probabilities(self(images, present, branch="lesion"))
        tissue = tissue + lesion[:, :1]
        lesions = list(self.lesion_logits)
        others = [index for index in range(self.head.out_channels) if index not in lesions]
        both = tissue.new_empty(len(tissue), self.head.out_channels, *tissue.shape[2:])
        both[:, others], both[:, lesions] = tissue, lesion[:, 1:]
        return both

    def _tissue_features(
        self, images: Float[Tensor, "batch modality i j k"], present: Bool[Tensor, "batch modality"]
    ) -> Float[Tensor, "batch width i j k"]:
        """The features of the anatomy branch; 0 for a sample without any of its sequences.

        Norms would blow up the rounding errors of an empty image.
        """
        seen = self.shown_to_anatomy(present)
        features = self.anatomy.features(shown(images, seen))
        has_any = rearrange(seen.any(dim=1).to(images.device), "b -> b 1 1 1 1")
        return torch.where(has_any, features, torch.zeros_like(features))


class Branch(nn.Module):
    """One branch of a TwoBranch, or both pasted, as a network of its own, which answers in `branch_space`."""

    def __init__(self, network: nn.Module, branch: str) -> None:
        super().__init__()
        self.network, self.branch = network, branch

    def forward(
        self, images: Float[Tensor, "batch modality i j k"], present: Bool[Tensor, "batch modality"]
    ) -> Float[Tensor, "batch label i j k"]:
        logits: Tensor = self.network(images, present, branch=self.branch)
        return logits


def filled(
    images: Float[Tensor, "batch modality i j k"],
    present: Bool[Tensor, "batch modality"],
    lesion: Bool[Tensor, "batch i j k"],
    constants: Float[Tensor, " batch"],
) -> Float[Tensor, "batch modality i j k"]:
    """The images with every voxel of the lesion replaced by the sample's constant, in each sequence that is present."""
    where = rearrange(lesion, "b i j k -> b 1 i j k") & rearrange(present.to(images.device), "b m -> b m 1 1 1")
    return torch.where(where, rearrange(constants.to(images.dtype), "b -> b 1 1 1 1"), images)


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
            f"a two_branch network segments tissues and lesions, but there is no {kind} among the labels "
            f"{', '.join(space.names)}: give both, such as --labels tissues+lesion."
        )
    return LabelSpace(labels, space.rest)


def numbers_from(axis: ModalityAxis, space: LabelSpace) -> dict[str, Any]:
    """The numbers of a TwoBranch that follow from its axis and its label space.

    Raises:
        UsageError: there is no sequence for the anatomy branch, or no tissue, or no lesion.
    """
    for branch in BRANCHES:
        branch_space(space, branch)
    seen = [index for index, name in enumerate(axis) if name in ANATOMY_SEQUENCES]
    if not seen:
        raise UsageError(
            f"the anatomy branch of a two_branch network sees {', '.join(ANATOMY_SEQUENCES)}, but the training cases "
            f"have only {', '.join(axis)}: begin with databases that have it."
        )
    lesions = [index for index, label in enumerate(space.labels, start=1) if label.kind == "lesion"]
    return {"anatomy_channels": seen, "lesion_logits": lesions}


def _check_indices(name: str, indices: Sequence[int], first: int, stop: int) -> None:
    if not indices or len(set(indices)) < len(indices) or not all(first <= index < stop for index in indices):
        raise UsageError(f"{name} is {list(indices)}: give distinct numbers from {first} to {stop - 1}.")
