"""Which masks of a folder somebody has corrected: those that `predict` wrote, or those of `info --write`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from multiseg.errors import DataError, StoreError, UsageError
from multiseg.evaluation.cohort_records import RECORDS, RUN, CaseRecord, CohortFolder
from multiseg.files import files_below
from multiseg.labels import CORRECTED, LabelSchema, Structure
from multiseg.store.findings import Finding, Severity
from multiseg.store.ingest.corrections import Correction, CorrectionReport
from multiseg.store.native import is_as_written
from multiseg.store.reader import Database, Store, open_store

IMAGES = (".nii", ".nii.gz", ".nrrd", ".mha", ".mgz")
WRITTEN = "label-"
"""The beginning of the names of labels that `info --write` writes."""


def find_corrections(
    folder: Path, url: str, database: str = "", case: str = ""
) -> tuple[list[Correction], CorrectionReport]:
    """The masks of a folder that may have been corrected, and a report with what is known of the others.

    Args:
        folder: written by `predict`; or with labels of `info --write`: of one case, or in DATABASE/CASE below.
        database: the database of the store that the cases are in, if it has another name in the folder.
        case: as DATABASE/CASE, whose labels are in the folder itself.

    Raises:
        UsageError: the folder is none of these, or a flag does not fit to it.
        StoreError: there is no store, or it has no such case.
    """
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}. Name the folder that predict or info --write wrote.")
    store = open_store(url)
    if (folder / RECORDS / RUN).is_file():
        if case:
            raise UsageError(f"{folder} was written by predict, which names its cases: leave out --case.")
        return _of_predictions(CohortFolder(folder), store, database)
    if database:
        raise UsageError("--database is for a folder that predict wrote: here --case names the case.")
    return _of_written_labels(folder, store, case)


def _of_predictions(folder: CohortFolder, store: Store, database: str) -> tuple[list[Correction], CorrectionReport]:
    found, report, known = [], CorrectionReport(), set[str]()
    names = sorted({record.database for _, record in folder.all_records()})
    if database and len(names) > 1:
        raise UsageError(
            f"{folder.root} has cases of {', '.join(names)}, which --database would put into one: leave it out."
        )
    for name, record in folder.all_records():
        known |= set(record.outputs)
        if record.state != "done":
            continue
        target = database or record.database
        file = next(iter(record.outputs))
        digest = folder.digests([folder.root / file])[file]
        try:
            if not digest:
                message = f"{folder.root / file} is gone. Put it back, or run predict again to write it."
                raise DataError(message, code="GONE", file=file)
            if digest == record.outputs[file]:
                report.unchanged.append(f"{target}/{record.case}")
                continue
            _check_case(store, target, record.case, name)
        except DataError as error:
            report.fail(target, record.case, error)
            continue
        found.append(Correction(target, record.case, folder.root / file, CORRECTED, _schema_of(record)))
    report.findings += list(_unknown_files(folder.root, known))
    return found, report


def _schema_of(record: CaseRecord) -> LabelSchema:
    """What the numbers of a prediction mean: 1 is its first structure."""
    structures = (Structure(row.structure, row.kind, (code,)) for code, row in enumerate(record.structures, start=1))
    return LabelSchema(tuple(structures))


def _check_case(store: Store, database: str, case: str, name: str) -> None:
    """Raises StoreError if the store does not have the case of a mask."""
    if database not in store:
        raise StoreError(
            f"{name} is of the database {database!r}, which {store.url} does not have; there are "
            f"{', '.join(store)}. If it has another name there: --database NAME.",
            code="NO_CASE",
        )
    store[database][case]


def _unknown_files(root: Path, known: set[str]) -> Iterator[Finding]:
    """A warning for every image that `predict` has not written: perhaps a correction under another name."""
    for entry in files_below(root):
        name = Path(entry.path).relative_to(root).as_posix()
        if name.endswith(IMAGES) and name not in known and not name.startswith(RECORDS):
            message = (
                f"{name} was not written by predict, and is left out. If it is a corrected mask, save it under the "
                "name of the file that it corrects."
            )
            yield Finding(Severity.WARNING, "UNKNOWN_FILE", "", "", name, message)


def _of_written_labels(folder: Path, store: Store, case: str) -> tuple[list[Correction], CorrectionReport]:
    report = CorrectionReport()
    if case:
        places = {case: sorted(folder.glob(f"{WRITTEN}*.nii*"))}
    else:
        files = sorted(folder.glob(f"*/*/{WRITTEN}*.nii*"))
        names = dict.fromkeys(file.parent.relative_to(folder).as_posix() for file in files)
        places = {name: [file for file in files if file.parent == folder / name] for name in names}
    if not any(places.values()):
        raise UsageError(
            f"{folder} has no masks of predict (no {RECORDS}/{RUN}), and no {WRITTEN}NAME.nii.gz of info --write in "
            "DATABASE/CASE. If it holds those of one case: --case DATABASE/CASE."
        )
    found = []
    for name, paths in places.items():
        database_name, _, case_name = name.partition("/")
        for path in paths:
            try:
                _check_case(store, database_name, case_name, path.name)
                if is_as_written(path):
                    report.unchanged.append(f"{database_name}/{case_name}")
                    continue
                found.append(_written(store[database_name], case_name, path))
            except DataError as error:
                report.fail(database_name, case_name, error)
    return found, report


def _written(database: Database, case: str, path: Path) -> Correction:
    """The correction of an annotation, by the name of its file."""
    origin = path.name.removeprefix(WRITTEN).partition(".nii")[0]
    if origin not in database.schemas:
        raise StoreError(
            f"{path.name} names the annotation {origin!r}, which {database.name!r} does not have; there are "
            f"{', '.join(database.schemas) or 'none'}.",
            code="NO_ANNOTATION",
            file=str(path),
        )
    name = origin if origin.partition("-")[0] == CORRECTED else f"{CORRECTED}-{origin}"
    return Correction(database.name, case, path, name, database.schemas[origin], origin)
