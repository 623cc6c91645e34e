"""Convert a published file of weights into a model file, adding what such a file does not contain."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from multiseg.errors import CheckpointError, ModalityError, UsageError
from multiseg.files import check_files, check_folder
from multiseg.labels import LabelSpace
from multiseg.modalities import CANONICAL_ORDER, ModalityAxis, canonical_modality
from multiseg.models.brain_network import delete_in
from multiseg.models.builders import build, multi_unet
from multiseg.models.published import PublishedSize, load_published, read_published, size_of
from multiseg.models.saved import BEST, LAST, ModelInfo, save_model
from multiseg.models.unet import MultiUnet
from multiseg.types import Index3

RELEASED_CHANNELS = ("PD", "FLAIR", "SWI", "T1", "T1c", "T2")
"""Channels of the released model, in alphabetical order of the names, with PD spelled DP."""


@dataclass(frozen=True)
class ImportOptions:
    """What a published file does not say about its network.

    Attributes:
        channels: the sequence of every input channel, in the file's order.
        untrained: channels that no training database had.
        trained_on: the databases it learnt from, for the record.
        background: values outside the brain in training; see `ModelInfo`.
    """

    channels: tuple[str, ...] = RELEASED_CHANNELS
    untrained: tuple[str, ...] = ()
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    patch: Index3 = (128, 128, 128)
    trained_on: tuple[str, ...] = ("imported",)
    background: str = "shifted"
    licence: str = ""


def import_weights(path: Path, out: Path, options: ImportOptions, overwrite: bool = False) -> ModelInfo:
    """Write `out`/model.safetensors from a published file (Xu et al. 2024; Wagner et al. 2025); returns its info.

    Args:
        overwrite: replace an existing model; its brain network is deleted.

    Raises:
        CheckpointError: the file holds no weights of a network that we have, or broken ones.
        ModalityError: the number of channels is not that of the file, or a channel is unknown or named twice.
        UsageError: `out` already holds a model or something else (a store, scans), or the patch does not fit the
            network.
    """
    check_folder(out, own=(BEST, LAST))
    check_files([out / BEST], [path], overwrite=True)  # an existing model has its own message
    existing = [name for name in (BEST, LAST) if (out / name).exists()]
    if existing and not overwrite:
        raise UsageError(f"{out} already holds a model ({existing[0]}). Choose another --out, or pass --overwrite.")
    axis = ModalityAxis(named_channels(options.channels))
    untrained = named_channels(options.untrained)
    trained = [name for name in axis if name not in untrained]
    axis.channels(untrained)
    if not trained:
        raise ModalityError(f"no channel of {', '.join(axis)} was trained: the model could not use any sequence.")
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
    if existing:
        delete_in(out)  # last: where the disk is full, the old model stays, with what it carries
    return info


def named_channels(spellings: Sequence[str]) -> tuple[str, ...]:
    """The canonical names of channels.

    Raises:
        ModalityError: a spelling is unknown, is the release's misspelt DP, or names a sequence twice.
    """
    names: list[str] = []
    for spelling in spellings:
        name = canonical_modality(spelling)
        if name == "PD" and spelling.lower() == "dp":
            raise ModalityError("DP is how the release spells PD (proton density): write PD instead of DP.")
        if name is None:
            raise ModalityError(
                f"the channel {spelling!r} is not a known sequence. Known are, for example, "
                f"{', '.join(CANONICAL_ORDER)}."
            )
        if name in names:
            raise ModalityError(
                f"the channels {', '.join(spellings)} name {name} twice: each sequence has one channel."
            )
        names.append(name)
    return tuple(names)


def _check_sizes(path: Path, size: PublishedSize, axis: ModalityAxis) -> None:
    if size.num_channels != len(axis):
        raise ModalityError(
            f"{path} has {size.num_channels} input channels, but {len(axis)} are named ({', '.join(axis)}). Name "
            f"all of them in the file's order; that of the released model is {','.join(RELEASED_CHANNELS)}."
        )
    if size.num_logits != 1:
        raise CheckpointError(
            f"{path} has {size.num_logits} logits, and does not say for which structures. Only networks with one "
            "logit (lesion) can be imported."
        )


def _check_patch(patch: Index3, multiple: int) -> None:
    if any(n % multiple or n <= multiple for n in patch):
        raise UsageError(
            f"windows of {list(patch)} voxels do not fit the network: give multiples of {multiple}, at least "
            f"{2 * multiple}."
        )
