"""Progressive networks: a trained, frozen column and a new one that reads its features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from multiseg.errors import UsageError
from multiseg.models.presence import shown
from multiseg.models.unet import (
    MultiUnet,
    check_size,
    decoded,
    decoder_stages,
    encode,
    encoder_units,
    has_lateral,
    last_convolution,
)


class ProgressiveUnet(nn.Module):
    """Two Multi-Unets side by side (Xu et al. 2024, appendix C, after Rusu et al. 2016, arXiv:1606.04671).

    The first column is trained before and frozen: it has no gradient and is always in eval mode. Its features before
    every strided convolution (except the first, which reads the image) and before every upsampling are concatenated to
    those of the second column, whose next convolution is wider accordingly. Shortcuts have only the second column's
    features. Both columns get the same images.

    Args:
        first_modalities: number of sequences of the first column, the first of the axis; None is all.

    Raises:
        UsageError: see MultiUnet; or the first column has more sequences than there are.
    """

    def __init__(
        self,
        num_modalities: int,
        num_logits: int,
        widths: Sequence[int],
        dropout: float,
        norm: str = "instance",
        first_modalities: int | None = None,
    ) -> None:
        super().__init__()
        first_modalities = num_modalities if first_modalities is None else first_modalities
        if not 1 <= first_modalities <= num_modalities:
            raise UsageError(f"first_modalities is {first_modalities}: give a number from 1 to {num_modalities}.")
        self.first = MultiUnet(first_modalities, num_logits, widths, dropout, norm).requires_grad_(False).eval()
        self.encoder = encoder_units(num_modalities, widths, dropout, norm, lateral=True)
        self.decoder = decoder_stages(widths, num_logits, dropout, norm, lateral=True)
        self.first_modalities = first_modalities
        self.multiple = self.first.multiple

    @property
    def head(self) -> nn.Module:
        """The second column's last convolution, from features to logits."""
        return last_convolution(self.decoder)

    def train(self, mode: bool = True) -> ProgressiveUnet:
        """Set the mode of the second column; the first stays in eval mode, so that norm and dropout do not change."""
        super().train(mode)
        self.first.eval()
        return self

    def forward(
        self, images: Float[Tensor, "batch modality i j k"], present: Bool[Tensor, "batch modality"]
    ) -> Float[Tensor, "batch label i j k"]:
        """Logits on the grid of the images; channels that are not present count as 0.

        Raises:
            UsageError: the size does not fit, see MultiUnet.
        """
        check_size(images, self.multiple)
        x = shown(images, present)
        # No gradient even if a caller made every parameter trainable.
        with torch.no_grad():
            first_features = encode(self.first.encoder, x[:, : self.first_modalities])
            first_deeps = decoded(self.first.decoder, first_features)
        depth = len(self.encoder)
        features: list[Tensor] = []
        for index, unit in enumerate(self.encoder):
            x = unit(x, first_features[index - 1]) if has_lateral(index, depth) else unit(x)
            features.append(x)
        for stage, index, first_deep in zip(self.decoder, reversed(range(depth - 1)), first_deeps, strict=True):
            x = stage(x, features[index], first_deep, first_features[index])
        return x
