"""Write a model for others: as one package, or as a folder for the Hugging Face Hub, with the same files.

- `model.safetensors`: the weights and their description, without the digests of the scans learnt from unless asked for.
- `config.json`: the description, and how a patient is prepared (`preparation_record`).
- `README.md`: the model card.
- `brain.safetensors`, if the model carries one: the network that finds brains, also without digests.
- `manifest.json`, of a package alone: the SHA-256 of each of these.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from multiseg.errors import UsageError
from multiseg.export.model_card import Results, model_card, results_in, terms_of
from multiseg.export.preparation_record import preparation_record
from multiseg.files import check_files, check_folder, write_atomically
from multiseg.models.brain_network import BRAIN_FILE, load_brain_network
from multiseg.models.branch_models import check_learnt
from multiseg.models.packages import FORMAT, MANIFEST, PACKAGE, is_package
from multiseg.models.saved import BEST, ModelInfo, load_model, model_path, without_learnt
from multiseg.models.two_branch import ANCHOR_PREFIX
from multiseg.own import is_own

CARD, CONFIG = "README.md", "config.json"
TIMESTAMP = (1980, 1, 1, 0, 0, 0)
"""Of every member, the earliest that a zip file has, so that the same model gives the same bytes."""
WITHOUT_DIGESTS = (
    "The file of weights does not list the scans that the model learnt from, so multiseg cannot say whether a case was "
    "among them."
)
WITH_DIGESTS = (
    "The file of weights lists digests of the scans that the model learnt from, by which multiseg recognises them, and "
    "by which anyone who has such a scan can tell that it was among them."
)


@dataclass(frozen=True, eq=False)
class Handover:
    """The files of a model for others, and what its owner should know before giving them away.

    Attributes:
        files: contents by name.
        doubts: what a person should check.
    """

    files: Mapping[str, bytes]
    info: ModelInfo
    results: Results
    doubts: tuple[str, ...]


def handover(run: Path, keep_digests: bool = False) -> Handover:
    """The files of the model of a run folder or a model file; equal models give equal bytes.

    Args:
        keep_digests: whether the weights keep the digests of the scans learnt from, by which anyone who has a scan
            can tell that it was among them.

    Raises:
        CheckpointError: there is no model, or it is damaged.
        UsageError: the model is in a package already, what answers of it has not learnt, or the results of an
            evaluation cannot be read.
    """
    file = model_path(run)
    if is_package(file):
        raise UsageError(f"{file} is a package already: copy it, or unzip it to have its files in a folder.")
    model = load_model(file)
    check_learnt(model.info)
    weights = file.read_bytes() if keep_digests else without_learnt(file)
    brain = load_brain_network(file)
    results = results_in(file.parent, sha256_of(file.read_bytes()))
    record = preparation_record(model.info, getattr(model.network, "multiple", None))
    doubts = (*record["doubts"], *_own_doubts(model.info, model.network.state_dict()))
    if brain is not None:
        doubts += _brain_doubts(brain.info)
    limits = (*doubts, WITH_DIGESTS if keep_digests and model.learnt is not None else WITHOUT_DIGESTS)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    # The licences are those of all that is handed on.
    databases = {**(brain.info.databases if brain else {}), **model.info.databases}
    whole = replace(model.info, databases=databases)
    card = model_card(model.info, parameters, results, limits, terms_of(whole))
    config = {
        "model_type": "multiseg",
        "library_name": "multiseg",
        "model": _description(weights),
        "preparation": record,
    }
    files = {
        CARD: card.encode(),
        CONFIG: (json.dumps(config, indent=1, ensure_ascii=False) + "\n").encode(),
        BEST: weights,
    }
    if brain is not None:
        beside = file.with_name(BRAIN_FILE)
        files[BRAIN_FILE] = beside.read_bytes() if keep_digests else without_learnt(beside)
    return Handover(files, model.info, results, doubts + _licence_doubts(whole))


def write_package(handed: Handover, out: Path, inputs: Sequence[Path] = (), overwrite: bool = False) -> None:
    """Write one file with all members, uncompressed: its bytes depend on the model alone, not on a compressor.

    Raises:
        UsageError: the file may not be written, see `check_files`.
    """
    check_files([out], inputs, overwrite, (PACKAGE,))
    members = {name: {"sha256": sha256_of(data), "bytes": len(data)} for name, data in handed.files.items()}
    manifest = json.dumps({"format": FORMAT, "members": members}, indent=1) + "\n"
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, data in {MANIFEST: manifest.encode(), **handed.files}.items():
            member = zipfile.ZipInfo(name, TIMESTAMP)
            member.create_system, member.external_attr = 3, 0o644 << 16  # as Unix writes it, everywhere
            archive.writestr(member, data)
    write_atomically(out, file.getvalue())


def write_hub_folder(handed: Handover, folder: Path, inputs: Sequence[Path] = (), overwrite: bool = False) -> None:
    """Write the files into a folder that can be uploaded to the Hugging Face Hub as it is.

    Raises:
        UsageError: a file may not be written, or the folder is one of scans or a store.
    """
    check_folder(folder, own=(CARD, CONFIG))
    check_files([folder / name for name in handed.files], inputs, overwrite)
    for name, data in handed.files.items():
        write_atomically(folder / name, data)


def sha256_of(data: bytes) -> str:
    """The SHA-256 as hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def _description(weights: bytes) -> object:
    """The JSON in the metadata of a model file."""
    length = int.from_bytes(weights[:8], "little")
    return json.loads(json.loads(weights[8 : 8 + length])["__metadata__"]["multiseg"])


def _brain_doubts(brain: ModelInfo) -> tuple[str, ...]:
    """What it means that a model carries a brain network, with the databases that it learnt from."""
    licences = [f"{name} ({about.get('licence') or 'licence not known'})" for name, about in brain.databases.items()]
    return (
        "It carries a network that finds the brain in scans with their skull (--brain-mask model), which learnt from "
        f"the brains of {', '.join(licences)}.",
    )


def _own_doubts(info: ModelInfo, names: Mapping[str, object]) -> tuple[str, ...]:
    doubts = []
    if any(name.startswith(ANCHOR_PREFIX) for name in names):
        doubts.append(
            "The weights hold the scan and the segmentation of a healthy person, which the adaptation to a patient "
            "uses: they may be passed on only where that scan may."
        )
    if is_own(info.builder):
        doubts.append(
            f"The network is {info.builder}, whose code is not part of multiseg: it has to be passed on, too."
        )
    return tuple(doubts)


def _licence_doubts(info: ModelInfo) -> tuple[str, ...]:
    terms = terms_of(info)
    if terms.strictest or not info.databases:
        return ()
    who = f" of {', '.join(terms.unknown)}" if terms.unknown else "s of the databases"
    why = "is not known" if terms.unknown else "do not go together, or none asks for all that the others ask"
    return (f"The licence{who} {why}: find out whether the model may be passed on.",)
