"""What is to be done for a database: which cases are new, the same, changed or bad, before anything is prepared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import zarr

from multiseg.errors import DataError, UsageError
from multiseg.modalities import as_names, in_canonical_order
from multiseg.store import schema
from multiseg.store.border import one_case
from multiseg.store.cases import CaseFiles, paths_of, sha256_of
from multiseg.store.catalogue import assign_splits
from multiseg.store.columns import check_axis_names, participant_columns, text_columns, watch
from multiseg.store.findings import Finding, Severity
from multiseg.store.hierarchy import check_database_name, database_names, is_plain_name
from multiseg.store.ingest.encoding import ArrayPlan
from multiseg.store.ingest.parallel import Workers
from multiseg.store.ingest.pseudonyms import Renamed
from multiseg.store.ingest.split_file import apply_splits
from multiseg.store.ingest.writer import plan_arrays
from multiseg.store.preparation.landmarks import learn_landmarks
from multiseg.store.preparation.recipe import Recipe
from multiseg.store.root import DatabaseInfo, check_agreement, existing_root
from multiseg.store.rows import digest_of_roles
from multiseg.store.sources.source_types import DatabaseFiles

DEFAULT_SPLIT = {"train": 0.7, "val": 0.1, "test": 0.2}


@dataclass(frozen=True)
class IngestOptions:
    """How to ingest; `Recipe` says what is done to a case.

    Attributes:
        replace: put a case whose files have changed in the place of the one in the store.
        redo: cases, or DATABASE/CASE, to prepare and write again although they are in the store.
        split: shares of the subjects of each database.
        given_splits: what a split file says, by case or subject; see `split_file.read_split_file`.
        workers: who prepares the cases, and in how much memory.
        pseudonyms: a file with a key and the table of real names, made where there is none: people, cases and visits
            get other names, and the store holds nothing of the real ones. "": the real names.
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

    def __post_init__(self) -> None:
        object.__setattr__(self, "redo", as_names(self.redo))


def renamed_options(options: IngestOptions, renamed: Renamed) -> IngestOptions:
    """The same where cases and people have pseudonyms."""
    return replace(
        options, redo=tuple(map(renamed.name, options.redo)), given_splits=renamed.names(options.given_splits)
    )


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


def source_bytes(databases: Sequence[DatabaseFiles]) -> int:
    """What the source files take on disk; missing ones are missed later."""
    paths = {
        path for files in databases for case in files.cases for file in case.by_role.values() for path in paths_of(file)
    }
    return sum(_size_of(path) for path in paths)


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


@dataclass(frozen=True)
class Held:
    """What the store has of a database before an ingest; by case, but `splits` by subject.

    `landmarks` are those of the database, and for other sequences those of the databases beside it.
    """

    digests: Mapping[str, str]
    splits: Mapping[str, str]
    rows: Mapping[str, int]
    descriptions: Mapping[str, Mapping[str, str | float]]
    landmarks: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    group: zarr.Group | None = None


def _what_is_held(url: str, info: DatabaseInfo) -> Held:
    """What is in the store at `url` of a database.

    Raises:
        StoreError: it can take no cases that are prepared as `info` says.
    """
    root = existing_root(url, "r", info.recipe.spacing_mm)
    group = None if root is None else root.get(info.name)
    landmarks = {} if root is None or info.recipe.normalise != "histogram" else _landmarks(root, info.name)
    if not isinstance(group, zarr.Group):
        return Held({}, {}, {}, {}, landmarks)
    check_agreement(group.attrs.asdict(), info)
    if info.name not in database_names(root):  # a writer died before all of it was there
        return Held({}, {}, {}, {}, landmarks, group)
    rows = np.flatnonzero(watch(group)[0] == schema.COMMITTED)
    check_axis_names(group)
    own = participant_columns(group)
    described = ["subject", "session", "site", "split", "split_given", *own]
    columns = {name: group[name][:][rows] for name in ("case", "source_sha256", "revision", *described)}
    cases = [str(case) for case in columns["case"]]
    return Held(
        digests=dict(zip(cases, map(str, columns["source_sha256"]), strict=True)),
        splits=dict(zip(map(str, columns["subject"]), map(str, columns["split"]), strict=True)),
        rows=dict(zip(cases, map(int, rows), strict=True)),
        descriptions={
            # A description whose writer died is written again, whatever is there of it.
            case: {name: columns[name][at] for name in described}
            if columns["revision"][at] > 0
            else {"subject": "", "split_given": columns["split_given"][at]}
            for at, case in enumerate(cases)
        },
        landmarks=landmarks,
        group=group,
    )  # fmt: skip


