"""Start or resume a run, after comparing its folder with the current options and data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan
from pathlib import Path

from multiseg.errors import DataError, UsageError, few
from multiseg.models.learnt_scans import TRAIN, VAL, LearntScans, describe_removed, how_learnt
from multiseg.models.saved import LAST, ModelInfo, read_info, read_learnt
from multiseg.store.catalogue import select
from multiseg.store.reader import Case, Store
from multiseg.training.checkpoint import RESUME, TrainState, load_state
from multiseg.training.distributed import Peers
from multiseg.training.events import Noted
from multiseg.training.optimisers import SCHEDULES
from multiseg.training.run_data import (
    RunData,
    changes,
    data_of,
    describe_changes,
    read_data,
    scans_of,
    with_soft_targets,
    write_data,
)
from multiseg.training.run_folder import TrainOptions, held_settings, write_settings
from multiseg.training.start import Parent


@dataclass(frozen=True, eq=False)
class Lessons:
    """What a run will learn from.

    Attributes:
        scans: that the model will have learnt from, including those of its parent.
        accepts_changes: whether a resumed run may have other data than before.
    """

    store: Store
    data: RunData
    scans: LearntScans
    accepts_changes: bool = False


@dataclass(frozen=True)
class Begun:
    """A run that is ready for its next step: all scans that its model will have learnt from, and notices."""

    learnt: LearntScans
    notes: tuple[Noted, ...] = ()


def lessons_of(
    store: Store,
    train: Sequence[Case],
    val: Sequence[Case],
    parent: Parent | None,
    accepts_changes: bool,
    soft: Mapping[str, str] | None = None,
) -> Lessons:
    """What a run learns from these cases and from its parent; `soft` has a digest of each case's soft targets."""
    inherited = LearntScans() if parent is None else parent.learnt or LearntScans(is_complete=False)
    data = with_soft_targets(data_of(store, train, val), soft or {})
    return Lessons(store, data, inherited | scans_of(train, val), accepts_changes)


def begin(
    out: Path, state: TrainState, info: ModelInfo, options: TrainOptions, lessons: Lessons, peers: Peers
) -> Begun:
    """Load the saved state of the run in `out`, if there is one, and write its settings and data.

    Raises:
        UsageError: the run in `out` has other sequences, another parent, other data that were not accepted, or has
            done more steps than are asked for.
        DataError: the store changed while the processes opened it.
        CheckpointError: a file of the run is damaged.
    """
    if len(set(peers.gather(lessons.data.digest))) > 1:
        raise DataError(f"{lessons.store.url} changed while the processes opened it: start them again.")
    if (out / RESUME).is_file():
        begun = _resumed(out, state, info, options, lessons, peers)
    else:
        begun = _fresh(options, lessons)
    peers.gather(None)  # no process writes before all have read
    if peers.is_first:
        write_settings(out, options)
        write_data(out, lessons.data)
    return begun


def _fresh(options: TrainOptions, lessons: Lessons) -> Begun:
    notes = _learnt_before(options, lessons, lessons.scans, 0)
    if not lessons.scans.is_complete:
        text = (
            f"{options.start.model} does not say which scans it learnt from, so evaluations cannot tell whether it "
            "learnt from a case."
        )
        notes += (Noted(0, "LEARNT_UNKNOWN", text),)
    return Begun(lessons.scans, notes + _learnt_removed(lessons.store, lessons.scans, 0))


def _resumed(
    out: Path, state: TrainState, info: ModelInfo, options: TrainOptions, lessons: Lessons, peers: Peers
) -> Begun:
    learnt = LearntScans(is_complete=False)
    if (out / LAST).is_file():
        _check_same_model(out, info)
        learnt = read_learnt(out / LAST) or learnt
    saved = read_data(out)
    changed = changes(saved, lessons.data, lessons.store) if saved else {}
    if changed and not lessons.accepts_changes:
        raise UsageError(
            f"the data of {out} have changed since it was trained: {describe_changes(changed)}. Restore them, choose "
            "another --out, or pass --accept-changes to resume with the current data."
        )
    load_state(out / RESUME, state, peers)
    learnt |= lessons.scans
    notes = _steps_changed(out, state, options)
    if saved is None:
        text = f"{out} does not say what it learnt from, so it is not known whether the data have changed."
        notes += (Noted(state.step, "DATA_UNKNOWN", text),)
    elif changed:
        notes += (_accepted(changed, state, saved, lessons.data), *_learnt_before(options, lessons, learnt, state.step))
    notes += _loss_changed(saved, lessons.data, state, options)
    return Begun(learnt, notes + _learnt_removed(lessons.store, learnt, state.step))


