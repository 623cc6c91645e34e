"""What the verbs that segment many patients share: their flags, the run with its progress, and what is printed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from multiseg.cli.shared_flags import (
    Adapt,
    AnsweringBranch,
    Device,
    Ensemble,
    Fuse,
    Memory,
    Tta,
    checked_adapt,
    checked_ensemble,
)
from multiseg.cli.source_flags import FolderFlags, confirmed_databases, named_sequences, worker_option
from multiseg.errors import UsageError

if TYPE_CHECKING:
    from multiseg.evaluation.cohort import CohortReport
    from multiseg.evaluation.cohort_cases import Cohort
    from multiseg.evaluation.cohort_records import CaseRecord
    from multiseg.evaluation.prediction_inputs import PredictOptions
    from multiseg.evaluation.voting import Voters
    from multiseg.store.findings import Finding
    from multiseg.store.ingest.parallel import Workers
    from multiseg.store.sources.source_types import DatabaseFiles

SHOWN_FAILURES = 20


@dataclass(frozen=True)
class AnswerFlags:
    """How the model answers: the flags of `PredictOptions`."""

    brain_mask: Annotated[
        str,
        typer.Option(
            help='A file, nonzero, otsu, model (found by the network that the model carries: train-brain), or "command '
            'PROGRAM {image} {mask}" (default: as in training). For a folder also file (from the layout, which is the '
            "default if it has masks), or a PATTERN."
        ),
    ] = ""
    reference: Annotated[
        str, typer.Option(help="Sequence that gives the segmentation its grid and header (default: first).")
    ] = ""
    overlap: Annotated[float, typer.Option(help="Overlap of the sliding windows.", min=0, max=0.9)] = 0.5
    headers_disagree: Annotated[
        str, typer.Option(help="If mask and image have one shape but other positions: refuse, world or array.")
    ] = "refuse"
    register: Annotated[
        str, typer.Option(help="rigid: align every sequence with the reference (default: as in training).")
    ] = ""
    fuse: Fuse = ""
    adapt: Adapt = "off"
    branch: AnsweringBranch = ""
    ensemble: Ensemble = ""
    tta: Tta = False
    memory: Memory = ""
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Also write the probability of each structure.")
    ] = False
    device: Device = "auto"

    def options(self, others: Sequence[Path] = (), lesion_mask: Path | None = None) -> PredictOptions:
        """The parsed flags.

        Raises:
            UsageError: two of them contradict each other.
        """
        from multiseg.evaluation.prediction_inputs import PredictOptions
        from multiseg.models.devices import resolve_device

        is_adapted = checked_adapt(self.adapt)
        resolve_device(self.device)  # an error before the work; a worker of a cluster resolves "auto" for itself
        if self.fuse and (is_adapted or self.ensemble):
            raise UsageError("--adapt and --ensemble do not take two models that answer as one: leave out --fuse.")
        return PredictOptions(
            brain_mask=self.brain_mask,
            reference=self.reference,
            overlap=self.overlap,
            headers_disagree=self.headers_disagree,
            register=self.register,
            device=self.device,
            adapt=is_adapted,
            branch=self.branch,
            lesion_mask=lesion_mask,
            others=tuple(others),
            together=self.fuse or checked_ensemble(self.ensemble),
            probabilities=self.probabilities,
            tta=self.tta,
            memory=self.memory,
        )


@dataclass(frozen=True)
class CohortFlags:
    """How many patients are segmented."""

    bids: Annotated[bool, typer.Option("--bids", help="Write a folder of patients as a BIDS derivative.")] = False
    workers: Annotated[
        int | None,
        worker_option(
            "--workers", help="Patients at once (1; on a cluster 16); each worker needs memory for a model.", min=1
        ),
    ] = None
    scheduler: Annotated[
        str,
        worker_option(
            help="processes, or the address of a dask scheduler (tcp://HOST:8786), whose workers see model, source and "
            "output under the same paths."
        ),
    ] = "processes"

    def parallel(self) -> Workers:
        """The workers.

        Raises:
            UsageError: the scheduler is neither of the two.
        """
        from multiseg.store.ingest.parallel import PROCESSES, Workers

        is_cluster = "://" in self.scheduler
        if not is_cluster and self.scheduler != PROCESSES:
            raise UsageError(f"--scheduler {self.scheduler!r} is neither {PROCESSES} nor an address (tcp://HOST:PORT).")
        return Workers(self.workers or (16 if is_cluster else 1), self.scheduler)


def predict_all(
    model: Path,
    source: str,
    out: Path,
    options: PredictOptions,
    folder: FolderFlags,
    cohort: CohortFlags,
    overwrite: bool,
    as_json: bool,
    participants: Collection[str] = (),
) -> int:
    """Segment all patients of a folder, a manifest or a store into the folder `out`; returns the exit code."""
    from multiseg.cli.console import print_findings
    from multiseg.evaluation.cohort_call import loaded_voters
    from multiseg.evaluation.cohort_cases import check_apart, of_participants
    from multiseg.evaluation.prediction_inputs import check_sequences
    from multiseg.store.hierarchy import is_like_a_store

    _check_dicom_seg(str(options.dicom_seg), source, cohort.bids)
    workers = cohort.parallel()
    settings = replace(options, brain_mask=None)  # each case has its own rule
    voters = loaded_voters(model, settings)
    findings: list[Finding] = []
    if is_like_a_store(source):
        cases = _of_store(source, voters, options, folder, cohort.bids)
    else:
        check_apart(out, Path(source), cohort.bids)
        rule = _rule_for_many(str(options.brain_mask or ""), source)
        how = folder.options(rule)
        check_sequences(named_sequences(how), voters.sequences, options.reference)
        databases = confirmed_databases(Path(source), how, as_json)
        chosen = of_participants(databases, participants) if participants else databases
        findings = _worth_reading(chosen)
        if not as_json:
            print_findings(findings)
        cases = _of_files(chosen, Path(source), voters, options, cohort.bids)
    report = _run(model, cases, out, settings, workers, overwrite)
    _print_report(report, out, findings, as_json)
    failed = report.of("failed")
    return 0 if not failed else 4 if len(failed) < len(report.outcomes) else 3


def _check_dicom_seg(series: str, source: str, bids: bool) -> None:
    """Raises UsageError if DICOM SEGs are wanted that these patients cannot have."""
    from multiseg.evaluation.dicom_answer import SOURCE
    from multiseg.store.formats.dicom_seg import check_installed
    from multiseg.store.hierarchy import is_like_a_store

    if not series:
        return
    check_installed()
    if series != SOURCE:
        raise UsageError(
            f"--dicom-seg {series} is the series of one patient, but {source} has many: --dicom-seg source."
        )
    if bids:
        raise UsageError("a BIDS derivative has no DICOM files: leave out --bids or --dicom-seg.")
    if is_like_a_store(source):
        raise UsageError(f"{source} is a store, which has no DICOM series: predict from the DICOM folder instead.")


def _rule_for_many(brain_mask: str, source: str) -> str:
    """The rule for the brains of many patients; raises UsageError if it is the mask of one."""
    from multiseg.evaluation.preparation import brain_rule
    from multiseg.store.sources.pattern import is_pattern

    _, mask = brain_rule(brain_mask)
    if mask is not None and brain_mask != "file" and not is_pattern(brain_mask):
        raise UsageError(
            f"--brain-mask {brain_mask} is one file, but {source} has many patients. Give file (where the layout has "
            "masks), a pattern such as {case}/mask.nii.gz, nonzero, otsu or a command."
        )
    return brain_mask


def _worth_reading(databases: Sequence[DatabaseFiles]) -> list[Finding]:
    """The errors and warnings about a source."""
    from multiseg.store.findings import Severity

    findings = [finding for database in databases for finding in database.findings]
    return [finding for finding in findings if finding.severity is not Severity.NOTE]


def _of_files(
    databases: Sequence[DatabaseFiles],
    source: Path,
    voters: Voters,
    options: PredictOptions,
    bids: bool,
) -> Cohort:
    from multiseg.evaluation.cohort_cases import cohort_of_files

    root = source if source.is_dir() else source.parent
    return cohort_of_files(databases, root, voters, str(options.brain_mask or ""), bids, is_nested=not source.is_dir())


def _of_store(source: str, voters: Voters, options: PredictOptions, folder: FolderFlags, bids: bool) -> Cohort:
    """The cases of a store.

    Raises:
        UsageError: a flag is given that only files can have.
        DataError: the voxel sizes differ.
    """
    from multiseg.evaluation.cohort_cases import cohort_of_store
    from multiseg.evaluation.model_evaluation import check_spacing
    from multiseg.store.reader import open_store

    is_changed = options.headers_disagree != "refuse" or options.brain_mask or options.reference or options.register
    if folder != FolderFlags() or is_changed:
        raise UsageError(
            f"{source} is a store, whose cases are prepared already: leave out --brain-mask, --reference, "
            "--headers-disagree, --register, --as, --pattern, --modality and --yes."
        )
    store = open_store(source)
    check_spacing(voters.infos[0], store)
    return cohort_of_store(store, bids)


def _run(
    model: Path, cohort: Cohort, out: Path, options: PredictOptions, workers: Workers, overwrite: bool
) -> CohortReport:
    """Segment the cases with a progress bar; elsewhere than on a terminal with a line for each."""
    from rich.progress import TaskID

    from multiseg.cli.console import messages, progress_bar
    from multiseg.evaluation.cohort import Outcome, predict_cohort
    from multiseg.processes import term_interrupts

    console, total, num_done = messages(), len(cohort.cases) + len(cohort.refused), 0
    try:
        with progress_bar("predict", total) as bar, term_interrupts():

            def on_case(name: str, outcome: Outcome, record: CaseRecord) -> None:
                nonlocal num_done
                num_done += outcome != "failed"
                bar.update(TaskID(0), advance=1, details=name)
                if bar.disable:
                    console.print(f"{outcome} {name}", soft_wrap=True, markup=False)

            return predict_cohort(model, cohort, out, options, workers, on_case, overwrite)
    except KeyboardInterrupt:
        console.print(f"{num_done} of {total} cases are segmented.")
        raise


def _print_report(report: CohortReport, out: Path, findings: Sequence[Finding], as_json: bool) -> None:
    from multiseg.cli.console import messages, output, print_findings, print_json
    from multiseg.store.findings import Finding

    failed = {name: report.records[name].reason for name in report.of("failed")}
    if as_json:
        print_json({
            "folder": str(out), **{one: report.of(one) for one in ("segmented", "unchanged")},
            "failed": [{"case": name, "reason": reason} for name, reason in failed.items()],
            "cases": {name: _as_json(record) for name, record in report.records.items()},
            "findings": [finding.to_json() for finding in findings],
        })  # fmt: skip
        return
    records = report.records.values()
    print_findings([Finding.from_doubt(doubt, one.database, one.case) for one in records for doubt in one.doubts])
    for name, reason in list(failed.items())[:SHOWN_FAILURES]:
        messages().print(f"failed {name}: {reason}", soft_wrap=True, markup=False)
    if len(failed) > SHOWN_FAILURES:
        messages().print(f"{len(failed) - SHOWN_FAILURES} more failed: see the column error of cases.csv.")
    counts = ", ".join(f"{len(report.of(one))} {one}" for one in ("segmented", "unchanged", "failed"))
    output().print(f"{out}: {counts}; cases.csv and lesions.csv", soft_wrap=True, markup=False)


def _as_json(record: CaseRecord) -> dict[str, Any]:
    return {name: value for name, value in record.to_json().items() if name not in ("key", "sources")}
