"""From source files into the store, case by case: resumable, and nothing half visible."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import zarr

from multiseg.errors import DataError, ResourceError, UsageError
from multiseg.modalities import in_canonical_order
from multiseg.store import schema
from multiseg.store.cases import CaseFiles, sha256_of
from multiseg.store.catalogue import assign_splits
from multiseg.store.findings import Finding, Severity
from multiseg.store.hierarchy import check_database_name, is_plain_name
from multiseg.store.prepare import PreparedCase, Recipe, prepare_case
from multiseg.store.root import DatabaseInfo, check_agreement, existing_root, locked, open_or_create_root
from multiseg.store.sources.model import DatabaseFiles
from multiseg.store.writer import DatabaseWriter

DEFAULT_SPLIT = {"train": 0.7, "val": 0.1, "test": 0.2}


@dataclass(frozen=True)
class IngestOptions:
    """How to ingest; `Recipe` says what the first four mean for a case.

    Attributes:
        replace: put a case whose files have changed in the place of the one in the store.
        split: shares of the subjects of each database.
    """

    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    reference: str = ""
    headers_disagree: str = "refuse"
    codec: str = "lz4"
    replace: bool = False
    split: Mapping[str, float] = field(default_factory=lambda: dict(DEFAULT_SPLIT))
    seed: int = 0


@dataclass(frozen=True)
class IngestReport:
    """What became of a database's cases: written now, already there, failed; and every finding."""

    database: str
    written: tuple[str, ...]
    skipped: tuple[str, ...]
    failed: tuple[str, ...]
    findings: tuple[Finding, ...]


def ingest(
    databases: Sequence[DatabaseFiles],
    url: str,
    options: IngestOptions | None = None,
    on_case: Callable[[str, str, str], None] = lambda database, case, outcome: None,
) -> list[IngestReport]:
    """Bring databases into the store at `url`; cases that are in it already, from the same files, are skipped.

    A case that fails is reported and the others go on. A store or a database is made with its first good
    case, so wholly bad input leaves nothing behind.

    Args:
        on_case: called with database, case and "written", "skipped" or "failed" as each is done.

    Raises:
        UsageError: a database or a participants' column has a name that no folder can have.
        StoreError: the store has another voxel size, or a database another recipe or meaning of codes.
        ResourceError: the disk is full, or another process writes to the store.
    """
    for files in databases:
        _check_names(files)
    with locked(url):
        return [_ingest_database(files, url, options or IngestOptions(), on_case) for files in databases]


def _check_names(files: DatabaseFiles) -> None:
    check_database_name(files.name)
    for column in sorted({column for case in files.cases for column in case.participant}):
        if column in schema.RESERVED or not is_plain_name(column):
            raise UsageError(
                f"database {files.name!r}: a participants' column cannot be called {column!r}: the store has "
                "something of that name, or a path cannot hold it. Rename the column."
            )


