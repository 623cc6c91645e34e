"""What a run learns from and what its model will be: found in the store before the first step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from multiseg.errors import DataError, UsageError, few
from multiseg.evaluation.model_evaluation import check_spacing
from multiseg.labels import LabelSpace
from multiseg.loaders.batches import PatchStream, Share
from multiseg.loaders.draw import DrawOptions, chosen
from multiseg.loaders.graft import has_lesion
from multiseg.loaders.graft_source import Grafts
from multiseg.loaders.mirror import check_sides
from multiseg.modalities import ModalityAxis, as_names
from multiseg.models.builders import NETWORKS, found_numbers
from multiseg.models.saved import ModelInfo
from multiseg.models.two_unets import ANATOMY_SEQUENCES
from multiseg.own import is_own
from multiseg.store.catalogue import select
from multiseg.store.folds import read_fold, take_fold
from multiseg.store.reader import Case, Store, open_store
from multiseg.store.structures import (
    check_named,
    hide,
    listed_labels,
    pathologies_of,
    schemas_of,
    structures_of,
    written,
)
from multiseg.training.anchors import anchor_case, check_anchor
from multiseg.training.class_weights import class_weights
from multiseg.training.events import Noted
from multiseg.training.fit import Stream, consistency_of
from multiseg.training.joint_loss import VERSION, soft_dice
from multiseg.training.meta import GraftStream, meta_objective
from multiseg.training.objectives import Objective, objective_named
from multiseg.training.pseudo_labels import PseudoLabels, SoftStream
from multiseg.training.resume import Lessons, lessons_of
from multiseg.training.run_folder import ModelOptions, TrainOptions, numbers_of
from multiseg.training.stages import stage_named
from multiseg.training.start import Parent, arrange_channels, descended
from multiseg.training.validate import validation_cases


@dataclass(frozen=True, eq=False)
class PreparedRun:
    """What a run learns from.

    Attributes:
        info: what the model will be.
        answered: the same with the structures of the run's stage only, which are validated.
        stream: the patches.
        drawn: the cases that patches are drawn from.
        held_out: the cases that the model is validated on.
        grafts: the lesions that are pasted into the patches, if the stage pastes some.
        soft: the soft targets of the patches, if the stage has some.
    """

    options: TrainOptions
    store: Store
    info: ModelInfo
    stream: PatchStream
    drawn: tuple[Case, ...]
    held_out: tuple[Case, ...]
    grafts: Grafts | None = None
    soft: PseudoLabels | None = None

    @property
    def answered(self) -> ModelInfo:
        return replace(self.info, space=self.stream.space)

    @property
    def batches(self) -> Stream:
        """The batches of the run's stage."""
        if self.grafts:
            return GraftStream(self.stream, self.grafts)
        return SoftStream(self.stream, self.soft) if self.soft else self.stream

    def lessons(self, parent: Parent | None, accepts_changes: bool) -> Lessons:
        """All that the model will have learnt from, and how to tell a change of it when the run resumes."""
        donated = self.grafts.cases if self.grafts else ()
        anchor = self.options.meta.anchor
        shown = [anchor_case(self.store, anchor)] if anchor else []
        digests = self.soft.digests if self.soft else {}
        train = [*self.drawn, *donated, *shown]
        lessons = lessons_of(self.store, train, self.held_out, parent, accepts_changes, digests)
        stage = stage_named(self.options.stage, self.options.model.builder)
        return replace(lessons, data=replace(lessons.data, joint_loss=VERSION if stage.has_both else 0))

    def objective(self, own: Objective | None) -> Objective:
        """The objective of the run's stage; `own` is the user's, if there is one.

        Raises:
            UsageError: classes have weights, which an objective of one's own does not read.
        """
        options = self.options
        stage = stage_named(options.stage, options.model.builder)
        if stage.grafts:
            return meta_objective(options.meta, options.seed)
        if self.soft:
            return soft_dice
        weights = class_weights(options.fit.class_weights, self.store, self.drawn, self.stream.space)
        if weights is not None and own is not None:
            raise UsageError("fit.class_weights has no effect on an objective of your own: leave it out.")
        term = consistency_of(options.fit, options.augment.seed)
        return stage.objective(own or objective_named(options.fit.objective, weights, term))

    def notes(self, step: int) -> tuple[Noted, ...]:
        """Notices of the fold that is left out, and of healthy cases that are not."""
        return (*self._fold(step), *self._doubts(step))

    def _fold(self, step: int) -> tuple[Noted, ...]:
        """How many cases the training leaves out with its fold, if it has one."""
        if not self.options.fold:
            return ()
        counts = Counter(case.split for case in select(self.store, self.options.databases))
        text = (
            f"fold {self.options.fold} (seed {self.options.fold_seed}) leaves {counts['test']} cases out; of the "
            f"others {counts['train']} are for training and {counts['val']} for validation. No person is in two of "
            "these parts. The splits of the store do not count."
        )
        return (Noted(step, "FOLD", text),)

    def _doubts(self, step: int) -> tuple[Noted, ...]:
        """A notice if cases into which lesions are pasted have annotated lesions of their own."""
        names = [
            f"{case.database}/{case.name}"
            for case in (self.drawn if self.grafts else ())
            if has_lesion(self.store[case.database], case, even_hidden=True)
        ]
        if not names:
            return ()
        text = (
            f"{len(names)} of the {len(self.drawn)} cases that count as healthy have lesions of their own "
            f"({few(names)}): the network learns that their tissues look like this."
        )
        return (Noted(step, "HEALTHY_LESIONS", text, tuple(names)),)


