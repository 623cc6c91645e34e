"""The cases of a cohort, from the databases of a source or from a store."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from multiseg.errors import ModalityError, UsageError, few
from multiseg.evaluation.bids_output import BidsNames, check_unique, names_of
from multiseg.evaluation.cohort_records import CaseRecord
from multiseg.evaluation.prediction import Outputs, plain_outputs
from multiseg.evaluation.prediction_inputs import PredictOptions
from multiseg.evaluation.voting import Voters, usable_for_all
from multiseg.labels import LabelSpace
from multiseg.modalities import in_canonical_order
from multiseg.store.cases import CaseFiles
from multiseg.store.findings import Severity
from multiseg.store.reader import Case, Store
from multiseg.store.sources.source_types import DatabaseFiles


@dataclass(frozen=True)
class CohortCase:
    """One case of a cohort.

    Attributes:
        name: of its files in the output folder, without ending: "patient07", or "ms/patient07" of a store.
        files: its files; None for a case of a store.
        store: the URL of the store.
        brain_mask: the rule for its brain, as in `PredictOptions`; a mask among its files comes first.
        bids: its names in a BIDS derivative; None for plain names.
    """

    name: str
    database: str
    case: str
    person: str
    visit: str
    files: CaseFiles | None = None
    store: str = ""
    brain_mask: str = ""
    bids: BidsNames | None = None

    def outputs(self, root: Path, space: LabelSpace, options: PredictOptions) -> Outputs:
        if self.bids is not None:
            return self.bids.outputs(root, space, options.probabilities)
        return plain_outputs(root / f"{self.name}.nii.gz", space, options)

    def record(self, **values: Any) -> CaseRecord:
        return CaseRecord(self.database, self.case, self.person, self.visit, **values)


@dataclass(frozen=True)
class Cohort:
    """The cases that are segmented together.

    Attributes:
        refused: the names of cases that cannot be read, with the reason.
        source: the folder that they come from; None for a store.
    """

    cases: tuple[CohortCase, ...]
    refused: Mapping[str, tuple[CohortCase, str]]
    source: Path | None = None


def cohort_of_files(
    databases: Sequence[DatabaseFiles],
    source: Path,
    voters: Voters,
    brain_mask: str = "",
    bids: bool = False,
    is_nested: bool = False,
) -> Cohort:
    """The cases of databases that were found in a folder or a manifest. Cases with an error are refused.

    Args:
        brain_mask: the rule for cases without a mask of their own.
        bids: whether their segmentations get BIDS names.
        is_nested: whether the names of files begin with that of the database, since there may be several.

    Raises:
        UsageError: two cases would have the same names.
    """
    cases: list[CohortCase] = []
    refused: dict[str, tuple[CohortCase, str]] = {}
    for database in databases:
        head = f"{database.name}/" if is_nested else ""
        rule = brain_mask or ("" if database.brain_mask in ("file", "nonzero") else database.brain_mask)
        for files in database.cases:
            names = names_of(files, source, _reference(voters, files)) if bids else None
            name = f"{head}{files.case}"
            cases.append(
                CohortCase(
                    name, database.name, files.case, files.person, files.session, files, brain_mask=rule, bids=names
                )
            )
        for finding in database.findings:
            if finding.severity is Severity.ERROR and finding.case:
                case = CohortCase(f"{head}{finding.case}", database.name, finding.case, finding.case, "")
                refused.setdefault(case.name, (case, f"{finding.code}: {finding.message}"))
    check_unique({case.name: case.bids for case in cases if case.bids})
    return Cohort(tuple(cases), refused, source)


def cohort_of_store(store: Store, bids: bool = False) -> Cohort:
    """All cases of a store.

    Raises:
        StoreError: a database is damaged.
        UsageError: two cases would have the same names.
    """
    store.check_sound()
    cases = tuple(_stored(store, case, bids) for case in store.cases)
    check_unique({case.name: case.bids for case in cases if case.bids})
    return Cohort(cases, {})


def _stored(store: Store, case: Case, bids: bool) -> CohortCase:
    person = case.subject or case.name
    names = names_of(CaseFiles(case.name, {}, subject=person, session=case.session), Path(), "") if bids else None
    return CohortCase(
        f"{case.database}/{case.name}", case.database, case.name, person, case.session, store=store.url, bids=names
    )


def _reference(voters: Voters, files: CaseFiles) -> str:
    """The sequence whose voxels the segmentation will have; "" if the models know none."""
    try:
        return usable_for_all(voters.infos, tuple(in_canonical_order(files.images)), "")[0]
    except ModalityError:
        return ""


def of_participants(databases: Sequence[DatabaseFiles], labels: Collection[str]) -> list[DatabaseFiles]:
    """The databases with only the cases of these people, named with or without "sub-".

    Raises:
        UsageError: there is no such person.
    """
    wanted = {label.removeprefix("sub-") for label in labels}
    everybody = {
        *(files.person.removeprefix("sub-") for database in databases for files in database.cases),
        *(_person(finding.case) for database in databases for finding in database.findings if finding.case),
    }
    if unknown := sorted(wanted - everybody):
        raise UsageError(
            f"there is no participant {few(unknown)}. There are {few(sorted(everybody)) or 'none with a scan'}."
        )
    return [
        replace(
            database,
            cases=tuple(one for one in database.cases if one.person.removeprefix("sub-") in wanted),
            findings=tuple(one for one in database.findings if not one.case or _person(one.case) in wanted),
        )
        for database in databases
    ]


def _person(case: str) -> str:
    """The participant of a BIDS case, such as "01" of "sub-01_ses-2"."""
    return case.partition("_")[0].removeprefix("sub-")


def check_apart(out: Path, source: Path, bids: bool) -> None:
    """Raise UsageError if output would be found in the source folder: later commands would take it for scans.

    A BIDS derivative may be in the source's `derivatives/`. A manifest lists its files, wherever they are.
    """
    where, folder = out.resolve(), source.resolve()
    if not (source.is_dir() and where.is_relative_to(folder)):
        return
    if bids and len(parts := where.relative_to(folder).parts) > 1 and parts[0] == "derivatives":
        return
    hint = f"{source}/derivatives/multiseg, or a folder outside of it" if bids else "a folder outside of it"
    raise UsageError(f"{out} is in the source {source}, whose files are only read. Choose {hint}.")
