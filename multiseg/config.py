"""Read and check the settings of a run: one TOML file is one run."""

from __future__ import annotations

import dataclasses
import os
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from pydantic import TypeAdapter, ValidationError

from multiseg.errors import UsageError
from multiseg.loaders.augment import TRANSFORMS, AugmentOptions, preset
from multiseg.models.builders import NETWORKS
from multiseg.own import is_own
from multiseg.training.objectives import OBJECTIVES
from multiseg.training.optimisers import WEIGHT_DECAY
from multiseg.training.run_folder import TrainOptions
from multiseg.training.stages import check_stage_tables

Options = TypeVar("Options")

CPU_DEFAULTS: dict[str, Any] = {
    "stream": {"batch_size": 4, "workers": 1, "draw": {"patch": (48, 48, 48)}},
    "augment": {"preset": "none"},
    "fit": {"num_steps": 1000, "validate_every": 100, "validation_cases": 4},
}
"""Learns something within minutes on two cores. There are too few steps for augmentation to help."""

CUDA_DEFAULTS: dict[str, Any] = {
    "stream": {"batch_size": 10, "workers": 8, "draw": {"patch": (128, 128, 128)}},
    "augment": {"preset": "standard"},
    "fit": {"num_steps": 25_000, "validate_every": 500, "validation_cases": 8},
}
"""The published patch size and number of patches per step, with more augmentation than published."""


def defaults(cuda: bool, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Default settings for this kind of machine, and for the network in `settings` (a Multi-Unet if none).

    The number of patches per pass and of passes per step have defaults only if neither is set.
    """
    chosen = CUDA_DEFAULTS if cuda else CPU_DEFAULTS
    workers = min(chosen["stream"]["workers"], max(1, (os.cpu_count() or 2) - 1))
    settings = settings or {}
    builder = settings.get("model", {}).get("builder", "multi_unet")
    network = NETWORKS.get(builder, NETWORKS["multi_unet"])  # an unknown name fails where the network is made
    sizes = {} if is_own(builder) else network.defaults(cuda)
    result = merged(
        chosen, {"stream": {"workers": workers}, "model": sizes, **_weight_decay(settings), **_consistency(settings)}
    )
    batch_size, accumulate = settings.get("stream", {}).get("batch_size"), settings.get("fit", {}).get("accumulate")
    if cuda and batch_size is None and accumulate is None:
        parts = network.cuda_parts
        split = {"stream": {"batch_size": result["stream"]["batch_size"] // parts}, "fit": {"accumulate": parts}}
        result = merged(result, split)
    return result


def _weight_decay(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The weight decay of the chosen optimiser, if it has its own default."""
    name = settings.get("optimiser", {}).get("name")
    return {"optimiser": {"weight_decay": WEIGHT_DECAY[name]}} if name in WEIGHT_DECAY else {}


def _consistency(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The weight of the consistency term of the chosen objective, if it has its own default."""
    objective = OBJECTIVES.get(settings.get("fit", {}).get("objective"))
    return {"fit": {"consistency": objective.consistency}} if objective and objective.consistency else {}


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two nested tables. The second takes precedence, except where it is None."""
    result = {key: value for key, value in below.items() if value is not None}
    for key, value in above.items():
        if isinstance(value, Mapping):
            result[key] = merged(result.get(key) or {}, value)
        elif value is not None:
            result[key] = value
    return result


def read_run_file(path: Path) -> dict[str, Any]:
    """The tables of a training's run file; with stages, "stage" is a list of tables.

    Raises:
        UsageError: it is missing, is not valid TOML, or has an unknown key; or a stage is invalid.
    """
    settings = read_settings(path, TrainOptions, "Print one with: multiseg train STORE --print-config")
    stages = settings.get("stage")
    if isinstance(stages, list):
        check_stage_tables(stages)
        for table in stages:
            own = {name: value for name, value in table.items() if name != "name"}
            _refuse_unknown(own, TrainOptions, f"stage {table['name']}.")
    return settings


def read_settings(path: Path, options: type, hint: str = "") -> dict[str, Any]:
    """Read a TOML file of settings for the dataclass `options`.

    Args:
        hint: how to get the file, for the message if it is missing.

    Raises:
        UsageError: it is missing, cannot be read, is not valid TOML, or has an unknown key.
    """
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"there is no file {path}. {hint}".strip()) from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}.") from error
    _refuse_unknown(settings, options, "")
    return settings


def to_options(settings: Mapping[str, Any]) -> TrainOptions:
    """The options of a training from nested settings.

    Raises:
        UsageError: a setting is unknown or invalid.
    """
    return checked(training_settings(settings), TrainOptions)


def training_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in settings of a training: the seed for tables without their own, and the numbers of the preset.

    Raises:
        UsageError: the preset is unknown, or a setting would be ignored.
    """
    seed = {"seed": settings.get("seed", 0)}
    settings = merged({"stream": {"draw": seed}, "augment": seed}, settings)
    settings["augment"] = _with_preset(settings["augment"])
    return settings


def checked(settings: Mapping[str, Any], options: type[Options]) -> Options:
    """The dataclass `options` from nested settings.

    Raises:
        UsageError: a setting is unknown or invalid.
    """
    _refuse_unknown(settings, options, "")
    try:
        validated: Options = _adapter(options).validate_python(settings)  # type: ignore[arg-type] # a class is hashable
    except ValidationError as error:
        raise UsageError("invalid settings: " + "; ".join(map(_message, error.errors()))) from error
    return validated


@cache
def _adapter(options: type) -> TypeAdapter[Any]:
    """Pydantic's checks of a class: making them takes far longer than using them, and sites check every task."""
    return TypeAdapter(options)


@cache
def _hints(options: type) -> Mapping[str, Any]:
    return get_type_hints(options)


def _message(error: Mapping[str, Any]) -> str:
    """The text of one of pydantic's errors."""
    # Our own checks of a table name the setting themselves.
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    return f"{'.'.join(str(part) for part in error['loc'])}: {error['msg']} (got {error['input']!r})"


def _with_preset(augment: Mapping[str, Any]) -> dict[str, Any]:
    """The [augment] table, with the numbers of its preset for those that it does not set.

    Raises:
        UsageError: the preset is unknown, or a number would be ignored, since the preset omits its transform.
    """
    chosen = preset(str(augment.get("preset", AugmentOptions.preset)))
    for chance, names in TRANSFORMS.items():
        ignored = [name for name in names if name in augment]
        if ignored and chance not in augment and not getattr(chosen, chance):
            raise UsageError(
                f"[augment] sets {', '.join(ignored)}, but {chance} is 0 in the preset {chosen.preset!r}: "
                f"set {chance} too, or choose another preset."
            )
    return merged(dataclasses.asdict(chosen), augment)


def _refuse_unknown(settings: Mapping[str, Any], options: type, place: str) -> None:
    hints = _hints(options)
    unknown = sorted(set(settings) - set(hints))
    if unknown:
        where = f"[{place.rstrip('.')}]" if place else "the file"
        raise UsageError(f"unknown settings {unknown} in {where}. Known are: {', '.join(hints)}.")
    for key, value in settings.items():
        if dataclasses.is_dataclass(hints[key]):
            if not isinstance(value, Mapping):
                raise UsageError(f"{place}{key} must be a table of settings, [{place}{key}], but is {value!r}.")
            _refuse_unknown(value, hints[key], f"{place}{key}.")
