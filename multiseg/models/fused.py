"""Two models that answer as one: a network for tissues and one for lesions, the baseline of Roulet et al. 2019."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from multiseg.errors import UsageError
from multiseg.labels import LabelSpace
from multiseg.modalities import ModalityAxis
from multiseg.models.losses import log_probabilities
from multiseg.models.saved import Model, ModelInfo, load_model

LESION_OVER_TISSUE = "lesion-over-tissue"
NEVER = -100.0
"""Log-probability of a tissue where the tissue model has none of its sequences."""


class LesionOverTissue(nn.Module):
    """Multiplies the probabilities of two networks, so that a lesion takes the place of the tissue at a voxel.

    With t the tissues and 0 the background of the first network, and l the lesions and 0' the background of the second:
        p(l) = p'(l),   p(t) = p(t) p'(0'),   p(0) = p(0) p'(0').
    By the decision rule (`multiseg.evaluation.decision`) a voxel is then a lesion exactly where the second network says
    so, and otherwise what the first one says. Its logits are these probabilities' logarithms.
    """

    def __init__(self, tissue: Model, lesion: Model, axis: ModalityAxis) -> None:
        super().__init__()
        self.tissue, self.lesion = tissue, lesion
        self.channels = [axis.channels(list(model.info.axis)) for model in (tissue, lesion)]

    def forward(
        self, images: Float[Tensor, "batch modality i j k"], present: Bool[Tensor, "batch modality"]
    ) -> Float[Tensor, "batch label i j k"]:
        tissue, lesion = (
            _answer(model, images[:, channels], present[:, channels])
            for model, channels in zip((self.tissue, self.lesion), self.channels, strict=True)
        )
        no_lesion = lesion[:, :1]
        return torch.cat([tissue + no_lesion, lesion[:, 1:]], dim=1)


def _answer(
    model: Model, images: Float[Tensor, "batch modality i j k"], present: Bool[Tensor, "batch modality"]
) -> Float[Tensor, "batch class i j k"]:
    """Log-probabilities; background where no sequence is present that the model knows."""
    log_p = log_probabilities(model(images, present))
    nothing = torch.full_like(log_p, NEVER)
    nothing[:, 0] = 0
    return torch.where(present.any(dim=1)[:, None, None, None, None], log_p, nothing)


def fuse(models: Sequence[Model], rule: str = LESION_OVER_TISSUE) -> Model:
    """One model of two, which must have the same voxel size; one segments only tissues and one only lesions.

    Raises:
        UsageError: the rule is unknown, or the models do not fit it.
    """
    if rule != LESION_OVER_TISSUE:
        raise UsageError(f"there is no fusion {rule!r}: give {LESION_OVER_TISSUE}.")
    by_kind = {_kind(model): model for model in models}
    if len(models) != 2 or by_kind.keys() != {"tissue", "lesion"}:
        kinds = "; ".join(", ".join(model.info.space.names) for model in models)
        raise UsageError(
            f"{rule} needs two models, one only for tissues and one only for lesions, but these segment: {kinds}."
        )
    tissue, lesion = by_kind["tissue"].info, by_kind["lesion"].info
    for name in ("spacing_mm", "background"):
        if getattr(tissue, name) != getattr(lesion, name):
            raise UsageError(
                f"the models cannot be fused: {name} is {getattr(tissue, name)} in one and {getattr(lesion, name)} in "
                "the other."
            )
    axis = ModalityAxis.union([tuple(tissue.axis), tuple(lesion.axis)])
    info = ModelInfo(
        builder=rule,
        numbers={},
        axis=axis,
        space=LabelSpace((*tissue.space.labels, *lesion.space.labels), lesion.space.rest or tissue.space.rest),
        spacing_mm=tissue.spacing_mm,
        patch=_largest(tissue, lesion),
        trained_on={name: _both(tissue.trained_on, lesion.trained_on, name) for name in axis},
        databases={**tissue.databases, **lesion.databases},
        background=tissue.background,
    )
    learnt = [model.learnt for model in by_kind.values()]
    both = None if learnt[0] is None or learnt[1] is None else learnt[0] | learnt[1]
    return Model(LesionOverTissue(by_kind["tissue"], by_kind["lesion"], axis), info, both).eval()


def load_fused(paths: Sequence[Path], rule: str, device: str = "cpu") -> Model:
    """The model of one path; of several, fused by a rule.

    Raises:
        UsageError: see `fuse`; or there are several models and no rule, or one and a rule.
        CheckpointError: a model cannot be opened.
    """
    if len(paths) > 1 and not rule:
        raise UsageError(f"{len(paths)} models are given: say how they answer together, --fuse {LESION_OVER_TISSUE}.")
    if len(paths) == 1 and rule:
        raise UsageError(f"--fuse {rule} needs two models, but only {paths[0]} is given.")
    models = [load_model(path, device) for path in paths]
    return fuse(models, rule) if rule else models[0]


def _kind(model: Model) -> str:
    kinds = {label.kind for label in model.info.space.labels}
    return kinds.pop() if len(kinds) == 1 else "both"


def _largest(*infos: ModelInfo) -> tuple[int, int, int]:
    i, j, k = (max(sizes) for sizes in zip(*(info.patch for info in infos), strict=True))
    return i, j, k


def _both(first: Mapping[str, tuple[str, ...]], second: Mapping[str, tuple[str, ...]], name: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys([*first.get(name, ()), *second.get(name, ())]))
