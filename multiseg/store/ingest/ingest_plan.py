"""Planning the ingest of a database: which cases are new, unchanged, changed or bad. No case is prepared yet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import zarr
from jaxtyping import Int

from multiseg.errors import DataError, UsageError
from multiseg.labels import is_correction
from multiseg.modalities import as_names, in_canonical_order
from multiseg.store import schema
from multiseg.store.border import one_case
from multiseg.store.cases import CaseFiles, sha256_of
from multiseg.store.catalogue import assign_splits
from multiseg.store.columns import check_axis_names, participant_columns, read_columns_of, text_columns, watch
from multiseg.store.findings import Finding, Severity, by_name
from multiseg.store.formats.nifti_zarr import files_of, is_nifti_zarr
from multiseg.store.hierarchy import check_database_name, database_names, is_plain_name
from multiseg.store.ingest.encoding import ArrayPlan
from multiseg.store.ingest.parallel import Workers
from multiseg.store.ingest.pseudonyms import Renamed
from multiseg.store.ingest.split_file import apply_splits
from multiseg.store.ingest.writer import plan_arrays
from multiseg.store.preparation.landmarks import learn_landmarks
from multiseg.store.preparation.recipe import Recipe
from multiseg.store.preparation.template import open_template
from multiseg.store.root import DatabaseInfo, check_agreement, existing_root
from multiseg.store.rows import digest_of_roles
from multiseg.store.sources.source_types import DatabaseFiles

DEFAULT_SPLIT = {"train": 0.7, "val": 0.1, "test": 0.2}


@dataclass(frozen=True)
class IngestOptions:
    """How to ingest; `Recipe` describes how a case is prepared.

    Attributes:
        replace: replace a case in the store whose files have changed.
        redo: cases (CASE or DATABASE/CASE) to prepare and write again although they are in the store.
        split: each split's share of the subjects of a database.
        given_splits: splits by case or subject, from a split file; see `split_file.read_split_file`.
        workers: the workers that prepare the cases, and their memory.
        pseudonyms: a file with a key and the table of real names, created if it does not exist. People, cases and
            visits get pseudonyms, and the store does not contain the real names. "": the real names are used.
        template: an image of a brain, to which every case is registered affinely; "": none. See `template.Template`.
        template_mask: the mask of its brain, if the image shows a skull.
    """

    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    reference: str = ""
    headers_disagree: str = "refuse"
    register: str = ""
    n4: bool = False
    normalise: str = "zscore"
    codec: str = "lz4"
    replace: bool = False
    redo: Collection[str] = ()
    split: Mapping[str, float] = field(default_factory=lambda: dict(DEFAULT_SPLIT))
    given_splits: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0
    workers: Workers = field(default_factory=Workers)
    pseudonyms: str = ""
    template: str = ""
    template_mask: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "redo", as_names(self.redo))


def renamed_options(options: IngestOptions, renamed: Renamed) -> IngestOptions:
    """The options with the pseudonyms of cases and people instead of their names."""
    given_splits = {renamed.name(real): split for real, split in options.given_splits.items()}
    return replace(options, redo=tuple(map(renamed.name, options.redo)), given_splits=given_splits)


def check_names(files: DatabaseFiles) -> None:
    """Check the names of a database and of its participants' columns.

    Raises:
        UsageError: one is invalid.
    """
    check_database_name(files.name)
    for column in sorted({column for case in files.cases for column in case.participant}):
        if column in schema.RESERVED or not is_plain_name(column):
            raise UsageError(
                f"database {files.name!r}: a participants' column cannot be called {column!r}: the store uses that "
                "name itself, or it cannot be part of a path. Rename the column."
            )


def source_bytes(databases: Sequence[DatabaseFiles]) -> int:
    """The size of the source files on disk in bytes. Missing files count as 0."""
    return sum(map(_size_of, {path for files in databases for case in files.cases for path in case.paths}))


def _size_of(path: Path) -> int:
    try:
        return sum(file.stat().st_size for file in (files_of(path) if is_nifti_zarr(path) else (path,)))
    except OSError:
        return 0


@dataclass(frozen=True)
class StoredDatabase:
    """What the store has of a database before an ingest.

    Attributes:
        digests, rows, descriptions: by case; `descriptions` are its metadata.
        splits: by subject.
        landmarks: standard intensity scales by sequence: those of the database, else those of other databases.
        group: the database's group; None if the store does not have it.
        unplaced: cases without an affine to a template.
        corrected: cases with a corrected annotation.
    """

    digests: Mapping[str, str]
    splits: Mapping[str, str]
    rows: Mapping[str, int]
    descriptions: Mapping[str, Mapping[str, str | float]]
    landmarks: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    group: zarr.Group | None = None
    unplaced: frozenset[str] = frozenset()
    corrected: frozenset[str] = frozenset()


def _stored_database(url: str, info: DatabaseInfo) -> StoredDatabase:
    """What the store at `url` has of a database.

    Raises:
        StoreError: the database cannot take cases that are prepared as in `info`.
    """
    root = existing_root(url, "r", info.recipe.spacing_mm)
    group = None if root is None else root.get(info.name)
    landmarks = {} if root is None or info.recipe.normalise != "histogram" else _landmarks(root, info.name)
    if not isinstance(group, zarr.Group):
        return StoredDatabase({}, {}, {}, {}, landmarks)
    check_agreement(group.attrs.asdict(), info)
    if info.name not in database_names(root):  # a writer died before it was complete
        return StoredDatabase({}, {}, {}, {}, landmarks, group)
    rows = np.flatnonzero(watch(group)[0] == schema.COMMITTED)
    check_axis_names(group)
    column_names = participant_columns(group)
    metadata_names = ["subject", "session", "site", "split", "split_given", *column_names]
    needed = read_columns_of(group, ["case", "source_sha256", "revision", *metadata_names])
    columns = {name: values[rows] for name, values in needed.items()}
    cases = [str(case) for case in columns["case"]]
    return StoredDatabase(
        digests=dict(zip(cases, map(str, columns["source_sha256"]), strict=True)),
        splits=dict(zip(map(str, columns["subject"]), map(str, columns["split"]), strict=True)),
        rows=dict(zip(cases, map(int, rows), strict=True)),
        descriptions={
            # If the writer died while it changed the metadata, they are written again, whatever they are.
            case: {name: columns[name][index] for name in metadata_names}
            if columns["revision"][index] > 0
            else {"subject": "", "split_given": columns["split_given"][index]}
            for index, case in enumerate(cases)
        },
        landmarks=landmarks,
        group=group,
        unplaced=_unplaced(group, cases, rows),
        corrected=_corrected(group, cases, rows),
    )  # fmt: skip


def _corrected(group: zarr.Group, cases: Sequence[str], rows: Int[np.ndarray, " case"]) -> frozenset[str]:
    """The cases with a corrected annotation, of those in these rows."""
    names = group.attrs.asdict()[schema.NAMED_AXES["annotation"]]
    columns = [index for index, name in enumerate(names) if is_correction(name)]
    has_one = read_columns_of(group, ["annotated"])["annotated"][rows][:, columns].any(axis=1)
    return frozenset(case for case, corrected in zip(cases, has_one, strict=True) if corrected)


def _unplaced(group: zarr.Group, cases: Sequence[str], rows: Int[np.ndarray, " case"]) -> frozenset[str]:
    """The cases without an affine to a template, of those in these rows."""
    if schema.TEMPLATE not in group.attrs:
        return frozenset(cases)
    is_unknown = np.isnan(read_columns_of(group, ["to_template"])["to_template"][rows]).any(axis=(1, 2))
    return frozenset(case for case, unknown in zip(cases, is_unknown, strict=True) if unknown)


def _landmarks(root: zarr.Group, name: str) -> dict[str, tuple[float, ...]]:
    """The standard scales of all databases of a store, by sequence. Those of the database `name` take precedence."""
    landmarks: dict[str, tuple[float, ...]] = {}
    for database in sorted(database_names(root), key=lambda database: database == name):
        landmarks |= Recipe.from_json(root[database].attrs.asdict()["recipe"]).landmarks
    return landmarks


@dataclass(frozen=True)
class Intake:
    """The plan for a database. Every case is in exactly one of `todo`, `same` and `failed`.

    Attributes:
        stored: what the store has of the database now.
        todo: cases to prepare and write, each with its split.
        same: cases that are in the store already, from the same files.
        failed: bad cases, and cases that are in the store from other files.
        findings: by case; those of the database are under "".
        arrays: the layout of the database's arrays once the cases of `todo` are written.
    """

    info: DatabaseInfo
    stored: StoredDatabase
    todo: tuple[CaseFiles, ...]
    same: tuple[CaseFiles, ...]
    failed: tuple[str, ...]
    findings: Mapping[str, Sequence[Finding]]
    arrays: ArrayPlan


def sort_out(files: DatabaseFiles, url: str, options: IngestOptions, elsewhere: Collection[str] = ()) -> Intake:
    """Plan the ingest of a database into the store at `url`; nothing is changed.

    Args:
        elsewhere: cases and people of other databases, which a split file may name as well.

    Raises:
        UsageError, StoreError: as `ingest.ingest`.
    """
    info = info_of(files, options)
    stored = _stored_database(url, info)
    info = replace(info, recipe=replace(info.recipe, landmarks=stored.landmarks))
    badly_named = bad_names(files)
    findings = {"": list[Finding]()} | by_name((*files.findings, *badly_named), lambda finding: finding.case)
    errors = [finding.case for finding in files.findings if finding.severity is Severity.ERROR and finding.case]
    failed = dict.fromkeys([*errors, *(finding.case for finding in badly_named)])
    here = [case for case in files.cases if case.case not in failed]
    good = _in_splits(here, stored, options, {*elsewhere, *names_of(files)})
    redo = {name.removeprefix(f"{files.name}/") for name in options.redo}
    redo |= stored.unplaced if info.template else set()
    same = _are_same([case for case in good if case.case not in redo], stored, options.workers.num)
    changed = dict.fromkeys(case.case for case in good if same.get(case.case) is False and not options.replace)
    for case in changed:
        findings.setdefault(case, []).append(_changed(files.name, case))
    kept = dict.fromkeys(
        case.case for case in good
        if case.case in stored.corrected and not same.get(case.case) and case.case not in changed
    )  # fmt: skip
    for case in kept:
        findings.setdefault(case, []).append(_kept(files.name, case))
    findings[""] += _numbers_as_text(files, stored)
    gone = sorted(set(stored.digests) - {case.case for case in files.cases} - set(failed))
    if gone:
        findings[""].append(_gone(files.name, gone))
    return Intake(
        info=info,
        stored=stored,
        todo=tuple(case for case in good if not same.get(case.case) and case.case not in {*changed, *kept}),
        same=tuple(case for case in good if same.get(case.case)),
        failed=(*failed, *changed, *kept),
        findings=findings,
        arrays=plan_arrays(stored.group, info, in_canonical_order(name for case in good for name in case.images)),
    )


def _in_splits(
    cases: Sequence[CaseFiles], stored: StoredDatabase, options: IngestOptions, elsewhere: Collection[str]
) -> list[CaseFiles]:
    """Give each case a split: the given one, else its person's in the store, else a new one."""
    if options.given_splits:
        cases = apply_splits(cases, options.given_splits, elsewhere)
    given = {case.person for case in cases if case.split}
    stored_splits = {subject: split for subject, split in stored.splits.items() if subject not in given}
    splits = assign_splits(cases, options.split, options.seed, stored_splits)
    return [replace(case, split=splits[case.case], split_given=bool(case.split)) for case in cases]


