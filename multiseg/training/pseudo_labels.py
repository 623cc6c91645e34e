"""Soft tissue targets for cases of which only the lesions are annotated (Himmetoglu et al. 2025, section 3.3.3).

The stage pseudo_label writes them into the run folder; the stage joint learns from them. The store does not change.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from multiseg.errors import CheckpointError, UsageError, few
from multiseg.evaluation.adaptation import TRUE_LESION, adapted, check_adaptable, lesion_of
from multiseg.evaluation.inference import predict_volume
from multiseg.evaluation.preparation import network_input
from multiseg.files import check_folder, write_atomically
from multiseg.labels import IGNORE, LabelSpace
from multiseg.loaders.augment import AugmentOptions
from multiseg.loaders.batches import Batch
from multiseg.loaders.graft_source import Kept
from multiseg.models.saved import Model, load_model
from multiseg.models.two_branch import TwoBranch
from multiseg.models.two_unets import Branch, branch_space
from multiseg.store.reader import Case, Database, Store
from multiseg.training.fit import Stream
from multiseg.types import Index3

KEPT_BYTES = 512_000_000
"""Size of the targets that stay in memory, in bytes; at least those of one case do."""
OVERLAP = 0.5
"""Of the windows in which the lesion branch looks for lesions."""
MOVING = ("rotate90_probability", "flip_probability", "affine_probability", "elastic_probability")


def write_pseudo_labels(
    store: Store,
    cases: Sequence[Case],
    model_path: Path,
    folder: Path,
    device: str,
    on_case: Callable[[str], None],
    adapt_to: str = TRUE_LESION,
) -> None:
    """Write the probabilities of the tissues of every case, by the anatomy branch that was adapted to its lesions.

    A file holds [tissue i j k], float16, on the case's grid in the store, and what it belongs to. A case that is done
    already, with the same model and the same files, is skipped. A case without a sequence of the anatomy branch gets no
    file: the branch would answer the same everywhere.

    Args:
        cases: annotated for lesions.
        on_case: called after each case with what was done.
        adapt_to: the lesions that the adaptation uses: those of the annotation, or those that the model finds; see
            `MetaOptions`.

    Raises:
        UsageError: the model cannot be adapted, or the folder holds something else.
        CheckpointError: a file is damaged.
    """
    check_folder(folder, own=("*",))
    model = load_model(model_path, device)
    network = check_adaptable(model)
    seen = [model.info.axis.names[channel] for channel in network.anatomy_channels]
    weights = sum(float(value.double().abs().sum()) for value in model.state_dict().values())
    for case in cases:
        path, name = _path(folder, case), f"{case.database}/{case.name}"
        if not set(seen) & set(model.info.usable(case.modalities)):
            path.unlink(missing_ok=True)  # of a time when it had one
            on_case(f"{name}: left out, since it has no {' or '.join(seen)}, which the anatomy branch needs")
            continue
        about = {**_about(case, branch_space(model.info.space, "anatomy")), "model": repr(weights)}
        about |= {"adapted to": adapt_to} if adapt_to != TRUE_LESION else {}
        if path.is_file() and _read_about(path) == about:
            on_case(f"{name}: done before")
            continue
        tissues, said = _tissues(model, network, store[case.database], case, adapt_to)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, tissues=tissues.astype(np.float16), about=np.array(json.dumps(about)))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, buffer.getvalue())
        on_case(f"{name}: {said}")


def _tissues(
    model: Model, network: TwoBranch, database: Database, case: Case, adapt_to: str
) -> tuple[Float[np.ndarray, "tissue i j k"], str]:
    """The tissues of a case by the adapted model, and how it was adapted."""
    stored, codes = database.whole(case)
    usable = model.info.usable(case.modalities)
    images, present = network_input(model.info, stored, database.modalities, usable, case.intensity)
    is_true = adapt_to == TRUE_LESION
    lesion = _lesions(database, case, codes) > 0 if is_true else lesion_of(model, images, present, OVERLAP)
    result = adapted(model, images, present, lesion)
    assert isinstance(result.model.network, type(network))
    tissues = predict_volume(Branch(result.model.network, "anatomy"), images, present, model.info.patch)
    return tissues, str(result)


def _lesions(
    database: Database, case: Case, codes: UInt8[np.ndarray, "annotation i j k"]
) -> UInt8[np.ndarray, "i j k"]:
    target = database.label_view(case, LabelSpace()).target(codes)
    return np.where(target == IGNORE, 0, target)


def _path(folder: Path, case: Case) -> Path:
    return folder / case.database / f"{case.name}.npz"


def _about(case: Case, tissues: LabelSpace) -> dict[str, Any]:
    """What the pseudo-labels of a case must agree with: their structures, the case's grid and its source files."""
    return {
        "tissues": list(tissues.names),
        "extent": list(case.extent),
        "affine": [round(float(value), 4) for value in case.grid.affine.ravel()],
        "source files": case.source_sha256,
    }


def _read_about(path: Path) -> dict[str, Any]:
    about: dict[str, Any] = json.loads(str(_read(path, "about")))
    return about


def _read(path: Path, name: str) -> np.ndarray:
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            array: np.ndarray = arrays[name]
            return array
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise CheckpointError(f"the pseudo-labels in {path} are damaged: {error}. Delete the file.") from error


