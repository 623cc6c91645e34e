"""Train from a store into a run folder: set up, resume, log, validate and save."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from multiseg.allocator import keep_memory
from multiseg.errors import DataError, UsageError, few
from multiseg.evaluation.model_evaluation import check_spacing
from multiseg.labels import LabelSpace
from multiseg.loaders.batches import PatchStream, Share
from multiseg.loaders.draw import DrawOptions, chosen
from multiseg.loaders.graft import Grafts, has_lesion
from multiseg.loaders.mirror import check_sides
from multiseg.loaders.transform import Transform
from multiseg.modalities import ModalityAxis, as_names
from multiseg.models.builders import NETWORKS, Builder, build
from multiseg.models.learnt_scans import LearntScans
from multiseg.models.saved import BEST, LAST, ModelInfo, save_model
from multiseg.models.two_branch import ANATOMY_SEQUENCES, TwoBranch
from multiseg.own import is_own
from multiseg.store.catalogue import select
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
from multiseg.training.anchors import anchor_case, check_anchor, put_anchor
from multiseg.training.checkpoint import RESUME, TrainState, generators, save_state
from multiseg.training.class_weights import class_weights
from multiseg.training.distributed import Peers, joined
from multiseg.training.event_log import EventLog
from multiseg.training.events import Event, Noted
from multiseg.training.fit import Hooks, Stream, consistency_of, fit
from multiseg.training.meta import GraftStream, meta_objective
from multiseg.training.numerics import precision
from multiseg.training.objectives import Objective, OwnObjective, objective_named
from multiseg.training.optimisers import OwnOptimiser, make_optimiser
from multiseg.training.pseudo_labels import PseudoLabels, SoftStream, soft_dice
from multiseg.training.resume import begin, lessons_of
from multiseg.training.run_folder import ModelOptions, TrainOptions, claimed_folder, flat, numbers_of, with_all_seeds
from multiseg.training.stages import check_stage, stage_named
from multiseg.training.start import Parent, arrange_channels, descended, parent_of, take_weights
from multiseg.training.trackers import check_trackers, tracked
from multiseg.training.trial import OwnParts, split_own, try_out, warn_if_not_importable
from multiseg.training.validate import validate, validation_cases


@dataclass(frozen=True)
class TrainResult:
    """How a training ended: the steps done, whether that is all of them, and the best validation score.

    `steps_before` is the number of steps done by earlier calls.
    """

    folder: Path
    step: int
    finished: bool
    best: float
    history: Sequence[Mapping[str, float]] = field(default=(), repr=False)
    steps_before: int = 0


def train(
    options: TrainOptions,
    out: Path | str,
    overwrite: bool = False,
    on_event: Callable[[Event], None] = lambda event: None,
    on_start: Callable[[ModelInfo], None] = lambda info: None,
    accept_changes: bool = False,
    *,
    network: Builder | str | None = None,
    objective: OwnObjective | str | None = None,
    optimiser: OwnOptimiser | str | None = None,
    augment: Transform | str | None = None,
) -> TrainResult:
    """Train into the folder `out`; resume if it holds a run.

    The folder gets model.safetensors (best on the validation cases), last.safetensors, resume.pt, data.json (the
    cases it learns from), log.jsonl, TensorBoard files, and run.toml with every setting. The number of steps of a run
    can be changed, even after it finished: the learning rate then follows the schedule of the new number.
    SIGINT and SIGTERM save and end it after the current step or validation case. Started by `torchrun`, several
    processes train one model together.

    Args:
        overwrite: delete an existing run and start over, instead of resuming.
        on_start: is called with what the model will be, before the first step.
        accept_changes: resume although the training or validation cases have changed. The change is logged, and the
            result is no longer that of an uninterrupted run.
        network: your own instead of `options.model.builder`: a class or function that is called as
            (num_modalities, num_logits, **options.model.numbers) and makes a module, called as (images, present).
        objective: your own instead of `options.fit.objective`: (network, batch, step) to (loss, dict of scalars).
        optimiser: your own instead of `options.optimiser.name`: (parameters, learning_rate) to a torch optimiser.
        augment: your own in addition to `options.augment`: (images, target, generator) of a patch to (images, target).
            Each of the four may also be a name, as in a run file: docs/extending.md.

    Raises:
        UsageError: the folder holds a run with other settings, sequences, parent or data, or with more steps done
            than are asked for; or a setting is unknown; or the labels name what no database has, leave lesions out, or
            cannot be mirrored (see structures.py, mirror.py).
        ResourceError: another process trains into the folder, or the disk is full.
        DataError, CheckpointError, TrainingError: see the parts.
    """
    keep_memory()
    options, own = split_own(options, network, objective, optimiser, augment)
    with joined(options.device) as (peers, device):
        parent = parent_of(options.start)
        if parent is not None:
            _check_is_elsewhere(parent.file, Path(out))
            if network is not None:
                _check_is_parents_network(options, parent.info)
            options = inherited(options, parent.info)
        options = with_all_seeds(options)
        stage = stage_named(options.stage, options.model.builder)
        check_stage(options, peers.num)
        options, store = with_listed_labels(options)
        own.check(options)
        check_trackers(options.track)
        info, stream, grafts = _prepared(options, store, parent, peers.share)
        answered = replace(info, space=stream.space)
        state = _fresh_state(options, own, info, parent, device)
        stage.freeze(state.network)
        if options.meta.anchor:
            assert isinstance(state.network, TwoBranch)
            put_anchor(state.network, store, options.meta.anchor, info)
        try_out(state.network, own, options, info)
        if peers.is_first:
            warn_if_not_importable(own)
        peers.diversify_seeds(options.seed)
        names = [name for name in stream.plan.cases if options.stream.draw.weights.get(name, 1) > 0]
        drawn = [case for name in names for case in stream.plan.cases[name]]
        donated = grafts.cases if grafts else ()
        held_out = validation_cases(store, answered, names, options.fit.validation_cases)
        shown = [anchor_case(store, options.meta.anchor)] if options.meta.anchor else []
        soft = _pseudo_labels(options, store, drawn, stream.space)
        digests = soft.digests if soft else {}
        lessons = lessons_of(store, [*drawn, *donated, *shown], held_out, parent, accept_changes, digests)
        with _claimed(Path(out), options, overwrite, peers):
            begun = begin(Path(out), state, info, options, lessons, peers)
            steps_before = state.step
            if peers.is_first:
                on_start(info)
            with stop_on_signals() as should_stop, _reported(Path(out), state, options, peers, on_event) as report:
                for note in (*begun.notes, *(_healthy_doubts(store, drawn, state.step) if grafts else ())):
                    report(note)
                hooks = Hooks(
                    report,
                    validate=lambda: validate(stage.view(state.model), answered, store, held_out, should_stop, peers),
                    save=lambda is_best: _save(Path(out), state, (info, begun.learnt), is_best, peers),
                    should_stop=should_stop,
                    objective=_staged_objective(options, own, store, drawn, stream.space),
                    transform=own.augment,
                )
                source = _source(stream, grafts, soft)
                finished = fit(state, source, options.fit, hooks, options.augment, peers)
    return TrainResult(Path(out), state.step, finished, state.best, tuple(state.history), steps_before)


def _check_is_parents_network(options: TrainOptions, parent: ModelInfo) -> None:
    """Raises UsageError if a network of one's own is not the one of the model that the run starts from."""
    if options.model.builder != parent.builder:
        raise UsageError(
            f"network is {options.model.builder}, but a run that starts from {options.start.model} keeps its "
            f"network {parent.builder}. Leave network out."
        )


