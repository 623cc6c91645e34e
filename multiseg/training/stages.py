"""The stages in which a two_branch network learns: which part of it learns in each, and what that part answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from multiseg.errors import UsageError
from multiseg.evaluation.adaptation import TRUE_LESION
from multiseg.labels import LabelSpace
from multiseg.loaders.batches import Batch
from multiseg.models.two_branch import PARTS, TwoBranch
from multiseg.models.two_unets import ANATOMY_SEQUENCES, Branch, branch_space
from multiseg.training.joint_loss import with_anatomy
from multiseg.training.objectives import Objective
from multiseg.training.pseudo_labels import check_still
from multiseg.training.run_folder import TrainOptions


@dataclass(frozen=True)
class Stage:
    """A training of some parts of a network.

    Attributes:
        branch: the branch that answers, and so the kind of structures that is learnt and validated; "" for the whole
            network.
        learns: the parts that learn; all others are frozen. Empty for all.
        sequences: those that are shown, if a case has them; empty for all.
        has_both: whether the anatomy branch has a loss of its own beside that of the whole network.
        grafts: whether lesions are pasted into healthy patches, for the losses of `multiseg.training.meta` instead of
            the objective of the options.
    """

    branch: str = ""
    learns: tuple[str, ...] = ()
    sequences: tuple[str, ...] = ()
    has_both: bool = False
    grafts: bool = False

    def space(self, space: LabelSpace) -> LabelSpace:
        """The structures of the space that are learnt; raises UsageError if there are none."""
        return branch_space(space, self.branch) if self.branch else space

    def view(self, network: nn.Module) -> nn.Module:
        """The network that answers in `space`; it shares all weights."""
        return Branch(network, self.branch) if self.branch else network

    def objective(self, objective: Objective) -> Objective:
        """The objective, for the network that answers."""
        if not self.branch:
            return with_anatomy(objective) if self.has_both else objective

        def of_branch(network: nn.Module, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
            return objective(self.view(network), batch, step)

        return of_branch

    def parts_after(self, before: tuple[str, ...] | None) -> tuple[str, ...]:
        """The parts of the network that have learnt after this stage, as in `ModelInfo.parts`.

        Args:
            before: those of the model that it starts from; None for fresh weights.
        """
        if not self.learns or before == ():
            return ()
        learnt = {*(before or ()), *self.learns}
        return tuple(part for part in PARTS if part in learnt) if learnt < set(PARTS) else ()

    def freeze(self, network: nn.Module) -> None:
        """Freeze all parts that do not learn."""
        if self.learns:
            assert isinstance(network, TwoBranch)
            network.learn_only(self.learns)


ALL = Stage()
PSEUDO_LABEL = "pseudo_label"
"""The stage that trains nothing: see `pseudo_labels.py`."""
STAGES: dict[str, Stage] = {
    "pretrain_tissue": Stage("anatomy", ("anatomy",), ANATOMY_SEQUENCES),
    "pretrain_lesion": Stage("lesion", ("lesion",)),
    "cotrain": Stage("anatomy", ("anatomy",), ANATOMY_SEQUENCES, grafts=True),
    PSEUDO_LABEL: Stage(),
    "joint": Stage("", ("anatomy", "attention", "head"), has_both=True),
}


FIXED = ("stage", "store", "labels", "rest", "hide", "model", "start", "fold", "fold_seed")
"""Settings that all stages share, since they train one network, which must not see what is held out."""


def check_stage_name(name: object) -> None:
    """Raises UsageError if there is no such stage."""
    if name not in STAGES:
        raise UsageError(f"there is no stage {name!r}: give one of {', '.join(STAGES)}.")


def check_stage(options: TrainOptions, num_processes: int) -> None:
    """Check that the options fit their stage.

    Raises:
        UsageError: there is no such stage; or a setting of another stage is set; or the head is to learn first where
            it does not learn; or a stage with a loss of its own has settings of other losses; or in a stage with grafts
            no healthy database is named, there are several processes, the network is compiled, or an augmentation is
            the user's own.
    """
    stage = stage_named(options.stage, options.model.builder)
    if options.stage == PSEUDO_LABEL:
        raise UsageError("the stage pseudo_label trains nothing: it stands between two stages of a run file.")
    if options.meta.pseudo_labels:
        if options.stage != "joint":
            raise UsageError(f"meta.pseudo_labels is for the stage joint, not for {options.stage!r}: leave it out.")
        check_still(options.augment)
    if options.meta.adapt_to != TRUE_LESION:
        raise UsageError(
            f"meta.adapt_to is {options.meta.adapt_to!r}, which has no effect on "
            f"{f'the stage {options.stage}' if options.stage else 'a training without stages'}: set it in the table of "
            "the stage pseudo_label."
        )
    if options.start.head_steps and stage.learns and "head" not in stage.learns:
        raise UsageError(
            f"start.head_steps is {options.start.head_steps}, but in the stage {options.stage} the last convolution of "
            "the whole network does not learn: leave it out."
        )
    if stage.grafts or options.meta.pseudo_labels:
        _check_own_loss(options)
    if stage.grafts:
        _check_grafts(options, num_processes)


def _check_own_loss(options: TrainOptions) -> None:
    """Raises UsageError if settings of `fit.objective` are set in a stage with a loss of its own."""
    said = f"has no effect on the stage {options.stage}, which has a loss of its own"
    if options.fit.class_weights != "none":
        raise UsageError(f'fit.class_weights is {options.fit.class_weights!r}, which {said}: set it to "none" there.')
    if options.fit.consistency > 0:
        raise UsageError(
            f"fit.consistency is {options.fit.consistency}, which {said}: set it to 0 there. An objective with "
            "joint_jaccard sets it to 1 where a run file does not say."
        )


def _check_grafts(options: TrainOptions, num_processes: int) -> None:
    """Raises UsageError if the options do not fit a stage with grafts."""
    if not options.databases:
        raise UsageError(
            f"the stage {options.stage} pastes lesions into healthy patches: name the databases without lesions in its "
            'table, such as databases = ["healthy"].'
        )
    if num_processes > 1:
        raise UsageError(
            f"the stage {options.stage} runs in one process, but there are {num_processes}: train it alone."
        )
    if options.augment.own:
        raise UsageError(f"augment.own cannot move the lesions that the stage {options.stage} pastes: leave it out.")
    if options.fit.compile:
        raise UsageError(f"fit.compile has no second derivative, which the stage {options.stage} needs: leave it out.")


def stage_named(name: str, builder: str) -> Stage:
    """The stage of this name, which the network must have; the training of the whole network for "".

    Raises:
        UsageError: there is no such stage, or the network has none.
    """
    if not name:
        return ALL
    check_stage_name(name)
    if builder != "two_branch":
        raise UsageError(f"stage is {name!r}, but a {builder} network has no stages: set model.builder to two_branch.")
    return STAGES[name]


def check_stage_tables(tables: Sequence[Any]) -> None:
    """Raises UsageError if a `[[stage]]` has no name of a stage, or sets what all stages share."""
    for table in tables:
        if not isinstance(table, Mapping) or "name" not in table:
            raise UsageError('every stage is a table with a name: [[stage]], name = "pretrain_tissue".')
        check_stage_name(table["name"])
        fixed = [name for name in FIXED if name in table]
        if fixed:
            raise UsageError(
                f"the stage {table['name']} sets {', '.join(fixed)}, but all stages train one network on one store: "
                "set it above the stages."
            )
