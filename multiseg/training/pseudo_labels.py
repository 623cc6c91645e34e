"""Soft tissue targets for cases of which only the lesions are annotated (Himmetoglu et al. 2025, section 3.3.3).

The stage pseudo_label writes them into the run folder; the stage joint learns from them. The store does not change.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from multiseg.errors import CheckpointError, UsageError, few
from multiseg.evaluation.adaptation import adapted, check_adaptable
from multiseg.evaluation.inference import predict_volume
from multiseg.evaluation.preparation import network_input
from multiseg.files import check_folder, write_atomically
from multiseg.labels import IGNORE, LabelSpace
from multiseg.loaders.augment import AugmentOptions
from multiseg.loaders.batches import Batch
from multiseg.loaders.graft import Kept
from multiseg.models.losses import consistency_loss, log_probabilities
from multiseg.models.saved import Model, load_model
from multiseg.models.two_branch import Branch
from multiseg.store.reader import Case, Database, Store
from multiseg.training.fit import Stream
from multiseg.types import Index3

KEPT = 64
"""Cases whose targets stay in memory."""
MOVING = ("rotate90_probability", "flip_probability", "affine_probability", "elastic_probability")


def write_pseudo_labels(
    store: Store, cases: Sequence[Case], model_path: Path, folder: Path, device: str, on_case: Callable[[str], None]
) -> None:
    """Write the probabilities of the tissues of every case, by the anatomy branch that was adapted to its lesions.

    A file holds [tissue i j k], float16, on the case's grid in the store. A case that is done already, with the same
    model and the same files, is skipped.

    Args:
        cases: annotated for lesions, which the adaptation uses.
        on_case: called after each case with what was done.

    Raises:
        UsageError: the model cannot be adapted, or the folder holds something else.
    """
    check_folder(folder, own=("*",))
    model = load_model(model_path, device)
    network = check_adaptable(model)
    for case in cases:
        path, key = _path(folder, case), _key(case, model)
        name = f"{case.database}/{case.name}"
        if path.is_file() and _read(path)[1] == key:
            on_case(f"{name}: done before")
            continue
        database = store[case.database]
        stored, codes = database.whole(case)
        usable = model.info.usable(case.modalities)
        images, present = network_input(model.info, stored, database.modalities, usable, case.intensity)
        result = adapted(model, images, present, _lesions(database, case, codes) > 0)
        assert isinstance(result.model.network, type(network))
        tissues = predict_volume(Branch(result.model.network, "anatomy"), images, present, model.info.patch)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, tissues=tissues.astype(np.float16), key=np.array(key))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, buffer.getvalue())
        on_case(f"{name}: {result}")


def _lesions(
    database: Database, case: Case, codes: UInt8[np.ndarray, "annotation i j k"]
) -> UInt8[np.ndarray, "i j k"]:
    target = database.label_view(case, LabelSpace()).target(codes)
    return np.where(target == IGNORE, 0, target)


def _path(folder: Path, case: Case) -> Path:
    return folder / case.database / f"{case.name}.npz"


def _key(case: Case, model: Model) -> str:
    """Identifies a file's content: by the case and by the model's weights."""
    total = sum(float(value.double().abs().sum()) for value in model.state_dict().values())
    return f"{case.source_sha256} {'x'.join(map(str, case.extent))} {total!r}"


def _read(path: Path) -> tuple[Float[np.ndarray, "tissue i j k"], str]:
    try:
        with np.load(path) as arrays:
            return arrays["tissues"], str(arrays["key"])
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"the pseudo-labels in {path} are damaged: {error}. Delete the file.") from error


@dataclass(frozen=True, eq=False)
class PseudoLabels:
    """The pseudo-labels of the cases of a training, read from a folder.

    Raises:
        UsageError: a case has none.
    """

    store: Store
    cases: Sequence[Case]
    folder: Path
    space: LabelSpace
    _kept: Kept[Float[np.ndarray, "tissue i j k"]] = field(default_factory=lambda: Kept(KEPT))

    def __post_init__(self) -> None:
        missing = [f"{case.database}/{case.name}" for case in self.cases if not _path(self.folder, case).is_file()]
        if missing:
            raise UsageError(
                f"{len(missing)} of {len(self.cases)} cases have no pseudo-labels in {self.folder} ({few(missing)}): "
                "give the stages pseudo_label and joint the same databases."
            )

    def soft(self, batch: Batch) -> Float[Tensor, "batch class i j k"]:
        """The soft targets of a batch: 1 for a true lesion, otherwise the tissues' probabilities; 0 where a voxel is
        ignored."""
        kinds = [label.kind for label in self.space.labels]
        tissues = [index for index, kind in enumerate(kinds, start=1) if kind == "tissue"]
        lesions = [index for index, kind in enumerate(kinds, start=1) if kind == "lesion"]
        soft = torch.zeros(len(batch.case), 1 + len(kinds), *batch.target.shape[1:])
        for sample, (database, name) in enumerate(zip(batch.database, batch.case, strict=True)):
            i, j, k = (int(n) for n in batch.corner[sample])
            window = self._window(self.store[database][name], (i, j, k), soft.shape[2:])
            soft[sample, tissues] = torch.from_numpy(window)
        soft[:, 0] = (1 - soft[:, 1:].sum(dim=1)).clamp(min=0)
        for lesion in lesions:
            soft = torch.where((batch.target == lesion)[:, None], _one_hot(lesion, soft), soft)
        return torch.where((batch.target == IGNORE)[:, None], torch.zeros_like(soft), soft)

    def _window(self, case: Case, corner: Index3, size: Sequence[int]) -> Float[np.ndarray, "tissue i j k"]:
        """The part of a case's probabilities in a window, 0 outside the case."""
        whole = self._kept.get((case.database, case.name), lambda: _read(_path(self.folder, case))[0])
        out = np.zeros((len(whole), *size), dtype=np.float32)
        inner = [slice(max(0, c), min(n, c + s)) for c, n, s in zip(corner, whole.shape[1:], size, strict=True)]
        outer = [slice(part.start - c, part.stop - c) for part, c in zip(inner, corner, strict=True)]
        if all(part.stop > part.start for part in inner):
            out[:, *outer] = whole[:, *inner]
        return out