def source_digest(hashes: Mapping[str, str]) -> str:
    """One digest over the sha256 of every file by its role."""
    lines = "".join(f"{role}:{sha256}\n" for role, sha256 in sorted(hashes.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def _digest_of_files(files: CaseFiles) -> str:
    return source_digest({role: sha256_of(file) for role, file in files.by_role.items()})


def _digest_of_prepared(prepared: PreparedCase) -> str:
    return source_digest({source["role"]: source["sha256"] for source in prepared.sources})


@dataclass(frozen=True)
class _Held:
    """What the store has of a database before this ingest."""

    digests: Mapping[str, str]
    splits: Mapping[str, str]


def _held(url: str, info: DatabaseInfo) -> _Held:
    root = existing_root(url, "r", info.recipe.spacing_mm)
    group = None if root is None else root.get(info.name)
    if not isinstance(group, zarr.Group):
        return _Held({}, {})
    check_agreement(group.attrs.asdict(), info)
    if "label" not in group:  # the array that is made last
        return _Held({}, {})
    committed = group["status"][:] == schema.COMMITTED
    rows = np.flatnonzero(committed)
    cases, digests, subjects, splits = (
        [str(text) for text in group[name][:][rows]] for name in ("case", "source_sha256", "subject", "split")
    )
    return _Held(dict(zip(cases, digests, strict=True)), dict(zip(subjects, splits, strict=True)))


def _ingest_database(
    files: DatabaseFiles, url: str, options: IngestOptions, on_case: Callable[[str, str, str], None]
) -> IngestReport:
    recipe = Recipe(options.spacing_mm, options.reference, files.brain_mask, options.headers_disagree)
    info = DatabaseInfo(
        files.name, files.pathology, recipe, files.schemas, options.codec, files.licence, files.citation, files.source
    )
    if options.reference and files.cases and not any(options.reference in case.images for case in files.cases):
        raise UsageError(f"no case of {files.name!r} has the reference sequence {options.reference!r}.")
    held = _held(url, info)
    badly_named = _bad_names(files)
    findings = [*files.findings, *badly_named]
    errors = [f.case for f in files.findings if f.severity is Severity.ERROR and f.case]
    failed = list(dict.fromkeys([*errors, *(f.case for f in badly_named)]))
    good = [case for case in files.cases if case.case not in failed]
    splits = assign_splits(good, options.split, options.seed, held.splits)
    skipped = [case.case for case in good if _is_there(case, held.digests.get(case.case))]
    for name in skipped:
        on_case(files.name, name, "skipped")
    todo = [case for case in good if case.case not in skipped]
    written: list[str] = []
    opened: tuple[DatabaseWriter, dict[str, int]] | None = None
    for case in todo:
        try:
            prepared = _prepare(case, files, recipe, held, options)
            opened = opened or _open_writer(url, info, todo, options)
            writer, rows = opened
            placed = replace(case, split=splits[case.case])
            writer.write(rows[case.case], placed, prepared, _digest_of_prepared(prepared))
        except DataError as error:
            findings.append(Finding.from_error(error, files.name, case.case))
            failed.append(case.case)
            on_case(files.name, case.case, "failed")
            continue
        findings += [Finding(Severity.WARNING, c, files.name, case.case, "", m) for c, m in prepared.doubts]
        written.append(case.case)
        on_case(files.name, case.case, "written")
    if opened is not None:
        opened[0].release_rows()
    return IngestReport(files.name, tuple(written), tuple(skipped), tuple(failed), tuple(findings))


def _bad_names(files: DatabaseFiles) -> list[Finding]:
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


def _is_there(case: CaseFiles, held_digest: str | None) -> bool:
    """Whether the store holds this case from the very same files. A missing file is no match."""
    if held_digest is None:
        return False
    try:
        return _digest_of_files(case) == held_digest
    except OSError:
        return False


def _prepare(
    case: CaseFiles, files: DatabaseFiles, recipe: Recipe, held: _Held, options: IngestOptions
) -> PreparedCase:
    prepared = prepare_case(case, files.schemas, recipe)
    if case.case in held.digests and not options.replace:
        raise DataError(
            f"case {case.case!r} is in the store already, from other files. If these are the better ones, "
            "pass --replace; if it is another patient, give it another name.",
            code="CASE_CHANGED",
        )
    return prepared


def _open_writer(
    url: str, info: DatabaseInfo, cases: Sequence[CaseFiles], options: IngestOptions
) -> tuple[DatabaseWriter, dict[str, int]]:
    """The database's writer, and a row for each of the cases."""
    try:
        root = open_or_create_root(url, options.spacing_mm)
        writer = DatabaseWriter(root, info, in_canonical_order(name for case in cases for name in case.images))
        return writer, writer.reserve([case.case for case in cases])
    except OSError as error:
        raise ResourceError(f"{url} cannot be written: {error}. Make room, or check its permissions.") from error
