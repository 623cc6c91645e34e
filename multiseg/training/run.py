"""Train from a store into a run folder: set up, resume, log, validate and save."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from multiseg.allocator import keep_memory
from multiseg.errors import UsageError
from multiseg.loaders.transform import Transform
from multiseg.models.brain_network import carry_on
from multiseg.models.builders import Builder, build
from multiseg.models.contrasts import Contrasts
from multiseg.models.learnt_scans import LearntScans
from multiseg.models.saved import BEST, LAST, ModelInfo, read_contrasts, save_model
from multiseg.models.two_branch import TwoBranch
from multiseg.processes import stop_on_signals
from multiseg.training.anchors import put_anchor
from multiseg.training.checkpoint import RESUME, TrainState, generators, save_state
from multiseg.training.distributed import Peers, joined
from multiseg.training.event_log import EventLog
from multiseg.training.events import Event
from multiseg.training.fit import Hooks, fit
from multiseg.training.numerics import precision
from multiseg.training.objectives import OwnObjective
from multiseg.training.optimisers import OwnOptimiser, make_optimiser
from multiseg.training.prepared_run import (
    PreparedRun,
    check_is_parents_network,
    inherited,
    prepare_run,
    with_listed_labels,
)
from multiseg.training.resume import begin
from multiseg.training.run_contrasts import run_contrasts
from multiseg.training.run_folder import TrainOptions, claimed_folder, flat, with_all_seeds
from multiseg.training.stages import check_stage, stage_named
from multiseg.training.start import Parent, parent_of, take_weights
from multiseg.training.trackers import check_trackers, tracked
from multiseg.training.trial import OwnParts, split_own, try_out, warn_if_not_importable
from multiseg.training.validate import validate


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
        overwrite: delete an existing run, with the brain network of its model, and start over, instead of resuming.
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
                check_is_parents_network(options, parent.info)
            options = inherited(options, parent.info)
        options = with_all_seeds(options)
        stage = stage_named(options.stage, options.model.builder)
        check_stage(options, peers.num)
        options, store = with_listed_labels(options)
        own.check(options)
        check_trackers(options.track)
        prepared = prepare_run(options, store, parent, peers.share)
        info, held_out = prepared.info, prepared.held_out
        state = _fresh_state(options, own, info, parent, device)
        stage.freeze(state.network)
        if options.meta.anchor:
            assert isinstance(state.network, TwoBranch)
            put_anchor(state.network, store, options.meta.anchor, info)
        try_out(state.network, own, options, info)
        if peers.is_first:
            warn_if_not_importable(own)
        peers.diversify_seeds(options.seed)
        lessons = prepared.lessons(parent, accept_changes)
        with _claimed(Path(out), options, overwrite, peers):
            if parent is not None and peers.is_first:
                carry_on(parent.file, Path(out))
            begun = begin(Path(out), state, info, options, lessons, peers)
            steps_before = state.step
            if peers.is_first:
                on_start(info)
            with stop_on_signals() as should_stop, _reported(Path(out), state, options, peers, on_event) as report:
                for note in (*begun.notes, *prepared.notes(state.step)):
                    report(note)
                about = (info, begun.learnt, _contrasts(Path(out), prepared, parent, peers))
                hooks = Hooks(
                    report,
                    validate=lambda: validate(
                        stage.view(state.model), prepared.answered, store, held_out, should_stop, peers
                    ),
                    save=lambda is_best: _save(Path(out), state, about, is_best, peers),
                    should_stop=should_stop,
                    objective=prepared.objective(own.objective),
                    transform=own.augment,
                )
                finished = fit(state, prepared.batches, options.fit, hooks, options.augment, peers)
    return TrainResult(Path(out), state.step, finished, state.best, tuple(state.history), steps_before)


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


def _contrasts(out: Path, prepared: PreparedRun, parent: Parent | None, peers: Peers) -> Contrasts | None:
    """What the run's sequences look like: as when it began, if it resumes; made by the process that saves."""
    if not peers.is_first:
        return None
    known = read_contrasts(out / LAST) if (out / LAST).is_file() else None
    before = None if parent is None else read_contrasts(parent.file)
    return known or run_contrasts(prepared.store, prepared.drawn, prepared.info, before)


def _save(
    out: Path,
    state: TrainState,
    about: tuple[ModelInfo, LearntScans, Contrasts | None],
    is_best: bool,
    peers: Peers,
) -> None:
    _, *others = peers.gather(generators(state))
    if peers.is_first:
        info, learnt, contrasts = about
        now = info.at(state.step, state.history[-1] if state.history else {})
        save_model(out / LAST, state.model, now, learnt, contrasts)
        if is_best:
            save_model(out / BEST, state.model, now, learnt, contrasts)
        # Last: after a kill before this line the steps since the last save are repeated, and the models written again.
        save_state(out / RESUME, state, others)
    peers.gather(None)  # no process continues or ends before the files are written


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
