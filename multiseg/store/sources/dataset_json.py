"""dataset.json: what nnU-Net and the Medical Segmentation Decathlon write beside their files."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from multiseg.errors import LabelError, SourceError
from multiseg.labels import BACKGROUND, LabelSchema, Structure, kind_of_structure
from multiseg.store.findings import Finding, Severity
from multiseg.store.sources.annotations import only_annotation
from multiseg.store.sources.source_folder import SUFFIX, Folder, listed
from multiseg.store.sources.source_types import SourceOptions

NAME = "dataset.json"


def homes(folder: Folder) -> list[Folder]:
    """The folder itself where it holds a dataset.json, else the folders right in it that do."""
    found = [match["home"] for match in folder.fitting(r"(?:(?P<home>[^/]+)/)?dataset\.json")]
    return [folder] if None in found else [folder.within(home) for home in found]


def only_home(folder: Folder) -> Folder:
    """The one dataset that was meant.

    Raises:
        SourceError: there are several, or none.
    """
    found = homes(folder)
    if not found:
        message = (
            f"there is no dataset.json in {folder.root}, so nothing says what its channels and labels are. Add it."
        )
        raise SourceError(message, code="MISSING_FILE", file=NAME)
    if len(found) > 1:
        names = listed([home.name for home in found])
        raise SourceError(
            f"there are {len(found)} datasets ({names}), and one database is taken in at a time. "
            "Give the folder of each by itself.",
            code="SEVERAL_DATASETS",
        )
    (home,) = found
    return home


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        SourceError: there is no such file, or it is no JSON object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise SourceError(f"{path} does not exist.", code="MISSING_FILE", file=str(path)) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SourceError(f"{path} is no JSON ({error}). Repair it.", code="BAD_JSON", file=str(path)) from error
    if not isinstance(data, dict):
        message = f"{path} holds a JSON {type(data).__name__} instead of an object {{...}}. Is it the right file?"
        raise SourceError(message, code="BAD_JSON", file=str(path))
    return data


def peeked(home: Folder) -> Mapping[str, Any]:
    """What dataset.json says; nothing where it cannot be read, which `read_json` complains of later."""
    try:
        return read_json(home.path(NAME))
    except SourceError:
        return {}


def has_a_file_a_channel(home: Folder) -> bool:
    """Whether images are X_0000 and X_0001 with a label X (nnU-Net), and not X with a label X (the Decathlon)."""
    images = {match["stem"] for match in home.fitting(rf"images(?:Tr|Ts)/(?P<stem>[^/]+){SUFFIX}")}
    labels = {match["stem"] for match in home.fitting(rf"labels(?:Tr|Ts)/(?P<stem>[^/]+){SUFFIX}")}
    return bool(images) and not images & labels and all(re.search(r"_\d{4}$", stem) for stem in images)


def channel_names(home: Folder, data: Mapping[str, Any], options: SourceOptions) -> dict[int, str]:
    """The spelling of every channel's sequence; its number where that is what the user names, or is all that tells it.

    Raises:
        SourceError: dataset.json does not say the channels.
    """
    given = data.get("channel_names", data.get("modality"))
    if isinstance(given, list):
        given = dict(enumerate(given))
    if not isinstance(given, dict) or not given or not all(str(key).isdecimal() for key in given):
        raise SourceError(
            f'{home.path(NAME)} does not name its channels, such as "channel_names": {{"0": "T1", "1": "FLAIR"}}. '
            "Add that.",
            code="BAD_JSON",
            file=NAME,
        )
    names = [str(name) for name in given.values()]
    return {
        int(number): str(number) if str(number) in options.modalities or names.count(str(name)) > 1 else str(name)
        for number, name in given.items()
    }


def label_schema(labels: object) -> tuple[LabelSchema, str]:
    """The meaning of the codes in the "labels" of dataset.json, and what a person should know of it.

    Both directions are read, {"0": "background"} and {"background": 0}. A list of codes is a region. Regions that
    lie in each other become structures that do not: a code belongs to the innermost region around it.

    Raises:
        LabelError: the labels are of no such form.
    """
    if not isinstance(labels, dict) or not labels:
        raise LabelError(
            'dataset.json has no "labels" such as {"background": 0, "lesion": 1}. Add them, or use --labels.'
        )
    if all(str(key).lstrip("-").isdecimal() for key in labels):
        regions = _regions((name, [code]) for code, name in labels.items())
    else:
        regions = _regions((name, codes if isinstance(codes, list) else [codes]) for name, codes in labels.items())
    background, ignore = _taken(regions, BACKGROUND), _taken(regions, "ignore")
    if 0 not in background and not any(0 in codes for codes in regions.values()):
        background = (0, *background)
    structures = _apart(regions)
    schema = LabelSchema(tuple(structures), background, ignore)
    if {structure.name for structure in structures} == regions.keys():
        return schema, ""
    said = "; ".join(f"{', '.join(map(str, one.source_codes))} is {one.name!r}" for one in structures)
    return schema, f"regions that overlap are told apart, a code being of the innermost: {said}. Rename with --labels."


def _regions(pairs: Iterable[tuple[object, list[Any]]]) -> dict[str, frozenset[int]]:
    regions: dict[str, frozenset[int]] = {}
    for name, codes in pairs:
        try:
            own = frozenset(int(code) for code in codes)
        except (TypeError, ValueError) as error:
            message = f"dataset.json gives the label {name!r} the code {codes}, which is no whole number. Correct it."
            raise LabelError(message) from error
        regions[str(name)] = regions.get(str(name), frozenset()) | own
    return regions


def _taken(regions: dict[str, frozenset[int]], word: str) -> tuple[int, ...]:
    """The codes of what is no structure, taken out of the regions."""
    names = [name for name in regions if name.lower() == word]
    return tuple(sorted(code for name in names for code in regions.pop(name)))


def _apart(regions: Mapping[str, frozenset[int]]) -> list[Structure]:
    """Disjoint structures: every code goes to the innermost region around it, and a region that lost some to
    others says so in its name, since "core without enhancing" is no core."""
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
    own = regions[name]
    others = {n: codes for n, codes in regions.items() if codes & own and not codes >= own}
    largest = [n for n, codes in others.items() if not any(codes < other for other in others.values())]
    return f" without {' and '.join(largest)}" if largest else ""


def annotation(
    data: Mapping[str, Any], options: SourceOptions, database: str
) -> tuple[str, dict[str, LabelSchema], list[Finding]]:
    """The name of the labels' annotation, its schema where the user gives none, and what to know of it.

    Raises:
        LabelError: the labels of dataset.json cannot be understood.
    """
    if options.codes:
        return only_annotation(options, ""), {}, []
    schema, said = label_schema(data.get("labels"))
    name = "lesion" if any(structure.kind == "lesion" for structure in schema.structures) else "tissue"
    notes = {"LABEL_KINDS": _kinds(schema), "REGIONS": said}
    findings = [Finding(Severity.NOTE, code, database, "", NAME, text) for code, text in notes.items() if text]
    return name, {name: schema}, findings


def _kinds(schema: LabelSchema) -> str:
    said = [
        f"{kind}: {', '.join(names)}"
        for kind in ("lesion", "tissue")
        if (names := [structure.name for structure in schema.structures if structure.kind == kind])
    ]
    return f'kinds are told by names, {"; ".join(said)}. If that is wrong: --labels "1=tissue:NAME,2=lesion:NAME".'


def broken_promises(
    data: Mapping[str, Any], keys: tuple[str, str], cases: Collection[str], suffix: str, database: str
) -> list[Finding]:
    """Where the cases that dataset.json lists, or else counts, are not those that are there.

    Args:
        keys: of the list and of the number, such as "training" and "numTraining".
        suffix: a regular expression for the end of an image's name.
    """
    listing, count = keys
    rows = data.get(listing)
    if not isinstance(rows, list):
        promised = data.get(count)
        if not isinstance(promised, int) or promised == len(cases):
            return []
        said = {"COUNT_DIFFERS": f'dataset.json says "{count}": {promised}, but there are {len(cases)} cases.'}
    else:
        images = [row.get("image", "") if isinstance(row, dict) else row for row in rows]
        named = {re.sub(f"(?:{suffix})$", "", PurePosixPath(str(image)).name) for image in images}
        lost, more = sorted(named - set(cases)), sorted(set(cases) - named)
        said = {}
        if lost:
            said["NOT_THERE"] = (
                f'{len(lost)} of the {len(named)} cases under "{listing}" are not there: {listed(lost)}.'
            )
        if more:
            said["NOT_LISTED"] = f'{len(more)} cases are taken though not listed under "{listing}": {listed(more)}.'
    what_to_do = "Was everything copied? Correct dataset.json if it is right as it is."
    return [Finding(Severity.WARNING, code, database, "", NAME, f"{text} {what_to_do}") for code, text in said.items()]


def text_of(data: Mapping[str, Any], *keys: str) -> str:
    """The first of some texts that dataset.json has."""
    return next((str(data[key]) for key in keys if isinstance(data.get(key), str)), "")
