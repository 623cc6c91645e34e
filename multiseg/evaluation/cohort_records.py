"""What has been done in the folder of a cohort: a record for each case, beside its files, and the tables of all."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from multiseg.errors import DataError, UsageError
from multiseg.evaluation.structure_tables import LesionRow, StructureRow
from multiseg.files import check_folder, is_read_only, lock_folder, write_atomically
from multiseg.flushing import make_folder
from multiseg.shown import cell
from multiseg.store.findings import Doubt, Severity
from multiseg.store.reader import Case, Database

RECORDS = ".multiseg"
DIGITS = 6
"""Of numbers in the tables, behind the point."""
RUN, LOCK = "run.json", "lock"
CASES, LESIONS = "cases.csv", "lesions.csv"
State = Literal["started", "done", "failed"]


@dataclass(frozen=True)
class CaseRecord:
    """What is known of one case.

    Attributes:
        state: "started": its files may be half there; "done": they are whole; "failed": there are none.
        key: of the run, see `key_of_run`.
        sources: a digest of the files that it was made from.
        outputs: the sha256 of each file, by its path in the folder; "" while it is being made.
        used, left_out: sequences that the model used, and those that it never learnt from.
        learnt: how the model used these scans in its training, by sequence; see `Prediction`.
        doubts: what a person should check.
        reason: why it failed.
    """

    database: str
    case: str
    person: str
    visit: str
    state: State
    key: str
    sources: str = ""
    outputs: Mapping[str, str] = field(default_factory=dict)
    reference: str = ""
    used: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    learnt: Mapping[str, str] = field(default_factory=dict)
    doubts: tuple[Doubt, ...] = ()
    structures: tuple[StructureRow, ...] = ()
    lesions: tuple[LesionRow, ...] = ()
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CaseRecord:
        return cls(
            **{
                **data,
                "used": tuple(data["used"]),
                "left_out": tuple(data["left_out"]),
                "doubts": tuple(
                    Doubt(**{**doubt, "severity": Severity(doubt["severity"])}) for doubt in data["doubts"]
                ),
                "structures": tuple(StructureRow(**row) for row in data["structures"]),
                "lesions": tuple(LesionRow(**row) for row in data["lesions"]),
            }
        )


class CohortFolder:
    """The folder of a cohort's segmentations. Several processes may segment different cases into it at once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.records = root / RECORDS / "cases"

    def read(self, name: str) -> CaseRecord | None:
        """The record of a case; None if there is none that can be read."""
        try:
            return CaseRecord.from_json(json.loads(self._record(name).read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, name: str, record: CaseRecord) -> None:
        write_atomically(self._record(name), (json.dumps(record.to_json(), indent=1) + "\n").encode())

    def all_records(self) -> Iterator[tuple[str, CaseRecord]]:
        """All records by name, sorted."""
        for path in sorted(self.records.rglob("*.json")):
            name = path.relative_to(self.records).as_posix().removesuffix(".json")
            if (record := self.read(name)) is not None:
                yield name, record

    def _record(self, name: str) -> Path:
        return self.records / f"{name}.json"

    def is_whole(self, record: CaseRecord) -> bool:
        """Whether the files of a record are there, and as they were written."""
        return all(self._digest(name) == digest != "" for name, digest in record.outputs.items())

    def digests(self, files: Sequence[Path]) -> dict[str, str]:
        """The sha256 of files, by their paths in this folder."""
        names = [path.relative_to(self.root).as_posix() for path in files]
        return {name: self._digest(name) for name in names}

    def _digest(self, name: str) -> str:
        path = self.root / name
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""

    def check_replaceable(self, record: CaseRecord | None, files: Sequence[Path]) -> None:
        """Check that every existing file is one that this folder's record has written, and that nobody changed.

        Raises:
            DataError: one is not.
        """
        for name, digest in self.digests(files).items():
            known = None if record is None else record.outputs.get(name)
            if digest and known not in ("", digest):
                what = "was changed after it was written" if known else "was not written by this command"
                raise DataError(
                    f"{self.root / name} {what}, and is kept. Move it away, or pass --overwrite.", code="CHANGED_OUTPUT"
                )

    def key(self) -> str:
        """The key of the run that has claimed the folder; "" if none is to be seen."""
        try:
            return str(json.loads((self.root / RECORDS / RUN).read_text(encoding="utf-8"))["key"])
        except (OSError, ValueError, KeyError, TypeError):
            return ""

    def claim(self, run: Mapping[str, Any], names: Sequence[str], overwrite: bool) -> None:
        """Make the folder that of a run, which a later command with the same key resumes.

        Args:
            run: its "key", and what else a person may want to know.
            names: the cases that are segmented.
            overwrite: whether segmentations of another run may be replaced.

        Raises:
            UsageError: the folder holds segmentations of another run, scans or a store.
        """
        check_folder(self.root, own=(f"{RECORDS}/{RUN}",))
        make_folder(self.root / RECORDS)
        with self._locked():
            others = {name: one for name, one in self.all_records() if one.key != run["key"] and one.outputs}
            if kept := sorted(set(others) - set(names) if overwrite else others):
                raise UsageError(
                    f"{self.root} holds segmentations by another model or with other options, such as {kept[0]}. "
                    f"Choose another --out{'.' if overwrite else ', or pass --overwrite to replace them.'}"
                )
            for record in others.values():  # not beside those of this run
                for path in map(self.root.joinpath, record.outputs):
                    if not is_read_only(path):
                        path.unlink(missing_ok=True)
            write_atomically(self.root / RECORDS / RUN, (json.dumps(run, indent=1) + "\n").encode())

    def write_tables(self, key: str) -> None:
        """Write cases.csv and lesions.csv from the records of all cases of a run."""
        with self._locked():
            records = [record for _, record in self.all_records() if record.key == key]
            _write_csv(self.root / CASES, CASE_COLUMNS, (row for record in records for row in case_rows(record)))
            lesions = (
                {"database": record.database, "case": record.case, **asdict(lesion)}
                for record in records
                for lesion in record.lesions
            )
            _write_csv(self.root / LESIONS, LESION_COLUMNS, lesions)

    def _locked(self) -> Any:
        return lock_folder(self.root / RECORDS / LOCK, "it writes there; wait.", wait=True)


CASE_COLUMNS = (
    *("database", "case", "person", "visit", "structure", "kind", "ml", "lesions", "expected_dice"),
    *("sequences", "left_out", "reference", "learnt", "doubts", "file", "error"),
)
LESION_COLUMNS = ("database", "case", *(column.name for column in fields(LesionRow)))
NOT_FINISHED = "not finished: give the same command again"


def case_rows(record: CaseRecord) -> Iterator[dict[str, Any]]:
    """The rows of a case in cases.csv: one for each structure, or one that says why there is none."""
    head = {"database": record.database, "case": record.case, "person": record.person, "visit": record.visit}
    if record.state != "done":
        yield {**head, "error": record.reason or NOT_FINISHED}
        return
    common = {
        **head,
        "sequences": "+".join(record.used),
        "left_out": "+".join(record.left_out),
        "reference": record.reference,
        "learnt": " ".join(f"{name}:{use}" for name, use in record.learnt.items() if use),
        "doubts": " ".join(dict.fromkeys(doubt.code for doubt in record.doubts)),
        "file": next(iter(record.outputs), ""),
    }
    for row in record.structures:
        yield {**common, **asdict(row)}


def digest_of_stored(database: Database, case: Case) -> str:
    """A digest of all that the segmentation of a stored case depends on, beside the run."""
    identity = [case.source_sha256, database.recipe.to_json(), case.grid.affine.tolist(), list(case.modalities)]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def key_of_run(identity: Any) -> str:
    """A digest of what makes a run: the model files and the options."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _write_csv(path: Path, columns: Sequence[str], rows: Any) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(
            {name: round(value, DIGITS) if isinstance(value, float) else cell(value) for name, value in row.items()}
        )
    write_atomically(path, text.getvalue().encode())
