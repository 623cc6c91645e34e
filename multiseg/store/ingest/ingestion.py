"""Ingesting source files into a store: many cases in parallel, resumable, and no case visible before it is complete."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from multiseg.errors import DataError, ResourceError
from multiseg.faults import remedy
from multiseg.labels import LabelSchema
from multiseg.store.cases import CaseFiles
from multiseg.store.checks.layout import damaged_files_of_all
from multiseg.store.damage import naming_damage
from multiseg.store.durable import sync_names
from multiseg.store.findings import Finding
from multiseg.store.ingest.case_reports import CaseReport, Volumes, case_reports, volumes_of
from multiseg.store.ingest.duplicates import reconcile_duplicates
from multiseg.store.ingest.encoding import ArrayPlan, EncodedCase, encode
from multiseg.store.ingest.estimate import estimate
from multiseg.store.ingest.ingest_plan import (
    IngestOptions,
    Intake,
    check_names,
    check_redo,
    names_of,
    renamed_options,
    sort_out,
    with_landmarks,
)
from multiseg.store.ingest.parallel import run_tasks
from multiseg.store.ingest.pseudonyms import with_pseudonyms, without_names
from multiseg.store.ingest.writer import DatabaseWriter, plan_arrays
from multiseg.store.preparation.prepare import prepare_case
from multiseg.store.preparation.recipe import Recipe
from multiseg.store.preparation.template import NOWHERE, Template, place_in
from multiseg.store.root import existing_root, locked, open_or_create_root
from multiseg.store.sources.source_types import DatabaseFiles
from multiseg.store.upkeep.removal import complete_removals

OnCase = Callable[[str, str, str], None]
"""Called for each finished case with database, case and "written", "skipped" or "failed"."""


@dataclass(frozen=True)
class IngestReport:
    """The outcome of an ingest of one database.

    Attributes:
        written, skipped, failed: cases that were written, that the store already had, and that have an error.
        described: skipped cases with updated metadata (subject, session, site, split or participants' columns).
        cases: for each case its files by role, and the volumes of its brain and lesions.
    """

    database: str
    written: tuple[str, ...]
    skipped: tuple[str, ...]
    failed: tuple[str, ...]
    findings: tuple[Finding, ...]
    described: tuple[str, ...] = ()
    cases: tuple[CaseReport, ...] = ()


def ingest(
    databases: Sequence[DatabaseFiles],
    url: Path | str,
    options: IngestOptions | None = None,
    on_case: OnCase = lambda database, case, outcome: None,
) -> list[IngestReport]:
    """Ingest databases into the store at `url`. Cases that it already has from the same files are skipped.

    A case that fails is reported, and the others continue. A store or a database is created with its first good case,
    so that input without any good case leaves nothing behind. Workers prepare and encode cases; only this process
    writes.

    Raises:
        UsageError: a database or a participants' column has an invalid name, or the file of pseudonyms is inside the
            store or is not one.
        StoreError: the store has another voxel size, or a database has another recipe or meaning of codes; or needed
            metadata or coordinates are damaged (the error names the file).
        ResourceError: the disk is full, or another process is writing to the store.
    """
    url = str(url)
    options = options or IngestOptions()
    if options.pseudonyms:
        renamed = with_pseudonyms(databases, options.pseudonyms, url)
        databases, options = renamed.databases, renamed_options(options, renamed)
    for files in databases:
        check_names(files)
    check_redo(databases, options)
    names = {name for files in databases for name in names_of(files)}
    with locked(url), naming_damage(url, partial(damaged_files_of_all, url)):
        complete_removals(url)
        # Plan all databases first: an invalid one must stop the ingest before anything is written.
        intakes = [sort_out(files, url, options, names) for files in databases]
        reports: list[IngestReport] = []
        try:
            for files, intake in zip(databases, intakes, strict=True):
                reports.append(_Ingest(files, url, options, on_case, with_landmarks(intake, url)).run())
        finally:
            root = existing_root(url, "r+", options.spacing_mm)
            found = reconcile_duplicates(root, [files.name for files in databases])
    reports = [replace(report, findings=(*report.findings, *found.pop(report.database, ()))) for report in reports]
    return reports + [IngestReport(database, (), (), (), findings) for database, findings in found.items()]


@dataclass(frozen=True)
class _Task:
    """What a worker needs to prepare and encode one case. It has no access to the store."""

    database: str
    case: CaseFiles
    schemas: Mapping[str, LabelSchema]
    recipe: Recipe
    arrays: ArrayPlan
    has_pseudonyms: bool = False
    template: Template | None = None

    @property
    def memory_bytes(self) -> int:
        return estimate(self.case, self.recipe).memory_bytes


def _prepare_and_encode(task: _Task) -> tuple[EncodedCase, tuple[Finding, ...], Volumes]:
    prepared = prepare_case(task.case, task.schemas, task.recipe)
    name = task.case.case
    place = place_in(task.template, prepared) if task.template else NOWHERE
    findings = tuple(Finding.from_doubt(doubt, task.database, name) for doubt in (*prepared.doubts, *place.doubts))
    encoded = encode(name, prepared, task.arrays, place.affine)
    if task.has_pseudonyms:
        encoded = without_names(encoded, task.case)
    return encoded, findings, volumes_of(prepared, task.schemas)


class _Ingest:
    """The ingest of one database."""

    def __init__(self, files: DatabaseFiles, url: str, options: IngestOptions, on_case: OnCase, intake: Intake) -> None:
        self.files, self.url, self.options, self.on_case, self.intake = files, url, options, on_case, intake
        self.findings = {case: list(findings) for case, findings in intake.findings.items()}
        self.outcomes: dict[str, list[str]] = {"written": [], "skipped": [], "failed": [], "described": []}
        self.writer: DatabaseWriter | None = None
        self.rows: dict[str, int] = {}
        self.volumes: dict[str, Volumes] = {}

    def run(self) -> IngestReport:
        intake = self.intake
        for name in intake.failed:
            self._record_outcome(name, "failed")
        for case in intake.same:
            self._record_outcome(case.case, "skipped")
        info = intake.info
        settings = (self.files.schemas, info.recipe, intake.arrays, bool(self.files.pseudonyms), info.template)
        tasks = [_Task(self.files.name, case, *settings) for case in intake.todo]
        try:
            self._write_all(tasks)
        except ResourceError:
            raise
        except BaseException:  # Ctrl-C: keep what was written
            if self.writer is not None:
                sync_names(self.writer.group)
            raise
        for case in intake.same:
            self._describe(case)
        if self.writer is not None:
            self.writer.release_rows()
        return self._report()

    def _write_all(self, tasks: Sequence[_Task]) -> None:
        for done in run_tasks(_prepare_and_encode, tasks, self.options.workers, lambda task: task.memory_bytes):
            case = done.task.case
            try:
                if done.error is not None:
                    raise done.error
                assert done.result is not None
                encoded, doubts, self.volumes[case.case] = done.result
                self._write(case, encoded)
            except DataError as error:
                self._add_error(case, error)
                self._record_outcome(case.case, "failed")
                continue
            self.findings.setdefault(case.case, []).extend(doubts)
            self._record_outcome(case.case, "written")

    def _write(self, case: CaseFiles, encoded: EncodedCase) -> None:
        writer = self._open_writer(self.intake.arrays)
        if not self.rows:
            with _naming_disk_faults(self.url):
                self.rows = writer.reserve([planned.case for planned in self.intake.todo])
        writer.write(self.rows[case.case], case, encoded)

    def _describe(self, case: CaseFiles) -> None:
        """Update the metadata of a case that is already in the store."""
        if _has_same_metadata(case, self.intake.stored.descriptions[case.case]):
            return
        writer = self._open_writer(plan_arrays(self.intake.stored.group, self.intake.info, ()))
        try:
            with _naming_disk_faults(self.url):
                writer.describe(self.intake.stored.rows[case.case], case)
        except DataError as error:
            self._add_error(case, error)
        else:
            self.outcomes["described"].append(case.case)

    def _open_writer(self, arrays: ArrayPlan) -> DatabaseWriter:
        """The database's writer; it is opened, and the store and database are created, with the first good case."""
        if self.writer is None:
            with _naming_disk_faults(self.url):
                root = open_or_create_root(self.url, self.options.spacing_mm)
                self.writer = DatabaseWriter(root, self.intake.info, arrays, max(1, len(self.intake.todo)))
        return self.writer

    def _add_error(self, case: CaseFiles, error: DataError) -> None:
        self.findings.setdefault(case.case, []).append(Finding.from_error(error, self.files.name, case.case))

    def _record_outcome(self, case: str, outcome: str) -> None:
        self.outcomes[outcome].append(case)
        self.on_case(self.files.name, case, outcome)

    def _report(self) -> IngestReport:
        """The report, in the order of the source's cases, not in that of the workers."""
        order = {case.case: index for index, case in enumerate(self.files.cases)}

        def sort(cases: Iterable[str]) -> tuple[str, ...]:
            return tuple(sorted(cases, key=lambda case: order.get(case, -1)))

        in_order = {outcome: sort(cases) for outcome, cases in self.outcomes.items()}
        findings = tuple(finding for case in sort(self.findings) for finding in self.findings[case])
        outcomes = {case: outcome for outcome in ("written", "skipped", "failed") for case in in_order[outcome]}
        cases = case_reports(self.files, outcomes, self.volumes, findings)
        return IngestReport(self.files.name, **in_order, findings=findings, cases=cases)


@contextmanager
def _naming_disk_faults(url: str) -> Iterator[None]:
    try:
        yield
    except ResourceError:
        raise
    except OSError as error:
        message = f"cannot write to {url}: {error}. {remedy(error, 'Check the disk.')} Then run the same command again."
        raise ResourceError(message) from error


def _has_same_metadata(case: CaseFiles, stored: Mapping[str, str | float]) -> bool:
    """Whether a case's metadata in the store equal those of its source. Empty values of the source do not count."""
    new: dict[str, str | float] = {
        "subject": case.person, "session": case.session, "site": case.site, "split": case.split,
        "split_given": case.split_given or bool(stored["split_given"]), **case.participant,
    }  # fmt: skip
    for name, value in new.items():
        is_empty = value == "" or value != value  # the latter is NaN
        as_text = f"{value:g}" if isinstance(value, float) else value  # a number in a column of texts
        if not is_empty and stored.get(name) not in (value, as_text):
            return False
    return True
