"""Networks by name, with all that the package knows about each, and networks of the user."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, get_type_hints

from torch import nn

from multiseg.errors import UsageError
from multiseg.labels import LabelSpace
from multiseg.modalities import ModalityAxis
from multiseg.models.fusion import HemisUnet, LFUNet, MAFUnet
from multiseg.models.highres3d import HighRes3DHetero
from multiseg.models.progressive import ProgressiveUnet
from multiseg.models.two_branch import TwoBranch
from multiseg.models.two_unets import ANATOMY_SEQUENCES, BRANCHES, TwoUnets, numbers_from
from multiseg.models.unet import MultiUnet
from multiseg.models.unet_hetero import UnetHetero
from multiseg.models.unet_plus import MultiUnetPlus
from multiseg.models.unet_sum import UnetSum
from multiseg.own import blamed, imported, is_own, name_of

Builder: TypeAlias = Callable[..., nn.Module]
"""Maps the number of sequences, the number of logits and keyword arguments to a network."""

PUBLISHED_WIDTHS = (16, 32, 64, 128, 256)
PLUS_WIDTHS = (32, 64, 128, 256, 320)
CPU_WIDTHS = (8, 16, 32, 64)


@dataclass(frozen=True)
class PartRules:
    """The tensors of a network that belong to one channel or one logit, as patterns of whole tensor names.

    Attributes:
        heads: tensors with the logits along dimension 0.
        own: tensors that belong to the channel whose number the pattern captures.
        sliced: tensors with the channels along a dimension, and this dimension.
        kinds: tensors of a branch that segments one kind of structures, and this kind.
    """

    heads: str
    own: tuple[str, ...] = ()
    sliced: tuple[tuple[str, int], ...] = ()
    kinds: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Network:
    """All that multiseg knows about one of its networks; called like a `Builder`, it makes the network.

    The defaults are those of the published Multi-Unet.

    Attributes:
        module: the class, called as module(num_modalities, num_logits, widths=, dropout=, norm=).
        parts: which tensors belong to one sequence or one label; None if a federation cannot train it.
        widths, dropout, norm: the full size, which is the default on a GPU.
        cpu_widths, cpu_dropout: the default on a CPU.
        cuda_parts: number of parts into which the patches of a step are split on a GPU, so that the network keeps at
            most 20 GiB for backward in float32 (docs/models.md).
        is_bounded: whether it has at most as many sequences as its first width.
        uses_every_parameter: whether every batch uses all parameters, for any set of sequences.
        trained_first: the network whose trained weights it is built on; "" if it can be trained from scratch.
        cost: time of a step on a CPU at scale small, relative to Multi-Unet; only estimates of time use it.
        finds: gives the numbers that follow from the modality axis and the label space of the first training.
        sees: by kind of structure, the sequences that it segments this kind from, if not from all.
    """

    module: type[nn.Module]
    parts: PartRules | None
    widths: tuple[int, ...] = PUBLISHED_WIDTHS
    dropout: float = 0.2
    norm: str = "instance"
    cpu_widths: tuple[int, ...] = CPU_WIDTHS
    cpu_dropout: float = 0.1
    cuda_parts: int = 1
    is_bounded: bool = False
    uses_every_parameter: bool = True
    trained_first: str = ""
    cost: float = 1.0
    finds: Callable[[ModalityAxis, LabelSpace], dict[str, Any]] | None = None
    sees: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __call__(
        self, num_modalities: int, num_logits: int, widths: Sequence[int] | None = None, **numbers: Any
    ) -> nn.Module:
        chosen = tuple(self.widths if widths is None else widths)
        return self.module(
            num_modalities, num_logits, widths=chosen, **{"dropout": self.dropout, "norm": self.norm, **numbers}
        )

    def defaults(self, cuda: bool) -> dict[str, Any]:
        """The default numbers of a run on a GPU or on a CPU."""
        if cuda:
            return {"widths": self.widths, "dropout": self.dropout, "norm": self.norm}
        return {"widths": self.cpu_widths, "dropout": self.cpu_dropout, "norm": self.norm}


_LAST_STAGE = r"decoder\.\d+\.reduce\.(?:weight|bias)"  # of the other stages it is reduce.conv.weight

multi_unet = Network(
    MultiUnet,
    PartRules(_LAST_STAGE, sliced=((r"encoder\.0\.first\.conv\.weight", 1),)),
    is_bounded=True,
)
lf_unet = Network(
    LFUNet,
    PartRules(
        r"unet\." + _LAST_STAGE,
        # The first slot's bias is added only if the first sequence is present, so it belongs to that sequence.
        own=(r"fusion\.slots\.(\d+)\..*",),
        sliced=((r"fusion\.score\.(?:weight|bias)", 0),),
    ),
    cuda_parts=10,
    uses_every_parameter=False,
    cost=3.0,
)
maf_unet = Network(
    MAFUnet,
    PartRules(
        _LAST_STAGE,
        own=(r"encoders\.(\d+)\..*", r"fusions\.\d+\.slots\.(\d+)\..*"),
        sliced=((r"fusions\.\d+\.score\.(?:weight|bias)", 0),),
    ),
    cuda_parts=2,
    uses_every_parameter=False,
    cost=0.9,
)
hemis = Network(
    HemisUnet,
    PartRules(_LAST_STAGE, own=(r"encoders\.(\d+)\..*",)),
    cuda_parts=2,
    uses_every_parameter=False,
    cost=2.0,
)
# Its training is a list of stages, which a federation does not have.
two_branch = Network(
    TwoBranch,
    None,
    dropout=0.0,
    norm="instance_affine",
    cpu_dropout=0.0,
    cuda_parts=5,
    is_bounded=True,
    uses_every_parameter=False,
    finds=numbers_from,
)
two_unets = Network(
    TwoUnets,
    PartRules(
        rf"(?:anatomy|lesion)\.{_LAST_STAGE}",
        sliced=((r"(?:anatomy|lesion)\.encoder\.0\.first\.conv\.weight", 1),),
        kinds=tuple((rf"{branch}\..*", kind) for branch, kind in BRANCHES.items()),
    ),
    dropout=0.0,
    norm="instance_affine",
    cpu_dropout=0.0,
    cuda_parts=2,
    is_bounded=True,
    cost=2.0,
    finds=numbers_from,
    sees={"tissue": ANATOMY_SEQUENCES},
)
multi_unet_plus = Network(
    MultiUnetPlus,
    PartRules(
        r"heads\.\d+\.(?:weight|bias)",
        sliced=((r"encoder\.0\.(?:convolutions\.0|shortcut\.1)\.weight", 1),),
    ),
    widths=PLUS_WIDTHS,
    dropout=0.0,
    norm="instance_affine",
    cpu_dropout=0.0,
    cuda_parts=5,
    cost=0.8,
)
unet_sum = Network(
    UnetSum,
    PartRules(r"head\.(?:weight|bias)", sliced=((r"encoder\.0\.0\.weight", 1),)),
    widths=(32, 64, 128, 256),
    dropout=0.0,
    norm="batch",
    cpu_dropout=0.0,
    cuda_parts=2,
)
highres3d_hetero = Network(
    HighRes3DHetero,
    PartRules(r"head\.(?:weight|bias)", own=(r"stems\.blocks\.(\d+)\..*",)),
    widths=(16, 32, 64, 80),
    dropout=0.0,
    norm="instance_affine",
    cpu_widths=(4, 8, 16, 20),
    cpu_dropout=0.0,
    cuda_parts=10,
    uses_every_parameter=False,
)
unet_hetero = Network(
    UnetHetero,
    PartRules(r"head\.(?:weight|bias)", own=(r"stems\.blocks\.(\d+)\..*",)),
    widths=(32, 64, 128, 256, 512),
    dropout=0.0,
    norm="instance_affine",
    cpu_dropout=0.0,
    cuda_parts=10,
    uses_every_parameter=False,
)
progressive = Network(ProgressiveUnet, None, is_bounded=True, trained_first="multi_unet", cost=1.5)

NETWORKS: dict[str, Network] = {
    "multi_unet": multi_unet,
    "lf_unet": lf_unet,
    "maf_unet": maf_unet,
    "hemis": hemis,
    "two_unets": two_unets,
    "two_branch": two_branch,
    "multi_unet_plus": multi_unet_plus,
    "unet_sum": unet_sum,
    "highres3d_hetero": highres3d_hetero,
    "unet_hetero": unet_hetero,
    "progressive": progressive,
}


def build(builder: str | Builder, num_modalities: int, num_logits: int, **numbers: Any) -> nn.Module:
    """Make the network of this name, or with this builder.

    Raises:
        UsageError: there is no such network, or the numbers do not fit it.
    """
    if not isinstance(builder, str):
        name, make = name_of(builder), builder
    elif is_own(builder):
        name, make = builder, own_builder(builder)
    elif builder in NETWORKS:
        return NETWORKS[builder](num_modalities, num_logits, **numbers)
    else:
        raise UsageError(
            f"there is no network {builder!r}: give one of {', '.join(NETWORKS)}, or your own as module:name."
        )
    with blamed("network", name):
        network = make(num_modalities, num_logits, **numbers)
    if not isinstance(network, nn.Module):
        raise UsageError(f"the network {name} returned a {type(network).__name__}: return a torch.nn.Module.")
    return network


def found_numbers(builder: str, axis: ModalityAxis, space: LabelSpace) -> dict[str, Any]:
    """The numbers of a network that follow from its sequences and labels; raises UsageError if these do not fit it."""
    finds = NETWORKS[builder].finds if builder in NETWORKS else None
    return finds(axis, space) if finds else {}


def own_builder(name: str) -> Builder:
    """The network class, or the function that makes one, of `module:name`.

    Opening a model file calls what the file names, so only what is declared to make a network may be called.

    Raises:
        UsageError: it cannot be imported, or is neither.
    """
    builder: Builder = imported(name, "network")
    if not makes_network(builder):
        raise UsageError(
            f"{name!r} is not a network, and is not called: name a class derived from torch.nn.Module, or a function "
            "annotated to return one (def net(num_modalities: int, num_logits: int) -> torch.nn.Module)."
        )
    return builder


def makes_network(builder: object) -> bool:
    """Whether it is a network class, a function annotated to return a network, or one of multiseg's own."""
    if isinstance(builder, Network):
        return True
    returned = builder
    if not isinstance(builder, type):
        try:
            returned = get_type_hints(builder).get("return") if inspect.isfunction(builder) else None
        except (NameError, TypeError, AttributeError):  # an annotation that does not exist at run time
            return False
    return isinstance(returned, type) and issubclass(returned, nn.Module)
