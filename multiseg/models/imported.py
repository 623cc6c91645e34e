"""A published file of weights becomes a model file of ours, with all that such a file does not say."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from multiseg.errors import CheckpointError, ModalityError, UsageError
from multiseg.files import check_files, check_folder
from multiseg.labels import LabelSpace
from multiseg.modalities import CANONICAL_ORDER, ModalityAxis, canonical_modality
from multiseg.models.builders import build, multi_unet
from multiseg.models.published import PublishedSize, load_published, read_published, size_of
from multiseg.models.saved import BEST, LAST, ModelInfo, save_model
from multiseg.models.unet import MultiUnet
from multiseg.types import Index3

RELEASED_CHANNELS = ("PD", "FLAIR", "SWI", "T1", "T1c", "T2")
"""Of the released model: the alphabetical order of the names, PD being spelled DP there."""


@dataclass(frozen=True)
class ImportOptions:
    """What a published file does not say of its network.

    Attributes:
        channels: the sequence of every input channel, in the file's order.
        untrained: those of them that no training database had.
        trained_on: the databases it learnt from, for the record.
        background: what the network saw outside the brain; see `ModelInfo`.
    """

    channels: tuple[str, ...] = RELEASED_CHANNELS
    untrained: tuple[str, ...] = ()
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    patch: Index3 = (128, 128, 128)
    trained_on: tuple[str, ...] = ("imported",)
    background: str = "shifted"
    licence: str = ""


def import_weights(path: Path, out: Path, options: ImportOptions, overwrite: bool = False) -> ModelInfo:
    """Write `out`/model.safetensors from a published file (Xu et al. 2024; Wagner et al. 2025); what it says.

    Raises:
        CheckpointError: the file holds no weights of a network that we have, or broken ones.
        ModalityError: the channels are not as many as the file's, not known, or named twice.
        UsageError: `out` holds a model already or is something else (a store, a folder of scans), or the patch does not
            fit the network.
    """
    check_folder(out, own=(BEST, LAST))
    check_files([out / BEST], [path], overwrite=True)  # a model that is there has words of its own
    there = [name for name in (BEST, LAST) if (out / name).exists()]
    if there and not overwrite:
        raise UsageError(f"{out} holds a model already ({there[0]}). Choose another --out, or pass --overwrite.")
    axis = ModalityAxis(named_channels(options.channels))
    untrained = named_channels(options.untrained)
    trained = [name for name in axis if name not in untrained]
    axis.channels(untrained)
    if not trained:
        raise ModalityError(f"no channel of {', '.join(axis)} was trained: the model could use no sequence at all.")
    state = read_published(path)
    size = size_of(state)
    _check_sizes(path, size, axis)
    numbers = {"widths": list(size.widths), "dropout": multi_unet.dropout, "norm": size.norm}
    network = build("multi_unet", size.num_channels, size.num_logits, **numbers)
    assert isinstance(network, MultiUnet)
    load_published(network, state)
    _check_patch(options.patch, network.multiple)
    origin = {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    info = ModelInfo(
        builder="multi_unet",
        numbers=numbers,
        axis=axis,
        space=LabelSpace(),
        spacing_mm=options.spacing_mm,
        patch=options.patch,
        trained_on={name: options.trained_on if name in trained else () for name in axis},
        databases={name: {"pathology": "", "num_cases": 0, "imported": origin} for name in options.trained_on},
        licence=options.licence,
        background=options.background,
    )
    save_model(out / BEST, network, info)
    return info


def named_channels(given: Sequence[str]) -> tuple[str, ...]:
    """The canonical names of channels.

    Raises:
        ModalityError: a spelling is not known, is the release's misspelt DP, or names a sequence again.
    """
    names: list[str] = []
    for one in given:
        name = canonical_modality(one)
        if name == "PD" and one.lower() == "dp":
            raise ModalityError("DP is how the release spells PD (proton density): write PD, at DP's place.")
        if name is None:
            raise ModalityError(
                f"the channel {one!r} is no known sequence. Write such as {', '.join(CANONICAL_ORDER)}."
            )
        if name in names:
            raise ModalityError(f"the channels {', '.join(given)} name {name} twice: each sequence has one channel.")
        names.append(name)
    return tuple(names)


def _check_sizes(path: Path, size: PublishedSize, axis: ModalityAxis) -> None:
    if size.num_channels != len(axis):
        raise ModalityError(
            f"{path} has {size.num_channels} input channels, but {len(axis)} are named ({', '.join(axis)}). Name "
            f"every one in the file's order; the released model's is {','.join(RELEASED_CHANNELS)}."
        )
    if size.num_logits != 1:
        raise CheckpointError(
            f"{path} answers with {size.num_logits} logits, and does not say for which structures. Only networks "
            "with one logit (lesion) can be imported."
        )


def _check_patch(patch: Index3, multiple: int) -> None:
    if any(n % multiple or n <= multiple for n in patch):
        raise UsageError(
            f"windows of {list(patch)} voxels do not fit the network: give a multiple of {multiple}, from "
            f"{2 * multiple} on."
        )