@dataclass(frozen=True, eq=False)
class PseudoLabels:
    """The pseudo-labels of the cases of a training, read from a folder.

    Attributes:
        digests: by "database/case" one of what its file belongs to, and of the model that wrote it.

    Raises:
        UsageError: a case has none, or they are of other tissues, another grid or other source files.
        CheckpointError: a file is damaged.
    """

    store: Store
    cases: Sequence[Case]
    folder: Path
    space: LabelSpace
    digests: Mapping[str, str] = field(init=False)
    _kept: Kept[Float[np.ndarray, "tissue i j k"]] = field(init=False)

    def __post_init__(self) -> None:
        check_searched(self.store, self.cases, self.space)
        missing = names_of([case for case in self.cases if not _path(self.folder, case).is_file()])
        check_labelled(missing, self.cases, self.folder)
        digests = dict(zip(names_of(self.cases), map(self._checked, self.cases), strict=True))
        object.__setattr__(self, "digests", digests)
        num_tissues = len(branch_space(self.space, "anatomy").names)
        largest = max((2 * num_tissues * prod(case.extent) for case in self.cases), default=1)
        object.__setattr__(self, "_kept", Kept(max(1, KEPT_BYTES // largest)))

    def _checked(self, case: Case) -> str:
        """The digest of a case's file, which must be of this case and of these tissues."""
        path = _path(self.folder, case)
        about = _read_about(path)
        for name, wanted in _about(case, branch_space(self.space, "anatomy")).items():
            if about.get(name) != wanted:
                raise UsageError(
                    f"{path} does not belong to {case.database}/{case.name}: the {name} of the file: "
                    f"{about.get(name)}, of the training: {wanted}. Write the pseudo-labels again, with the stage "
                    "pseudo_label on this store."
                )
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()

    def soft(self, batch: Batch) -> Float[Tensor, "batch tissue i j k"]:
        """The tissues' probabilities in the patches of a batch, also under lesions; 0 outside their cases."""
        windows = []
        for database, name, corner in zip(batch.database, batch.case, batch.corner, strict=True):
            i, j, k = (int(n) for n in corner)
            windows.append(self._window(self.store[database][name], (i, j, k), batch.target.shape[1:]))
        return torch.from_numpy(np.stack(windows))

    def _window(self, case: Case, corner: Index3, size: Sequence[int]) -> Float[np.ndarray, "tissue i j k"]:
        """The part of a case's probabilities in a window, 0 outside the case."""
        whole = self._kept.get((case.database, case.name), lambda: self._whole(case))
        out = np.zeros((len(whole), *size), dtype=np.float32)
        inner = [slice(max(0, c), min(n, c + s)) for c, n, s in zip(corner, whole.shape[1:], size, strict=True)]
        outer = [slice(part.start - c, part.stop - c) for part, c in zip(inner, corner, strict=True)]
        if all(part.stop > part.start for part in inner):
            out[:, *outer] = whole[:, *inner]
        return out

    def _whole(self, case: Case) -> Float[np.ndarray, "tissue i j k"]:
        path = _path(self.folder, case)
        whole = _read(path, "tissues")
        if whole.shape != (num := len(branch_space(self.space, "anatomy").names), *case.extent):
            raise CheckpointError(
                f"the pseudo-labels in {path} are damaged: their shape is {whole.shape}, not {(num, *case.extent)}. "
                "Delete the file."
            )
        return whole


def names_of(cases: Sequence[Case]) -> list[str]:
    """Their names, as "database/case"."""
    return [f"{case.database}/{case.name}" for case in cases]


def check_labelled(missing: Sequence[str], cases: Sequence[Case], folder: Path | str) -> None:
    """Raises UsageError if some of the cases, `missing`, have no pseudo-labels in the folder."""
    if missing:
        raise UsageError(
            f"{len(missing)} of {len(cases)} cases have no pseudo-labels in {folder} ({few(missing)}): give the stages "
            "pseudo_label and joint the same databases."
        )


def check_searched(store: Store, cases: Sequence[Case], space: LabelSpace) -> None:
    """Raises UsageError if a case is not annotated for a lesion of the space."""
    lesions = branch_space(space, "lesion")
    names = names_of([case for case in cases if not store[case.database].label_view(case, lesions).annotated.any()])
    if names:
        raise UsageError(
            f"{names[0]} has no lesion annotation, as {len(names)} of the {len(cases)} cases ({few(names)}): name only "
            "databases with lesions in the stages pseudo_label and joint."
        )


@dataclass(frozen=True)
class SoftStream:
    """The patches of a stream with soft targets; itself a `Stream`."""

    patches: Stream
    labels: PseudoLabels

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches number `start` to `stop` (exclusive)."""
        for batch in self.patches.batches(start, stop):
            yield replace(batch, soft=self.labels.soft(batch))


def check_still(options: AugmentOptions) -> None:
    """Raises UsageError if an augmentation moves patches, whose soft targets would stay."""
    moving = [name for name in MOVING if getattr(options, name)] + (["own"] if options.own else [])
    if moving:
        raise UsageError(
            f"augment.{moving[0]} moves patches, but not the soft targets of the stage pseudo_label: leave it out of "
            "the stage joint. Contrast, brightness and other changes of intensity are allowed."
        )