def inherited(options: TrainOptions, parent: ModelInfo) -> TrainOptions:
    """The options with the labels and the network of the parent model; also with its `rest`, unless they set it."""
    labels = tuple(written(label.kind, label.name, label.pathology) for label in parent.space.labels)
    numbers = {name: value for name, value in parent.numbers.items() if name in ("widths", "dropout", "norm")}
    if is_own(parent.builder):
        model = ModelOptions(parent.builder, numbers=parent.numbers)
    else:
        model = ModelOptions(parent.builder, **{**numbers, "widths": tuple(numbers["widths"])})
    return replace(options, labels=labels, rest=options.rest or parent.space.rest, model=model)


def check_is_parents_network(options: TrainOptions, parent: ModelInfo) -> None:
    """Raises UsageError if a network of one's own is not the one of the model that the run starts from."""
    if options.model.builder != parent.builder:
        raise UsageError(
            f"network is {options.model.builder}, but a run that starts from {options.start.model} keeps its "
            f"network {parent.builder}. Leave network out."
        )


def with_listed_labels(options: TrainOptions) -> tuple[TrainOptions, Store]:
    """The options with the structures that their labels mean, and the open store: with the splits of the fold, if
    there is one, and without what is hidden.

    Raises:
        StoreError: the store cannot be opened.
        UsageError: there is nothing to hide of that name, no structure that a label means, or no such fold.
    """
    store = open_store(options.store)
    if options.fold:
        take_fold(store, read_fold(options.fold, options.fold_seed))
    hide(store, options.hide)
    cases = _weighted_cases(store, options.databases, options.stream.draw)
    return replace(options, labels=listed_labels(options.labels, store, cases)), store


def prepare_run(options: TrainOptions, store: Store, parent: Parent | None, share: Share) -> PreparedRun:
    """What a run of these options learns from, and what its model will be.

    Raises:
        UsageError: no case is annotated for a structure, or the structures cannot be mirrored; the sequences do not
            fit the parent; or a setting does not fit its stage.
        DataError: there is no case to learn from, or no lesion to paste.
        CheckpointError: the pseudo-labels do not fit the cases.
    """
    space = LabelSpace.of(options.labels, options.rest)
    if options.augment.flip_probability:
        check_sides(space)
    if parent is None:
        check_structures(space, store, () if options.stage else options.databases, options.stream.draw)
    stage = stage_named(options.stage, options.model.builder)
    learnt = stage.space(space)
    needs = ANATOMY_SEQUENCES if options.meta.pseudo_labels else ()
    used = _cases_to_learn(options, store, learnt, needs)
    axis = ModalityAxis.union(
        [name for name in case.modalities if name in (stage.sequences or case.modalities)] for case in used
    )
    if parent is not None:
        check_spacing(parent.info, store)
        channels = arrange_channels(parent.info, axis, options.start)
        axis = channels.axis
    stream = PatchStream(
        store,
        axis,
        learnt,
        options.stream,
        databases=options.databases,
        share=share,
        sequences=stage.sequences,
        needs=needs,
    )
    grafts = _grafts(options, store, axis) if stage.grafts else None
    info = _info(options, store, stream, space, grafts)
    if options.meta.anchor:
        check_anchor(store, options.meta.anchor, options.model.builder)
        info = replace(info, numbers={**info.numbers, "anchor": list(info.patch)})
    info = _with_found(info) if parent is None else descended(info, parent, channels, options.start)
    info = replace(info, parts=stage.parts_after(parent.info.parts if parent else None))
    names = [name for name in stream.plan.cases if options.stream.draw.weights.get(name, 1) > 0]
    drawn = tuple(case for name in names for case in stream.plan.cases[name])
    answered = replace(info, space=learnt)
    held_out = tuple(validation_cases(store, answered, names, options.fit.validation_cases))
    folder = options.meta.pseudo_labels
    soft = PseudoLabels(store, drawn, Path(folder), learnt) if folder else None
    return PreparedRun(options, store, info, stream, drawn, held_out, grafts, soft)


