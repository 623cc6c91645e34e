"""Model files: one safetensors file with the weights and all that is needed to use them.

A model package (`models.packages`) stands for the model file in it, wherever a model is read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor, nn

from multiseg.errors import CheckpointError, DataError, UsageError
from multiseg.files import write_atomically
from multiseg.labels import LabelSpace, SpaceLabel
from multiseg.modalities import ModalityAxis
from multiseg.models.builders import Builder, build
from multiseg.models.calibration_record import Calibration
from multiseg.models.contrasts import Contrasts
from multiseg.models.devices import resolve_device
from multiseg.models.learnt_scans import LearntScans
from multiseg.models.packages import PACKAGE, is_package, read_package
from multiseg.own import is_own
from multiseg.types import Index3

FORMAT = 1
BEST, LAST = "model.safetensors", "last.safetensors"
ENDINGS = (".safetensors", PACKAGE)
"""Of the names of model files and packages."""
LEARNT = "learnt"
"""Key of the scans' digests in a file's JSON, which are not part of `ModelInfo`, since a federation sends that."""
CALIBRATION = "calibration"
PARTS = "parts"
CONTRASTS = "contrasts"
"""Key of what the sequences look like, which is not part of `ModelInfo` either."""
BACKGROUNDS = ("zero", "shifted")


@dataclass(frozen=True)
class ModelInfo:
    """What a model is and where it comes from; stored in its file's metadata as JSON.

    Attributes:
        builder, numbers: the network's name and its numbers (widths, dropout).
        trained_on: for each sequence of the axis, the databases that had it in training.
        databases: name to pathology, number of training cases and preparation recipe.
        metrics: the latest validation and its step, without undefined values.
        ancestry: the models that it was fine-tuned from, oldest first: see `training.start`.
        background: values outside the brain of a present sequence in training: "zero", or "shifted", where a raw 0
            became (0 - mean) / std like the brain's values (Xu et al. 2024, as released).
        calibration: of these weights; a model that learns further has none.
        parts: of a two_branch network, those that have learnt; empty if all have, and in a file that does not say.

    Raises:
        UsageError: the background is none of these.
    """

    builder: str
    numbers: Mapping[str, Any]
    axis: ModalityAxis
    space: LabelSpace
    spacing_mm: tuple[float, float, float]
    patch: Index3
    trained_on: Mapping[str, tuple[str, ...]]
    databases: Mapping[str, Mapping[str, Any]]
    step: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    licence: str = ""
    ancestry: tuple[Mapping[str, Any], ...] = ()
    background: str = "zero"
    calibration: Calibration | None = None
    parts: tuple[str, ...] = field(default=(), repr=False)  # texts of infos name kept calibrations

    def __post_init__(self) -> None:
        if self.background not in BACKGROUNDS:
            raise UsageError(f"the background is {self.background!r}: give one of {', '.join(BACKGROUNDS)}.")

    def to_json(self) -> dict[str, Any]:
        # Without what is empty, so that an older multiseg reads a model that needs nothing newer.
        fields = {name: value for name, value in asdict(self).items() if name not in (CALIBRATION, PARTS)}
        return fields | {
            "format": FORMAT,
            "axis": list(self.axis),
            "space": [{name: text for name, text in asdict(label).items() if text} for label in self.space.labels],
            **({"rest": self.space.rest} if self.space.rest else {}),
            **({CALIBRATION: self.calibration.to_json()} if self.calibration else {}),
            **({PARTS: list(self.parts)} if self.parts else {}),
            "versions": {"multiseg": version("multiseg"), "torch": torch.__version__},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ModelInfo:
        others = ("format", "versions", LEARNT, CONTRASTS, "rest")
        fields = {key: value for key, value in data.items() if key not in others}
        return cls(
            **fields
            | {
                "axis": ModalityAxis(tuple(data["axis"])),
                "space": LabelSpace(tuple(SpaceLabel(**label) for label in data["space"]), data.get("rest", "")),
                "spacing_mm": tuple(data["spacing_mm"]),
                "patch": tuple(data["patch"]),
                "trained_on": {name: tuple(databases) for name, databases in data["trained_on"].items()},
                "ancestry": tuple(data.get("ancestry", ())),
                PARTS: tuple(data.get(PARTS, ())),
                CALIBRATION: Calibration.from_json(data[CALIBRATION]) if CALIBRATION in data else None,
            }
        )

    def at(self, step: int, metrics: Mapping[str, float]) -> ModelInfo:
        """The info of the model at another step of its training."""
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        return replace(self, step=step, metrics=finite)

    def usable(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """The sequences that any training database had; an untrained channel would only do harm."""
        return tuple(name for name in names if self.trained_on.get(name))


class Model(nn.Module):
    """A network with its `info`, called as `model(images, present)`; images are [batch modality i j k].

    `learnt` are the scans it has learnt from, and `contrasts` what its sequences look like; None if its file does not
    say.
    """

    def __init__(
        self,
        network: nn.Module,
        info: ModelInfo,
        learnt: LearntScans | None = None,
        contrasts: Contrasts | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.info = info
        self.learnt = learnt
        self.contrasts = contrasts

    def forward(
        self, images: Float[Tensor, "batch modality i j k"], present: Bool[Tensor, "batch modality"]
    ) -> Float[Tensor, "batch label i j k"]:
        logits: Tensor = self.network(images, present)
        return logits


def save_model(
    path: Path,
    network: nn.Module,
    info: ModelInfo,
    learnt: LearntScans | None = None,
    contrasts: Contrasts | None = None,
) -> None:
    """Write weights, info, the digests of the scans learnt from and what they look like to one file, atomically."""
    save_weights(path, network.state_dict(), info, learnt, contrasts)


def save_weights(
    path: Path,
    weights: Mapping[str, Tensor],
    info: ModelInfo,
    learnt: LearntScans | None = None,
    contrasts: Contrasts | None = None,
) -> None:
    """As `save_model`, for weights by name instead of a network."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    metadata = info.to_json()
    if learnt is not None:
        metadata[LEARNT] = learnt.to_json()
    if contrasts is not None:
        metadata[CONTRASTS] = contrasts.to_json()
    write_atomically(path, save(state, metadata={"multiseg": json.dumps(metadata)}))


