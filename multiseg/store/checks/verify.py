"""Checking a whole store: every chunk decoded, every number held against what it is about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
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
    open_root,
    zarr_store,
)

OnCase = Callable[[int, int, str], None]
"""Called with how many cases are checked, how many there are, and "DATABASE/CASE"."""


def verify_store(url: str, on_case: OnCase = lambda done, total, case: None, workers: int = 1) -> list[Finding]:
    """Everything that is wrong with a store. Nothing is written, and a damaged store is no error.

    All chunks of all arrays are decoded, which compares their checksums; a case at a time for each worker.
    docs/verify.md explains the codes of the findings.

    Raises:
        StoreError: there is no store at `url`, or one that has to be converted first.
        ResourceError: it cannot be read or reached.
    """
    faults = Faults()
    root = _root(url, faults)
    names, grid_mm = _databases(root, faults) if root is not None else ([], None)
    layouts = []
    for name in sorted({*names, *_groups(url, root)}):
        layout = _layout(url, name, name in names or root is None, grid_mm, faults)
        if layout is not None:
            layouts.append(layout)
    _check_left_over(url, faults)
    return faults.found + verify_rows(layouts, on_case, workers)


def verify_rows(layouts: Sequence[Layout], on_case: OnCase, workers: int) -> list[Finding]:
    """What is wrong with the rows of databases, each alone and all together."""
    faults = Faults()
    for layout in layouts:
        _check_rows(layout, faults)
    _check_scans(layouts, faults)
    tasks = [(layout, row) for layout in layouts for row in range(len(layout.status))]
    with ThreadPoolExecutor(workers) as pool:
        for done, ((layout, row), found) in enumerate(zip(tasks, pool.map(_checked, tasks), strict=True), start=1):
            faults.found.extend(found)
            on_case(done, len(tasks), f"{layout.name}/{layout.case(row)}")
    return faults.found


def _checked(task: tuple[Layout, int]) -> list[Finding]:
    layout, row = task
    faults = Faults(layout.name, layout.case(row))
    if layout.status[row] == schema.COMMITTED:
        verify_case(layout, row, faults)
    else:
        verify_row(layout, row, faults)
    return faults.found


def _root(url: str, faults: Faults) -> zarr.Group | None:
    """The root group; None, and noted, where its own metadata are damaged."""
    try:
        return open_root(url, "r")
    except StoreError as error:
        if error.code == OLD_FORMAT or (error.code == NO_STORE and (is_remote(url) or not is_like_a_store(url))):
            raise
        faults.error("BAD_ROOT", "zarr.json", str(error))
    except UNREADABLE as error:
        faults.error("BAD_ROOT", "zarr.json", f"the root of the store cannot be read: {one_line(error)}. {REPAIR}")
    return None


def _databases(root: zarr.Group, faults: Faults) -> tuple[list[str], list[float] | None]:
    """The names of the databases and the voxel size, as the root says."""
    try:
        names, grid_mm = check_head(str(root.store), root.attrs[ROOT_KEY])
    except StoreError as error:
        faults.error("BAD_ROOT", "zarr.json", str(error))
        return [], None
    return list(names), list(grid_mm)


def _groups(url: str, root: zarr.Group | None) -> list[str]:
    """The folders in a store, also those that the root does not name."""
    if root is not None:
        return [name for name in listed(root) if is_remote(url) or (local_path(url) / name).is_dir()]
    return [] if is_remote(url) else sorted(path.parent.name for path in local_path(url).glob("*/zarr.json"))


def _layout(url: str, name: str, is_named: bool, grid_mm: Sequence[float] | None, faults: Faults) -> Layout | None:
    noted = Faults(name)
    try:
        group = zarr.open_group(
            zarr_store(url, read_only=True), path=name, mode="r", zarr_format=3, use_consolidated=False
        )
        if not is_named and {"image", "label", "status"} - set(listed(group)):
            said = "a writer died before the database was whole; no case of it is in the store"
            noted.note("WRITER_DIED", name, f"{said}. Ingest it again, or take the folder away.")
            return None
        if not is_named:
            said = "the root does not name the database, so nobody sees its cases"
            noted.warning("NOT_NAMED", f"{name}/zarr.json", f"{said}. {REPAIR}")
        layout = read_layout(group, name, grid_mm, noted)
        verify_copy(layout, group, noted)
        return layout
    except UNREADABLE as error:
        if is_named:
            said = f"the database cannot be opened: {one_line(error)}"
            noted.error("BAD_METADATA", f"{name}/zarr.json", f"{said}. {REPAIR}")
        else:
            noted.note("UNKNOWN_FOLDER", name, "this folder is none of the store's. Take it away if you can tell.")
        return None
    finally:
        faults.found.extend(noted.found)


def _check_rows(layout: Layout, faults: Faults) -> None:
    """What only shows when the cases of a database are seen together."""
    noted = Faults(layout.name)
    committed, pending = layout.rows(schema.COMMITTED), layout.rows(schema.PENDING)
    unknown = sorted({int(state) for state in layout.status} - {schema.PENDING, schema.COMMITTED, schema.SUPERSEDED})
    if unknown:
        noted.error(
            "BAD_STATUS", f"{layout.name}/status", f"rows have the states {unknown}, which there are not. {REPAIR}"
        )
    count = Counter(layout.case(row) for row in committed)
    for name in sorted(name for name, n in count.items() if n > 1):
        noted.error("DUPLICATE_CASE", f"{layout.name}/case", f"{name!r} is the name of {count[name]} cases. {REPAIR}")
    _check_people(layout, committed, noted)
    digests = layout.columns.get("source_sha256")
    whole = [row for row in pending if digests is not None and row < len(digests) and str(digests[row])]
    if len(whole) > 1:
        said = f"{len(whole)} rows are written in full but not committed, as if the states of the rows had been lost"
        noted.error("STATUS_LOST", f"{layout.name}/status", f"{said}. {REPAIR}")
    reserved = [layout.case(row) for row in pending if layout.case(row)]  # a row without a name is free
    if reserved and len(whole) <= 1:
        said = f"{len(reserved)} rows are reserved and not committed ({', '.join(reserved[:5])})"
        noted.note("PENDING_ROWS", f"{layout.name}/status", f"{said}: a writer died, or is at work. Ingest again.")
    faults.found.extend(noted.found)


def _check_people(layout: Layout, rows: Sequence[int], noted: Faults) -> None:
    subjects, splits = layout.columns.get("subject"), layout.columns.get("split")
    if subjects is None or splits is None:
        return
    people: dict[str, dict[str, list[str]]] = {}
    for row in rows:
        if row < min(len(subjects), len(splits)):
            people.setdefault(str(subjects[row]), {}).setdefault(str(splits[row]), []).append(layout.case(row))
    for subject, by_split in people.items():
        if len(by_split) > 1 and subject:
            said = "; ".join(f"{', '.join(cases)} in {split!r}" for split, cases in sorted(by_split.items()))
            noted.error(
                "SUBJECT_IN_TWO_SPLITS", f"{layout.name}/split",
                f"the subject {subject!r} stands in two splits: {said}. Keep one person in one split: --split.",
            )  # fmt: skip


def _check_scans(layouts: Sequence[Layout], faults: Faults) -> None:
    """The same scan in two splits, wherever in the store."""
    holders: dict[str, dict[str, tuple[str, str]]] = {}
    for layout in layouts:
        content, splits = layout.columns.get("content"), layout.columns.get("split")
        if content is None or splits is None:
            continue
        for row in layout.rows(schema.COMMITTED):
            for digest in content[row] if row < min(len(content), len(splits)) else ():
                if str(digest):
                    place = holders.setdefault(str(digest), {})
                    place.setdefault(str(splits[row]), (layout.name, layout.case(row)))
    for by_split in {tuple(sorted(places.items())) for places in holders.values() if len(places) > 1}:
        said = ", ".join(f"{database}/{case} in {split!r}" for split, (database, case) in by_split)
        _, (database, case) = by_split[0]
        Faults(database, case, faults.found).error(
            "SCAN_IN_TWO_SPLITS",
            f"{database}/split",
            f"the same scan stands in two splits: {said}. Keep it in one: --split.",
        )


def _check_left_over(url: str, faults: Faults) -> None:
    for path in () if is_remote(url) else _partial(url):
        said = "a file that a writer had not finished. The next ingest takes it away"
        faults.note("LEFT_OVER", path, f"{said}.")


def _partial(url: str) -> Iterator[str]:
    for path in sorted(Path(file.path) for file in files_below(local_path(url)) if file.name.endswith(".partial")):
        yield str(path.relative_to(local_path(url)))
