"""Segment all cases of a folder or a store, each into its own files: resumable, and one bad case stops no other."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import numpy as np
import torch

from multiseg.allocator import keep_memory
from multiseg.errors import DataError, MultisegError, ResourceError
from multiseg.evaluation.bids_output import sidecars, write_description, write_sidecars
from multiseg.evaluation.cohort_call import CohortCall, brain_digest, digests_of, in_place_of, loaded_voters, voters_of
from multiseg.evaluation.cohort_cases import Cohort, CohortCase
from multiseg.evaluation.cohort_records import CaseRecord, CohortFolder, digest_of_stored, key_of_run
from multiseg.evaluation.prediction import Outputs, Prediction, predict_case, predict_stored
from multiseg.evaluation.prediction_inputs import PredictOptions
from multiseg.evaluation.preparation import MODEL_RULE
from multiseg.evaluation.structure_tables import rows_of_segmentation
from multiseg.evaluation.voting import Voters, usable_for_all
from multiseg.files import check_files
from multiseg.labels import LabelSpace
from multiseg.modalities import in_canonical_order
from multiseg.store.border import one_case
from multiseg.store.cases import sha256_of
from multiseg.store.damage import type_and_place
from multiseg.store.formats.read_volume import read_volume
from multiseg.store.hierarchy import is_plain_name
from multiseg.store.ingest.parallel import PROCESSES, THREADS, Workers, default_workers, run_tasks
from multiseg.store.reader import Store, open_store

Outcome = Literal["segmented", "unchanged", "failed"]
OnCase = Callable[[str, Outcome, CaseRecord], None]
"""Called for each finished case with its name, its outcome and its record."""


@dataclass(frozen=True)
class CohortReport:
    """The names of the cases by outcome, and their records by name."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    records: dict[str, CaseRecord] = field(default_factory=dict)

    def of(self, outcome: Outcome) -> list[str]:
        return [name for name, one in self.outcomes.items() if one == outcome]


@dataclass(frozen=True)
class _Task:
    """What a worker needs to segment one case."""

    case: CohortCase
    run: CohortCall


