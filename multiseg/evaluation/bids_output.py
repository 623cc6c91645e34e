"""A BIDS derivative of a cohort's segmentations: names, sidecars and the description of the dataset.

https://bids-specification.readthedocs.io/en/stable/derivatives/imaging.html - a single structure is a mask of 0 and 1
(`_label-lesion_mask`), several are a `_dseg` with its table, and probabilities are `_probseg`. All are in the patient's
own space (`space-orig`): on the voxels of one of the scans, which `SpatialReference` names.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

from multiseg.errors import UsageError
from multiseg.evaluation.prediction import Outputs, Prediction
from multiseg.files import write_atomically
from multiseg.labels import LabelSpace
from multiseg.store.cases import CaseFiles, paths_of
from multiseg.store.formats.label_table import rows_of_space, table_files
from multiseg.store.sources.bids import OURSELVES
from multiseg.store.sources.bids_names import bids_file

BIDS_VERSION = "1.10.0"
DESCRIPTION, IGNORED = "dataset_description.json", ".bidsignore"
KEPT = ("acq", "ce", "rec", "run")
"""The entities of the reference scan that a segmentation keeps, beside sub and ses."""
RAW = "raw"
"""The name of the source dataset in links."""


@dataclass(frozen=True)
class BidsNames:
    """The names of one case's files: `folder` is sub-X[/ses-Y]/anat, `stem` what all names begin with."""

    folder: str
    stem: str

    def outputs(self, root: Path, space: LabelSpace, probabilities: bool) -> Outputs:
        """The files in the dataset at `root`."""
        head = root / self.folder
        maps = {}
        if probabilities:
            maps = {one.name: head / f"{self.stem}_label-{plain(one.name)}_probseg.nii.gz" for one in space.labels}
        return Outputs(head / f"{self.stem}_{_suffix(space)}.nii.gz", maps, tables=False)


def _suffix(space: LabelSpace) -> str:
    return f"label-{plain(space.labels[0].name)}_mask" if len(space.labels) == 1 else "dseg"


def plain(text: str) -> str:
    """A BIDS label: only letters and digits are left of a text."""
    return re.sub(r"[^A-Za-z0-9]", "", text) or "x"


def names_of(files: CaseFiles, root: Path, reference: str) -> BidsNames:
    """The names for a case: those of its reference scan in a BIDS dataset at `root`, else made from person and visit.

    Args:
        reference: the sequence whose voxels the segmentation has; "" if that is not known.
    """
    person, visit, entities = files.person, files.session, {}
    path = paths_of(files.images[reference])[0] if reference in files.images else None
    scan = bids_file(path.relative_to(root).as_posix()) if path is not None and path.is_relative_to(root) else None
    if scan is not None:
        person, visit, entities = scan.subject, scan.session, dict(scan.entities)
    parts = [f"sub-{plain(person.removeprefix('sub-'))}"]
    parts += [f"ses-{plain(visit.removeprefix('ses-'))}"] if visit else []
    kept = [f"{key}-{plain(entities[key])}" for key in KEPT if key in entities]
    return BidsNames("/".join([*parts, "anat"]), "_".join([*parts, *kept, "space-orig"]))


def check_unique(names: Mapping[str, BidsNames]) -> None:
    """Raise UsageError if two cases would get the same file names."""
    twice = [stem for stem, num in Counter(one.stem.lower() for one in names.values()).items() if num > 1]
    if twice:
        cases = [case for case, one in names.items() if one.stem.lower() == twice[0]]
        raise UsageError(
            f"the cases {' and '.join(cases[:2])} would both be {twice[0]} in BIDS, where names have only letters and "
            "digits. Rename one, give their visits, or leave out --bids."
        )


def sidecars(outputs: Outputs, space: LabelSpace) -> tuple[Path, ...]:
    """The files that `write_sidecars` writes."""
    files = [_json_of(path) for path in (outputs.segmentation, *outputs.probabilities.values())]
    return (*files, *(_dseg_table(outputs, space)))


def write_sidecars(outputs: Outputs, prediction: Prediction, source: Path | None, space: LabelSpace) -> None:
    """Write what the files of a case are and what they were made from.

    Args:
        source: the folder of the source dataset; None for a store, whose files may be anywhere.
    """
    uris = {} if source is None else _uris(prediction.inputs, source)
    head: dict[str, Any] = {"SpatialReference": _reference_uri(prediction, uris) or "orig"}
    if uris:
        head["Sources"] = sorted(uris.values())
    kinds = {one.name: "Lesion" if one.kind == "lesion" else "ROI" for one in space.labels}
    for name, path in outputs.probabilities.items():
        _write_json(_json_of(path), {**head, "Description": f"The probability of {name}."})
    for path, text in _dseg_table(outputs, space).items():
        write_atomically(path, text.encode())
    own: dict[str, Any] = {"Type": kinds[space.labels[0].name]}
    if len(space.labels) > 1:
        own = {"kind": {"Description": "Whether the structure is a kind of lesion or of tissue."}}
    what = f"{', '.join(space.names)}, segmented by a model."
    _write_json(_json_of(outputs.segmentation), {**own, **head, "Manual": False, "Description": what})


def _reference_uri(prediction: Prediction, uris: Mapping[Path, str]) -> str:
    """The URI of the scan whose voxels the segmentation has."""
    names = [str(one["file"]) for one in prediction.prepared.sources if one["role"] == prediction.reference]
    return next((uri for path, uri in uris.items() if path.name in names), "")


def _uris(files: Sequence[Path], source: Path) -> dict[Path, str]:
    """The BIDS URI of every file below the source dataset."""
    inside = [path for path in files if path.is_relative_to(source)]
    return {path: f"bids:{RAW}:{quote(path.relative_to(source).as_posix())}" for path in inside}


def write_description(root: Path, source: Path | None, model: str) -> None:
    """Write dataset_description.json, and .bidsignore for the tables, which BIDS does not know.

    Args:
        model: which model made the segmentations, in words.
    """
    description: dict[str, Any] = {
        "Name": "Segmentations by multiseg",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": OURSELVES, "Version": version("multiseg"), "Description": model}],
    }
    if source is not None:
        link = os.path.relpath(source.resolve(), root.resolve())
        description["DatasetLinks"] = {RAW: quote(link)}
        description["SourceDatasets"] = [{"URL": quote(link)}]
    _write_json(root / DESCRIPTION, description)
    write_atomically(root / IGNORED, b"cases.csv\nlesions.csv\n")


def _dseg_table(outputs: Outputs, space: LabelSpace) -> dict[Path, str]:
    """The table of a segmentation of several structures."""
    tables = table_files(outputs.segmentation, rows_of_space(space)) if len(space.labels) > 1 else {}
    return {path: text for path, text in tables.items() if path.suffix == ".tsv"}


def _json_of(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(".nii.gz") + ".json")


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    write_atomically(path, (json.dumps(data, indent=1, ensure_ascii=False) + "\n").encode())