def _one_hot(index: int, like: Float[Tensor, "batch class i j k"]) -> Float[Tensor, "1 class 1 1 1"]:
    one_hot = like.new_zeros(1, like.shape[1], 1, 1, 1)
    one_hot[:, index] = 1
    return one_hot


@dataclass(frozen=True)
class SoftStream:
    """The patches of a stream with soft targets; itself a `Stream`."""

    patches: Stream
    labels: PseudoLabels

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches number `start` to `stop` (exclusive)."""
        for batch in self.patches.batches(start, stop):
            yield replace(batch, soft=self.labels.soft(batch))


def soft_dice(network: nn.Module, batch: Batch, step: int) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """The Dice loss of the whole network against soft targets, over all voxels of the batch that are not ignored."""
    assert batch.soft is not None
    looked_at = (batch.target != IGNORE)[:, None]
    p = log_probabilities(network(batch.images, batch.present)).exp() * looked_at
    loss = consistency_loss(p, batch.soft)
    return loss, {"soft_dice": loss.detach()}


def check_still(options: AugmentOptions) -> None:
    """Raises UsageError if an augmentation moves patches, whose soft targets would stay."""
    moving = [name for name in MOVING if getattr(options, name)] + (["own"] if options.own else [])
    if moving:
        raise UsageError(
            f"augment.{moving[0]} moves patches, but not the soft targets of the stage pseudo_label: leave it out of "
            "the stage joint. Contrast, brightness and other changes of intensity are allowed."
        )