def _check_same_model(out: Path, info: ModelInfo) -> None:
    saved = read_info(out / LAST)
    if saved.axis != info.axis:
        raise UsageError(
            f"{out} was trained on the sequences {', '.join(saved.axis)}, but the store now holds "
            f"{', '.join(info.axis)}: its databases have changed. Choose another --out, pass --overwrite to "
            f"start over, or continue from its model in another folder: multiseg finetune {out} STORE --out NEW."
        )
    if [step["model"] for step in saved.ancestry] != [step["model"] for step in info.ancestry]:
        raise UsageError(
            f"the model that {out} was started from has changed. Choose another --out, or pass --overwrite to start "
            "over."
        )


def _accepted(changed: Mapping[str, Sequence[str]], state: TrainState, saved: RunData, now: RunData) -> Noted:
    """The notice of an accepted change. With other validation cases, scores before and after are not comparable."""
    text = f"the data have changed since step {state.step}, and the change was accepted: {describe_changes(changed)}."
    if saved.validated != now.validated:
        state.best = nan
        text += " The validation cases have changed, so the best model is chosen again from now on."
    return Noted(state.step, "DATA_CHANGED", text, tuple(name for names in changed.values() for name in names))


def _steps_changed(out: Path, state: TrainState, options: TrainOptions) -> tuple[Noted, ...]:
    """Raises UsageError if fewer steps are asked for than are done."""
    num_steps = options.fit.num_steps
    num_before = held_settings(out).get("fit", {}).get("num_steps", num_steps)
    if num_steps < state.step:
        raise UsageError(
            f"{out} has done {state.step} steps, but {num_steps} are asked for: steps cannot be undone. Give --steps "
            f"{state.step} or more, choose another --out, or pass --overwrite to start over."
        )
    if num_steps == num_before:
        return ()
    schedule = SCHEDULES[options.fit.schedule]
    old, new = (options.fit.learning_rate * schedule(state.step / num) for num in (num_before, num_steps))
    text = (
        f"the number of steps changed from {num_before} to {num_steps} at step {state.step}. The learning rate now "
        f"follows the {options.fit.schedule} schedule of {num_steps} steps: {new:.3g} here, instead of {old:.3g}."
    )
    return (Noted(state.step, "STEPS_CHANGED", text),)


def _loss_changed(saved: RunData | None, now: RunData, state: TrainState, options: TrainOptions) -> tuple[Noted, ...]:
    """A notice if the steps to come of a stage joint have other losses than those that are done."""
    if state.step >= options.fit.num_steps or (saved.joint_loss if saved else 0) == now.joint_loss:
        return ()
    text = (
        f"the first {state.step} steps were trained by a version of multiseg with other losses of the stage joint. The "
        "result is not comparable with models of one version: pass --overwrite to start the stage over."
    )
    return (Noted(state.step, "LOSS_CHANGED", text),)


def _learnt_removed(store: Store, learnt: LearntScans, step: int) -> tuple[Noted, ...]:
    """A notice if the model learnt, or may have learnt, from cases that were removed from the store."""
    text = describe_removed(learnt, store.url, store.removed, store.damaged)
    return (Noted(step, "LEARNT_REMOVED", text),) if text else ()


def _learnt_before(options: TrainOptions, lessons: Lessons, learnt: LearntScans, step: int) -> tuple[Noted, ...]:
    """A notice for each of the test and validation splits that has cases the model learnt from."""
    notes = []
    for split, unfair in (("test", (TRAIN, VAL)), ("val", (TRAIN,))):
        cases = select(lessons.store, options.databases, split=split)
        names = [f"{c.database}/{c.name}" for c in cases if how_learnt(learnt, c.content.values()) in unfair]
        if names:
            text = (
                f"the model learns, or has learnt, from scans of {len(names)} of the {len(cases)} {split} cases "
                f"({few(names)}): results on them are too good. multiseg evaluate shows them separately."
            )
            notes.append(Noted(step, "LEARNT_BEFORE", text, tuple(names)))
    return tuple(notes)
