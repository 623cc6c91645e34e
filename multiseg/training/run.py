"""A training from a store to a run folder: put together, resumed, logged, validated, saved."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from multiseg.errors import UsageError
from multiseg.labels import LabelSpace, SpaceLabel
from multiseg.loaders.batches import PatchStream
from multiseg.modalities import ModalityAxis
from multiseg.models.builders import build
from multiseg.models.devices import resolve_device
from multiseg.models.saved import BEST, LAST, ModelInfo, read_info, save_model
from multiseg.store.catalogue import select
from multiseg.store.reader import Store, open_store
from multiseg.training.checkpoint import RESUME, TrainState, load_state, save_state
from multiseg.training.fit import Event, Hooks, fit, precision
from multiseg.training.folder import TrainOptions, claimed_folder
from multiseg.training.logs import Logs
from multiseg.training.validate import validate, validation_cases


@dataclass(frozen=True)
class TrainResult:
    """How a training ended: the steps done, whether that is all of them, and the best validation score."""

    folder: Path
    step: int
    finished: bool
    best: float
    history: Sequence[Mapping[str, float]] = ()


def label_space(names: Sequence[str]) -> LabelSpace:
    """A label space from names such as "lesion", "oedema" or "tissue:CSF"."""
    labels = [SpaceLabel(n.removeprefix("tissue:"), "tissue" if n.startswith("tissue:") else "lesion") for n in names]
    return LabelSpace(tuple(labels))


def train(
    options: TrainOptions,
    out: Path | str,
    overwrite: bool = False,
    on_event: Callable[[Event], None] = lambda event: None,
) -> TrainResult:
    """Train into the folder `out`, going on from what is there.

    The folder gets model.safetensors (best on the validation cases), last.safetensors, resume.pt,
    log.jsonl, TensorBoard files, and run.toml with every setting. SIGINT and SIGTERM end it after the
    step (or the validation case) in hand, saved.

    Args:
        overwrite: start anew where the folder holds a run, instead of going on with it.

    Raises:
        UsageError: the folder holds a run with other settings or sequences, or a setting is unknown.
        ResourceError: another process trains into the folder, or the disk is full.
        DataError, CheckpointError, TrainingError: see the parts.
    """
    out = Path(out)
    device = resolve_device(options.device)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # the stream waits for copies to the current card
    store = open_store(options.store)
    space = label_space(options.labels)
    used = [
        case
        for case in select(store, options.databases, split="train")
        if store[case.database].label_view(case, space).annotated.any()
    ]
    axis = ModalityAxis.union(case.modalities for case in used) if used else ModalityAxis(("T1",))
    stream = PatchStream(store, axis, space, options.stream, databases=options.databases)
    info = _info(options, store, stream)
    state = _fresh_state(options, info, device)
    held_out = validation_cases(store, info, options.fit.validation_cases)
    with claimed_folder(out, options, overwrite):
        _resume(out, state, info)
        with _stop_on_signals() as should_stop, Logs(out, state.step) as logs:

            def report(event: Event) -> None:
                logs.write(event)
                on_event(event)

            hooks = Hooks(
                report,
                validate=lambda: validate(state.network, info, store, held_out, should_stop),
                save=lambda is_best: _save(out, state, info, is_best),
                should_stop=should_stop,
            )
            finished = fit(state, stream, options.fit, hooks, options.augment)
    return TrainResult(out, state.step, finished, state.best, tuple(state.history))


def _resume(out: Path, state: TrainState, info: ModelInfo) -> None:
    if not (out / RESUME).is_file():
        return
    if (out / LAST).is_file() and (held := read_info(out / LAST).axis) != info.axis:
        raise UsageError(
            f"{out} was trained on the sequences {', '.join(held)}, but the store now holds {', '.join(info.axis)}: "
            "its databases have changed. Choose another --out, or pass --overwrite to start anew."
        )
    load_state(out / RESUME, state)


def _save(out: Path, state: TrainState, info: ModelInfo, is_best: bool) -> None:
    now = info.at(state.step, state.history[-1] if state.history else {})
    save_model(out / LAST, state.network, now)
    if is_best:
        save_model(out / BEST, state.network, now)
    # Last: a kill before this line repeats the steps since the last save, and then the models are written again.
    save_state(out / RESUME, state)


def _info(options: TrainOptions, store: Store, stream: PatchStream) -> ModelInfo:
    weights = options.stream.draw.weights
    cases = {name: some for name, some in stream.plan.cases.items() if weights.get(name, 1) > 0}
    return ModelInfo(
        builder=options.model.builder,
        numbers={"widths": list(options.model.widths), "dropout": options.model.dropout},
        axis=stream.axis,
        space=stream.space,
        spacing_mm=store.spacing_mm,
        patch=options.stream.draw.patch,
        trained_on={
            name: tuple(database for database, some in cases.items() if any(name in case.modalities for case in some))
            for name in stream.axis
        },
        databases={
            name: {
                "pathology": store[name].pathology,
                "num_cases": len(some),
                "recipe": store[name].recipe.to_json(),
                "licence": store[name].attributes.get("licence", ""),
            }
            for name, some in cases.items()
        },
    )


def _fresh_state(options: TrainOptions, info: ModelInfo, device: torch.device) -> TrainState:
    torch.manual_seed(options.seed)
    network = build(info.builder, len(info.axis), info.space.num_logits, **info.numbers).to(device)
    optimiser = torch.optim.Adam(network.parameters(), lr=options.fit.learning_rate)
    scaler = torch.amp.GradScaler(device.type, enabled=precision(options.fit.amp, device) == torch.float16)
    return TrainState(network, optimiser, scaler)


@contextmanager
def _stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Turn the first SIGINT or SIGTERM into a wish to stop; the second ends the process as usual."""
    asked: list[int] = []
    before: dict[int, Any] = {}

    def ask(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        for other, handler in before.items():
            signal.signal(other, handler)

    try:
        for wanted in (signal.SIGINT, signal.SIGTERM):
            before[wanted] = signal.signal(wanted, ask)
    except ValueError:
        before.clear()  # not the main thread: signals are its business
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
