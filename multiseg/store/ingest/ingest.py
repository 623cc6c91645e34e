"""From source files into the store: many cases at once, resumable, and nothing half visible."""

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
from multiseg.store.ingest.parallel import run_tasks
from multiseg.store.ingest.plan import (
    IngestOptions,
    Intake,
    check_names,
    check_redo,
    names_of,
    renamed_options,
    sort_out,
    with_landmarks,
)
from multiseg.store.ingest.pseudonyms import with_pseudonyms, without_names
from multiseg.store.ingest.writer import DatabaseWriter, plan_arrays
from multiseg.store.preparation.prepare import prepare_case
from multiseg.store.preparation.recipe import Recipe
from multiseg.store.root import existing_root, locked, open_or_create_root
from multiseg.store.sources.source_types import DatabaseFiles
from multiseg.store.upkeep.removal import complete_removals

OnCase = Callable[[str, str, str], None]
"""Called with database, case and "written", "skipped" or "failed" as each is done."""


@dataclass(frozen=True)
class IngestReport:
    """What became of a database's cases: written now, already there, failed; and every finding.

    `described` are cases that were there already and whose person, site, split or patient's data are new. `cases`
    says of each case which file was taken for what, and how large its brain and its lesions are.
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
    """Bring databases into the store at `url`; cases that are in it already, from the same files, are skipped.

    A case that fails is reported and the others go on. A store or a database is made with its first good
    case, so wholly bad input leaves nothing behind. Workers prepare and pack cases; this process alone writes.

    Raises:
        UsageError: a database or a participants' column has a name that no folder can have, or the file of pseudonyms
            lies in the store or holds something else.
        StoreError: the store has another voxel size, or a database another recipe or meaning of codes; or metadata or
            coordinates that are needed are damaged, and the file is named.
        ResourceError: the disk is full, or another process writes to the store.
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
        # All of them first, so that nothing is written where one cannot be meant.
        intakes = [sort_out(files, url, options, names) for files in databases]
        reports: list[IngestReport] = []
        try:
            for files, intake in zip(databases, intakes, strict=True):
                reports.append(_Ingest(files, url, options, on_case).run(with_landmarks(intake, url)))
        finally:
            root = existing_root(url, "r+", options.spacing_mm)
            found = reconcile_duplicates(root, [files.name for files in databases])
    reports = [replace(report, findings=(*report.findings, *found.pop(report.database, ()))) for report in reports]
    return reports + [IngestReport(database, (), (), (), findings) for database, findings in found.items()]


@dataclass(frozen=True)
class _Task:
    """What a worker needs to prepare and pack one case; nothing of it is the store's."""

    database: str
    case: CaseFiles
    schemas: Mapping[str, LabelSchema]
    recipe: Recipe
    arrays: ArrayPlan
    has_pseudonyms: bool = False


def _prepare_and_encode(task: _Task) -> tuple[EncodedCase, tuple[Finding, ...], Volumes]:
    prepared = prepare_case(task.case, task.schemas, task.recipe)
    name = task.case.case
    findings = tuple(Finding.from_doubt(doubt, task.database, name) for doubt in prepared.doubts)
    encoded = encode(name, prepared, task.arrays)
    if task.has_pseudonyms:
        encoded = without_names(encoded, task.case)
    return encoded, findings, volumes_of(prepared, task.schemas)


