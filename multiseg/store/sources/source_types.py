"""What a layout is, and what it finds in a folder: files with roles, and then whole cases."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from multiseg.labels import LabelSchema
from multiseg.modalities import in_canonical_order
from multiseg.store.cases import CaseFiles, ScanFile, paths_of
from multiseg.store.findings import Finding
from multiseg.store.sources.source_folder import Folder

REAL_NAMES = "REAL_NAMES"
"""The code of a note that names of patients become names of cases."""
Row = Mapping[str, str | float]
SKIP = "skip"
"""The meaning of a spelling that is to be left out."""


@dataclass(frozen=True)
class SourceOptions:
    """How to read a source; "" and empty leave it to the layout.

    The command line builds it from its flags and a manifest from its tables; everything that reads a source takes it
    whole. So a new flag is a field here, its declaration in `cli.source_flags.SourceFlags`, and the code that uses it.

    Attributes:
        name: of the database.
        pathology: of its patients.
        codes: annotation name to text such as "1=necrosis,2=oedema", or the name of an atlas.
        modalities: spellings of the files to names of sequences, or to "skip".
        modality: the sequence of every image, where names do not say any.
        participants: a table with a row a case, or a subject; its first column names it.
        brain_mask: "file", "nonzero", "otsu", "command ..." (see `recipe.Recipe`), or a file-name pattern.
        raters: "all", "consensus", "majority" or the name of one; see `annotations.choose_raters`.
        allow_unlabelled: take cases without label, too.
        yes: what the layout guesses has been looked at and is right.
        layout: the name of one, or your own as "module:name"; "" recognises it.
        pattern: where images lie, such as "{case}/{modality}.nii.gz", in place of a layout.
        labels: annotation name to the pattern of its files; goes with `pattern`.
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
    yes: bool = False
    layout: str = ""
    pattern: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    licence: str = ""
    citation: str = ""
    source: str = ""


@dataclass(frozen=True)
class Role:
    """What one file is to a case: a sequence in some spelling, an annotation, or the brain mask.

    `fields` may hold subject, session, site and split; the files of a case must agree on them. `spelling` is what
    `--modality` and `--labels` call a file, where that is not its `name`. `doubt` says why a layout does not tell which
    sequence it is: then only the user does.
    """

    case: str
    kind: Literal["image", "label", "brain mask"]
    name: str
    file: ScanFile
    fields: Mapping[str, str] = field(default_factory=dict)
    spelling: str = ""
    doubt: str = ""


@dataclass(frozen=True)
class Found:
    """What a layout found in a folder, before it is put together.

    Attributes:
        schemas: the meaning of the codes of every annotation among the roles.
        required: annotations that every case must have; without any, one label of some kind is asked for.
        may_lack_labels: cases of which none is expected, such as those of a test set.
        skipped: cases of which the user leaves every image out; they have labels at most.
        participants: rows by case or by subject.
        unused: volumes in the folder that have no role.
        any_scan_counts: every file whose name tells a sequence should have had a role.
        free_names: names of cases are taken from names of files or folders that may hold words of a sequence, too.
        raters: which raters are kept where the user does not choose; see `annotations.choose_raters`.
    """

    name: str
    folder: Folder
    roles: Sequence[Role]
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


@dataclass(frozen=True)
class DatabaseFiles:
    """One database as found on disk: its cases, the meaning of its labels, and findings so far.

    Cases with an error among `findings` are not in `cases`. `pseudonyms` tells by which key their names are
    pseudonyms; "" where they are real.
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
    """One way in which datasets lie on disk.

    Attributes:
        name: what `--as` takes.
        title: what people call it.
        recognise: the evidence in words ("3 folders such as BraTS2021_00000"), or "" where it is not this.
            Looks at names and small texts (dataset.json) only.
        find: every file's role, or whole cases. Raises DataError where the folder contradicts itself.
    """

    name: str
    title: str
    recognise: Callable[[Folder], str]
    find: Callable[[Folder, SourceOptions], Found | DatabaseFiles]


def with_description(files: DatabaseFiles, options: SourceOptions) -> DatabaseFiles:
    """The database with what the user says of it as a whole in place of what was found."""
    fields = ("name", "pathology", "licence", "citation", "source")
    given: dict[str, Any] = {name: text for name in fields if (text := getattr(options, name))}
    return replace(files, **given)


def without_skipped_labels(roles: Sequence[Role], codes: Mapping[str, str]) -> list[Role]:
    """The roles without the labels that `--labels NAME:skip` leaves out, by the spelling of files.

    An annotation's name counts where no file is spelt so: "lesion" is not "gt", though both are of lesions.
    """
    skipped = {name for name, text in codes.items() if text == SKIP}
    spellings = {role.spelling or role.name for role in roles if role.kind == "label"}

    def is_kept(role: Role) -> bool:
        spelling = role.spelling or role.name
        return role.kind != "label" or (spelling if role.name in spellings else role.name) not in skipped

    return [role for role in roles if is_kept(role)]


def unused_volumes(folder: Folder, roles: Sequence[Role]) -> list[str]:
    """The volumes of a folder that no role was given to."""
    used = {path for role in roles for path in paths_of(role.file)}
    return [file for file in folder.volumes if folder.path(file) not in used]