def names_of(files: DatabaseFiles) -> set[str]:
    """The names of a database's cases and people, including bad cases."""
    named = {name for case in files.cases for name in (case.case, case.person)}
    return named | {finding.case for finding in files.findings if finding.case}


def _are_same(cases: Sequence[CaseFiles], stored: StoredDatabase, num_threads: int) -> dict[str, bool]:
    """For each case that the store has: whether it has it from the same files."""
    stored_cases = [case for case in cases if case.case in stored.digests]
    with ThreadPoolExecutor(num_threads) as pool:  # hashing releases the GIL
        same = pool.map(lambda case: _is_from(case, stored.digests[case.case]), stored_cases)
        return {case.case: is_same for case, is_same in zip(stored_cases, same, strict=True)}


def _numbers_as_text(files: DatabaseFiles, stored: StoredDatabase) -> list[Finding]:
    """Warn of numbers in columns of text: they can be neither compared nor averaged. A column keeps its type."""
    columns = text_columns(stored.group) if stored.group is not None else []
    examples = {
        column: (case.case, value)
        for case in files.cases
        for column in columns
        if isinstance(value := case.participant.get(column), float) and value == value
    }
    return [
        Finding(
            Severity.WARNING, "NUMBER_AS_TEXT", files.name, "", "",
            f"the participants' column {column!r} holds text in the store, so numbers such as {value:g} of {case!r} "
            "are stored as text. To store numbers, ingest the whole database again from a table with only numbers in "
            "this column.",
        )
        for column, (case, value) in examples.items()
    ]  # fmt: skip