@contextmanager
def _claimed(out: Path, options: TrainOptions, overwrite: bool, peers: Peers) -> Iterator[None]:
    """Lock the folder; of several processes the first one locks it, and the others wait for that."""
    with claimed_folder(out, options, overwrite) if peers.is_first else nullcontext():
        peers.gather(None)
        yield


@contextmanager
def _reported(
    out: Path, state: TrainState, options: TrainOptions, peers: Peers, on_event: Callable[[Event], None]
) -> Iterator[Callable[[Event], None]]:
    """Yield a function that logs events and passes them on; it does so in the first process only."""
    if not peers.is_first:
        yield lambda event: None
        return
    with (
        EventLog(out, state.step) as logs,
        tracked(options.track, out, flat(asdict(options)), lambda: state.step >= options.fit.num_steps) as track,
    ):

        def report(event: Event) -> None:
            logs.write(event)
            track(event)
            on_event(event)

        yield report


def _check_is_elsewhere(model: Path, out: Path) -> None:
    """Raises UsageError if a training would overwrite the model that it starts from."""
    if model.resolve().parent == out.resolve():
        raise UsageError(f"{out} holds the model that the run starts from and would overwrite: choose another --out.")


def inherited(options: TrainOptions, parent: ModelInfo) -> TrainOptions:
    """The options with the labels and the network of the parent model; also with its `rest`, unless they set it."""
    labels = tuple(written(label.kind, label.name, label.pathology) for label in parent.space.labels)
    numbers = {name: value for name, value in parent.numbers.items() if name in ("widths", "dropout", "norm")}
    if is_own(parent.builder):
        model = ModelOptions(parent.builder, numbers=parent.numbers)
    else:
        model = ModelOptions(parent.builder, **{**numbers, "widths": tuple(numbers["widths"])})
    return replace(options, labels=labels, rest=options.rest or parent.space.rest, model=model)