def _landmarks(root: zarr.Group, own: str) -> dict[str, tuple[float, ...]]:
    """The standard scales of a store, so that all of its databases share them; a database's own ones go first."""
    found: dict[str, tuple[float, ...]] = {}
    for name in sorted(database_names(root), key=lambda name: name == own):
        found |= Recipe.from_json(root[name].attrs.asdict()["recipe"]).landmarks
    return found


@dataclass(frozen=True)
class Intake:
    """A database's cases sorted out. Every case is in one of `todo`, `same` and `failed`.

    Attributes:
        todo: to be prepared and written, each with its split.
        same: in the store already, from the very same files.
        failed: bad, or in the store from other files.
        findings: by case; "" holds those of the database.
        arrays: how the database's arrays are cut once the cases of `todo` are in.
    """

    info: DatabaseInfo
    held: Held
    todo: tuple[CaseFiles, ...]
    same: tuple[CaseFiles, ...]
    failed: tuple[str, ...]
    findings: Mapping[str, Sequence[Finding]]
    arrays: ArrayPlan


def sort_out(files: DatabaseFiles, url: str, options: IngestOptions, elsewhere: Collection[str] = ()) -> Intake:
    """What an ingest of a database into the store at `url` has to do; nothing is changed.

    Args:
        elsewhere: cases and people of other databases, whom a split file may name as well.

    Raises:
        UsageError, StoreError: as `ingest.ingest`.
    """
    info = info_of(files, options)
    held = _what_is_held(url, info)
    info = replace(info, recipe=replace(info.recipe, landmarks=held.landmarks))
    badly_named = bad_names(files)
    findings: dict[str, list[Finding]] = {"": []}
    for finding in (*files.findings, *badly_named):
        findings.setdefault(finding.case, []).append(finding)
    errors = [finding.case for finding in files.findings if finding.severity is Severity.ERROR and finding.case]
    failed = dict.fromkeys([*errors, *(finding.case for finding in badly_named)])
    here = [case for case in files.cases if case.case not in failed]
    good = _in_splits(here, held, options, {*elsewhere, *names_of(files)})
    redo = {name.removeprefix(f"{files.name}/") for name in options.redo}
    same = _are_same([case for case in good if case.case not in redo], held, options.workers.num)
    changed = dict.fromkeys(case.case for case in good if same.get(case.case) is False and not options.replace)
    for case in changed:
        findings.setdefault(case, []).append(_changed(files.name, case))
    findings[""] += _numbers_as_text(files, held)
    gone = sorted(set(held.digests) - {case.case for case in files.cases} - set(failed))
    if gone:
        findings[""].append(_gone(files.name, gone))
    return Intake(
        info=info,
        held=held,
        todo=tuple(case for case in good if not same.get(case.case) and case.case not in changed),
        same=tuple(case for case in good if same.get(case.case)),
        failed=(*failed, *changed),
        findings=findings,
        arrays=plan_arrays(held.group, info, in_canonical_order(name for case in good for name in case.images)),
    )


def _in_splits(
    cases: Sequence[CaseFiles], held: Held, options: IngestOptions, elsewhere: Collection[str]
) -> list[CaseFiles]:
    """The cases with a split each: the given one, else the one their person has in the store, else a new one."""
    if options.given_splits:
        cases = apply_splits(cases, options.given_splits, elsewhere)
    given = {case.person for case in cases if case.split}
    kept = {subject: split for subject, split in held.splits.items() if subject not in given}
    splits = assign_splits(cases, options.split, options.seed, kept)
    return [replace(case, split=splits[case.case], split_given=bool(case.split)) for case in cases]


def names_of(files: DatabaseFiles) -> set[str]:
    """The cases and people of a database, also of those that something is wrong with."""
    named = {name for case in files.cases for name in (case.case, case.person)}
    return named | {finding.case for finding in files.findings if finding.case}