class _Ingest:
    """One database on its way into the store."""

    def __init__(self, files: DatabaseFiles, url: str, options: IngestOptions, on_case: OnCase) -> None:
        self.files = files
        self.url = url
        self.options = options
        self.on_case = on_case
        self.intake: Intake
        self.findings: dict[str, list[Finding]] = {}
        self.outcomes: dict[str, list[str]] = {"written": [], "skipped": [], "failed": [], "described": []}
        self.writer: DatabaseWriter | None = None
        self.rows: dict[str, int] = {}
        self.volumes: dict[str, Volumes] = {}

    def run(self, intake: Intake) -> IngestReport:
        self.intake = intake
        self.findings = {case: list(some) for case, some in intake.findings.items()}
        for name in self.intake.failed:
            self._outcome(name, "failed")
        for case in self.intake.same:
            self._outcome(case.case, "skipped")
        recipe, arrays = self.intake.info.recipe, self.intake.arrays
        has_pseudonyms = bool(self.files.pseudonyms)
        tasks = [
            _Task(self.files.name, case, self.files.schemas, recipe, arrays, has_pseudonyms)
            for case in self.intake.todo
        ]
        try:
            self._write_all(tasks)
        except ResourceError:
            raise
        except BaseException:  # Ctrl-C: what was written is kept
            if self.writer is not None:
                sync_names(self.writer.group)
            raise
        for case in self.intake.same:
            self._describe(case)
        if self.writer is not None:
            self.writer.release_rows()
        return self._report()

    def _write_all(self, tasks: Sequence[_Task]) -> None:
        for done in run_tasks(_prepare_and_encode, tasks, self.options.workers, _bytes_of):
            case = done.task.case
            try:
                if done.error is not None:
                    raise done.error
                assert done.result is not None
                encoded, doubts, self.volumes[case.case] = done.result
                self._write(case, encoded)
            except DataError as error:
                self._find(Finding.from_error(error, self.files.name, case.case))
                self._outcome(case.case, "failed")
                continue
            self.findings.setdefault(case.case, []).extend(doubts)
            self._outcome(case.case, "written")

    def _write(self, case: CaseFiles, encoded: EncodedCase) -> None:
        writer = self._open(self.intake.arrays)
        if not self.rows:
            with _writing(self.url):
                self.rows = writer.reserve([one.case for one in self.intake.todo])
        writer.write(self.rows[case.case], case, encoded)

    def _describe(self, case: CaseFiles) -> None:
        """What a table says anew of a case that is in the store."""
        if _is_described(case, self.intake.held.descriptions[case.case]):
            return
        writer = self._open(plan_arrays(self.intake.held.group, self.intake.info, ()))
        try:
            with _writing(self.url):
                writer.describe(self.intake.held.rows[case.case], case)
        except DataError as error:
            self._find(Finding.from_error(error, self.files.name, case.case))
        else:
            self.outcomes["described"].append(case.case)

    def _open(self, arrays: ArrayPlan) -> DatabaseWriter:
        """The database's writer; store and database are made with their first good case."""
        if self.writer is None:
            with _writing(self.url):
                root = open_or_create_root(self.url, self.options.spacing_mm)
                self.writer = DatabaseWriter(root, self.intake.info, arrays)
        return self.writer

    def _find(self, finding: Finding) -> None:
        self.findings.setdefault(finding.case, []).append(finding)

    def _outcome(self, case: str, outcome: str) -> None:
        self.outcomes[outcome].append(case)
        self.on_case(self.files.name, case, outcome)

    def _report(self) -> IngestReport:
        """In the order of the cases, whichever worker was first."""
        order = {case.case: at for at, case in enumerate(self.files.cases)}

        def sort(cases: Iterable[str]) -> tuple[str, ...]:
            return tuple(sorted(cases, key=lambda case: order.get(case, -1)))

        named = {outcome: sort(cases) for outcome, cases in self.outcomes.items()}
        findings = [finding for case in sort(self.findings) for finding in self.findings[case]]
        outcomes = {case: outcome for outcome in ("written", "skipped", "failed") for case in named[outcome]}
        cases = case_reports(self.files, outcomes, self.volumes, findings)
        return IngestReport(
            self.files.name, named["written"], named["skipped"], named["failed"], tuple(findings), named["described"],
            cases,
        )  # fmt: skip


@contextmanager
def _writing(url: str) -> Iterator[None]:
    try:
        yield
    except ResourceError:
        raise
    except OSError as error:
        raise ResourceError(
            f"{url} cannot be written: {error}. {remedy(error, 'Check the disk.')} Then run the same command again."
        ) from error


def _is_described(case: CaseFiles, held: Mapping[str, str | float]) -> bool:
    """Whether the store says of a case what its source says; what the source has no word on may stay."""
    said: dict[str, str | float] = {
        "subject": case.person, "session": case.session, "site": case.site, "split": case.split,
        "split_given": case.split_given or bool(held["split_given"]), **case.participant,
    }  # fmt: skip
    told = {name: value for name, value in said.items() if value == value and value != ""}
    return all(
        held.get(name) in (value, f"{value:g}" if isinstance(value, float) else value) for name, value in told.items()
    )


def _bytes_of(task: _Task) -> int:
    return estimate(task.case, task.recipe).memory_bytes
