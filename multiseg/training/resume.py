"""A run that begins or resumes: what its folder holds is compared with what is asked for now."""

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
from multiseg.training.run_data import RunData, changes, data_of, describe_changes, read_data, scans_of, write_data
from multiseg.training.run_folder import TrainOptions, held_settings, write_settings
from multiseg.training.start import Parent


@dataclass(frozen=True, eq=False)
class Lessons:
    """What a run is about to learn from.

    Attributes:
        scans: that the model will have learnt from, those of the model that is started from among them.
        accepts_changes: whether the data of a run that resumes may be other than before.
    """

    store: Store
    data: RunData
    scans: LearntScans
    accepts_changes: bool = False


@dataclass(frozen=True)
class Begun:
    """A run that is ready for its next step: all scans that its model will have learnt from, and what to tell."""

    learnt: LearntScans
    notes: tuple[Noted, ...] = ()


def lessons_of(
    store: Store, train: Sequence[Case], val: Sequence[Case], parent: Parent | None, accepts_changes: bool
) -> Lessons:
    """What is learnt from these cases, beside what the model that is started from has learnt from."""
    before = LearntScans() if parent is None else parent.learnt or LearntScans(is_complete=False)
    return Lessons(store, data_of(store, train, val), before | scans_of(train, val), accepts_changes)


def begin(
    out: Path, state: TrainState, info: ModelInfo, options: TrainOptions, lessons: Lessons, peers: Peers
) -> Begun:
    """Put the saved state of the run in `out`, if there is one, into `state`, and write down what is learnt from.

    Raises:
        UsageError: the run in `out` has other sequences, another parent, other data that were not accepted, or more
            steps done than are asked for.
        DataError: the store changed while the processes opened it.
        CheckpointError: a file of the run is damaged.
    """
    if len(set(peers.gather(lessons.data.digest))) > 1:
        raise DataError(f"{lessons.store.url} changed while the processes opened it: start them again.")
    resumes = (out / RESUME).is_file()
    begun = _resumed(out, state, info, options, lessons, peers) if resumes else _fresh(options, lessons)
    peers.gather(None)  # nobody writes before all have read
    if peers.is_first:
        write_settings(out, options)
        write_data(out, lessons.data)
    return begun


def _fresh(options: TrainOptions, lessons: Lessons) -> Begun:
    notes = _learnt_before(options, lessons, lessons.scans, 0)
    if not lessons.scans.is_complete:
        text = f"{options.start.model} does not say from which scans it learnt: cases of those cannot be told apart."
        notes += (Noted(0, "LEARNT_UNKNOWN", text),)
    return Begun(lessons.scans, notes + _learnt_removed(lessons.store, lessons.scans, 0))


def _resumed(
    out: Path, state: TrainState, info: ModelInfo, options: TrainOptions, lessons: Lessons, peers: Peers
) -> Begun:
    before = LearntScans(is_complete=False)
    if (out / LAST).is_file():
        _check_same_model(out, info)
        before = read_learnt(out / LAST) or before
    held = read_data(out)
    changed = changes(held, lessons.data, lessons.store) if held else {}
    if changed and not lessons.accepts_changes:
        raise UsageError(
            f"the data of {out} have changed since it was trained: {describe_changes(changed)}. Put them back, choose "
            "another --out, or pass --accept-changes to resume with the data as they are now."
        )
    load_state(out / RESUME, state, peers)
    learnt = before | lessons.scans
    notes = _steps_changed(out, state, options)
    if held is None:
        text = (
            f"{out} does not say what it learnt from so far: whether that has changed is not known. From now on it is."
        )
        notes += (Noted(state.step, "DATA_UNKNOWN", text),)
    elif changed:
        notes += (_accepted(changed, state, held, lessons.data), *_learnt_before(options, lessons, learnt, state.step))
    return Begun(learnt, notes + _learnt_removed(lessons.store, learnt, state.step))


def _check_same_model(out: Path, info: ModelInfo) -> None:
    held = read_info(out / LAST)
    if held.axis != info.axis:
        raise UsageError(
            f"{out} was trained on the sequences {', '.join(held.axis)}, but the store now holds "
            f"{', '.join(info.axis)}: its databases have changed. Choose another --out, or pass --overwrite to "
            f"start again, or continue from its model in another folder: multiseg finetune {out} STORE --out NEW."
        )
    if [step["model"] for step in held.ancestry] != [step["model"] for step in info.ancestry]:
        raise UsageError(
            f"{out} was started from another model than the one that is there now. Choose another --out, or pass "
            "--overwrite to start again."
        )


def _accepted(changed: Mapping[str, Sequence[str]], state: TrainState, held: RunData, now: RunData) -> Noted:
    """The change, said; where the validation cases changed, scores of before and after cannot be compared."""
    text = f"the data have changed since step {state.step}, which was accepted: {describe_changes(changed)}."
    if held.validated != now.validated:
        state.best = nan
        text += " The validation cases are other ones, so the best model is chosen again from here on."
    return Noted(state.step, "DATA_CHANGED", text, tuple(name for names in changed.values() for name in names))


def _steps_changed(out: Path, state: TrainState, options: TrainOptions) -> tuple[Noted, ...]:
    """Raises UsageError where fewer steps are asked for than are done."""
    asked, before = options.fit.num_steps, held_settings(out).get("fit", {}).get("num_steps", options.fit.num_steps)
    if asked < state.step:
        raise UsageError(
            f"{out} has done {state.step} steps, and {asked} are asked for: steps cannot be taken back. Give --steps "
            f"{state.step} or more, choose another --out, or pass --overwrite to start again."
        )
    if asked == before:
        return ()
    schedule = SCHEDULES[options.fit.schedule]
    old, new = (options.fit.learning_rate * schedule(state.step / num) for num in (before, asked))
    text = (
        f"{before} steps have become {asked}, from step {state.step} on. The learning rate follows the "
        f"{options.fit.schedule} schedule of {asked} steps: here {new:.3g}, by that of {before} steps {old:.3g}."
    )
    return (Noted(state.step, "STEPS_CHANGED", text),)


def _learnt_removed(store: Store, learnt: LearntScans, step: int) -> tuple[Noted, ...]:
    """That the model will have learnt from patients who have withdrawn, or that this is not known."""
    text = describe_removed(learnt, store.url, store.removed, store.damaged)
    return (Noted(step, "LEARNT_REMOVED", text),) if text else ()


def _learnt_before(options: TrainOptions, lessons: Lessons, learnt: LearntScans, step: int) -> tuple[Noted, ...]:
    """The cases of which a result would flatter the model: learnt from, and yet of the test or validation split."""
    notes = []
    for split, unfair in (("test", (TRAIN, VAL)), ("val", (TRAIN,))):
        cases = select(lessons.store, options.databases, split=split)
        names = [f"{c.database}/{c.name}" for c in cases if how_learnt(learnt, c.content.values()) in unfair]
        if names:
            text = (
                f"the model learns, or has learnt, from scans of {len(names)} of the {len(cases)} {split} cases "
                f"({few(names)}): results on them flatter it. multiseg evaluate shows them apart."
            )
            notes.append(Noted(step, "LEARNT_BEFORE", text, tuple(names)))
    return tuple(notes)
