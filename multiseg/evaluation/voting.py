"""Which models answer together, and what they need of a patient."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, reduce
from operator import or_
from pathlib import Path

from multiseg.errors import ModalityError, UsageError
from multiseg.evaluation.adaptation import check_adaptable
from multiseg.evaluation.case_answers import ENSEMBLES, Shown, check_mirrored
from multiseg.evaluation.prediction_inputs import PredictOptions
from multiseg.evaluation.preparation import recipe_for
from multiseg.evaluation.reliability import is_doubtful
from multiseg.labels import LabelSpace
from multiseg.modalities import ModalityAxis
from multiseg.models.brain_network import load_brain_network
from multiseg.models.branch_models import branch_info, branch_model
from multiseg.models.calibration_record import look_below_of
from multiseg.models.contrasts import histogram, suspect
from multiseg.models.fused import fuse
from multiseg.models.learnt_scans import NOT_KNOWN, NOT_LEARNT, TRAIN, VAL, LearntScans, how_learnt
from multiseg.models.saved import Model, ModelInfo, load_model, model_path
from multiseg.models.two_unets import Branches
from multiseg.store.findings import Doubt, Severity
from multiseg.store.preparation.prepare import PreparedCase
from multiseg.store.preparation.recipe import Recipe


@dataclass(frozen=True, eq=False)
class Voters:
    """The models that answer: one, or several as an ensemble.

    Attributes:
        rule: of an ensemble, one of `case_answers.ENSEMBLES`; "" for one model.
        adapt: whether each model is adapted to a patient first.
        files: those that the models were loaded from.
        brain: the network that finds brains, of the first model that carries one.
        branch: what of two_branch models answers, see `models.branch_models`; "" for the fusion.

    Raises:
        UsageError: one cannot be adapted though it must, they do not fit together, or there is no such rule; or what is
            to answer is not there, or has not learnt.
    """

    models: tuple[Model, ...]
    rule: str = ""
    adapt: bool = False
    files: tuple[Path, ...] = ()
    brain: Model | None = None
    branch: str = ""

    def __post_init__(self) -> None:
        if self.rule and self.rule not in ENSEMBLES:
            raise UsageError(f"there is no ensemble {self.rule!r}: give {' or '.join(ENSEMBLES)}.")
        if len(self.models) > 1 and not self.rule:
            raise UsageError(f"{len(self.models)} models are given: say how they answer, {' or '.join(ENSEMBLES)}.")
        if self.rule and len(self.models) == 1 and not self.adapt:
            raise UsageError("an ensemble of one model has nothing to put together: name several, or add --adapt on.")
        for model in self.models if self.adapt else ():
            check_adaptable(model)
        first, *others = self.infos
        for other in others:
            for name in ("space", "spacing_mm", "background"):
                if getattr(first, name) != getattr(other, name):
                    raise UsageError(
                        f"the models cannot answer together: {name} is {getattr(first, name)} in the first and "
                        f"{getattr(other, name)} in another."
                    )

    @cached_property
    def infos(self) -> tuple[ModelInfo, ...]:
        """Of what answers of each model."""
        return tuple(branch_info(model.info, self.branch) for model in self.models)

    def answering(self, models: Sequence[Model]) -> tuple[Model, ...]:
        """What answers of these models, which are adapted ones perhaps."""
        return tuple(branch_model(model, self.branch) for model in models)

    @cached_property
    def info(self) -> ModelInfo:
        """What they have in common: of one model its own; of several the sequences that all of them learnt from."""
        first, *others = self.infos
        if not others:
            return first
        axis = ModalityAxis.union(tuple(info.axis) for info in self.infos)
        return replace(
            first,
            builder=f"{self.rule} of {len(self.models)}",
            calibration=None,
            axis=axis,
            trained_on={
                name: tuple(dict.fromkeys(database for info in self.infos for database in info.trained_on[name]))
                if all(info.trained_on.get(name) for info in self.infos)
                else ()
                for name in axis
            },
            databases={name: about for info in reversed(self.infos) for name, about in info.databases.items()},
        )

    @cached_property
    def sequences(self) -> tuple[str, ...]:
        """All sequences that any of them has a channel for."""
        return tuple(dict.fromkeys(name for model in self.models for name in model.info.axis))

    @cached_property
    def learnt(self) -> LearntScans | None:
        """All scans that any of them has learnt from; None if one does not say."""
        learnt = [model.learnt for model in self.models]
        known = [one for one in learnt if one is not None]
        return reduce(or_, known) if len(known) == len(learnt) else None

    def sees(self, names: Collection[str]) -> bool:
        """Whether what answers sees one of these sequences, which the models know: an anatomy branch sees few."""
        return self.branch != "anatomy" or all(set(names) & set(anatomy_sequences(model)) for model in self.models)

    def check_sees(self, names: Sequence[str]) -> None:
        """Raises ModalityError if what answers sees none of these sequences."""
        if not self.sees(names):
            seen = ", ".join(anatomy_sequences(self.models[0]))
            raise ModalityError(f"the anatomy branch sees {seen} alone, but was given {', '.join(names)}. Give {seen}.")

    @property
    def space(self) -> LabelSpace:
        return self.infos[0].space

    @property
    def is_calibrated(self) -> bool:
        return any(info.calibration for info in self.infos)

    def look_below(self, structure: str) -> float:
        """The expected Dice below which the structure should be looked at; of several models the highest counts."""
        return max(look_below_of(info.calibration, structure) for info in self.infos)


def load_voters(model: Path | str | Model, options: PredictOptions) -> Voters:
    """The models that answer.

    Args:
        model: a model file, a run folder or a loaded model.

    Raises:
        UsageError: they do not fit together, see `Voters` and `models.fused.fuse`.
        CheckpointError: a model cannot be opened.
    """
    if options.together in ENSEMBLES:
        check_once([*([] if isinstance(model, Model) else [model]), *options.others])
    loaded = [model if isinstance(model, Model) else load_model(model, options.device)]
    loaded += [load_model(other, options.device) for other in options.others]
    brain = _brain_network([model, *options.others], options.device)
    files = tuple(Path(one) for one in (model, *options.others) if not isinstance(one, Model))
    if options.together in ("", *ENSEMBLES):
        voters = Voters(tuple(loaded), options.together, options.adapt, files, brain, options.branch)
    else:
        voters = Voters((fuse(loaded, options.together),), files=files, brain=brain, branch=options.branch)
    if options.tta:
        check_mirrored(voters.space)
    return voters


def check_once(models: Sequence[Path | str]) -> None:
    """Raises UsageError if an ensemble would have one model twice, which would count double."""
    files = [model_path(Path(model)).resolve() for model in models]
    if twice := [str(model) for index, model in enumerate(models) if files[index] in files[:index]]:
        raise UsageError(f"the ensemble has {', '.join(twice)} twice: name each model once.")


def _brain_network(models: Sequence[Path | str | Model], device: str) -> Model | None:
    """The brain network of the first model that carries one; a model that is loaded already carries none."""
    carried = (load_brain_network(Path(model), device) for model in models if not isinstance(model, Model))
    return next((network for network in carried if network is not None), None)


def common_recipe(
    infos: Sequence[ModelInfo], rule: str, reference: str, headers_disagree: str, finds_brain: bool = False
) -> tuple[Recipe, tuple[Doubt, ...]]:
    """The one recipe that all models need of a new patient, who is prepared once; see `recipe_for`.

    Raises:
        UsageError: the models need different preparations, or a brain mask.
    """
    (first, _), *others = made = [recipe_for(info, rule, reference, headers_disagree, finds_brain) for info in infos]
    for number, (other, _) in enumerate(others, start=2):
        for setting in fields(Recipe):
            ours, theirs = getattr(first, setting.name), getattr(other, setting.name)
            if ours != theirs:
                hint = " Or give --brain-mask." if setting.name == "brain_mask" else ""
                raise UsageError(
                    "the models cannot answer together, since they need differently prepared images: "
                    f"{setting.name} is {ours!r} for model 1 and {theirs!r} for model {number}. Leave one out.{hint}"
                )
    return first, tuple(dict.fromkeys(doubt for _, doubts in made for doubt in doubts))


def usable_for_all(infos: Sequence[ModelInfo], given: Sequence[str], reference: str) -> tuple[str, ...]:
    """The given sequences that every model learnt from.

    Raises:
        ModalityError: see `_usable`; or there is none that all models learnt from.
    """
    by_model = [_usable(info, given, reference) for info in infos]
    usable = tuple(name for name in given if all(name in names for names in by_model))
    if not usable:
        listed = "; ".join(f"model {number}: {', '.join(names)}" for number, names in enumerate(by_model, start=1))
        raise ModalityError(f"the models learnt from none of the given sequences in common ({listed}). Leave one out.")
    return usable


def _usable(info: ModelInfo, given: Sequence[str], reference: str) -> tuple[str, ...]:
    """The given sequences that the model learnt from; raises ModalityError if there is none, or no such reference."""
    usable = info.usable(tuple(given))
    if not usable:
        raise ModalityError(
            f"the model learnt from {', '.join(name for name in info.axis if info.trained_on.get(name))}, "
            f"but was given {', '.join(given) or 'nothing'}. Give at least one of those."
        )
    if reference and reference not in given:
        raise ModalityError(f"the reference {reference!r} is not among the given sequences: {', '.join(given)}.")
    return usable


def how_any_learnt(voters: Sequence[Model], digest: str) -> str:
    """How the models used a scan; of several the use that says least about new patients."""
    uses = [how_learnt(model.learnt, [digest]) for model in voters]
    return next((use for use in (TRAIN, VAL, NOT_KNOWN) if use in uses), NOT_LEARNT)


def learnt_doubts(learnt: Mapping[str, str]) -> tuple[Doubt, ...]:
    doubts = []
    for kind, verb in ((TRAIN, "was trained on"), (VAL, "was chosen by validations on")):
        names = ", ".join(name for name in learnt if learnt[name] == kind)
        if names:
            text = f"the model {verb} this same scan of {names}: the result says nothing about new patients."
            doubts.append(Doubt(Severity.WARNING, "LEARNT_FROM", text))
    return tuple(doubts)


def look_doubts(voters: Voters, expected_dice: Mapping[str, float]) -> tuple[Doubt, ...]:
    """A doubt for each structure whose expected Dice is low."""
    doubts = []
    for name, expected in expected_dice.items():
        least = voters.look_below(name)
        if is_doubtful(expected, least):
            text = f"look at this: the expected Dice of {name} is {expected:.3f}, below {least:.3f}."
            doubts.append(Doubt(Severity.WARNING, "LOOK_AT_THIS", text))
    return tuple(doubts)


def contrast_doubts(voters: Sequence[Model], prepared: PreparedCase) -> tuple[Doubt, ...]:
    """A doubt for each sequence that looks like another one, by the first model that knows what they look like."""
    contrasts = next((model.contrasts for model in voters if model.contrasts is not None), None)
    doubts = []
    for name, image in zip(prepared.modalities, prepared.images, strict=True):
        scan = None if contrasts is None else histogram(image)
        found = None if contrasts is None or scan is None else suspect(contrasts, name, scan)
        if found is not None:
            text = (
                f"{name} looks like {found.like}: its intensities in the brain are nearer to those of {found.like} "
                f"({found.database}; distance {found.distance:.2f}) than to any {name} that the model learnt from "
                f"({found.own_distance:.2f}). Look at the image, and if its name is wrong, give it the right one."
            )
            doubts.append(Doubt(Severity.WARNING, "LOOKS_LIKE_OTHER", text))
    return tuple(doubts)


def anatomy_sequences(model: Model) -> tuple[str, ...]:
    """The sequences that the anatomy branch of a model with branches sees."""
    network = model.network
    return tuple(model.info.axis[n] for n in network.anatomy_channels) if isinstance(network, Branches) else ()


def blind_doubts(voters: Voters, shown: Shown) -> tuple[Doubt, ...]:
    """A doubt for each anatomy branch of a two_branch model that sees nothing; equal ones once."""
    doubts = []
    for model in voters.models if voters.branch != "lesion" else ():
        network, present = model.network, shown.on(model.info.axis).present
        if not isinstance(network, Branches) or present[list(network.anatomy_channels)].any():
            continue
        names = ", ".join(anatomy_sequences(model))
        text = f"{names} is missing, from which the model segments tissues: do not use its tissues. Give {names}."
        doubts.append(Doubt(Severity.WARNING, "NO_ANATOMY_SEQUENCE", text))
    return tuple(dict.fromkeys(doubts))