def _cases_to_learn(options: TrainOptions, store: Store, space: LabelSpace, needs: Sequence[str]) -> list[Case]:
    """The cases that patches may be drawn from; raises DataError if there are none."""
    used = learnt_from(store, options.databases, space, options.stream.draw)
    used = [case for case in used if not needs or set(needs) & set(case.modalities)]
    if not used:
        also = f" and has {' or '.join(needs)}" if needs else ""
        raise DataError(
            f"{store.url} has no train case that is annotated for {', '.join(space.names)}{also}. "
            f"See: multiseg info {store.url}."
        )
    return used


def _with_found(info: ModelInfo) -> ModelInfo:
    """The model with what its network finds in the data; raises UsageError if it needs a trained one."""
    record = NETWORKS.get(info.builder)
    if record is None:
        return info
    if record.trained_first:
        raise UsageError(f"a {info.builder} network is built on a trained one: multiseg finetune --progressive.")
    return replace(info, numbers={**info.numbers, **found_numbers(info.builder, info.axis, info.space)})


def _grafts(options: TrainOptions, store: Store, axis: ModalityAxis) -> Grafts:
    """The source of lesions that are pasted into healthy patches."""
    into = as_names(options.databases)
    others = [name for name in store if name not in into and store[name].template is not None]
    lesions = as_names(options.meta.donors) or tuple(
        name for name in others if any(has_lesion(store[name], case) for case in select(store, [name], split="train"))
    )
    if not lesions:
        raise DataError(
            f"{store.url} has no lesions to paste into {', '.join(into)}: ingest patients, too, with --template."
        )
    return Grafts(store, axis, lesions, into, seed=options.stream.draw.seed or 0)


def _info(
    options: TrainOptions, store: Store, stream: PatchStream, space: LabelSpace, grafts: Grafts | None
) -> ModelInfo:
    weights = options.stream.draw.weights
    by_database = {
        name: {case.name: case for case in cases}
        for name, cases in stream.plan.cases.items()
        if weights.get(name, 1) > 0
    }
    for case in grafts.cases if grafts else ():
        shown = tuple(name for name in case.modalities if name in stream.sequences)
        by_database.setdefault(case.database, {})[case.name] = replace(case, modalities=shown)
    return ModelInfo(
        builder=options.model.builder,
        numbers=numbers_of(options.model),
        axis=stream.axis,
        space=space,
        spacing_mm=store.spacing_mm,
        patch=options.stream.draw.patch,
        trained_on={
            sequence: tuple(
                name
                for name, cases in by_database.items()
                if any(sequence in case.modalities for case in cases.values())
            )
            for sequence in stream.axis
        },
        databases={
            name: {
                "pathology": store[name].pathology,
                "num_cases": len(cases),
                "recipe": store[name].recipe.to_json(),
                "licence": store[name].attributes.get("licence", ""),
            }
            for name, cases in by_database.items()
        },
    )


def check_structures(space: LabelSpace, store: Store, databases: Sequence[str], draw: DrawOptions) -> None:
    """Raises UsageError if no training case of the databases is annotated for a structure of the space."""
    schemas = schemas_of(store, _weighted_cases(store, databases, draw))
    where = f"the training data of {store.url}"
    check_named(space, structures_of(schemas), where, pathologies_of(store, schemas))


def learnt_from(store: Store, databases: Sequence[str], space: LabelSpace, draw: DrawOptions) -> list[Case]:
    """The training cases that may be drawn: annotated, of databases with a weight, and selected by `draw`."""
    labelled: dict[str, list[Case]] = {}
    for case in _weighted_cases(store, databases, draw):
        if store[case.database].label_view(case, space).annotated.any():
            labelled.setdefault(case.database, []).append(case)
    return [case for cases in labelled.values() for case in chosen(cases, draw)]


def _weighted_cases(store: Store, databases: Sequence[str], draw: DrawOptions) -> list[Case]:
    """The training cases of databases with a weight above 0."""
    return [case for case in select(store, databases, split="train") if draw.weights.get(case.database, 1) > 0]
