"""The annotations of a BIDS dataset: the names of lesion masks and segmentations, and the meaning of their codes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from multiseg.errors import DataError, LabelError, SourceError
from multiseg.labels import LabelSchema, kind_of_structure
from multiseg.store.findings import Finding, Severity
from multiseg.store.sources.annotations import DEFAULT_ANNOTATION, is_rater, schema_for
from multiseg.store.sources.bids_choice import Choice
from multiseg.store.sources.bids_names import BidsFile, mask_name
from multiseg.store.sources.source_folder import Folder, grouped
from multiseg.store.sources.source_types import SKIP, SourceOptions, finding
from multiseg.store.sources.text_tables import read_table

LESION = "1=lesion:lesion"
STANDARD_SEGMENTATION = (
    "1=tissue:grey matter,2=tissue:white matter,3=tissue:CSF,4=tissue:bone,5=tissue:soft tissue,6=tissue:non-brain,"
    "7=lesion:lesion,8=tissue:cortical grey matter,9=tissue:subcortical grey matter,10=tissue:brainstem,"
    "11=tissue:cerebellum"
)
"""The standard's meaning of the codes of a segmentation without a table."""


@dataclass(frozen=True)
class Annotations:
    """A dataset's annotations: their names by the labels' paths, and schemas by name, unless the user gives them."""

    names: Mapping[str, str]
    schemas: Mapping[str, LabelSchema]
    required: tuple[str, ...]
    findings: tuple[Finding, ...]


def annotations_of(choices: Sequence[Choice], folder: Folder, options: SourceOptions) -> Annotations:
    """The annotations of all cases."""
    names = lesion_names([file for choice in choices for file in choice.lesions])
    # The consensus comes before the raters, since the first annotation takes precedence.
    lesions = sorted(set(names.values()), key=lambda name: (is_rater(name), name))
    several = [name for name in lesions if name != DEFAULT_ANNOTATION and not is_rater(name)]
    findings = [_warn_of_several(names, lesions)] if several else []
    schemas = {name: schema_for(name, LESION) for name in lesions}
    for files in _by_annotation([file for choice in choices for file in choice.segmentations]):
        try:
            name, schema = _segmentation(folder, files, options)
        except DataError as error:
            message = f"{len(files)} segmentations such as {files[0].path} are left out: {error}"
            findings.append(finding(Severity.WARNING, "LABEL_TABLE", message, file=files[0].path))
            continue
        names |= {file.path: name for file in files}
        schemas |= {name: schema} if schema else {}
    required = (DEFAULT_ANNOTATION,) if DEFAULT_ANNOTATION in lesions and not several else ()
    return Annotations(names, schemas, required, tuple(findings))


def _warn_of_several(names: Mapping[str, str], lesions: Sequence[str]) -> Finding:
    counts = ", ".join(f"{name} ({list(names.values()).count(name)} cases)" for name in lesions)
    message = (
        f"some cases have several lesion masks, so each is a separate annotation: {counts}. If they differ, the first "
        f"takes precedence; leave one out with --labels {lesions[-1]}:{SKIP}."
    )
    return finding(Severity.WARNING, "SEVERAL_MASKS", message)


def _by_annotation(files: Sequence[BidsFile]) -> list[list[BidsFile]]:
    """Groups of segmentations, each of which is one annotation."""
    groups = grouped(files, lambda file: (file.suffix, _annotation_name(file)))
    return [groups[key] for key in sorted(groups)]


def _annotation_name(file: BidsFile) -> str:
    if file.suffix != "dseg":
        return mask_name(file)
    return file.entities.get("seg") or file.entities.get("desc") or file.entities.get("atlas", "")


def _segmentation(folder: Folder, files: Sequence[BidsFile], options: SourceOptions) -> tuple[str, LabelSchema | None]:
    """The name of a group of segmentations and the meaning of its codes; None if the user gives it.

    The name is "tissue" or "tissue_aseg", by seg- or desc-, or "lesions..." if all structures are lesions.

    Raises:
        DataError: the tables of codes are invalid, contradict each other, or name too many structures.
    """
    name = _annotation_name(files[0])
    if files[0].suffix != "dseg":
        return name, None
    tissue, lesions = (f"{kind}_{name}" if name else kind for kind in ("tissue", "lesions"))
    for annotation in (tissue, lesions):
        if annotation in options.codes:
            return annotation, None
    schema = merged_schema(tissue, {file.path: table_codes(folder, file) for file in files})
    return (tissue if any(structure.kind == "tissue" for structure in schema.structures) else lesions), schema