def _objective(
    options: TrainOptions, own: OwnParts, store: Store, cases: Sequence[Case], space: LabelSpace
) -> Objective:
    weights = class_weights(options.fit.class_weights, store, cases, space)
    if weights is not None and own.objective is not None:
        raise UsageError("fit.class_weights has no effect on an objective of your own: leave it out.")
    term = consistency_of(options.fit, options.augment.seed)
    return own.objective or objective_named(options.fit.objective, weights, term)


def _staged_objective(
    options: TrainOptions, own: OwnParts, store: Store, cases: Sequence[Case], space: LabelSpace
) -> Objective:
    """The objective of the options' stage."""
    stage = stage_named(options.stage, options.model.builder)
    if stage.grafts:
        return meta_objective(options.meta, options.seed)
    if options.meta.pseudo_labels:
        return soft_dice
    return stage.objective(_objective(options, own, store, cases, space))


def _pseudo_labels(
    options: TrainOptions, store: Store, cases: Sequence[Case], space: LabelSpace
) -> PseudoLabels | None:
    """The soft targets of the options' stage, if it has any."""
    folder = options.meta.pseudo_labels
    return PseudoLabels(store, cases, Path(folder), space) if folder else None


def _source(stream: PatchStream, grafts: Grafts | None, soft: PseudoLabels | None) -> Stream:
    """The batches of a stage."""
    if grafts:
        return GraftStream(stream, grafts)
    return SoftStream(stream, soft) if soft else stream


def with_listed_labels(options: TrainOptions) -> tuple[TrainOptions, Store]:
    """The options with the structures that their labels mean, and the open store without what is hidden.

    Raises:
        StoreError: the store cannot be opened.
        UsageError: there is nothing to hide of that name, or no structure that a label means.
    """
    store = open_store(options.store)
    hide(store, options.hide)
    cases = _weighted_cases(store, options.databases, options.stream.draw)
    return replace(options, labels=listed_labels(options.labels, store, cases)), store


def _prepared(
    options: TrainOptions, store: Store, parent: Parent | None, share: Share
) -> tuple[ModelInfo, PatchStream, Grafts | None]:
    """What the model will be, the stream of patches that it will learn from, and that of lesions to paste, if any."""
    space = LabelSpace.of(options.labels, options.rest)
    if options.augment.flip_probability:
        check_sides(space)
    if parent is None:
        check_structures(space, store, () if options.stage else options.databases, options.stream.draw)
    stage = stage_named(options.stage, options.model.builder)
    learnt = stage.space(space)
    needs = ANATOMY_SEQUENCES if options.meta.pseudo_labels else ()
    used = learnt_from(store, options.databases, learnt, options.stream.draw)
    used = [case for case in used if not needs or set(needs) & set(case.modalities)]
    if not used:
        also = f" and has {' or '.join(needs)}" if needs else ""
        raise DataError(
            f"{store.url} has no train case that is annotated for {', '.join(learnt.names)}{also}. "
            f"See: multiseg info {store.url}."
        )
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
    if parent is not None:
        return descended(info, parent, channels, options.start), stream, grafts
    builder = options.model.builder
    if builder in NETWORKS and NETWORKS[builder].trained_first:
        raise UsageError(f"a {builder} network is built on a trained one: multiseg finetune --progressive.")
    finds = NETWORKS[builder].finds if builder in NETWORKS else None
    found = finds(axis, space) if finds else {}
    return replace(info, numbers={**info.numbers, **found}), stream, grafts


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


