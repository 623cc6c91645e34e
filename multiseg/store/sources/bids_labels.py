"""The annotations of a BIDS dataset: what its lesion masks and segmentations are called, and what their codes mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from multiseg.errors import DataError, LabelError, SourceError
from multiseg.labels import LabelSchema, kind_of_structure
from multiseg.store.findings import Finding, Severity
from multiseg.store.sources.annotations import DEFAULT_ANNOTATION, is_rater, schema_for
from multiseg.store.sources.bids_choice import Choice
from multiseg.store.sources.bids_names import BidsFile, mask_name
from multiseg.store.sources.source_folder import Folder
from multiseg.store.sources.source_types import SKIP, SourceOptions
from multiseg.store.sources.text_tables import read_table

LESION = "1=lesion:lesion"
STANDARD_SEGMENTATION = (
    "1=tissue:grey matter,2=tissue:white matter,3=tissue:CSF,4=tissue:bone,5=tissue:soft tissue,6=tissue:non-brain,"
    "7=lesion:lesion,8=tissue:cortical grey matter,9=tissue:subcortical grey matter,10=tissue:brainstem,"
    "11=tissue:cerebellum"
)
"""What the standard's own index table calls the codes of a segmentation without a table beside it."""


@dataclass(frozen=True)
class Annotations:
    """A dataset's annotations: their names by the paths of the labels, and the meaning of their codes.

    A name without a schema has the one that the user gives.
    """

    names: Mapping[str, str]
    schemas: Mapping[str, LabelSchema]
    required: tuple[str, ...]
    findings: tuple[Finding, ...]


def annotations_of(choices: Sequence[Choice], folder: Folder, options: SourceOptions) -> Annotations:
    """The annotations of all cases."""
    names = lesion_names([file for choice in choices for file in choice.lesions])
    # The consensus stands before the raters, since the first annotation counts most.
    lesions = sorted(set(names.values()), key=lambda name: (is_rater(name), name))
    several = [name for name in lesions if name != DEFAULT_ANNOTATION and not is_rater(name)]
    findings = [_several(options.name or folder.name, names, lesions)] if several else []
    schemas = {name: schema_for(name, LESION) for name in lesions}
    for files in _alike([file for choice in choices for file in choice.segmentations]):
        try:
            name, schema = _segmentation(folder, files, options)
        except DataError as error:
            message = f"{len(files)} segmentations such as {files[0].path} are left out: {error}"
            where = (options.name or folder.name, "", files[0].path)
            findings.append(Finding(Severity.WARNING, "LABEL_TABLE", *where, message))
            continue
        names |= {file.path: name for file in files}
        schemas |= {name: schema} if schema else {}
    required = (DEFAULT_ANNOTATION,) if DEFAULT_ANNOTATION in lesions and not several else ()
    return Annotations(names, schemas, required, tuple(findings))


def _several(database: str, names: Mapping[str, str], lesions: Sequence[str]) -> Finding:
    counts = ", ".join(f"{name} ({list(names.values()).count(name)} cases)" for name in lesions)
    message = (
        f"there are cases with several lesion masks, so each is an annotation of its own: {counts}. Where they differ "
        f"the first one counts; leave one out with --labels {lesions[-1]}:{SKIP}."
    )
    return Finding(Severity.WARNING, "SEVERAL_MASKS", database, "", "", message)


def _alike(files: Sequence[BidsFile]) -> list[list[BidsFile]]:
    """Segmentations by what they are of: those of one group are one annotation."""
    groups: dict[tuple[str, str], list[BidsFile]] = {}
    for file in files:
        groups.setdefault((file.suffix, _own_name(file)), []).append(file)
    return [groups[key] for key in sorted(groups)]


def _own_name(file: BidsFile) -> str:
    if file.suffix != "dseg":
        return mask_name(file)
    return file.entities.get("seg") or file.entities.get("desc") or file.entities.get("atlas", "")


def _segmentation(folder: Folder, files: Sequence[BidsFile], options: SourceOptions) -> tuple[str, LabelSchema | None]:
    """The name of a group of segmentations and the meaning of its codes; None where the user gives it.

    It is "tissue" or "tissue_aseg" by its seg- or desc-, and "lesions..." where all its structures are lesions.

    Raises:
        DataError: the tables of its codes are wrong, contradict each other, or name more than fits.
    """
    own = _own_name(files[0])
    if files[0].suffix != "dseg":
        return own, None
    tissue, lesions = ("_".join(part for part in (kind, own) if part) for kind in ("tissue", "lesions"))
    for name in (tissue, lesions):
        if name in options.codes:
            return name, None
    schema = merged_schema(tissue, {file.path: table_codes(folder, file) for file in files})
    return (tissue if any(structure.kind == "tissue" for structure in schema.structures) else lesions), schema


