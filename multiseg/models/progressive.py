"""Progressive networks: a trained, frozen column beside a new one that reads its features."""

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

    The first column is trained before and frozen: it gets no gradient and is always in eval mode. What it holds
    before every strided convolution (but the first, which reads the image) and before every upsampling is
    concatenated to what the second column holds there, so the second column's next convolution is that much
    wider. Shortcuts carry the second column's own features only. Both columns see the same images.

    Args:
        first_modalities: the first column knows only so many sequences, the first of the axis; None is all.

    Raises:
        UsageError: see MultiUnet; or the first column knows more sequences than there are.
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
        known = num_modalities if first_modalities is None else first_modalities
        if not 1 <= known <= num_modalities:
            raise UsageError(
                f"the first column cannot know {known} of {num_modalities} sequences: "
                f"give first_modalities from 1 to {num_modalities}."
            )
        self.first = MultiUnet(known, num_logits, widths, dropout, norm).requires_grad_(False).eval()
        self.encoder = encoder_units(num_modalities, widths, dropout, norm, lateral=True)
        self.decoder = decoder_stages(widths, num_logits, dropout, norm, lateral=True)
        self.first_modalities = known
        self.multiple = self.first.multiple

    @property
    def head(self) -> nn.Module:
        """The second column's last convolution, from features to logits."""
        return last_convolution(self.decoder)

    def train(self, mode: bool = True) -> ProgressiveUnet:
        """Set the mode of the second column; the first stays in eval mode, or its norm and dropout would change it."""
        super().train(mode)
        self.first.eval()
        return self

    def forward(
        self, images: Float[Tensor, "batch modality i j k"], present: Bool[Tensor, "batch modality"]
    ) -> Float[Tensor, "batch label i j k"]:
        """Logits on the grid of the images; channels that are not present count as 0 whatever they hold.

        Raises:
            UsageError: the size does not fit, see MultiUnet.
        """
        check_size(images, self.multiple)
        x = shown(images, present)
        # No gradient even where a caller made every parameter trainable.
        with torch.no_grad():
            theirs = encode(self.first.encoder, x[:, : self.first_modalities])
            their_deeps = decoded(self.first.decoder, theirs)
        depth = len(self.encoder)
        features: list[Tensor] = []
        for at, unit in enumerate(self.encoder):
            x = unit(x, theirs[at - 1]) if has_lateral(at, depth) else unit(x)
            features.append(x)
        for stage, at, their_deep in zip(self.decoder, reversed(range(depth - 1)), their_deeps, strict=True):
            x = stage(x, features[at], their_deep, theirs[at])
        return x
