"""Train the stages of a run one after the other, each from the model of the one before."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import tomli_w

from multiseg.errors import UsageError
from multiseg.files import check_folder, lock_folder, write_atomically
from multiseg.labels import LabelSpace
from multiseg.models.brain_network import delete_in
from multiseg.models.saved import BEST, LAST
from multiseg.models.two_unets import ANATOMY_SEQUENCES, branch_space
from multiseg.store.reader import Case, Store
from multiseg.training.checkpoint import RESUME
from multiseg.training.distributed import is_first_process, num_started
from multiseg.training.prepared_run import check_structures, learnt_from, with_listed_labels
from multiseg.training.pseudo_labels import check_labelled, check_searched, names_of, write_pseudo_labels
from multiseg.training.run import TrainResult, train
from multiseg.training.run_folder import LOCK, RUN_FILE, TrainOptions, to_toml, with_all_seeds
from multiseg.training.stages import PSEUDO_LABEL, check_stage, stage_named
from multiseg.training.start import StartOptions

TrainOne = Callable[[TrainOptions, Path], TrainResult]


@dataclass(frozen=True)
class StagedRun:
    """A run of several stages.

    Attributes:
        whole: the settings that stand above the stages.
        stages: the settings of each stage, in their order.

    Raises:
        UsageError: two stages have one name, the first or the last trains nothing, the network has no stages, or the
            run starts from a model or from pseudo-labels.
    """

    whole: TrainOptions
    stages: tuple[TrainOptions, ...]

    def __post_init__(self) -> None:
        names = [options.stage for options in self.stages]
        for name in names:
            stage_named(name, self.whole.model.builder)
        if len(set(names)) < len(names):
            raise UsageError(f"the stages are {', '.join(names)}: name each of them once.")
        if not names or PSEUDO_LABEL in (names[0], names[-1]):
            raise UsageError(f"the stages are {', '.join(names)}: the first and the last must train.")
        if self.whole.start != StartOptions():
            raise UsageError("a run of stages starts from fresh weights: leave [start] out.")
        if any(options.meta.pseudo_labels for options in (self.whole, *self.stages)):
            raise UsageError(
                "a run of stages writes its own pseudo-labels: leave meta.pseudo_labels out, and put a stage "
                "pseudo_label before the stage joint."
            )

    def to_toml(self) -> str:
        """A run file with every setting, and of each stage those that differ."""
        tables = tomllib.loads(to_toml(self.whole))
        del tables["stage"]
        stages = [self._table(options, tables) for options in self.stages]
        return tomli_w.dumps({**tables, "stage": stages})

    def to_json(self) -> dict[str, Any]:
        """All settings of the run and of every stage."""
        return {
            **asdict(with_all_seeds(self.whole)),
            "stage": [asdict(with_all_seeds(options)) for options in self.stages],
        }

    def _table(self, options: TrainOptions, tables: Mapping[str, Any]) -> dict[str, Any]:
        own = tomllib.loads(to_toml(options))
        return {"name": own.pop("stage"), **_differing(own, tables)}


def _differing(own: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """The nested settings that differ from the others."""
    differing: dict[str, Any] = {}
    for name, value in own.items():
        before = others.get(name)
        if isinstance(value, Mapping):
            if tables := _differing(value, before or {}):
                differing[name] = tables
        elif value != before:
            differing[name] = value
    return differing


def stage_folder(out: Path, number: int, name: str) -> Path:
    """The folder of a stage of the run in `out`; numbers begin with 1."""
    return out / f"{number}-{name}"


def train_stages(
    run: StagedRun,
    out: Path | str,
    overwrite: bool = False,
    train_one: TrainOne | None = None,
    on_case: Callable[[str], None] = lambda text: None,
) -> TrainResult:
    """Train all stages in order into `out`/NUMBER-NAME; the same call resumes them.

    `out` itself gets run.toml, and at the end the files of the last stage's model. Labels that depend on the data are
    those of all databases of the run.

    Args:
        overwrite: delete the final model and the stages' runs, and start over.
        train_one: trains one stage into its folder; by default `train`.
        on_case: called for each case that gets pseudo-labels.

    Raises:
        UsageError: `out` holds something else, or a run of other stages; or the settings of a stage do not fit it,
            which is checked of all stages before the first one runs; otherwise see `train`.
    """
    out = Path(out)
    one = train_one or (lambda options, folder: train(options, folder, overwrite))
    stages = _with_pseudo_labels(run.stages, out)
    labels = _checked_labels(run.whole, stages, num_started())
    check_folder(out, own=(RUN_FILE, LOCK, BEST, LAST))
    out.mkdir(parents=True, exist_ok=True)
    if not is_first_process():
        return _all_trained(stages, labels, out, one, on_case)
    with lock_folder(out / LOCK, "another training writes to it. Wait for it to end, or choose another --out."):
        _check_same_stages(run, out, overwrite)
        if overwrite:
            _delete_models(out)
        write_atomically(out / RUN_FILE, run.to_toml().encode())
        result = _all_trained(stages, labels, out, one, on_case)
        if result.finished:
            for name in (BEST, LAST):
                if (result.folder / name).is_file():
                    write_atomically(out / name, (result.folder / name).read_bytes())
                else:
                    (out / name).unlink(missing_ok=True)  # of an earlier last stage
        return replace(result, folder=out)


def _with_pseudo_labels(stages: Sequence[TrainOptions], out: Path) -> tuple[TrainOptions, ...]:
    """The stages, with the folder of the pseudo-labels that a stage joint will learn from."""
    names = [options.stage for options in stages]
    if PSEUDO_LABEL not in names or "joint" not in names[names.index(PSEUDO_LABEL) :]:
        return tuple(stages)
    folder = stage_folder(out, 1 + names.index(PSEUDO_LABEL), PSEUDO_LABEL).resolve()
    joint = stages[names.index("joint")]
    with_labels = replace(joint, meta=replace(joint.meta, pseudo_labels=str(folder)))
    return tuple(with_labels if options is joint else options for options in stages)


def _checked_labels(whole: TrainOptions, stages: Sequence[TrainOptions], num_processes: int) -> tuple[str, ...]:
    """The labels of all stages, which are checked."""
    for stage in stages:
        if stage.stage != PSEUDO_LABEL:
            check_stage(stage, num_processes)
        elif num_processes > 1:
            raise UsageError(
                f"the stage {PSEUDO_LABEL} runs in one process, but there are {num_processes}: train this run alone."
            )
    options, store = with_listed_labels(whole)
    space = LabelSpace.of(options.labels, options.rest)
    check_structures(space, store, options.databases, options.stream.draw)
    for stage in stages:
        stage_named(stage.stage, whole.model.builder).space(space)
    _check_soft_cases(store, stages, space)
    labels = options.labels
    assert isinstance(labels, tuple)
    return labels


def _check_soft_cases(store: Store, stages: Sequence[TrainOptions], space: LabelSpace) -> None:
    """Raises UsageError if the stage joint would learn from cases without pseudo-labels."""
    labelled: list[str] = []
    for options in stages:
        if options.stage == PSEUDO_LABEL:
            labelled = names_of(_to_label(store, options, space))
        elif options.meta.pseudo_labels:
            cases = learnt_from(store, options.databases, space, options.stream.draw)
            cases = [case for case in cases if set(ANATOMY_SEQUENCES) & set(case.modalities)]
            check_searched(store, cases, space)
            check_labelled(
                [name for name in names_of(cases) if name not in labelled], cases, options.meta.pseudo_labels
            )


def _all_trained(
    stages: Sequence[TrainOptions],
    labels: tuple[str, ...],
    out: Path,
    train_one: TrainOne,
    on_case: Callable[[str], None],
) -> TrainResult:
    start = StartOptions()
    for number, options in enumerate(stages, start=1):
        folder = stage_folder(out, number, options.stage)
        if options.stage == PSEUDO_LABEL:
            write_stage_labels(replace(options, labels=labels), Path(start.model), folder, on_case)
            continue
        result = train_one(replace(options, labels=labels, start=start), folder)
        if not result.finished:
            break
        start = StartOptions(str(folder.resolve()), grow=True)
    return result


def write_stage_labels(
    options: TrainOptions, model: Path, folder: Path, on_case: Callable[[str], None] = lambda text: None
) -> None:
    """Do a stage pseudo_label: write the pseudo-labels of the training cases with lesions.

    Args:
        model: that of the stage before.
        on_case, and what is raised: see `write_pseudo_labels`.
    """
    options, store = with_listed_labels(options)
    cases = _to_label(store, options, LabelSpace.of(options.labels, options.rest))
    write_pseudo_labels(store, cases, model, folder, options.device, on_case, options.meta.adapt_to)


def _to_label(store: Store, options: TrainOptions, space: LabelSpace) -> list[Case]:
    """The training cases of a stage pseudo_label that are annotated for lesions."""
    return learnt_from(store, options.databases, branch_space(space, "lesion"), options.stream.draw)


def _delete_models(out: Path) -> None:
    """Delete the final model of an earlier run, and the brain network of that."""
    if any((out / name).exists() for name in (BEST, LAST)):
        delete_in(out)
    for name in (BEST, LAST):
        (out / name).unlink(missing_ok=True)


def _check_same_stages(run: StagedRun, out: Path, overwrite: bool) -> None:
    if (out / RESUME).is_file():
        raise UsageError(f"{out} holds a run without stages: choose another --out.")
    if not (out / RUN_FILE).is_file() or overwrite:
        return
    saved = tomllib.loads((out / RUN_FILE).read_text(encoding="utf-8")).get("stage")
    before = [stage["name"] for stage in saved] if isinstance(saved, list) else []
    now = [options.stage for options in run.stages]
    if before != now[: len(before)]:
        raise UsageError(
            f"{out} holds a run of the stages {', '.join(before) or 'none'}, but now they are {', '.join(now)}: choose "
            "another --out, or pass --overwrite to start over."
        )