def lesion_names(masks: Sequence[BidsFile]) -> dict[str, str]:
    """The annotation of every lesion mask by its path.

    It is "lesion", or "rater3" if the name says the rater. If a case has several, they are named by what distinguishes
    them: first the pipeline, then desc-, then any other difference of their names.
    """
    keys = ["pipeline", "desc", *sorted({key for mask in masks for key in _traits(mask)} - {"pipeline", "desc"})]
    keys_used: list[str] = []
    for key in keys:
        groups = grouped(masks, lambda mask: (mask.case, *_parts_of_name(mask, keys_used)))
        if any(len({_traits(mask).get(key, "") for mask in group}) > 1 for group in groups.values()):
            keys_used.append(key)
    return {mask.path: "_".join(filter(None, _parts_of_name(mask, keys_used))) or DEFAULT_ANNOTATION for mask in masks}


def _traits(mask: BidsFile) -> dict[str, str]:
    entities = {key: value for key, value in mask.distinguishing.items() if key not in ("space", "label")}
    if mask.rater:
        entities = {key: value for key, value in entities.items() if key not in ("desc", "rater")}
    suffix = "" if mask.rater else mask.suffix
    return {**entities, "pipeline": mask.pipeline, "words": "-".join(mask.words), "suffix": suffix}


def _parts_of_name(mask: BidsFile, keys: Sequence[str]) -> list[str]:
    traits = _traits(mask)
    return [mask.rater, *(traits.get(key, "") for key in keys)]


def table_codes(folder: Folder, file: BidsFile) -> str:
    """The codes of a segmentation, from the nearest table, else those of the standard.

    Raises:
        SourceError: the table lacks the columns `index` and `name`, or an index is not a whole number.
    """
    path = next((path for path in _tables(file) if folder.path(path).is_file()), None)
    if path is None:
        return STANDARD_SEGMENTATION
    meanings = []
    for row in read_table(folder.path(path)):
        index, name = row.get("index", ""), row.get("name", "")
        if not index.lstrip("-").isdigit() or not name:
            message = f"{path} has the row {dict(row)}, but needs columns index (a whole number) and name. Fix it."
            raise SourceError(message, code="LABEL_TABLE", file=path)
        if int(index) != 0:
            # A comma or an equals sign would end the name in the text of codes.
            meanings.append(f"{index}={kind_of_structure(name)}:{name.replace(',', ' ').replace('=', ' ')}")
    return ",".join(meanings)


def _tables(file: BidsFile) -> Iterable[str]:
    """Possible paths of a table: next to the file, or in a folder above for many files."""
    stem = file.path.split("/")[-1].split(".")[0]
    shared = "_".join(part for part in stem.split("_") if not part.startswith(("sub-", "ses-")))
    general = "_".join(part for part in shared.split("_") if not part.startswith("space-"))
    folders = file.path.split("/")[:-1]
    for depth in range(len(folders), -1, -1):
        above = "".join(f"{name}/" for name in folders[:depth])
        for name in dict.fromkeys((stem, shared, general, "dseg")):
            yield f"{above}{name}.tsv"


def merged_schema(name: str, codes: Mapping[str, str]) -> LabelSchema:
    """The meaning of an annotation from the tables of all its files.

    Raises:
        LabelError: two tables name one code differently, or there are too many structures.
    """
    meanings: dict[str, tuple[str, str]] = {}
    for path, text in codes.items():
        for part in text.split(","):
            code, _, meaning = part.partition("=")
            first_meaning, first_path = meanings.setdefault(code, (meaning, path))
            if first_meaning != meaning:
                raise LabelError(
                    f"annotation {name!r}: {code} is {first_meaning!r} by the table of {first_path} and {meaning!r} by "
                    f'that of {path}. Give its codes: --labels "{name}:{code}=NAME,...", or leave it out: '
                    f"--labels {name}:skip."
                )
    return LabelSchema.parse(",".join(f"{code}={meaning}" for code, (meaning, _) in meanings.items()), "tissue")