def _are_same(cases: Sequence[CaseFiles], held: Held, num_threads: int) -> dict[str, bool]:
    """Of the cases that the store has: whether it has them from the very same files."""
    there = [case for case in cases if case.case in held.digests]
    with ThreadPoolExecutor(num_threads) as pool:  # hashing leaves the interpreter to others
        same = pool.map(lambda case: _is_from(case, held.digests[case.case]), there)
        return {case.case: is_same for case, is_same in zip(there, same, strict=True)}


def _numbers_as_text(files: DatabaseFiles, held: Held) -> list[Finding]:
    """A column that an earlier table made one of text stays so: numbers in it can be neither compared nor averaged."""
    columns = text_columns(held.group) if held.group is not None else []
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
            "are stored as text. To have numbers, ingest the whole database again from a table without texts there.",
        )
        for column, (case, value) in examples.items()
    ]  # fmt: skip


def _gone(database: str, cases: Sequence[str]) -> Finding:
    message = (
        f"the store has {len(cases)} more cases of this database, which this source does not name (any more): "
        f"{', '.join(cases[:5])}{' ...' if len(cases) > 5 else ''}. They stay in the store."
    )
    return Finding(Severity.NOTE, "NOT_IN_SOURCE", database, "", "", message)


def _changed(database: str, case: str) -> Finding:
    message = (
        f"case {case!r} is in the store already, from other files. If these are the better ones, "
        "pass --replace; if it is another patient, give it another name."
    )
    return Finding.from_error(DataError(message, code="CASE_CHANGED"), database, case)


def info_of(files: DatabaseFiles, options: IngestOptions) -> DatabaseInfo:
    """What is said once for a whole database.

    Raises:
        UsageError: no case has the reference sequence.
    """
    if options.reference and files.cases and not any(options.reference in case.images for case in files.cases):
        raise UsageError(f"no case of {files.name!r} has the reference sequence {options.reference!r}.")
    recipe = Recipe(
        spacing_mm=options.spacing_mm, reference=options.reference, brain_mask=files.brain_mask,
        headers_disagree=options.headers_disagree, normalise=options.normalise, register=options.register,
        n4=options.n4,
    )  # fmt: skip
    return DatabaseInfo(
        name=files.name, pathology=files.pathology, recipe=recipe, schemas=files.schemas, codec=options.codec,
        licence=files.licence, citation=files.citation, source=files.source, pseudonyms=files.pseudonyms,
    )  # fmt: skip


def bad_names(files: DatabaseFiles) -> list[Finding]:
    """Errors for cases whose names two share, or no path could hold."""
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
    """Whether a case's files are those of this digest. A missing or damaged file is no match."""
    try:
        with one_case(case.case, case.paths):
            return digest_of_roles({role: sha256_of(file) for role, file in case.by_role.items()}) == digest
    except DataError:
        return False


def check_redo(databases: Sequence[DatabaseFiles], options: IngestOptions) -> None:
    """Whether every case that is to be written again is a case of these databases.

    Raises:
        UsageError: one is not.
    """
    known = {name for files in databases for case in files.cases for name in (case.case, f"{files.name}/{case.case}")}
    unknown = sorted(set(options.redo) - known)
    if unknown:
        raise UsageError(f"there is no case {', '.join(unknown)} to write again. Name it as CASE or DATABASE/CASE.")


MOST_CASES_FOR_LANDMARKS = 40


def with_landmarks(intake: Intake, url: str, most_cases: int = MOST_CASES_FOR_LANDMARKS) -> Intake:
    """With a standard scale for every sequence, where intensities are to be brought to one: from training cases.

    What a database before this one has taught the store in the meantime is taken up.
    """
    recipe = intake.info.recipe
    if recipe.normalise != "histogram":
        return intake
    root = existing_root(url, "r", recipe.spacing_mm)
    held = dict(recipe.landmarks) | ({} if root is None else _landmarks(root, intake.info.name))
    missing = {name for case in intake.todo for name in case.images} - set(held)
    cases = [case for case in intake.todo if case.split == "train"] or list(intake.todo)
    learnt = learn_landmarks(cases[:most_cases], replace(recipe, landmarks=held)) if missing else {}
    return replace(intake, info=replace(intake.info, recipe=replace(recipe, landmarks=learnt | held)))
