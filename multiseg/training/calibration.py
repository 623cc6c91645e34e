"""The last step of a training: fit a calibration on the validation cases, and store it in the model file."""

from __future__ import annotations

import hashlib
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save

from multiseg.allocator import keep_memory
from multiseg.errors import DataError, UsageError
from multiseg.evaluation.evaluation_result import EvaluateOptions
from multiseg.evaluation.metrics import dice
from multiseg.evaluation.model_evaluation import case_key, check_spacing, store_of_run
from multiseg.evaluation.reliability import spearman
from multiseg.evaluation.result_folder import key_of
from multiseg.evaluation.stored_answers import CaseAnswer, answers, load_case
from multiseg.evaluation.temperature_fit import (
    NumberFit,
    Sample,
    chosen_voxels,
    fit_by_number,
    look_threshold,
    sampled_expected_dice,
)
from multiseg.evaluation.voting import Voters
from multiseg.files import check_files, lock_folder, write_atomically
from multiseg.labels import IGNORE
from multiseg.modalities import as_names
from multiseg.models.branch_models import check_learnt
from multiseg.models.calibration_record import LOOK_BELOW, UNCALIBRATED, Calibration, Temperatures, temperatures_of
from multiseg.models.learnt_scans import NOT_KNOWN, NOT_LEARNT, TRAIN, VAL, how_learnt
from multiseg.models.packages import is_package
from multiseg.models.saved import Model, load_model, model_path, with_calibration
from multiseg.store.folds import read_fold, take_fold
from multiseg.store.reader import Case, Store, open_store
from multiseg.training.calibration_progress import KeptSamples
from multiseg.training.run_folder import LOCK, RUN_FILE
from multiseg.training.validate import validation_cases

SPLIT = "val"
METHOD = 3
"""Of the fit: part of its identity, so that another way to fit makes another calibration of the same model."""
NUMBERS_IN_MEMORY = 60_000_000
"""Probabilities of all samples together, about 240 MB."""
LEAST_VOXELS, MOST_VOXELS = 2_000, 200_000
"""Of one sample."""
DIGITS = 6
"""Of stored numbers, so that they do not depend on the last bits of a sum."""


@dataclass(frozen=True)
class CalibrateOptions:
    """How a model is calibrated.

    Attributes:
        databases: whose validation cases are used; empty takes those that the model learnt from.
        overlap: of the sliding windows, as a share of their size.
        poor_dice: the true Dice below which an answer is poor, see `look_threshold`.

    Raises:
        UsageError: the Dice is not between 0 and 1.
    """

    databases: str | tuple[str, ...] = ()
    overlap: float = 0.5
    poor_dice: float = LOOK_BELOW

    def __post_init__(self) -> None:
        object.__setattr__(self, "databases", as_names(self.databases))
        if not 0 < self.poor_dice < 1:
            raise UsageError(f"the Dice below which an answer is poor is {self.poor_dice}: give one between 0 and 1.")


@dataclass(frozen=True)
class CalibrationResult:
    """What a model file says now.

    Attributes:
        is_new: False if the file had this calibration already, and was not changed.
        fits: by number of sequences; empty if it is not new.
        not_fitted: numbers of sequences of which no validation case has a structure.
        spearman: by structure, of the expected and the true Dice of the validation cases; empty if it is not new.
        left_out: validation cases that the model was trained on.
    """

    file: Path
    calibration: Calibration
    is_new: bool = False
    fits: tuple[NumberFit, ...] = ()
    not_fitted: tuple[int, ...] = ()
    spearman: Mapping[str, float] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "model": str(self.file),
            "is_new": self.is_new,
            "calibration": self.calibration.to_json(),
            "fits": [asdict(fit) | {"temperatures": fit.temperatures._asdict()} for fit in self.fits],
            "not_fitted": list(self.not_fitted),
            "spearman": dict(self.spearman),
            "left_out": list(self.left_out),
        }


