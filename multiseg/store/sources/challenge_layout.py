"""The record that describes a challenge, and the layout that reads any such record."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Literal

from multiseg.errors import SourceError
from multiseg.store.findings import Finding, Severity
from multiseg.store.sources.annotations import schema_for
from multiseg.store.sources.source_folder import SUFFIX, Folder, is_test_part
from multiseg.store.sources.source_types import FoundFiles, Layout, Role, RoleKind, SourceOptions, finding


@dataclass(frozen=True)
class Challenge:
    """A dataset whose folder and file names say everything about a file.

    The groups of `files` say what a file is: its `case`, or the groups that make up `case`; `subject`, `session` and
    `site`; `stage`, one of `stages`; `space`, the same for all files of a folder; `rater`, for a label whose annotation
    is "rater" and this text. `{what}` stands for the words of `images`, `labels` and `brain_mask`.

    Attributes:
        name: what `--as` takes.
        title: what people call it; the store keeps it as the source.
        files: regular expressions for the relative paths of its files, without suffixes such as ".nii.gz".
        case: the name of a case if `files` have no group `case`, such as "{subject}_{session}". A part between
            underscores is left out if its group is empty. `{test}` is "Testing" for a case of the test part.
        images: words in file names to names of sequences.
        labels: words in file names to annotations.
        brain_mask: words for a brain mask.
        site: the name of a site.
        codes: the meaning of all labels' codes; by default 1 is the lesion.
        needs_all_labels: whether a case needs all of `labels`, or only one.
        stages: folders with the same images at several stages of preparation, the preferred one first, and how the
            images in each were prepared.
        test_part: whether there is a test part, and whether its cases have labels. With "cases without label", a
            labelled case belongs to the training part in any folder.
        test_names: a regular expression that finds the test part in a file's path; by default a folder's name says it.
        signs: regular expressions; the folder is recognised if some case has a file for each of them. By default any
            file is enough.
        evidence: the reason that a user sees; `{cases}` and `{subjects}` are numbers, `{case}` and `{subject}` are
            examples.
        refusal: why this dataset cannot be ingested.
    """

    name: str
    title: str
    pathology: str
    files: tuple[str, ...]
    images: Mapping[str, str]
    case: str = "{case}"
    labels: Mapping[str, str] = field(default_factory=dict)
    brain_mask: tuple[str, ...] = ()
    site: str = "{site}"
    codes: str = ""
    needs_all_labels: bool = True
    stages: Mapping[str, str] = field(default_factory=dict)
    test_part: Literal["none", "labelled", "unlabelled", "cases without label"] = "none"
    test_names: str = ""
    signs: tuple[str, ...] = ("",)
    evidence: str = "{cases} folders such as {case}"
    refusal: str = ""
    licence: str = ""
    citation: str = ""

    @cached_property
    def words(self) -> dict[str, tuple[RoleKind, str]]:
        """The kind of file, and its sequence or annotation, by the word in its name, in lower case."""
        return {
            **{word.lower(): ("image", sequence) for word, sequence in self.images.items()},
            **{word.lower(): ("label", annotation) for word, annotation in self.labels.items()},
            **{word.lower(): ("brain mask", "brain mask") for word in self.brain_mask},
        }

    @cached_property
    def expressions(self) -> tuple[re.Pattern[str], ...]:
        what = f"(?P<what>{'|'.join([*self.images, *self.labels, *self.brain_mask])})"
        return tuple(re.compile(file.replace("{what}", what) + SUFFIX) for file in self.files)


@dataclass(frozen=True)
class NamedFile:
    """A file of a challenge, as its name describes it; `kind` is None for a file that has no role."""

    path: str
    case: str
    kind: RoleKind | None
    name: str
    fields: Mapping[str, str]
    stage: str
    space: str
    is_test: bool


def challenge_layout(challenge: Challenge) -> Layout:
    """The layout that reads a challenge."""
    return Layout(
        challenge.name, challenge.title, partial(recognise_challenge, challenge), partial(find_challenge, challenge)
    )


def recognise_challenge(challenge: Challenge, folder: Folder) -> str:
    """The evidence that a folder is this challenge, "" if it is not."""
    files = named_files(challenge, folder)
    with_signs = [{file.case for file in files if re.search(sign, file.path)} for sign in challenge.signs]
    cases = set.intersection(*with_signs)
    subjects = {file.fields.get("subject", file.case) for file in files if file.case in cases}
    if not cases:
        return ""
    return challenge.evidence.format(cases=len(cases), subjects=len(subjects), case=min(cases), subject=min(subjects))


def find_challenge(challenge: Challenge, folder: Folder, options: SourceOptions) -> FoundFiles:
    """Every file's role in a folder of this challenge.

    Raises:
        SourceError: the challenge is refused, or the folder has the same patients in several spaces.
    """
    if challenge.refusal:
        raise SourceError(f"{folder.root} is {challenge.refusal}", code="NO_FULL_LESIONS", file=str(folder.root))
    files = named_files(challenge, folder)
    check_one_space(folder, files)
    files, findings = choose_stage(challenge, files)
    tests = test_cases(challenge, files)
    roles = []
    for file in files:
        if file.kind:
            fields = {**file.fields, "split": "test"} if file.case in tests else file.fields
            roles.append(Role(file.case, file.kind, file.name, folder.path(file.path), fields))
    declared = list(challenge.labels.values())
    annotations = {role.name for role in roles if role.kind == "label"}
    required = [name for name in declared if name in annotations] or declared[:1]
    return FoundFiles(
        folder=folder,
        roles=roles,
        schemas={name: schema_for(name, challenge.codes) for name in [*declared, *sorted(annotations - {*declared})]},
        pathology=challenge.pathology,
        required=required if challenge.needs_all_labels else (),
        may_lack_labels=() if challenge.test_part == "labelled" else tests,
        unused=folder.unused(role.file for role in roles),
        findings=findings,
        licence=challenge.licence,
        citation=challenge.citation,
        source=challenge.title,
    )


def named_files(challenge: Challenge, folder: Folder) -> list[NamedFile]:
    """The files of a folder whose names fit the challenge, in the order of its expressions."""
    matches: dict[str, re.Match[str]] = {}
    for expression in challenge.expressions:
        for match in folder.matches(expression):
            matches.setdefault(match[0], match)
    return [named_file(challenge, folder, match) for match in matches.values()]


def named_file(challenge: Challenge, folder: Folder, match: re.Match[str]) -> NamedFile:
    """The file that a match describes."""
    groups = {name: text or "" for name, text in match.groupdict().items()}
    is_test = is_of_test_part(challenge, folder, match[0])
    kind, name = challenge.words.get(groups.get("what", "").lower(), (None, ""))
    if groups.get("rater"):
        kind, name = "label", f"rater{groups['rater']}"
    fields: dict[str, str] = {key: groups[key] for key in ("subject", "session") if key in groups}
    if "site" in groups:
        fields["site"] = challenge.site.format_map(groups)
    return NamedFile(
        path=match[0],
        case=groups.get("case") or fill(challenge.case, {**groups, "test": "Testing" if is_test else ""}),
        kind=kind,
        name=name,
        fields=fields,
        stage=groups.get("stage", ""),
        space=groups.get("space", ""),
        is_test=is_test,
    )


def fill(template: str, groups: Mapping[str, str]) -> str:
    """Fill a template with groups, without the parts between underscores whose group is empty."""
    parts = [part for part in template.split("_") if all(groups[name] for name in re.findall(r"\{(\w+)\}", part))]
    return "_".join(parts).format_map(groups)


def is_of_test_part(challenge: Challenge, folder: Folder, file: str) -> bool:
    """Whether the path of a file says that it belongs to the test part."""
    if challenge.test_part == "none":
        return False
    if challenge.test_names:
        return re.search(challenge.test_names, f"{folder.name}/{file}") is not None
    return is_test_part(folder, file)


def test_cases(challenge: Challenge, files: Sequence[NamedFile]) -> set[str]:
    """The cases of the test part."""
    labelled = {file.case for file in files if file.kind == "label"}
    tests = {file.case for file in files if file.is_test and file.kind}
    return tests - labelled if challenge.test_part == "cases without label" else tests


def check_one_space(folder: Folder, files: Sequence[NamedFile]) -> None:
    """Raise SourceError if files are in several spaces, since each patient would be there twice."""
    by_space = {file.space or "orig": file.path for file in files}
    if len(by_space) > 1:
        examples = "; ".join(f"{space}: {path}" for space, path in sorted(by_space.items()))
        message = (
            f"{folder.root} has the same patients in several spaces ({examples}). Ingest the folder of one release."
        )
        raise SourceError(message, code="SEVERAL_SPACES", file=str(folder.root))


def choose_stage(challenge: Challenge, files: Sequence[NamedFile]) -> tuple[list[NamedFile], tuple[Finding, ...]]:
    """The images of the preferred stage, the labels and masks of it or of no stage, and a note of the others."""
    present = {file.stage.lower() for file in files if file.kind == "image"}
    stages = [stage for stage in challenge.stages if stage.lower() in present]
    if not stages:
        return list(files), ()
    stage, *others = stages
    chosen = [
        file for file in files if file.stage.lower() == stage.lower() or (file.kind != "image" and not file.stage)
    ]
    if not others:
        return chosen, ()
    preparation = f" ({challenge.stages[stage]})" if challenge.stages[stage] else ""
    message = (
        f"images are from {stage}{preparation}; {' and '.join(others)} {'are' if len(others) > 1 else 'is'} not used. "
        f"To use {others[0]}, move {stage} out of the folder."
    )
    return chosen, (finding(Severity.NOTE, "STAGE", message),)