def lesion_names(masks: Sequence[BidsFile]) -> dict[str, str]:
    """The annotation of every lesion mask by its path.

    It is "lesion", or "rater3" where the name says whose it is. Where a case has several, they are named by what
    tells them apart: their pipelines first, then desc-, then whatever else their names differ in.
    """
    keys = ["pipeline", "desc", *sorted({key for mask in masks for key in _traits(mask)} - {"pipeline", "desc"})]
    told_by: list[str] = []
    for key in keys:
        groups: dict[tuple[str, ...], set[str]] = {}
        for mask in masks:
            traits = _traits(mask)
            group = (mask.case, mask.rater, *(traits.get(told, "") for told in told_by))
            groups.setdefault(group, set()).add(traits.get(key, ""))
        if any(len(values) > 1 for values in groups.values()):
            told_by.append(key)
    return {mask.path: _name(mask, told_by) for mask in masks}


def _traits(mask: BidsFile) -> dict[str, str]:
    own = {key: value for key, value in mask.telling.items() if key not in ("space", "label")}
    if mask.rater:
        own = {key: value for key, value in own.items() if key not in ("desc", "rater")}
    suffix = "" if mask.rater else mask.suffix
    return {**own, "pipeline": mask.pipeline, "words": "-".join(mask.words), "suffix": suffix}


def _name(mask: BidsFile, told_by: Sequence[str]) -> str:
    traits = _traits(mask)
    told = [traits[key] for key in told_by if traits.get(key)]
    return "_".join([mask.rater, *told] if mask.rater else told) or DEFAULT_ANNOTATION


def table_codes(folder: Folder, file: BidsFile) -> str:
    """The codes of a segmentation, from the table that is nearest to it, else those of the standard.

    Raises:
        SourceError: the table has no columns `index` and `name`, or a row that is no whole number.
    """
    path = next((path for path in _tables(file) if folder.path(path).is_file()), None)
    if path is None:
        return STANDARD_SEGMENTATION
    meanings = []
    for row in read_table(folder.path(path)):
        index, name = row.get("index", ""), row.get("name", "")
        if not index.lstrip("-").isdigit() or not name:
            message = f"{path} has the row {dict(row)}; it needs columns index (a whole number) and name. Mend it."
            raise SourceError(message, code="LABEL_TABLE", file=path)
        if int(index) != 0:
            # A comma or an equals sign would end the name in the text of codes.
            meanings.append(f"{index}={kind_of_structure(name)}:{name.replace(',', ' ').replace('=', ' ')}")
    return ",".join(meanings)


def _tables(file: BidsFile) -> Iterable[str]:
    """Where a table may lie: beside the file, and, for many files, in the folders above it."""
    stem = file.path.split("/")[-1].split(".")[0]
    telling = "_".join(part for part in stem.split("_") if not part.startswith(("sub-", "ses-")))
    general = "_".join(part for part in telling.split("_") if not part.startswith("space-"))
    folders = file.path.split("/")[:-1]
    for depth in range(len(folders), -1, -1):
        above = "".join(f"{name}/" for name in folders[:depth])
        for name in dict.fromkeys((stem, telling, general, "dseg")):
            yield f"{above}{name}.tsv"


def merged_schema(name: str, codes: Mapping[str, str]) -> LabelSchema:
    """The meaning of an annotation from the tables of all its files.

    Raises:
        LabelError: two tables give one code two names, or there are more structures than fit.
    """
    meanings: dict[str, tuple[str, str]] = {}
    for path, text in codes.items():
        for part in text.split(","):
            code, _, meaning = part.partition("=")
            known, where = meanings.setdefault(code, (meaning, path))
            if known != meaning:
                raise LabelError(
                    f"annotation {name!r}: {code} is {known!r} by the table of {where} and {meaning!r} by that of "
                    f'{path}. Say which: --labels "{name}:{code}=NAME,...", or leave all out: --labels {name}:skip.'
                )
    return LabelSchema.parse(",".join(f"{code}={meaning}" for code, (meaning, _) in meanings.items()), "tissue")