@dataclass(frozen=True, eq=False)
class _Ground:
    """What a model is calibrated on."""

    model: Model
    store: Store
    cases: tuple[Case, ...]
    left_out: tuple[str, ...]
    options: CalibrateOptions

    @property
    def key(self) -> str:
        """Identifies the fit: the weights and what they mean, the cases, and the options."""
        info = replace(self.model.info, calibration=None)
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.model.state_dict().items()}
        digest = hashlib.sha256(save(weights)).hexdigest()
        return key_of(METHOD, repr(info), digest, [case_key(case) for case in self.cases], self.options)

    @property
    def voxels_of_a_sample(self) -> int:
        """So many that all samples together fit into memory."""
        num = sum((1 << len(self.model.info.usable(case.modalities))) - 1 for case in self.cases)
        most = NUMBERS_IN_MEMORY // (num * len(self.model.info.space.labels))
        return min(max(most, LEAST_VOXELS), MOST_VOXELS)


def calibrate(
    run: Path | str,
    store: Store | str | None = None,
    options: CalibrateOptions | None = None,
    device: str = "cpu",
    on_case: Callable[[int, int, str], None] = lambda done, total, case: None,
) -> CalibrationResult:
    """Fit two temperatures for each number of sequences, and when a person should look, on the validation cases.

    The model file gets them, and nothing else in it changes: segmentations stay the same, voxel by voxel. An
    interrupted call resumes; a second one finds the calibration there, and changes nothing.

    Args:
        run: a run folder or a model file.
        store: None takes the one that the run was trained from.
        on_case: called before each case with the number of done cases, the number of cases, and its name.

    Raises:
        UsageError: the model is in a package, its file is read-only, or no store or database is known.
        CheckpointError, StoreError: the model or the store cannot be opened.
        DataError: the voxel sizes differ; or there is no validation case, the model was trained on all of them, or
            none of them has a structure of the model.
        ResourceError: a training writes to the run folder, or the disk is full.
    """
    keep_memory()
    options, file = options or CalibrateOptions(), model_path(Path(run))
    if is_package(file):
        raise UsageError(f"{file} is a package, which does not change: calibrate the run, and pack it again.")
    with _not_in_training(file):
        check_files([file], overwrite=True)
        ground = _ground(load_model(file, device), _opened(store or store_of_run(run), file), options)
        held, key = ground.model.info.calibration, ground.key
        if held is not None and held.key == key:
            return CalibrationResult(file, held, left_out=ground.left_out)
        kept = KeptSamples(file, key)
        samples = list(_samples(ground, kept, on_case))
        result = _fitted(ground, samples, CalibrationResult(file, _unfitted(ground, key)))
        write_atomically(file, with_calibration(file, result.calibration))
        kept.remove()
    return result


@contextmanager
def _not_in_training(file: Path) -> Iterator[None]:
    """Keep a training from writing the model meanwhile."""
    folder = file.parent
    is_run = (folder / RUN_FILE).is_file()
    busy = "a training writes to it. Calibrate its model when it has ended."
    with lock_folder(folder / LOCK, busy) if is_run else nullcontext():
        yield


def _opened(store: Store | str, file: Path) -> Store:
    """The store; of a run of a cross-validation with the splits of its fold, whose people it must not be fitted on."""
    settings = tomllib.loads((file.parent / RUN_FILE).read_text("utf-8")) if (file.parent / RUN_FILE).is_file() else {}
    if not settings.get("fold"):
        return store if isinstance(store, Store) else open_store(store)
    opened = open_store(store.url if isinstance(store, Store) else store)  # one of its own, since its splits change
    take_fold(opened, read_fold(settings["fold"], settings.get("fold_seed", 0)))
    return opened


def _ground(model: Model, opened: Store, options: CalibrateOptions) -> _Ground:
    """The validation cases that the model was not trained on.

    Raises:
        DataError, UsageError: as `calibrate`.
    """
    check_learnt(model.info)
    check_spacing(model.info, opened)
    names = options.databases or tuple(name for name in model.info.databases if name in opened)
    if not names:
        raise UsageError(
            f"{opened.url} has none of the databases that the model learnt from, or the model does not say them: name "
            "those to calibrate on with --database."
        )
    found = validation_cases(opened, model.info, names, None, SPLIT)
    trained_on = [case for case in found if how_learnt(model.learnt, case.content.values()) == TRAIN]
    if not found:
        raise DataError(
            f"{opened.url} has no validation case of {', '.join(names)} that is annotated for "
            f"{', '.join(model.info.space.names)}: a model is never calibrated on cases that it was trained on. Ingest "
            "with a share of validation cases, such as --split train=0.7,val=0.15,test=0.15."
        )
    if len(trained_on) == len(found):
        raise DataError(
            f"the model was trained on all {len(found)} validation cases of {', '.join(names)} in {opened.url}: on "
            "them it is surer than on new patients. Give a store with validation cases that it has not learnt from."
        )
    cases = tuple(case for case in found if case not in trained_on)
    return _Ground(model, opened, cases, tuple(f"{case.database}/{case.name}" for case in trained_on), options)


