"""Optimisers by name or of the user, and schedules of the learning rate."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.optim import Optimizer

from multiseg.errors import UsageError
from multiseg.own import blamed, check_takes, imported, is_own, name_of

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
Groups: TypeAlias = Iterable[dict[str, Any]]
OwnOptimiser: TypeAlias = Callable[[Iterable[nn.Parameter], float], Optimizer]
"""Maps the network's parameters and the learning rate to an optimiser, as the classes of `torch.optim` do."""
SIGNATURE = "(parameters, learning_rate)"


@dataclass(frozen=True)
class OptimiserOptions:
    """Which optimiser; the learning rate and its schedule are in `FitOptions`.

    Attributes:
        name: "adam" (default), "adamw", "sgd" (with Nesterov's momentum), or your own as module:name.
        weight_decay: lambda. "adam" and "sgd" add lambda w to the gradient of a weight w; "adamw" also subtracts
            learning rate x lambda w in each step. Norms and biases do not decay: see `decaying`.
        momentum: of "sgd".
    """

    name: str = "adam"
    weight_decay: float = 0.0
    momentum: float = 0.99


def adam(groups: Groups, learning_rate: float, momentum: float) -> Optimizer:
    """Adam (Kingma and Ba 2015, arXiv:1412.6980); weight decay is L2 regularisation."""
    return torch.optim.Adam(groups, lr=learning_rate, betas=(0.9, 0.999), eps=1e-8)


def adamw(groups: Groups, learning_rate: float, momentum: float) -> Optimizer:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101)."""
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.999), eps=1e-8)


def sgd(groups: Groups, learning_rate: float, momentum: float) -> Optimizer:
    """Stochastic gradient descent with Nesterov's momentum (Sutskever et al. 2013), if it is above 0."""
    return torch.optim.SGD(groups, lr=learning_rate, momentum=momentum, nesterov=momentum > 0)


OPTIMISERS: dict[str, Callable[[Groups, float, float], Optimizer]] = {"adam": adam, "adamw": adamw, "sgd": sgd}
WEIGHT_DECAY = {"adamw": 0.01}
"""Default of a run file that names an optimiser and no weight decay: without it, adamw is adam."""


def check_optimiser(options: OptimiserOptions, own: OwnOptimiser | None = None) -> None:
    """Check the options.

    Args:
        own: the user's optimiser itself, if the options hold its name only for the record.

    Raises:
        UsageError: the name is unknown, a number is out of its range, or it would have no effect.
    """
    if not (0 <= options.weight_decay < math.inf and 0 <= options.momentum < 1):
        raise UsageError(
            f"optimiser.weight_decay is {options.weight_decay} and momentum {options.momentum}: give 0 or more, and a "
            "momentum from 0 to below 1."
        )
    plain = OptimiserOptions()
    changed = [name for name in ("weight_decay", "momentum") if getattr(options, name) != getattr(plain, name)]
    if own is not None or is_own(options.name):
        check_takes(own or imported(options.name, "optimiser"), 2, "optimiser", SIGNATURE, options.name)
        if changed:
            raise UsageError(
                f"optimiser.{changed[0]} is set, but {options.name} does not use it: set it in your own function."
            )
    elif options.name not in OPTIMISERS:
        raise UsageError(
            f"optimiser.name is {options.name!r}: give one of {', '.join(OPTIMISERS)}, or your own as module:name."
        )
    elif "momentum" in changed and options.name != "sgd":
        raise UsageError(f'optimiser.momentum is {options.momentum}, but {options.name} has none: set name = "sgd".')
    elif options.name == "adamw" and not options.weight_decay:
        raise UsageError("adamw without weight decay is adam: set optimiser.weight_decay, such as 0.01.")


def make_optimiser(
    network: nn.Module, options: OptimiserOptions, learning_rate: float, own: OwnOptimiser | None = None
) -> Optimizer:
    """The optimiser of these options for a network's parameters.

    Raises:
        UsageError: see `check_optimiser`; or the user's function did not return an optimiser of these parameters.
    """
    check_optimiser(options, own)
    if own is None and not is_own(options.name):
        return OPTIMISERS[options.name](_groups(network, options.weight_decay), learning_rate, options.momentum)
    make = own or imported(options.name, "optimiser")
    with blamed("optimiser", options.name):
        optimiser = make(list(network.parameters()), learning_rate)
    _check_own(optimiser, network, learning_rate, options.name)
    made: Optimizer = optimiser
    return made


def _groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """All parameters in one group; with weight decay, those that decay in one group and the others in another."""
    if not weight_decay:
        return [{"params": list(network.parameters()), "weight_decay": 0.0}]
    decays = decaying(network)
    groups = [
        {"params": [p for name, p in network.named_parameters() if name in decays], "weight_decay": weight_decay},
        {"params": [p for name, p in network.named_parameters() if name not in decays], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def decaying(network: nn.Module) -> set[str]:
    """Names of the parameters that weight decay acts on: those with two axes or more that are not part of a norm.

    Biases and the scales and shifts of norms do not decay, as is usual: they are few, and pulling them to 0 changes
    what the network computes rather than how complex it is.
    """
    of_norms = {id(p) for module in network.modules() if isinstance(module, NORMS) for p in module.parameters()}
    return {name for name, p in network.named_parameters() if p.dim() >= 2 and id(p) not in of_norms}


def _check_own(optimiser: object, network: nn.Module, learning_rate: float, name: str) -> None:
    """Raises UsageError if the loop cannot use what the user's function returned."""
    if not isinstance(optimiser, Optimizer):
        raise UsageError(f"the optimiser {name} returned a {type(optimiser).__name__}, not a torch.optim.Optimizer.")
    parameter_ids = [id(p) for group in optimiser.param_groups for p in group["params"]]
    missing = [key for key, p in network.named_parameters() if id(p) not in parameter_ids]
    num_expected = len(list(network.parameters()))
    if missing or len(parameter_ids) != num_expected:
        raise UsageError(
            f"the optimiser {name} has {len(parameter_ids)} parameters, but the network has {num_expected}"
            + (f"; it leaves out {missing[0]}" if missing else "")
            + ". Pass it all parameters: to freeze one, set requires_grad to False in the network."
        )
    rates = sorted({float(group["lr"]) for group in optimiser.param_groups})
    if rates != [learning_rate]:
        raise UsageError(
            f"the optimiser {name} has the learning rates {rates}, but the schedule sets one for all parameters: use "
            f"the learning rate that your function gets ({learning_rate}, fit.learning_rate)."
        )
    closure = inspect.signature(optimiser.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise UsageError(
            f"the optimiser {name} ({name_of(optimiser)}) evaluates the loss several times per step, which the "
            "training loop does not support: choose one that steps without a closure."
        )


SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "published": lambda done: 1.0 if done < 0.25 else 0.1,
    "constant": lambda done: 1.0,
}
"""Maps the share of steps done to a factor on the learning rate."""