def predict_cohort(
    model: Path | str,
    cohort: Cohort,
    out: Path | str,
    options: PredictOptions | None = None,
    workers: Workers | None = None,
    on_case: OnCase = lambda name, outcome, record: None,
    overwrite: bool = False,
) -> CohortReport:
    """Segment every case into the folder `out`, with cases.csv and lesions.csv of all that are there.

    A case that is done is left as it is, if its source files and its segmentation are unchanged: the same call resumes
    an interrupted one. A case that fails is reported, and the others continue.

    Args:
        model: a model file or a run folder.
        overwrite: segment all cases again, and replace what another model or other options made of them.

    Raises:
        UsageError: the folder holds something else, or the models do not fit together.
        CheckpointError: a model cannot be opened.
        ResourceError: the disk is full, or no worker can start.
    """
    options, folder = options or PredictOptions(), CohortFolder(Path(out))
    if not options.memory:  # what is kept does not fit into a budget
        keep_memory()
    digests, is_bids = digests_of(model, options), any(case.bids for case in cohort.cases)
    loaded_voters(model, options)  # fail before the work
    about = _identity(digests, options, is_bids)
    workers = workers or Workers()
    is_cluster = workers.kind not in (THREADS, PROCESSES)
    run = CohortCall(
        model=str(model),
        options=options,
        digests=digests,
        root=folder.root,
        key=str(about["key"]),
        source=cohort.source,
        overwrite=overwrite,
        brain=brain_digest(model, options),
        call=uuid4().hex,
        num_threads=max(1, default_workers() // workers.num) if workers.num > 1 and not is_cluster else 0,
        place=str(Path.cwd()) if is_cluster else "",
    )
    folder.claim(about, [*(case.name for case in cohort.cases), *cohort.refused], overwrite)
    if is_bids:
        write_description(folder.root, cohort.source, f"The model file(s) with sha256 {', '.join(digests)}.")
    report = CohortReport()
    try:
        for case, outcome, record in _finished(cohort, run, folder, workers):
            report.outcomes[case.name], report.records[case.name] = outcome, record
            on_case(case.name, outcome, record)
    finally:
        folder.write_tables(run.key)
    return report


def _finished(
    cohort: Cohort, run: CohortCall, folder: CohortFolder, workers: Workers
) -> Iterator[tuple[CohortCase, Outcome, CaseRecord]]:
    """Each case as it is finished."""
    for case, reason in cohort.refused.values():
        yield case, "failed", _note_failure(case, reason, run, folder)
    for done in run_tasks(_segment, [_Task(case, run) for case in cohort.cases], workers):
        case = done.task.case
        if done.error is not None:
            yield case, "failed", _note_failure(case, str(done.error), run, folder)
        else:
            assert done.result is not None
            yield case, *done.result


def _note_failure(case: CohortCase, reason: str, run: CohortCall, folder: CohortFolder) -> CaseRecord:
    """Record a failure, with the files of an earlier success that are kept."""
    old = folder.read(case.name)
    record = case.record(state="failed", key=run.key, reason=reason, outputs={} if old is None else old.outputs)
    folder.write(case.name, record)
    return record


def _identity(digests: Sequence[str], options: PredictOptions, is_bids: bool) -> dict[str, Any]:
    """What identifies a run; the device, the memory, and where the files are, have no part in it."""
    settings = {name: value for name, value in asdict(options).items() if name not in ("device", "others", "memory")}
    settings["brain_mask"] = str(settings["brain_mask"] or "")
    # A folder that an older multiseg began without them is resumed.
    for name in ("dicom_seg", "tta", "branch", "register"):
        if not settings[name]:
            del settings[name]
    identity = {"models": list(digests), "options": settings, "bids": is_bids}
    return {"key": key_of_run(identity), **identity, "multiseg": version("multiseg")}


@lru_cache(maxsize=1)
def _store(url: str, call: str) -> Store:
    return open_store(url)


def _segment(task: _Task) -> tuple[Outcome, CaseRecord]:
    """Segment one case, unless that is done; in a worker.

    Raises:
        DataError: it cannot be segmented.
        ResourceError: nothing can be written.
    """
    if task.run.num_threads:
        torch.set_num_threads(task.run.num_threads)
    try:
        with in_place_of(task.run):
            return _segment_unless_done(task)
    except (DataError, ResourceError):
        raise
    except MultisegError as error:
        raise DataError(str(error), code=type(error).__name__) from error
    except torch.OutOfMemoryError as error:
        message = "the device has not enough memory for this case. Use --device cpu, or fewer --workers."
        raise DataError(message, code="OUT_OF_MEMORY") from error
    except (MemoryError, OSError):
        raise
    except Exception as error:  # the border of one case: it must not stop all others
        message = f"{type_and_place(error)}: {' '.join(str(error).split())[:300]}. Please report this line."
        raise DataError(message, code="UNEXPECTED") from error


def _segment_unless_done(task: _Task) -> tuple[Outcome, CaseRecord]:
    case, run, folder = task.case, task.run, CohortFolder(task.run.root)
    sources = _digest_of_sources(case, run)
    voters = voters_of(run.model, run.options, (*run.digests, run.brain))
    outputs = case.outputs(run.root, voters.space, run.options)
    files = [*outputs.files(voters.space), *(sidecars(outputs, voters.space) if case.bids else ())]
    old = folder.read(case.name)
    is_same = old is not None and (old.state, old.key, old.sources) == ("done", run.key, sources)
    if old is not None and is_same and not run.overwrite and folder.is_whole(old):
        return "unchanged", old
    if not run.overwrite:
        folder.check_replaceable(old, files)
    check_files(files, case.files.paths if case.files else (), overwrite=True)
    names = {path.relative_to(run.root).as_posix(): "" for path in files}
    started = case.record(state="started", key=run.key, sources=sources, outputs=names)
    folder.write(case.name, started)
    _remove(files)
    try:
        prediction = _predict(case, run.call, voters, outputs, run.options)
        structures, lesions = _read_back(prediction, voters.space)
        if case.bids:
            write_sidecars(outputs, prediction, run.source, voters.space)
    except Exception:
        _remove(files)  # a part must not pass for the whole
        raise
    if run.place and folder.key() != run.key:  # this task outlived its call, and another one took the folder
        newer = folder.read(case.name)
        if newer is None or not folder.is_whole(newer):
            _remove(files)
        raise DataError(f"{run.root} belongs to another run by now.", code="ANOTHER_RUN")
    record = replace(
        started,
        state="done",
        outputs=folder.digests(files),
        structures=structures,
        lesions=lesions,
        **{name: getattr(prediction, name) for name in ("reference", "used", "left_out", "learnt", "doubts")},
    )
    folder.write(case.name, record)
    return "segmented", record


def _digest_of_sources(case: CohortCase, run: CohortCall) -> str:
    """A digest of all that a case's segmentation depends on, beside the run's key."""
    if case.files is None:
        stored = _store(case.store, run.call)[case.database]
        return digest_of_stored(stored, stored[case.case])
    files = replace(case.files, labels={})
    with one_case(files.case, files.paths):
        identity = [case.brain_mask, {role: sha256_of(file) for role, file in files.by_role.items()}]
    identity += [run.brain] if case.brain_mask == MODEL_RULE else []
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def _remove(files: Sequence[Path]) -> None:
    """Remove what an earlier or an interrupted run left, temporary files included."""
    for path in files:
        path.unlink(missing_ok=True)
        for temporary in path.parent.glob(f".{path.name}.*.tmp"):
            temporary.unlink(missing_ok=True)


def _predict(case: CohortCase, call: str, voters: Voters, outputs: Outputs, options: PredictOptions) -> Prediction:
    if not is_plain_name(case.case):
        raise DataError(f"the name {case.case!r} cannot be that of a file. Rename the case.", code="NAME")
    if case.files is None:
        database = _store(case.store, call)[case.database]
        return predict_stored(voters, database, database[case.case], outputs, options)
    names = in_canonical_order(case.files.images)
    usable = usable_for_all(voters.infos, tuple(names), options.reference)
    # The first that the models know is the reference, whichever sequences the case has beside it.
    images = {name: case.files.images[name] for name in (*usable, *names)}
    files = replace(case.files, images=images, labels={})
    return predict_case(voters, files, outputs, replace(options, brain_mask=case.brain_mask or None))


def _read_back(prediction: Prediction, space: LabelSpace) -> Any:
    """The rows of the tables, counted on the file as it was written."""
    written = read_volume(prediction.path)
    if not np.array_equal(written.voxels, prediction.answer.labels):
        raise DataError(f"{prediction.path} is not as it was written. Check the disk.", code="CHANGED_OUTPUT")
    structures, lesions = rows_of_segmentation(written.voxels, written.affine, prediction.answer.probabilities, space)
    expected = {name: None if math.isnan(value) else value for name, value in prediction.expected_dice.items()}
    return tuple(replace(row, expected_dice=expected[row.structure]) for row in structures), tuple(lesions)