def _samples(ground: _Ground, kept: KeptSamples, on_case: Callable[[int, int, str], None]) -> Iterator[Sample]:
    options = EvaluateOptions(SPLIT, overlap=ground.options.overlap)
    for index, case in enumerate(ground.cases):
        on_case(index, len(ground.cases), f"{case.database}/{case.name}")
        samples = kept.read(case_key(case))
        if samples is None:
            voters = Voters((ground.model,))
            found = answers(voters, load_case(voters, ground.store, case, options), options)
            samples = [_sample(case.database, answer, ground.voxels_of_a_sample) for answer in found]
            kept.write(case_key(case), samples)
        yield from samples


def _sample(database: str, answer: CaseAnswer, most: int) -> Sample:
    target, annotated = answer.truth.target, answer.truth.annotated
    predicted = np.where(target == IGNORE, 0, answer.predicted).astype(np.uint8)
    voxels, weights = chosen_voxels(answer.probabilities, target, predicted, answer.brain, most)
    true_dice = [
        dice(predicted == code, target == code) if annotated[code - 1] else np.nan
        for code in range(1, len(annotated) + 1)
    ]
    return Sample(
        database,
        answer.subset,
        answer.probabilities.reshape(len(annotated), -1)[:, voxels].astype(np.float32),
        target.ravel()[voxels],
        predicted.ravel()[voxels],
        weights,
        annotated,
        np.array(true_dice, dtype=np.float64),
    )


def _unfitted(ground: _Ground, key: str) -> Calibration:
    uses = {how_learnt(ground.model.learnt, case.content.values()) for case in ground.cases}
    learnt = next((use for use in (NOT_KNOWN, VAL) if use in uses), NOT_LEARNT)
    cases = dict(Counter(case.database for case in ground.cases))
    return Calibration({1: UNCALIBRATED}, {}, ground.options.poor_dice, cases, learnt, key)


def _fitted(ground: _Ground, samples: Sequence[Sample], empty: CalibrationResult) -> CalibrationResult:
    """The result with what is fitted; raises DataError if nothing can be."""
    space = ground.model.info.space
    fits = fit_by_number(samples, space)
    if not fits:
        raise DataError(
            f"none of the {len(ground.cases)} validation cases has a voxel of {', '.join(space.names)}, so there is "
            "nothing to fit. Ingest more validation cases, or name other databases with --database."
        )
    temperatures = {fit.num_sequences: Temperatures(*(round(one, DIGITS) for one in fit.temperatures)) for fit in fits}
    calibration = replace(empty.calibration, temperatures=temperatures)
    expected = np.array(
        [
            sampled_expected_dice(sample, space, temperatures_of(calibration, len(sample.sequences)))
            for sample in samples
        ]
    )
    true = np.array([sample.dice for sample in samples])
    look_below, rhos = {}, {}
    for index, name in enumerate(space.names):
        defined = ~(np.isnan(expected[:, index]) | np.isnan(true[:, index]))
        pairs = expected[defined, index].tolist(), true[defined, index].tolist()
        look_below[name] = round(look_threshold(*pairs, ground.options.poor_dice), DIGITS)
        rhos[name] = spearman(*pairs)
    not_fitted = sorted({len(sample.sequences) for sample in samples} - temperatures.keys())
    return replace(
        empty, calibration=replace(calibration, look_below=look_below), is_new=True, fits=fits,
        not_fitted=tuple(not_fitted), spearman=rhos, left_out=ground.left_out,
    )  # fmt: skip
