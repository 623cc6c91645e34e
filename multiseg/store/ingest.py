"""From source files into the store: many cases at once, resumable, and nothing half visible."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import zarr

from multiseg.errors import DataError, ResourceError, UsageError
from multiseg.modalities import in_canonical_order
from multiseg.store import schema
from multiseg.store.cases import CaseFiles, sha256_of
from multiseg.store.catalogue import assign_splits
from multiseg.store.duplicates import reconcile_duplicates
from multiseg.store.encoding import ArrayPlan, EncodedCase, encode
from multiseg.store.findings import Finding, Severity
from multiseg.store.hierarchy import check_database_name, is_plain_name
from multiseg.store.parallel import Workers, run_tasks
from multiseg.store.prepare import Recipe, prepare_case
from multiseg.store.reader import _members as members
from multiseg.store.root import DatabaseInfo, check_agreement, existing_root, locked, open_or_create_root
from multiseg.store.sources.model import DatabaseFiles
from multiseg.store.writer import DatabaseWriter, digest_of_roles, plan_arrays

DEFAULT_SPLIT = {"train": 0.7, "val": 0.1, "test": 0.2}
OnCase = Callable[[str, str, str], None]
"""Called with database, case and "written", "skipped" or "failed" as each is done."""


@dataclass(frozen=True)
class IngestOptions:
    """How to ingest; `Recipe` says what is done to a case.

    Attributes:
        replace: put a case whose files have changed in the place of the one in the store.
        split: shares of the subjects of each database.
        workers: who prepares the cases, and in how much memory.
    """

    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    reference: str = ""
    headers_disagree: str = "refuse"
    codec: str = "lz4"
    replace: bool = False
    split: Mapping[str, float] = field(default_factory=lambda: dict(DEFAULT_SPLIT))
    seed: int = 0
    workers: Workers = field(default_factory=Workers)


@dataclass(frozen=True)
class IngestReport:
    """What became of a database's cases: written now, already there, failed; and every finding.

    `described` are cases that were there already and whose person, site, split or patient's data are new.
    """

    database: str
    written: tuple[str, ...]
    skipped: tuple[str, ...]
    failed: tuple[str, ...]
    findings: tuple[Finding, ...]
    described: tuple[str, ...] = ()


def ingest(
    databases: Sequence[DatabaseFiles],
    url: str,
    options: IngestOptions | None = None,
    on_case: OnCase = lambda database, case, outcome: None,
) -> list[IngestReport]:
    """Bring databases into the store at `url`; cases that are in it already, from the same files, are skipped.

    A case that fails is reported and the others go on. A store or a database is made with its first good
    case, so wholly bad input leaves nothing behind. Workers prepare and pack cases; this process alone writes.

    Raises:
        UsageError: a database or a participants' column has a name that no folder can have.
        StoreError: the store has another voxel size, or a database another recipe or meaning of codes.
        ResourceError: the disk is full, or another process writes to the store.
    """
    options = options or IngestOptions()
    for files in databases:
        check_names(files)
    with locked(url):
        reports = [_Ingest(files, url, options, on_case).run() for files in databases]
        given = {(f.name, case.case): case.split for f in databases for case in f.cases if case.split}
        found = reconcile_duplicates(existing_root(url, "r+", options.spacing_mm), given)
    return [_with(report, found.get(report.database, ())) for report in reports]


def _with(report: IngestReport, findings: Sequence[Finding]) -> IngestReport:
    return replace(report, findings=(*report.findings, *findings))


def check_names(files: DatabaseFiles) -> None:
    """Whether a database and its participants' columns can be called so.

    Raises:
        UsageError: they cannot.
    """
    check_database_name(files.name)
    for column in sorted({column for case in files.cases for column in case.participant}):
        if column in schema.RESERVED or not is_plain_name(column):
            raise UsageError(
                f"database {files.name!r}: a participants' column cannot be called {column!r}: the store has "
                "something of that name, or a path cannot hold it. Rename the column."
            )


@dataclass(frozen=True)
class Held:
    """What the store has of a database before an ingest; by case, but `splits` by subject."""

    digests: Mapping[str, str]
    splits: Mapping[str, str]
    rows: Mapping[str, int]
    descriptions: Mapping[str, Mapping[str, str | float]]
    group: zarr.Group | None = None


def what_is_held(url: str, info: DatabaseInfo) -> Held:
    """What is in the store at `url` of a database.

    Raises:
        StoreError: it can take no cases that are prepared as `info` says.
    """
    root = existing_root(url, "r", info.recipe.spacing_mm)
    group = None if root is None else root.get(info.name)
    if not isinstance(group, zarr.Group):
        return Held({}, {}, {}, {})
    check_agreement(group.attrs.asdict(), info)
    if "label" not in group:  # the array that is made last
        return Held({}, {}, {}, {}, group)
    rows = np.flatnonzero(group["status"][:] == schema.COMMITTED)
    own = sorted({name for name, _ in members(group, "arrays")} - schema.RESERVED)
    described = ["subject", "session", "site", "split", *own]
    columns = {name: group[name][:][rows] for name in ("case", "source_sha256", *described)}
    cases = [str(case) for case in columns["case"]]
    return Held(
        digests=dict(zip(cases, map(str, columns["source_sha256"]), strict=True)),
        splits=dict(zip(map(str, columns["subject"]), map(str, columns["split"]), strict=True)),
        rows=dict(zip(cases, map(int, rows), strict=True)),
        descriptions={
            case: {name: columns[name][at] for name in described} for at, case in enumerate(cases)
        },
        group=group,
    )  # fmt: skip


@dataclass(frozen=True)
class _Task:
    """What a worker needs to prepare and pack one case; nothing of it is the store's."""

    case: CaseFiles
    files: DatabaseFiles
    recipe: Recipe
    plan: ArrayPlan


