"""dataset.json of nnU-Net and the Medical Segmentation Decathlon."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from multiseg.errors import LabelError, SourceError, few
from multiseg.labels import BACKGROUND, LabelSchema, Structure, kind_of_structure
from multiseg.store.findings import Finding, Severity
from multiseg.store.sources.annotations import only_annotation
from multiseg.store.sources.source_folder import SUFFIX, Folder, grouped
from multiseg.store.sources.source_types import SourceOptions, finding

NAME = "dataset.json"


def homes(folder: Folder) -> list[Folder]:
    """The folder itself if it has a dataset.json, else its direct subfolders that have one."""
    names = [match["home"] for match in folder.matches(r"(?:(?P<home>[^/]+)/)?dataset\.json")]
    return [folder] if None in names else [folder.subfolder(name) for name in names]


def only_home(folder: Folder) -> Folder:
    """The only dataset in a folder.

    Raises:
        SourceError: there are several or none.
    """
    found = homes(folder)
    if not found:
        message = f"there is no dataset.json in {folder.root}, which names the channels and labels. Add it."
        raise SourceError(message, code="MISSING_FILE", file=NAME)
    if len(found) > 1:
        names = few([home.name for home in found])
        raise SourceError(
            f"there are {len(found)} datasets ({names}), but only one can be ingested at a time. "
            "Give the folder of one.",
            code="SEVERAL_DATASETS",
        )
    (home,) = found
    return home


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        SourceError: the file does not exist, or is not a JSON object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise SourceError(f"{path} does not exist.", code="MISSING_FILE", file=str(path)) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SourceError(f"{path} is not valid JSON ({error}). Fix it.", code="BAD_JSON", file=str(path)) from error
    if not isinstance(data, dict):
        message = f"{path} has a JSON {type(data).__name__} instead of an object {{...}}. Is it the right file?"
        raise SourceError(message, code="BAD_JSON", file=str(path))
    return data


def peek(home: Folder) -> Mapping[str, Any]:
    """The contents of dataset.json; empty if it cannot be read, which `read_json` reports later."""
    try:
        return read_json(home.path(NAME))
    except SourceError:
        return {}


def has_channel_files(home: Folder) -> bool:
    """Whether images are X_0000 and X_0001 with a label X (nnU-Net), and not X with a label X (the Decathlon)."""
    images = {match["stem"] for match in home.matches(rf"images(?:Tr|Ts)/(?P<stem>[^/]+){SUFFIX}")}
    labels = {match["stem"] for match in home.matches(rf"labels(?:Tr|Ts)/(?P<stem>[^/]+){SUFFIX}")}
    return bool(images) and not images & labels and all(re.search(r"_\d{4}$", stem) for stem in images)


def channel_names(home: Folder, data: Mapping[str, Any], options: SourceOptions) -> dict[int, str]:
    """Every channel's spelling; its number if the user names that, or if several channels have one name.

    Raises:
        SourceError: dataset.json does not name the channels.
    """
    given = data.get("channel_names", data.get("modality"))
    if isinstance(given, list):
        given = dict(enumerate(given))
    if not isinstance(given, dict) or not given or not all(str(key).isdecimal() for key in given):
        message = (
            f'{home.path(NAME)} does not name its channels, such as "channel_names": {{"0": "T1", "1": "FLAIR"}}. '
            "Add that."
        )
        raise SourceError(message, code="BAD_JSON", file=NAME)
    names = [str(name) for name in given.values()]
    return {
        int(number): str(number) if str(number) in options.modalities or names.count(str(name)) > 1 else str(name)
        for number, name in given.items()
    }


def label_schema(labels: object) -> tuple[LabelSchema, str]:
    """The meaning of the codes in the "labels" of dataset.json, and a note on overlapping regions or "".

    Both {"0": "background"} and {"background": 0} are read. A list of codes is a region. Nested regions become disjoint
    structures: a code belongs to the innermost region around it.

    Raises:
        LabelError: the labels are not in such a form.
    """
    if not isinstance(labels, dict) or not labels:
        raise LabelError(
            'dataset.json has no "labels" such as {"background": 0, "lesion": 1}. Add them, or use --labels.'
        )
    if all(str(key).lstrip("-").isdecimal() for key in labels):
        regions = _regions((name, [code]) for code, name in labels.items())
    else:
        regions = _regions((name, codes if isinstance(codes, list) else [codes]) for name, codes in labels.items())
    background, ignore = _pop_codes(regions, BACKGROUND), _pop_codes(regions, "ignore")
    if 0 not in background and not any(0 in codes for codes in regions.values()):
        background = (0, *background)
    structures = _disjoint(regions)
    schema = LabelSchema(tuple(structures), background, ignore)
    if {structure.name for structure in structures} == regions.keys():
        return schema, ""
    meanings = "; ".join(
        f"{', '.join(map(str, structure.source_codes))} is {structure.name!r}" for structure in structures
    )
    return schema, f"overlapping regions are split, each code into the innermost: {meanings}. Rename with --labels."


def _regions(pairs: Iterable[tuple[object, list[Any]]]) -> dict[str, frozenset[int]]:
    regions: dict[str, frozenset[int]] = {}
    for name, codes in pairs:
        try:
            numbers = frozenset(int(code) for code in codes)
        except (TypeError, ValueError) as error:
            message = f"dataset.json gives the label {name!r} the code {codes}, not a whole number. Correct it."
            raise LabelError(message) from error
        regions[str(name)] = regions.get(str(name), frozenset()) | numbers
    return regions


def _pop_codes(regions: dict[str, frozenset[int]], word: str) -> tuple[int, ...]:
    """Remove the regions of this name, and return their codes."""
    names = [name for name in regions if name.lower() == word]
    return tuple(sorted(code for name in names for code in regions.pop(name)))


def _disjoint(regions: Mapping[str, frozenset[int]]) -> list[Structure]:
    """Disjoint structures: every code goes to the innermost region around it. A region that loses codes to others is
    renamed, since "core without enhancing" is not the core."""
    codes_of: dict[tuple[str, ...], list[int]] = {}
    for code in sorted(frozenset().union(*regions.values())):
        around = {name: codes for name, codes in regions.items() if code in codes}
        innermost = [name for name, codes in around.items() if not any(other < codes for other in around.values())]
        codes_of.setdefault(tuple(innermost), []).append(code)
    return [
        Structure(
            " and ".join(names) if len(names) > 1 else names[0] + _without(names[0], regions),
            "lesion" if any(kind_of_structure(name) == "lesion" for name in names) else "tissue",
            tuple(codes),
        )
        for names, codes in codes_of.items()
    ]


def _without(name: str, regions: Mapping[str, frozenset[int]]) -> str:
    region = regions[name]
    others = {other: codes for other, codes in regions.items() if codes & region and not codes >= region}
    largest = [other for other, codes in others.items() if not any(codes < larger for larger in others.values())]
    return f" without {' and '.join(largest)}" if largest else ""


def annotation(data: Mapping[str, Any], options: SourceOptions) -> tuple[str, dict[str, LabelSchema], list[Finding]]:
    """The annotation of the labels, its schema if the user gives none and it is needed, and notes on it.

    Raises:
        LabelError: the labels of dataset.json are invalid.
    """
    if options.codes or options.only_images:
        return only_annotation(options), {}, []
    schema, note = label_schema(data.get("labels"))
    name = "lesion" if any(structure.kind == "lesion" for structure in schema.structures) else "tissue"
    notes = {"LABEL_KINDS": _kinds(schema), "REGIONS": note}
    return name, {name: schema}, [finding(Severity.NOTE, code, text, "", NAME) for code, text in notes.items() if text]


def _kinds(schema: LabelSchema) -> str:
    structures = sorted(grouped(schema.structures, lambda structure: structure.kind).items())
    kinds = "; ".join(f"{kind}: {', '.join(structure.name for structure in group)}" for kind, group in structures)
    return f'kinds are guessed from names, {kinds}. If that is wrong: --labels "1=tissue:NAME,2=lesion:NAME".'


def broken_promises(
    data: Mapping[str, Any], keys: tuple[str, str], cases: Collection[str], suffix: str
) -> list[Finding]:
    """Warnings if the cases are not those that dataset.json lists, or else not as many as it says.

    Args:
        keys: those of the list and the number, such as "training" and "numTraining".
        suffix: a regular expression for the suffix of images.
    """
    listing, count = keys
    rows, promised, texts = data.get(listing), data.get(count), {}
    if isinstance(rows, list):
        images = [row.get("image", "") if isinstance(row, dict) else row for row in rows]
        named = {re.sub(f"(?:{suffix})$", "", PurePosixPath(str(image)).name) for image in images}
        missing, extra = sorted(named - set(cases)), sorted(set(cases) - named)
        if missing:
            texts["NOT_THERE"] = f'{len(missing)} of the {len(named)} cases in "{listing}" are missing: {few(missing)}.'
        if extra:
            texts["NOT_LISTED"] = f'{len(extra)} cases are not in "{listing}", but used: {few(extra)}.'
    elif isinstance(promised, int) and promised != len(cases):
        texts["COUNT_DIFFERS"] = f'dataset.json says "{count}": {promised}, but there are {len(cases)} cases.'
    what_to_do = "Was everything copied? If the files are right, correct dataset.json."
    return [finding(Severity.WARNING, code, f"{text} {what_to_do}", "", NAME) for code, text in texts.items()]


def text_of(data: Mapping[str, Any], *keys: str) -> str:
    """The text of the first of these keys that has one."""
    return next((str(data[key]) for key in keys if isinstance(data.get(key), str)), "")