def _gone(database: str, cases: Sequence[str]) -> Finding:
    message = (
        f"the store has {len(cases)} more cases of this database that this source does not have (any more): "
        f"{', '.join(cases[:5])}{' ...' if len(cases) > 5 else ''}. They stay in the store."
    )
    return Finding(Severity.NOTE, "NOT_IN_SOURCE", database, "", "", message)


def _changed(database: str, case: str) -> Finding:
    message = (
        f"case {case!r} is in the store already, from other files. To replace it with these files, "
        "pass --replace; if it is another patient, give it another name."
    )
    return Finding.from_error(DataError(message, code="CASE_CHANGED"), database, case)


def _kept(database: str, case: str) -> Finding:
    message = (
        f"case {case!r} has a correction, which would be lost if the case were written again. To do so all the same: "
        f"write it out (multiseg info STORE --case {database}/{case} --write DIR), remove the case, ingest it, and "
        "give the correction back (multiseg ingest --corrected DIR)."
    )
    return Finding.from_error(DataError(message, code="CASE_CORRECTED"), database, case)


def info_of(files: DatabaseFiles, options: IngestOptions) -> DatabaseInfo:
    """The settings of a whole database.

    Raises:
        UsageError: no case has the reference sequence, the template does not show a brain, or an annotation has the
            name of corrected masks.
        SourceError: a file of the template cannot be read.
    """
    if options.reference and files.cases and not any(options.reference in case.images for case in files.cases):
        raise UsageError(f"no case of {files.name!r} has the reference sequence {options.reference!r}.")
    if reserved := [name for name in files.schemas if is_correction(name)]:
        raise UsageError(
            f"the annotation {reserved[0]!r} of {files.name!r} has a name that is kept for masks which a rater has "
            "corrected, and which are read instead of all others. Give it another one, such as --label expert=PATTERN."
        )
    recipe = Recipe(
        spacing_mm=options.spacing_mm, reference=options.reference, brain_mask=files.brain_mask,
        headers_disagree=options.headers_disagree, normalise=options.normalise, register=options.register,
        n4=options.n4,
    )  # fmt: skip
    return DatabaseInfo(
        name=files.name, pathology=files.pathology, recipe=recipe, schemas=files.schemas, codec=options.codec,
        licence=files.licence, citation=files.citation, source=files.source, pseudonyms=files.pseudonyms,
        template=open_template(options.template, options.template_mask),
    )  # fmt: skip