def _healthy_doubts(store: Store, cases: Sequence[Case], step: int) -> tuple[Noted, ...]:
    """A notice if cases into which lesions are pasted have annotated lesions of their own."""
    names = [
        f"{case.database}/{case.name}" for case in cases if has_lesion(store[case.database], case, even_hidden=True)
    ]
    if not names:
        return ()
    text = (
        f"{len(names)} of the {len(cases)} cases that count as healthy have lesions of their own ({few(names)}): the "
        "network learns that their tissues look like this."
    )
    return (Noted(step, "HEALTHY_LESIONS", text, tuple(names)),)


def check_structures(space: LabelSpace, store: Store, databases: Sequence[str], draw: DrawOptions) -> None:
    """Raises UsageError if no training case of the databases is annotated for a structure of the space."""
    schemas = schemas_of(store, _weighted_cases(store, databases, draw))
    where = f"the training data of {store.url}"
    check_named(space, structures_of(schemas), where, pathologies_of(store, schemas))


def _weighted_cases(store: Store, databases: Sequence[str], draw: DrawOptions) -> list[Case]:
    """The training cases of databases with a weight above 0."""
    return [case for case in select(store, databases, split="train") if draw.weights.get(case.database, 1) > 0]


def learnt_from(store: Store, databases: Sequence[str], space: LabelSpace, draw: DrawOptions) -> list[Case]:
    """The training cases that may be drawn: annotated, of databases with a weight, and selected by `draw`."""
    labelled: dict[str, list[Case]] = {}
    for case in _weighted_cases(store, databases, draw):
        if store[case.database].label_view(case, space).annotated.any():
            labelled.setdefault(case.database, []).append(case)
    return [case for cases in labelled.values() for case in chosen(cases, draw)]


def _save(out: Path, state: TrainState, about: tuple[ModelInfo, LearntScans], is_best: bool, peers: Peers) -> None:
    _, *others = peers.gather(generators(state))
    if peers.is_first:
        info, learnt = about
        now = info.at(state.step, state.history[-1] if state.history else {})
        save_model(out / LAST, state.model, now, learnt)
        if is_best:
            save_model(out / BEST, state.model, now, learnt)
        # Last: after a kill before this line the steps since the last save are repeated, and the models written again.
        save_state(out / RESUME, state, others)
    peers.gather(None)  # no process continues or ends before the files are written


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


def _fresh_state(
    options: TrainOptions, own: OwnParts, info: ModelInfo, parent: Parent | None, device: torch.device
) -> TrainState:
    torch.manual_seed(options.seed)
    network = build(own.network or info.builder, len(info.axis), info.space.num_logits, **info.numbers)
    if parent is not None:
        take_weights(network, parent, options.start.method, takes_anchor=not options.meta.anchor)
    network.to(device)
    optimiser = make_optimiser(network, options.optimiser, options.fit.learning_rate, own.optimiser)
    scaler = torch.amp.GradScaler(device.type, enabled=precision(options.fit.amp, device) == torch.float16)
    return TrainState(network, optimiser, scaler, head_steps=options.start.head_steps)


@contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Turn the first SIGINT or SIGTERM into a request to stop; a second one ends the process as usual."""
    received: list[int] = []
    handlers: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(number)
        restore()

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            handlers[number] = signal.signal(number, receive)
    except ValueError:
        handlers.clear()  # only the main thread may handle signals
    try:
        yield lambda: bool(received)
    finally:
        restore()
