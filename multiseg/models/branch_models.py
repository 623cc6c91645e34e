"""What of a two_branch model answers: the fusion of its branches, one of them, or both pasted."""

from __future__ import annotations

from dataclasses import replace

from multiseg.errors import UsageError
from multiseg.models.builders import NETWORKS
from multiseg.models.saved import Model, ModelInfo
from multiseg.models.two_branch import ANSWERED_BY
from multiseg.models.two_unets import Branch, Branches, branch_space


def has_branches(builder: str) -> bool:
    """Whether a network has a branch for tissues and one for lesions."""
    return builder in NETWORKS and issubclass(NETWORKS[builder].module, Branches)


def branch_info(info: ModelInfo, branch: str) -> ModelInfo:
    """The info of a model of which only this answers, one of `ANSWERED_BY`; a calibration holds for the fusion alone.

    Raises:
        UsageError: nothing of the model has this name, or it has not learnt yet.
    """
    if branch and not has_branches(info.builder):
        raise UsageError(
            f"only a two_branch or a two_unets model has branches, but this is a {info.builder}: leave out --branch "
            f"{branch}."
        )
    if branch not in ANSWERED_BY:
        raise UsageError(f"there is no branch {branch!r}: give one of {', '.join(filter(None, ANSWERED_BY))}.")
    check_learnt(info, branch)
    return replace(info, space=branch_space(info.space, branch), calibration=None) if branch else info


def branch_model(model: Model, branch: str) -> Model:
    """The model of which only this answers; it shares all weights. For "" the model itself; see `branch_info`."""
    info = branch_info(model.info, branch)
    return Model(Branch(model.network, branch), info, model.learnt, model.contrasts).eval() if branch else model


def check_learnt(info: ModelInfo, branch: str = "") -> None:
    """Raises UsageError if what is to answer has weights that never learnt, since a stage trains some parts alone."""
    missing = [part for part in ANSWERED_BY[branch] if info.parts and part not in info.parts]
    if not missing:
        return
    others = [name for name, parts in ANSWERED_BY.items() if name and set(parts) <= set(info.parts)]
    raise UsageError(
        f"of this two_branch model only {', '.join(info.parts)} has learnt so far: an answer by the "
        f"{branch or 'fusion of its branches'} would mean nothing, since it needs {', '.join(missing)}, too. Train the "
        f"stages that are missing, or ask what has learnt: --branch {' or '.join(others)}."
    )