def _prepare_and_encode(task: _Task) -> tuple[EncodedCase, tuple[Finding, ...]]:
    prepared = prepare_case(task.case, task.files.schemas, task.recipe)
    name = task.case.case
    findings = tuple(
        Finding(Severity.WARNING, code, task.files.name, name, "", message) for code, message in prepared.doubts
    )
    return encode(name, prepared, task.plan), findings


class _Ingest:
    """One database on its way into the store."""

    def __init__(self, files: DatabaseFiles, url: str, options: IngestOptions, on_case: OnCase) -> None:
        self.files = files
        self.url = url
        self.options = options
        self.on_case = on_case
        self.recipe = recipe_of(files, options)
        self.info = info_of(files, self.recipe, options.codec)
        self.held = what_is_held(url, self.info)
        self.findings: dict[str, list[Finding]] = {"": []}
        self.outcomes: dict[str, list[str]] = {"written": [], "skipped": [], "failed": [], "described": []}
        self.writer: DatabaseWriter | None = None
        self.rows: dict[str, int] = {}

    def run(self) -> IngestReport:
        good = self._in_splits(self._good_cases())
        same = self._are_same(good)
        todo = [case for case in good if not self._skip(case, same.get(case.case))]
        plan = plan_arrays(self.held.group, self.info, in_canonical_order(m for c in good for m in c.images))
        tasks = [_Task(case, self.files, self.recipe, plan) for case in todo]
        for done in run_tasks(_prepare_and_encode, tasks, self.options.workers, _bytes_of):
            case = done.task.case
            if done.result is None:
                assert done.error is not None
                self._fail(case.case, done.error)
                continue
            encoded, doubts = done.result
            try:
                self._write(case, encoded, plan, todo)
            except DataError as error:
                self._fail(case.case, error)
                continue
            self.findings.setdefault(case.case, []).extend(doubts)
            self._outcome(case.case, "written")
        self._describe([case for case in good if case.case in self.outcomes["skipped"]])
        if self.writer is not None:
            self.writer.release_rows()
        return self._report()

    def _good_cases(self) -> list[CaseFiles]:
        """The cases that nothing is known against yet."""
        badly_named = bad_names(self.files)
        for finding in (*self.files.findings, *badly_named):
            self.findings.setdefault(finding.case, []).append(finding)
        errors = [f.case for f in self.files.findings if f.severity is Severity.ERROR and f.case]
        self.outcomes["failed"] = list(dict.fromkeys([*errors, *(finding.case for finding in badly_named)]))
        return [case for case in self.files.cases if case.case not in self.outcomes["failed"]]

    def _in_splits(self, cases: Sequence[CaseFiles]) -> list[CaseFiles]:
        """The cases with a split each: the given one, else the one their person has in the store, else a new one."""
        given = {case.person for case in cases if case.split}
        held = {subject: split for subject, split in self.held.splits.items() if subject not in given}
        splits = assign_splits(cases, self.options.split, self.options.seed, held)
        return [replace(case, split=splits[case.case]) for case in cases]

    def _are_same(self, cases: Sequence[CaseFiles]) -> dict[str, bool]:
        """Of the cases that the store has: whether it has them from the very same files."""
        held = [case for case in cases if case.case in self.held.digests]
        with ThreadPoolExecutor(self.options.workers.num) as pool:  # hashing leaves the interpreter to others
            same = pool.map(lambda case: _is_from(case, self.held.digests[case.case]), held)
            return {case.case: is_same for case, is_same in zip(held, same, strict=True)}

    def _skip(self, case: CaseFiles, is_same: bool | None) -> bool:
        """Whether a case is not to be prepared: it is there already, or there from other files."""
        if is_same:
            self._outcome(case.case, "skipped")
            return True
        if is_same is None or self.options.replace:
            return False
        message = (
            f"case {case.case!r} is in the store already, from other files. If these are the better ones, "
            "pass --replace; if it is another patient, give it another name."
        )
        self._fail(case.case, DataError(message, code="CASE_CHANGED"))
        return True

    def _write(self, case: CaseFiles, encoded: EncodedCase, plan: ArrayPlan, todo: Sequence[CaseFiles]) -> None:
        writer = self._open(plan)
        if not self.rows:
            with _writing(self.url):
                self.rows = writer.reserve([one.case for one in todo])
        writer.write(self.rows[case.case], case, encoded)

    def _describe(self, cases: Sequence[CaseFiles]) -> None:
        """What a table says anew of cases that are in the store."""
        for case in cases:
            if not _is_described(case, self.held.descriptions[case.case]):
                writer = self._open(plan_arrays(self.held.group, self.info, ()))
                try:
                    with _writing(self.url):
                        writer.describe(self.held.rows[case.case], case)
                    self.outcomes["described"].append(case.case)
                except DataError as error:
                    self.findings.setdefault(case.case, []).append(
                        Finding.from_error(error, self.files.name, case.case)
                    )

    def _open(self, plan: ArrayPlan) -> DatabaseWriter:
        """The database's writer; store and database are made with their first good case."""
        if self.writer is None:
            with _writing(self.url):
                self.writer = DatabaseWriter(open_or_create_root(self.url, self.options.spacing_mm), self.info, plan)
        return self.writer

    def _fail(self, case: str, error: DataError) -> None:
        self.findings.setdefault(case, []).append(Finding.from_error(error, self.files.name, case))
        self._outcome(case, "failed")

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
        return IngestReport(
            self.files.name, named["written"], named["skipped"], named["failed"], tuple(findings), named["described"]
        )


