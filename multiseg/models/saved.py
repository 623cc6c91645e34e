"""Models as files: one safetensors file holds the weights and all that is needed to use them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from multiseg.errors import CheckpointError, DataError, UsageError
from multiseg.files import write_atomically
from multiseg.labels import LabelSpace, SpaceLabel
from multiseg.modalities import ModalityAxis
from multiseg.models.builders import Builder, build
from multiseg.models.devices import resolve_device
from multiseg.models.learnt_scans import LearntScans
from multiseg.own import is_own
from multiseg.types import Index3

FORMAT = 1
BEST, LAST = "model.safetensors", "last.safetensors"
LEARNT = "learnt"
"""Where a file's JSON has the digests of its scans: beside what `ModelInfo` says, which a federation sends around."""
BACKGROUNDS = ("zero", "shifted")


@dataclass(frozen=True)
class ModelInfo:
    """What a model is and where it comes from; stored in its file's metadata as JSON.

    Attributes:
        builder, numbers: the network's name and its numbers (widths, dropout).
        trained_on: for each sequence of the axis, the databases that had it in training.
        databases: name to pathology, number of training cases and preparation recipe.
        metrics: the latest validation so far, and the step that it was made at; what is undefined is left out.
        ancestry: the models that it was fine-tuned from, the first one first: see `training.start`.
        background: what the network saw outside the brain of a sequence that is present: "zero", or "shifted",
            where a raw 0 became (0 - mean) / std like the brain's values (Xu et al. 2024, as released).

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

    def __post_init__(self) -> None:
        if self.background not in BACKGROUNDS:
            raise UsageError(f"background {self.background!r} is none of {', '.join(BACKGROUNDS)}.")

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {
            "format": FORMAT,
            "axis": list(self.axis),
            "space": [asdict(label) for label in self.space.labels],
            **({"rest": self.space.rest} if self.space.rest else {}),
            "versions": {"multiseg": version("multiseg"), "torch": torch.__version__},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ModelInfo:
        kept = {key: value for key, value in data.items() if key not in ("format", "versions", LEARNT, "rest")}
        return cls(
            **kept
            | {
                "axis": ModalityAxis(tuple(data["axis"])),
                "space": LabelSpace(tuple(SpaceLabel(**label) for label in data["space"]), data.get("rest", "")),
                "spacing_mm": tuple(data["spacing_mm"]),
                "patch": tuple(data["patch"]),
                "trained_on": {name: tuple(databases) for name, databases in data["trained_on"].items()},
                "ancestry": tuple(data.get("ancestry", ())),
            }
        )

    def at(self, step: int, metrics: Mapping[str, float]) -> ModelInfo:
        """The same model at another step of its training."""
        return replace(self, step=step, metrics={name: v for name, v in metrics.items() if math.isfinite(v)})

    def usable(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Those of the sequences that some training database had; an untrained channel only does harm."""
        return tuple(name for name in names if self.trained_on.get(name))


class Model(nn.Module):
    """A network with its `info`, called as `model(images, present)`; images are [batch modality i j k].

    `learnt` are the scans it has learnt from, None where its file does not say.
    """

    def __init__(self, network: nn.Module, info: ModelInfo, learnt: LearntScans | None = None) -> None:
        super().__init__()
        self.network = network
        self.info = info
        self.learnt = learnt

    def forward(
        self, images: Float[Tensor, "batch modality i j k"], present: Bool[Tensor, "batch modality"]
    ) -> Float[Tensor, "batch label i j k"]:
        logits: Tensor = self.network(images, present)
        return logits


def save_model(path: Path, network: nn.Module, info: ModelInfo, learnt: LearntScans | None = None) -> None:
    """Write weights, info and the digests of the scans learnt from as one file, whole or not at all."""
    save_weights(path, network.state_dict(), info, learnt)


def save_weights(path: Path, weights: Mapping[str, Tensor], info: ModelInfo, learnt: LearntScans | None = None) -> None:
    """The same of weights by name, without a network around them."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    about = info.to_json() | ({} if learnt is None else {LEARNT: learnt.to_json()})
    write_atomically(path, save(state, metadata={"multiseg": json.dumps(about)}))


def read_info(path: Path) -> ModelInfo:
    """What a model file says of itself, without loading its weights.

    Raises:
        CheckpointError: it is no model of ours.
    """
    return _about(path)[0]


def read_learnt(path: Path) -> LearntScans | None:
    """The scans that a model file says it has learnt from; None where it does not say.

    Raises:
        CheckpointError: it is no model of ours.
    """
    return _about(path)[1]


def _about(path: Path) -> tuple[ModelInfo, LearntScans | None]:
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("multiseg")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise CheckpointError(f"there is no model at {path}.") from error
    except SafetensorError as error:
        raise CheckpointError(f"{path} is no whole safetensors file: {error}. Copy or train it again.") from error
    if text is None:
        raise CheckpointError(f"{path} holds tensors but was not written by multiseg.")
    try:
        data = json.loads(text)
        if data["format"] == FORMAT:
            learnt = LearntScans.from_json(data[LEARNT]) if LEARNT in data else None
            return ModelInfo.from_json(data), learnt
    except (ValueError, KeyError, TypeError, AttributeError, DataError) as error:
        raise CheckpointError(f"{path} does not describe its model as multiseg does: {error!r}.") from error
    raise CheckpointError(f"{path} has model format {data['format']!r}; this multiseg reads {FORMAT}.")


def model_path(path: Path) -> Path:
    """The model file that a path stands for: itself, or a run folder's best (else last) model.

    Raises:
        CheckpointError: there is none.
    """
    if not path.is_dir():
        return path
    for name in (BEST, LAST):
        if (path / name).is_file():
            return path / name
    raise CheckpointError(f"the folder {path} holds no {BEST}. Has the training saved anything yet?")


def load_weights(file: Path, device: str = "cpu") -> dict[str, Tensor]:
    """The tensors of a model file by name."""
    with safe_open(file, framework="pt", device=device) as tensors:
        return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 (no mapping)


def load_model(path: Path | str, device: str = "cpu", network: Builder | None = None) -> Model:
    """The model of a file or a run folder, in eval mode.

    Args:
        device: "auto" (CUDA where there is one), "cpu", "cuda" or "cuda:N".
        network: what makes the network, where the file names one of your own that cannot be imported.

    Raises:
        UsageError: there is no such device.
        CheckpointError: there is none, it is damaged, or its weights do not fit its own description.
    """
    file = model_path(Path(path))
    device = str(resolve_device(device))
    info, learnt = _about(file)
    state = load_weights(file, device)
    try:
        made = build(network or info.builder, len(info.axis), info.space.num_logits, **info.numbers)
        made.load_state_dict(state)
    except (RuntimeError, TypeError, UsageError) as error:
        if isinstance(error, UsageError) and is_own(info.builder):
            hint = " Or pass it from Python: load_model(path, network=...)." if network is None else ""
            raise CheckpointError(f"the network that {file} names cannot be made: {error}{hint}") from error
        raise CheckpointError(f"the weights in {file} do not fit the network it names: {error}") from error
    return Model(made, info, learnt).to(device).eval()
