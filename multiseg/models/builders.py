"""Networks by name, with all that the package knows about each, and one's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, get_type_hints

from torch import nn

from multiseg.errors import UsageError
from multiseg.models.fusion import LFUNet, MAFUnet
from multiseg.models.hetero import HemisUnet
from multiseg.models.progressive import ProgressiveUnet
from multiseg.models.unet import MultiUnet
from multiseg.models.unet_plus import MultiUnetPlus
from multiseg.own import blamed, imported, is_own, name_of

Builder: TypeAlias = Callable[..., nn.Module]
"""From the numbers of sequences and of logits, and numbers by name, to a network."""

PUBLISHED_WIDTHS = (16, 32, 64, 128, 256)
PLUS_WIDTHS = (32, 64, 128, 256, 320)
CPU_WIDTHS = (8, 16, 32, 64)


@dataclass(frozen=True)
class PartRules:
    """Where a network keeps what belongs to one channel or one logit, as patterns of whole tensor names.

    Attributes:
        heads: tensors that hold the logits one after another, along dimension 0.
        own: tensors that belong to the channel whose number the pattern captures.
        sliced: tensors that hold the channels one after another, and along which dimension.
    """

    heads: str
    own: tuple[str, ...] = ()
    sliced: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Network:
    """All that multiseg knows about one of its networks; called like a `Builder`, it makes the network.

    The defaults are those of the published Multi-Unet.

    Attributes:
        module: the class, called as module(num_modalities, num_logits, widths, dropout, norm).
        parts: which tensors belong to one sequence or one label; None where a federation cannot train it.
        widths, dropout, norm: the full size, which is the default on a card.
        cpu_widths, cpu_dropout: the default on a CPU.
        cuda_parts: on a card, the patches of a step go through the network in so many parts, so that it keeps at most
            20 GiB for backward in float32 (docs/models.md).
        is_bounded: it takes no more sequences than its first width.
        uses_every_parameter: every batch does, whichever sequences its cases have.
        trained_first: the network whose trained weights it is built on; "" where it can be trained from scratch.
        cost: of a step on a CPU at scale small, relative to Multi-Unet; only estimates of time use it.
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

    def __call__(
        self, num_modalities: int, num_logits: int, widths: Sequence[int] | None = None, **numbers: Any
    ) -> nn.Module:
        chosen = tuple(self.widths if widths is None else widths)
        return self.module(
            num_modalities, num_logits, chosen, **{"dropout": self.dropout, "norm": self.norm, **numbers}
        )

    def defaults(self, cuda: bool) -> dict[str, Any]:
        """The numbers that a run on a card, or on a CPU, has unless it sets others."""
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
        # The first slot's bias is added only where the first sequence is present, so it is that one's.
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
progressive = Network(ProgressiveUnet, None, is_bounded=True, trained_first="multi_unet", cost=1.5)

NETWORKS: dict[str, Network] = {
    "multi_unet": multi_unet,
    "lf_unet": lf_unet,
    "maf_unet": maf_unet,
    "hemis": hemis,
    "multi_unet_plus": multi_unet_plus,
    "progressive": progressive,
}


def build(builder: str | Builder, num_modalities: int, num_logits: int, **numbers: Any) -> nn.Module:
    """The network of this name, or of this builder.

    Raises:
        UsageError: there is no such network, or it cannot be of these numbers.
    """
    if not isinstance(builder, str):
        name, make = name_of(builder), builder
    elif is_own(builder):
        name, make = builder, own_builder(builder)
    elif builder in NETWORKS:
        return NETWORKS[builder](num_modalities, num_logits, **numbers)
    else:
        raise UsageError(
            f"there is no network {builder!r}; there are {', '.join(NETWORKS)}, and your own as module:name."
        )
    with blamed("network", name):
        network = make(num_modalities, num_logits, **numbers)
    if not isinstance(network, nn.Module):
        raise UsageError(f"the network {name} made a {type(network).__name__}: it has to make a torch.nn.Module.")
    return network


def own_builder(name: str) -> Builder:
    """The network class, or the function that makes one, which `module:name` stands for.

    A model file names what is called when it is opened, so that nothing may be called that does not say it makes
    a network.

    Raises:
        UsageError: it cannot be imported, or is neither.
    """
    found = imported(name, "network")
    if not makes_network(found):
        raise UsageError(
            f"{name!r} is no network, and is not called: name a class derived from torch.nn.Module, or a function that "
            "says that it returns one (def net(num_modalities: int, num_logits: int) -> torch.nn.Module)."
        )
    made: Builder = found
    return made


def makes_network(thing: object) -> bool:
    """Whether something is a network's class, a function annotated to return a network, or one of multiseg's own."""
    if isinstance(thing, Network):
        return True
    if not isinstance(thing, type):
        try:
            thing = get_type_hints(thing).get("return") if inspect.isfunction(thing) else None
        except (NameError, TypeError, AttributeError):  # an annotation that is not there when the module is run
            return False
    return isinstance(thing, type) and issubclass(thing, nn.Module)