@contextmanager
def _writing(url: str) -> Iterator[None]:
    try:
        yield
    except ResourceError:
        raise
    except OSError as error:
        raise ResourceError(f"{url} cannot be written: {error}. Make room, or check its permissions.") from error


def recipe_of(files: DatabaseFiles, options: IngestOptions) -> Recipe:
    """How the cases of a database are prepared.

    Raises:
        UsageError: the reference sequence is none that a case has.
    """
    if options.reference and files.cases and not any(options.reference in case.images for case in files.cases):
        raise UsageError(f"no case of {files.name!r} has the reference sequence {options.reference!r}.")
    return Recipe(options.spacing_mm, options.reference, files.brain_mask, options.headers_disagree)


def info_of(files: DatabaseFiles, recipe: Recipe, codec: str) -> DatabaseInfo:
    """What is said once for a whole database."""
    return DatabaseInfo(
        files.name, files.pathology, recipe, files.schemas, codec, files.licence, files.citation, files.source
    )


def bad_names(files: DatabaseFiles) -> list[Finding]:
    """Cases whose names two share, or no path could hold."""
    count = Counter(case.case for case in files.cases)
    says = {name: "is the name of two cases. Give each its own." for name in count if count[name] > 1}
    says |= {
        name: "is no name for a case: no slash, no control character, no dot or space at its ends, and not nothing."
        for name in count if not is_plain_name(name)
    }  # fmt: skip
    return [
        Finding(Severity.ERROR, "BAD_NAME", files.name, name, "", f"{name!r} {what} Rename its files.")
        for name, what in says.items()
    ]


def _is_from(case: CaseFiles, digest: str) -> bool:
    """Whether a case's files are those of this digest. A missing file is no match."""
    try:
        return digest_of_roles({role: sha256_of(file) for role, file in case.by_role.items()}) == digest
    except OSError:
        return False


def _is_described(case: CaseFiles, held: Mapping[str, str | float]) -> bool:
    """Whether the store says of a case what its source says; what the source has no word on may stay."""
    said: dict[str, str | float] = {
        "subject": case.person, "session": case.session, "site": case.site, "split": case.split, **case.participant
    }  # fmt: skip
    told = {name: value for name, value in said.items() if value == value and value != ""}
    return all(held.get(name) == value for name, value in told.items())


def _bytes_of(task: _Task) -> int:
    return 0 * len(task.case.images)