def read_info(path: Path) -> ModelInfo:
    """The info in a model file, without loading its weights; raises CheckpointError if multiseg did not write it."""
    return _read_metadata(path)[0]


def read_learnt(path: Path) -> LearntScans | None:
    """The scans that a model has learnt from, None if the file does not say; raises CheckpointError as `read_info`."""
    return _read_metadata(path)[1]


def read_contrasts(path: Path) -> Contrasts | None:
    """What a model's sequences look like, None if the file does not say; raises CheckpointError as `read_info`."""
    return _read_metadata(path)[2]


_About: TypeAlias = tuple[ModelInfo, LearntScans | None, Contrasts | None]


def _read_metadata(path: Path) -> _About:
    try:
        return _described(_metadata(path), path)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise CheckpointError(f"there is no model at {path}.") from error
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a complete safetensors file: {error}. Copy or train it again.") from error


def _described(metadata: Mapping[str, str], path: Path | str) -> _About:
    text = metadata.get("multiseg")
    if text is None:
        raise CheckpointError(f"{path} holds tensors, but was not written by multiseg.")
    try:
        data = json.loads(text)
        if data["format"] == FORMAT:
            learnt = LearntScans.from_json(data[LEARNT]) if LEARNT in data else None
            contrasts = Contrasts.from_json(data[CONTRASTS]) if CONTRASTS in data else None
            return ModelInfo.from_json(data), learnt, contrasts
    except (ValueError, KeyError, TypeError, AttributeError, DataError) as error:
        raise CheckpointError(f"the description of the model in {path} is invalid: {error!r}.") from error
    raise CheckpointError(f"{path} has model format {data['format']!r}; this multiseg reads {FORMAT}.")


