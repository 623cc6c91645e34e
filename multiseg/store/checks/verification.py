"""Checking a whole store: every chunk is decoded, and all metadata are compared with the data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import zarr

from multiseg.errors import StoreError
from multiseg.files import files_below
from multiseg.store import schema
from multiseg.store.checks.case import verify_case, verify_row
from multiseg.store.checks.fault_collector import REPAIR, Faults
from multiseg.store.checks.layout import Layout, listed, read_layout
from multiseg.store.checks.record_checks import verify_copy
from multiseg.store.damage import UNREADABLE, one_line
from multiseg.store.findings import Finding
from multiseg.store.hierarchy import (
    NO_STORE,
    OLD_FORMAT,
    ROOT_KEY,
    check_head,
    is_like_a_store,
    is_remote,
    local_path,
    open_group,
    open_root,
    zarr_store,
)
from multiseg.types import OnStep, no_progress


def verify_store(url: str, on_case: OnStep = no_progress, workers: int = 1) -> list[Finding]:
    """Find everything that is wrong with a store. Nothing is written, and a damaged store does not raise an error.

    All chunks of all arrays are decoded, which checks their checksums. Each worker handles one case at a time.
    docs/verify.md explains the codes of the findings.

    Raises:
        StoreError: there is no store at `url`, or it must be converted first.
        ResourceError: it cannot be read or reached.
    """
    faults = Faults()
    root = _open_root(url, faults)
    names, grid_mm = _databases(root, faults) if root is not None else ([], None)
    layouts = []
    for name in sorted({*names, *_folder_names(url, root)}):
        layout = _check_layout(url, name, name in names or root is None, grid_mm, faults)
        if layout is not None:
            layouts.append(layout)
    _report_partial_files(url, faults)
    return faults.found + verify_rows(layouts, on_case, workers)


def verify_rows(layouts: Sequence[Layout], on_case: OnStep, workers: int) -> list[Finding]:
    """The findings on the rows of databases, each by itself and all together."""
    faults = Faults()
    for layout in layouts:
        _check_rows(layout, faults)
    _check_scans(layouts, faults)
    tasks = [(layout, row) for layout in layouts for row in range(len(layout.status))]
    with ThreadPoolExecutor(workers) as pool:
        for done, ((layout, row), findings) in enumerate(zip(tasks, pool.map(_check_row, tasks), strict=True), start=1):
            faults.found.extend(findings)
            on_case(done, len(tasks), f"{layout.name}/{layout.case(row)}")
    return faults.found


def _check_row(task: tuple[Layout, int]) -> list[Finding]:
    layout, row = task
    faults = Faults(layout.name, layout.case(row))
    if layout.status[row] == schema.COMMITTED:
        verify_case(layout, row, faults)
    else:
        verify_row(layout, row, faults)
    return faults.found


def _open_root(url: str, faults: Faults) -> zarr.Group | None:
    """The root group; if its metadata are damaged, None, and the fault is reported."""
    try:
        return open_root(url, "r")
    except StoreError as error:
        if error.code == OLD_FORMAT or (error.code == NO_STORE and (is_remote(url) or not is_like_a_store(url))):
            raise
        faults.error("BAD_ROOT", "zarr.json", str(error))
    except UNREADABLE as error:
        faults.damage("BAD_ROOT", "zarr.json", f"cannot read the root of the store: {one_line(error)}")
    return None


def _databases(root: zarr.Group, faults: Faults) -> tuple[list[str], list[float] | None]:
    """The names of the databases and the voxel size, from the root."""
    try:
        names, grid_mm = check_head(str(root.store), root.attrs[ROOT_KEY])
    except StoreError as error:
        faults.error("BAD_ROOT", "zarr.json", str(error))
        return [], None
    return list(names), list(grid_mm)


def _folder_names(url: str, root: zarr.Group | None) -> list[str]:
    """The folders in a store, including those that the root does not name."""
    if root is not None:
        return [name for name in listed(root) if is_remote(url) or (local_path(url) / name).is_dir()]
    return [] if is_remote(url) else sorted(path.parent.name for path in local_path(url).glob("*/zarr.json"))


def _check_layout(
    url: str, name: str, is_named: bool, grid_mm: Sequence[float] | None, faults: Faults
) -> Layout | None:
    database_faults = Faults(name, found=faults.found)
    try:
        group = open_group(zarr_store(url, read_only=True), name)
        if not is_named and {"image", "label", "status"} - set(listed(group)):
            problem = "a writer died before the database was complete; the store has no case of it"
            database_faults.note("WRITER_DIED", name, f"{problem}. Ingest it again, or delete the folder.")
            return None
        if not is_named:
            problem = "the root does not name the database, so that its cases are invisible"
            database_faults.warning("NOT_NAMED", f"{name}/zarr.json", f"{problem}. {REPAIR}")
        layout = read_layout(group, name, grid_mm, database_faults)
        verify_copy(layout, group, database_faults)
        return layout
    except UNREADABLE as error:
        if is_named:
            problem = f"the database cannot be opened: {one_line(error)}"
            database_faults.damage("BAD_METADATA", f"{name}/zarr.json", problem)
        else:
            problem = "this folder does not belong to the store. Move it away if you do not need it here."
            database_faults.note("UNKNOWN_FOLDER", name, problem)
        return None


def _check_rows(layout: Layout, faults: Faults) -> None:
    """Check what involves several rows of a database."""
    database_faults = Faults(layout.name, found=faults.found)
    committed, pending = layout.rows(schema.COMMITTED), layout.rows(schema.PENDING)
    unknown = sorted({int(state) for state in layout.status} - {schema.PENDING, schema.COMMITTED, schema.SUPERSEDED})
    if unknown:
        database_faults.damage("BAD_STATUS", f"{layout.name}/status", f"rows have the unknown states {unknown}")
    count = Counter(layout.case(row) for row in committed)
    for name in sorted(name for name, n in count.items() if n > 1):
        problem = f"{name!r} is the name of {count[name]} cases"
        database_faults.damage("DUPLICATE_CASE", f"{layout.name}/case", problem)
    _check_people(layout, committed, database_faults)
    digests = layout.columns.get("source_sha256")
    complete = [row for row in pending if digests is not None and row < len(digests) and str(digests[row])]
    if len(complete) > 1:
        problem = f"{len(complete)} rows are complete but not committed, as if the states of the rows had been lost"
        database_faults.damage("STATUS_LOST", f"{layout.name}/status", problem)
    reserved = [layout.case(row) for row in pending if layout.case(row)]  # a row without a name is free
    if reserved and len(complete) <= 1:
        problem = f"{len(reserved)} rows are reserved and not committed ({', '.join(reserved[:5])}): a writer died"
        database_faults.note("PENDING_ROWS", f"{layout.name}/status", f"{problem}, or is at work. Ingest again.")


def _check_people(layout: Layout, rows: Sequence[int], faults: Faults) -> None:
    subjects, splits = layout.columns.get("subject"), layout.columns.get("split")
    if subjects is None or splits is None:
        return
    people: dict[str, dict[str, list[str]]] = {}
    for row in rows:
        if row < min(len(subjects), len(splits)):
            people.setdefault(str(subjects[row]), {}).setdefault(str(splits[row]), []).append(layout.case(row))
    for subject, by_split in people.items():
        if len(by_split) > 1 and subject:
            cases_by_split = "; ".join(f"{', '.join(cases)} in {split!r}" for split, cases in sorted(by_split.items()))
            problem = f"the subject {subject!r} is in two splits: {cases_by_split}"
            to_do = "Put each person in one split: --split."
            faults.damage("SUBJECT_IN_TWO_SPLITS", f"{layout.name}/split", problem, to_do)


def _check_scans(layouts: Sequence[Layout], faults: Faults) -> None:
    """Report a scan that is in two splits, anywhere in the store."""
    cases_of: dict[str, dict[str, tuple[str, str]]] = {}
    for layout in layouts:
        content, splits = layout.columns.get("content"), layout.columns.get("split")
        if content is None or splits is None:
            continue
        for row in layout.rows(schema.COMMITTED):
            for digest in content[row] if row < min(len(content), len(splits)) else ():
                if str(digest):
                    by_split = cases_of.setdefault(str(digest), {})
                    by_split.setdefault(str(splits[row]), (layout.name, layout.case(row)))
    for shared in {tuple(sorted(by_split.items())) for by_split in cases_of.values() if len(by_split) > 1}:
        cases_by_split = ", ".join(f"{database}/{case} in {split!r}" for split, (database, case) in shared)
        _, (database, case) = shared[0]
        problem, to_do = f"the same scan is in two splits: {cases_by_split}", "Put both cases in one split: --split."
        Faults(database, case, faults.found).damage("SCAN_IN_TWO_SPLITS", f"{database}/split", problem, to_do)


def _report_partial_files(url: str, faults: Faults) -> None:
    files = () if is_remote(url) else files_below(local_path(url))
    for path in sorted(Path(file.path) for file in files if file.name.endswith(".partial")):
        name = str(path.relative_to(local_path(url)))
        faults.note("LEFT_OVER", name, "a file that a writer did not finish. The next ingest deletes it.")
