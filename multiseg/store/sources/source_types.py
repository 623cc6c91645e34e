"""What a layout is, and what it finds in a folder: files with roles, or whole cases."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from multiseg.labels import LabelSchema
from multiseg.modalities import in_canonical_order
from multiseg.store.cases import CaseFiles, ScanFile
from multiseg.store.findings import Finding, Severity
from multiseg.store.sources.source_folder import Folder, grouped

REAL_NAMES = "REAL_NAMES"
"""The code of the finding that cases are named by patient IDs."""
RoleKind: TypeAlias = Literal["image", "label", "brain mask"]
Row: TypeAlias = Mapping[str, str | float]
SKIP = "skip"
"""What a spelling or an annotation is set to, to leave its files out."""


@dataclass(frozen=True)
class SourceOptions:
    """How to read a source; the layout decides what is empty here.

    The command line builds it from flags and a manifest from its tables. A new flag needs a field here, its declaration
    in `cli.source_flags.SourceFlags`, and the code that uses it.

    Attributes:
        name: of the database.
        pathology: of its patients.
        codes: annotation name to text such as "1=necrosis,2=oedema", or the name of an atlas.
        modalities: spellings in file names to names of sequences, or to "skip".
        modality: the sequence of every image whose name does not say one.
        participants: a table with one row for each case or subject, named in its first column.
        brain_mask: "file", "nonzero", "otsu", "command ..." (see `recipe.Recipe`), or a file-name pattern.
        raters: "all", "consensus", "majority" or the name of a rater; see `annotations.choose_raters`.
        allow_unlabelled: also take cases without a label.
        only_images: leave all labels unread, whatever they are.
        yes: the user has confirmed what the layout guesses.
        layout: the name of a layout, or your own as "module:name"; "" has it recognised.
        pattern: where images are, such as "{case}/{modality}.nii.gz", instead of a layout.
        labels: annotation name to the pattern of its files; needs `pattern`.
        licence, citation, source: stored with the database.
    """

    name: str = ""
    pathology: str = ""
    codes: Mapping[str, str] = field(default_factory=dict)
    modalities: Mapping[str, str] = field(default_factory=dict)
    modality: str = ""
    participants: str = ""
    brain_mask: str = ""
    raters: str = ""
    allow_unlabelled: bool = False
    only_images: bool = False
    yes: bool = False
    layout: str = ""
    pattern: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    licence: str = ""
    citation: str = ""
    source: str = ""


@dataclass(frozen=True)
class Role:
    """What one file is in a case: an image of a sequence, an annotation, or the brain mask.

    `fields` may hold subject, session, site and split; the files of a case must agree on them. `spelling` is what
    `--modality` and `--labels` call the file, if that is not its `name`. `doubt` says why a layout cannot tell the
    sequence; then only the user can.
    """

    case: str
    kind: RoleKind
    name: str
    file: ScanFile
    fields: Mapping[str, str] = field(default_factory=dict)
    spelling: str = ""
    doubt: str = ""


@dataclass(frozen=True)
class FoundFiles:
    """The files that a layout found in a folder, before they become cases.

    Attributes:
        name: of the database; "" is the folder's name.
        schemas: the meaning of each annotation's codes.
        required: annotations that every case must have; if empty, a case needs at least one label.
        may_lack_labels: cases that need no label, such as those of a test set.
        skipped: cases whose images the user skips, all of them.
        participants: rows by case or subject.
        unused: volumes in the folder without a role.
        any_scan_counts: warn of an unused file whose name says a sequence.
        free_names: case names come from file or folder names, which may also contain words of a sequence.
        raters: which raters to keep if the user does not choose; see `annotations.choose_raters`.
        findings: from `finding`.
    """

    folder: Folder
    roles: Sequence[Role]
    name: str = ""
    schemas: Mapping[str, LabelSchema] = field(default_factory=dict)
    pathology: str = ""
    required: Collection[str] = ()
    may_lack_labels: Collection[str] = ()
    skipped: Collection[str] = ()
    participants: Mapping[str, Row] = field(default_factory=dict)
    unused: Sequence[str] = ()
    any_scan_counts: bool = False
    free_names: bool = False
    raters: str = ""
    findings: tuple[Finding, ...] = ()
    licence: str = ""
    citation: str = ""
    source: str = ""

    def database(self, options: SourceOptions) -> str:
        """The name of the database: the user's, else that of what was found."""
        return options.name or self.name or self.folder.name


@dataclass(frozen=True)
class DatabaseFiles:
    """One database as found on disk: its cases, the meaning of its labels, and the findings so far.

    Cases with an error in `findings` are not in `cases`. `pseudonyms` identifies the key of the cases' pseudonyms; ""
    if the names are real.
    """

    name: str
    pathology: str
    cases: tuple[CaseFiles, ...]
    schemas: Mapping[str, LabelSchema]
    findings: tuple[Finding, ...] = ()
    brain_mask: str = "nonzero"
    licence: str = ""
    citation: str = ""
    source: str = ""
    pseudonyms: str = ""

    def __repr__(self) -> str:
        names = in_canonical_order(name for case in self.cases for name in case.images)
        return (
            f"<DatabaseFiles {self.name}: {len(self.cases)} cases, {' '.join(names)}; "
            f"{', '.join(self.schemas) or 'no annotation'}; {len(self.findings)} findings>"
        )


@dataclass(frozen=True)
class Layout:
    """One way to arrange a dataset on disk.

    Attributes:
        name: what `--as` takes.
        title: what people call it.
        recognise: the evidence in words ("3 folders such as BraTS2021_00000"), or "" if the folder has another layout.
            Reads only names and small texts (dataset.json).
        find: every file's role, or whole cases. Raises DataError if the folder contradicts itself.
    """

    name: str
    title: str
    recognise: Callable[[Folder], str]
    find: Callable[[Folder, SourceOptions], FoundFiles | DatabaseFiles]


def finding(severity: Severity, code: str, message: str, case: str = "", file: str = "") -> Finding:
    """A finding of a layout. `gathering.gather` adds the name of the database."""
    return Finding(severity, code, "", case, file, message)


def with_description(files: DatabaseFiles, options: SourceOptions) -> DatabaseFiles:
    """Replace what was found about the database by what the user gives."""
    fields = ("name", "pathology", "licence", "citation", "source")
    given: dict[str, Any] = {name: text for name in fields if (text := getattr(options, name))}
    return replace(files, **given)


def without_skipped_labels(roles: Sequence[Role], codes: Mapping[str, str]) -> list[Role]:
    """The roles without the labels that `--labels NAME:skip` leaves out.

    NAME is the spelling of files, or an annotation that no file has as its spelling: "lesion" does not skip "gt",
    though both are lesions.
    """
    skipped = {name for name, text in codes.items() if text == SKIP}
    spellings = {role.spelling or role.name for role in roles if role.kind == "label"}

    def is_kept(role: Role) -> bool:
        spelling = role.spelling or role.name
        return role.kind != "label" or (spelling if role.name in spellings else role.name) not in skipped

    return [role for role in roles if is_kept(role)]


def image_names(roles: Sequence[Role]) -> dict[str, set[str]]:
    """The names of every case's images, sorted by case; empty for a case with only labels or masks."""
    cases = sorted(grouped(roles, lambda role: role.case).items())
    return {case: {role.name for role in of_case if role.kind == "image"} for case, of_case in cases}