def _metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file, or of that in a package."""
    if not is_package(path):
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    data = _packed(path)
    load(data)  # raises SafetensorError if the file is damaged
    return _metadata_of(data)


def _metadata_of(data: bytes) -> dict[str, str]:
    length = int.from_bytes(data[:8], "little")  # the format: a length, a JSON header, raw numbers
    found: dict[str, str] = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    return found


def _packed(path: Path) -> bytes:
    members = read_package(path)
    if BEST not in members:
        raise CheckpointError(f"the package {path} has no {BEST}. Pack the model again.")
    return members[BEST]


def without_learnt(path: Path) -> bytes:
    """The bytes of a model file or package, as they are but for the digests of the scans learnt from.

    Raises:
        CheckpointError: as `read_info`.
    """
    read_info(path)

    def without(about: dict[str, Any]) -> dict[str, Any]:
        kept = {name: value for name, value in about.items() if name != LEARNT}
        # The key is made of the validation cases, too: whoever has all of them could recognise them by it.
        return kept | ({CALIBRATION: {**kept[CALIBRATION], "key": ""}} if CALIBRATION in kept else {})

    return _with_description(path, without)


def with_calibration(path: Path, calibration: Calibration) -> bytes:
    """The bytes of a model file, as they are but for its calibration.

    Raises:
        CheckpointError: as `read_info`.
    """
    read_info(path)
    return _with_description(path, lambda about: {**about, CALIBRATION: calibration.to_json()})


def _with_description(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> bytes:
    metadata = change(json.loads(_metadata(path)["multiseg"]))
    return save(load_weights(path), metadata={"multiseg": json.dumps(metadata)})


def model_path(path: Path) -> Path:
    """The model file of a path: the path itself (a file or a package), or the best (else last) model of a run folder.

    Raises:
        CheckpointError: the folder has none.
    """
    if not path.is_dir():
        return path
    for name in (BEST, LAST):
        if (path / name).is_file():
            return path / name
    raise CheckpointError(f"the folder {path} has no {BEST}. Has the training saved anything yet?")


def load_weights(file: Path, device: str = "cpu") -> dict[str, Tensor]:
    """The tensors of a model file or package by name."""
    if is_package(file):
        return {name: tensor.to(device) for name, tensor in load(_packed(file)).items()}
    with safe_open(file, framework="pt", device=device) as tensors:
        return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 (no mapping)


def load_model(path: Path | str, device: str = "cpu", network: Builder | None = None) -> Model:
    """The model of a file, a package or a run folder, in eval mode.

    Args:
        device: "auto" (CUDA if there is any), "cpu", "cuda" or "cuda:N".
        network: makes the network, if the file names one of your own that cannot be imported.

    Raises:
        UsageError: there is no such device.
        CheckpointError: there is no model, it is damaged, or its weights do not fit its description.
    """
    file = model_path(Path(path))
    device = str(resolve_device(device))
    return _made(file, _read_metadata(file), load_weights(file, device), device, network)


def load_model_of(data: bytes, where: str, device: str = "cpu") -> Model:
    """The model in the bytes of a model file, in eval mode.

    Args:
        where: the file, for messages.

    Raises:
        UsageError: there is no such device.
        CheckpointError: as `load_model`.
    """
    try:
        state = load(data)
        about = _described(_metadata_of(data), where)
    except SafetensorError as error:
        raise CheckpointError(f"{where} is not a complete safetensors file: {error}. Train it again.") from error
    return _made(where, about, state, str(resolve_device(device)), None)


def _made(
    file: Path | str,
    about: _About,
    state: Mapping[str, Tensor],
    device: str,
    network: Builder | None,
) -> Model:
    info, learnt, contrasts = about
    try:
        made = build(network or info.builder, len(info.axis), info.space.num_logits, **info.numbers)
        made.load_state_dict(state)
    except (RuntimeError, TypeError, UsageError) as error:
        if isinstance(error, UsageError) and is_own(info.builder):
            hint = " Or pass it from Python: load_model(path, network=...)." if network is None else ""
            raise CheckpointError(f"cannot make the network that {file} names: {error}{hint}") from error
        raise CheckpointError(f"the weights in {file} do not fit the network it names: {error}") from error
    return Model(made, info, learnt, contrasts).to(device).eval()
