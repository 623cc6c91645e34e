"""Two U-Nets, one for anatomy and one for lesions, and their fusion (Himmetoglu et al. 2025, arXiv:2503.18840)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from multiseg.models.blocks import norm_layer
from multiseg.models.presence import shown
from multiseg.models.two_unets import BRANCHES, PASTED, Branches
from multiseg.models.unet import check_size

CONSTANTS = (-5.0, -2.0, -1.0, 1.0, 2.0, 5.0)
"""The values that a lesion is replaced with, in standard deviations of the brain (section 3.3.2)."""
ANCHOR_PREFIX = "anchor_"
"""Begins the names of the tensors of the labelled healthy image."""
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


class TwoBranch(Branches):
    """A branch that segments tissues from few sequences, one that segments lesions from all, and their fusion.

    With w_A and w_L the features of the two branches before their last convolutions (section 3.2; w_T1 and w_F there):
        a = convs([w_A, w_L]),   w = w_A + a * w_L,   logits = conv(w)
    where convs are three convolutions (3^3) with norm and ReLU between them, and a has a channel for each of w_L. The
    last convolution of each branch, a "shallow head", gives the branch's own logits, background first; the logits of
    the whole network do not use it.

    Args: see `Branches`, and
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
        anchor: Sequence[int] = (),
        **branches: Any,
    ) -> None:
        super().__init__(num_modalities, num_logits, widths, dropout, norm, **branches)
        width = self.anatomy.head.in_channels
        layers: list[nn.Module] = []
        for in_width in (2 * width, width):
            layers += [nn.Conv3d(in_width, width, 3, padding=1), norm_layer(norm, width), nn.ReLU()]
        self.attention = nn.Sequential(*layers, nn.Conv3d(width, width, 3, padding=1))
        self.head = nn.Conv3d(width, num_logits, 1)
        if anchor:
            self.register_buffer("anchor_images", torch.zeros(len(self.anatomy_channels), *anchor))
            self.register_buffer("anchor_target", torch.zeros(*anchor, dtype=torch.uint8))
            self.register_buffer("anchor_annotated", torch.zeros(self.num_tissues, dtype=torch.bool))
        self.has_anchor = bool(anchor)
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
        if branch in (*BRANCHES, PASTED):
            return self.answer_of(branch, images, present)
        tissue = self.tissue_features(images, present)
        lesion = self.lesion.features(shown(images, present))
        logits: Tensor = self.head(tissue + self.attention(torch.cat([tissue, lesion], dim=1)) * lesion)
        return torch.cat([logits, self.anatomy.head(tissue)], dim=1) if branch == BESIDE else logits


def filled(
    images: Float[Tensor, "batch modality i j k"],
    present: Bool[Tensor, "batch modality"],
    lesion: Bool[Tensor, "batch i j k"],
    constants: Float[Tensor, " batch"],
) -> Float[Tensor, "batch modality i j k"]:
    """The images with every voxel of the lesion replaced by the sample's constant, in each sequence that is present."""
    where = rearrange(lesion, "b i j k -> b 1 i j k") & rearrange(present.to(images.device), "b m -> b m 1 1 1")
    return torch.where(where, rearrange(constants.to(images.dtype), "b -> b 1 1 1 1"), images)
