"""Dry runs: what an ingest would do, find and need. No store is changed."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from multiseg.errors import DataError
from multiseg.labels import LabelSchema
from multiseg.store.cases import CaseFiles
from multiseg.store.findings import Finding, Severity
from multiseg.store.ingest.case_reports import CaseReport, Volumes, case_reports, volumes_of
from multiseg.store.ingest.encoding import encode
from multiseg.store.ingest.estimate import Estimate, estimate
from multiseg.store.ingest.ingest_plan import (
    IngestOptions,
    Intake,
    bad_names,
    check_names,
    info_of,
    renamed_options,
    sort_out,
    with_landmarks,
)
from multiseg.store.ingest.parallel import run_tasks
from multiseg.store.ingest.pseudonyms import with_pseudonyms
from multiseg.store.preparation.landmarks import learn_landmarks
from multiseg.store.preparation.prepare import prepare_case
from multiseg.store.preparation.recipe import Recipe
from multiseg.store.sources.source_types import DatabaseFiles

FEW_CASES = 3
"""Cases from which a dry run learns the standard intensity scale, which it then discards."""


@dataclass(frozen=True)
class Forecast:
    """What an ingest would do with the cases of one database, and what it would need.

    Attributes:
        new, same, failed: the names of these cases.
        splits: the number of new cases by split.
        seconds, stored_bytes: measured on one prepared case and scaled by voxels; 0 if no case is new.
        memory_bytes: what the largest case needs.
        cases: only the one that was prepared has volumes.
    """

    database: str
    new: tuple[str, ...]
    same: tuple[str, ...]
    failed: tuple[str, ...]
    splits: Mapping[str, int]
    seconds: float
    stored_bytes: int
    memory_bytes: int
    findings: tuple[Finding, ...]
    cases: tuple[CaseReport, ...] = ()


def forecast(
    files: DatabaseFiles,
    url: str,
    options: IngestOptions,
    elsewhere: Collection[str] = (),
    on_case: Callable[[str], None] = lambda case: None,
) -> Forecast:
    """Forecast an ingest: read the names and headers of all files, and prepare one case of median size.

    Args:
        elsewhere: cases and people of other databases, which a split file may name as well.
        on_case: called once for each case, as its headers are read or nothing has to be read.

    Raises:
        UsageError, StoreError: as `ingest.ingest`.
    """
    if options.pseudonyms:
        renamed = with_pseudonyms([files], options.pseudonyms, url, is_kept=False)
        (files,), options = renamed.databases, renamed_options(options, renamed)
        elsewhere = {renamed.name(name) for name in elsewhere}
    check_names(files)
    intake = with_landmarks(sort_out(files, url, options, elsewhere), url, FEW_CASES)
    to_read = {case.case for case in intake.todo}
    for case in files.cases:
        if case.case not in to_read:
            on_case(f"{files.name}/{case.case}")
    sizes, failures = _sizes(files.name, intake, on_case)
    findings = [finding for group in intake.findings.values() for finding in group] + failures
    seconds, stored, volumes = 0.0, 0, {}
    if sizes:
        median_case = sorted(sizes, key=lambda case: sizes[case].voxels)[len(sizes) // 2]
        case = next(case for case in intake.todo if case.case == median_case)
        scale = sum(size.voxels for size in sizes.values()) / max(1, sizes[median_case].voxels)
        try:
            began = time.perf_counter()
            prepared = prepare_case(case, files.schemas, intake.info.recipe)
            shards = encode(median_case, prepared, intake.arrays).shards
            volumes[median_case] = volumes_of(prepared, files.schemas)
            stored = round(sum(map(len, shards.values())) * scale)
            seconds = (time.perf_counter() - began) * scale / min(options.workers.num, len(sizes))
        except DataError as error:
            failures.append(Finding.from_error(error, files.name, median_case))
            findings.append(failures[-1])
    bad = {finding.case for finding in failures}
    outcomes = {case.case: "failed" if case.case in bad else "new" for case in intake.todo}
    outcomes |= {case.case: "skipped" for case in intake.same} | dict.fromkeys(intake.failed, "failed")
    return Forecast(
        database=files.name,
        new=tuple(case.case for case in intake.todo if case.case not in bad),
        same=tuple(case.case for case in intake.same),
        failed=(*intake.failed, *sorted(bad)),
        splits=Counter(case.split for case in intake.todo if case.case not in bad),
        seconds=seconds,
        stored_bytes=stored,
        memory_bytes=max((size.memory_bytes for size in sizes.values()), default=0),
        findings=tuple(findings),
        cases=case_reports(files, outcomes, volumes, findings),
    )


def _sizes(database: str, intake: Intake, on_case: Callable[[str], None]) -> tuple[dict[str, Estimate], list[Finding]]:
    """The estimate of each case from its headers, and an error for each case that has none."""
    sizes, failures = {}, []
    for case in intake.todo:
        on_case(f"{database}/{case.case}")
        try:
            sizes[case.case] = estimate(case, intake.info.recipe)
        except DataError as error:
            failures.append(Finding.from_error(error, database, case.case))
    return sizes, failures


@dataclass(frozen=True)
class SourceCheck:
    """The findings of an ingest of a database, and the role of each file."""

    findings: tuple[Finding, ...]
    cases: tuple[CaseReport, ...]


@dataclass(frozen=True)
class _Check:
    database: str
    case: CaseFiles
    schemas: Mapping[str, LabelSchema]
    recipe: Recipe


def check_source(
    files: DatabaseFiles,
    options: IngestOptions,
    on_case: Callable[[str, str, str], None] = lambda database, case, outcome: None,
) -> SourceCheck:
    """Find everything that an ingest would: read and prepare all cases in full, and discard the results."""
    check_names(files)
    recipe = info_of(files, options).recipe
    if recipe.normalise == "histogram":
        recipe = replace(recipe, landmarks=learn_landmarks(files.cases[:FEW_CASES], recipe))
    findings = [*files.findings, *bad_names(files)]
    tasks = [_Check(files.name, case, files.schemas, recipe) for case in files.cases]
    cases_of_digest: dict[str, list[str]] = {}
    outcomes = {finding.case: "failed" for finding in findings if finding.case and finding.severity is Severity.ERROR}
    volumes: dict[str, Volumes] = {}
    for done in run_tasks(_check, tasks, options.workers, lambda task: estimate(task.case, task.recipe).memory_bytes):
        case = done.task.case.case
        if done.error is not None:
            findings.append(Finding.from_error(done.error, files.name, case))
        if done.result is not None:
            doubts, digests, volumes[case] = done.result
            findings += doubts
            for digest in digests:
                cases_of_digest.setdefault(digest, []).append(case)
        outcomes.setdefault(case, "failed" if done.error else "checked")
        on_case(files.name, case, outcomes[case])
    order = {case.case: index for index, case in enumerate(files.cases)}
    findings += _shared_scans(files.name, cases_of_digest)
    sorted_findings = sorted(findings, key=lambda finding: order.get(finding.case, -1))
    return SourceCheck(tuple(sorted_findings), case_reports(files, outcomes, volumes, sorted_findings))


def _check(task: _Check) -> tuple[list[Finding], tuple[str, ...], Volumes]:
    prepared = prepare_case(task.case, task.schemas, task.recipe)
    doubts = [Finding.from_doubt(doubt, task.database, task.case.case) for doubt in prepared.doubts]
    return doubts, prepared.content, volumes_of(prepared, task.schemas)


def _shared_scans(database: str, cases_of_digest: Mapping[str, Sequence[str]]) -> list[Finding]:
    findings = []
    for first, *others in sorted({tuple(sorted(set(cases))) for cases in cases_of_digest.values()}):
        text = f"has a scan with the same voxels as one of {first}."
        findings += [Finding(Severity.WARNING, "DUPLICATE_SCAN", database, case, "", text) for case in others]
    return findings