def bad_names(files: DatabaseFiles) -> list[Finding]:
    """Errors for cases whose name is not unique, or cannot be part of a path."""
    problems = {}
    for name, count in Counter(case.case for case in files.cases).items():
        if not is_plain_name(name):
            problems[name] = (
                "is not a valid name for a case. It must not be empty, begin with a dot or two underscores, or have "
                "slashes, control characters, or spaces at its ends."
            )
        elif count > 1:
            problems[name] = "is the name of two cases. Give each its own name."
    return [
        Finding(Severity.ERROR, "BAD_NAME", files.name, name, "", f"{name!r} {problem} Rename its files.")
        for name, problem in problems.items()
    ]


def _is_from(case: CaseFiles, digest: str) -> bool:
    """Whether a case's files have this digest. False if a file is missing or damaged."""
    try:
        with one_case(case.case, case.paths):
            return digest_of_roles({role: sha256_of(file) for role, file in case.by_role.items()}) == digest
    except DataError:
        return False


def check_redo(databases: Sequence[DatabaseFiles], options: IngestOptions) -> None:
    """Check that every case of `options.redo` is in these databases.

    Raises:
        UsageError: one is not.
    """
    known = {name for files in databases for case in files.cases for name in (case.case, f"{files.name}/{case.case}")}
    unknown = sorted(set(options.redo) - known)
    if unknown:
        raise UsageError(f"there is no case {', '.join(unknown)} to write again. Name it as CASE or DATABASE/CASE.")


MOST_CASES_FOR_LANDMARKS = 40


def with_landmarks(intake: Intake, url: str, most_cases: int = MOST_CASES_FOR_LANDMARKS) -> Intake:
    """With histogram standardisation, complete the plan with a standard scale for every sequence.

    Scales come from the store, including those that databases ingested just before have added; missing ones are learnt
    from training cases.
    """
    recipe = intake.info.recipe
    if recipe.normalise != "histogram":
        return intake
    root = existing_root(url, "r", recipe.spacing_mm)
    landmarks = dict(recipe.landmarks) | ({} if root is None else _landmarks(root, intake.info.name))
    missing = {name for case in intake.todo for name in case.images} - set(landmarks)
    cases = [case for case in intake.todo if case.split == "train"] or list(intake.todo)
    learnt = learn_landmarks(cases[:most_cases], replace(recipe, landmarks=landmarks)) if missing else {}
    return replace(intake, info=replace(intake.info, recipe=replace(recipe, landmarks=learnt | landmarks)))
