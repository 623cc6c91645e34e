"""One TOML file is one run: settings for the machine at hand, read and checked."""

from __future__ import annotations

import dataclasses
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from pydantic import TypeAdapter, ValidationError

from multiseg.errors import UsageError
from multiseg.loaders.augment import TRANSFORMS, AugmentOptions, preset
from multiseg.models.builders import NETWORKS
from multiseg.own import is_own
from multiseg.training.optimisers import WEIGHT_DECAY
from multiseg.training.run_folder import TrainOptions

Options = TypeVar("Options")

CPU_DEFAULTS: dict[str, Any] = {
    "stream": {"batch_size": 4, "workers": 1, "draw": {"patch": (48, 48, 48)}},
    "augment": {"preset": "none"},
    "fit": {"num_steps": 1000, "validate_every": 100, "validation_cases": 4},
}
"""Something is learnt within minutes on two cores: too few steps for augmentation to pay."""

CUDA_DEFAULTS: dict[str, Any] = {
    "stream": {"batch_size": 10, "workers": 8, "draw": {"patch": (128, 128, 128)}},
    "augment": {"preset": "standard"},
    "fit": {"num_steps": 25_000, "validate_every": 500, "validation_cases": 8},
}
"""The published patch and number of patches a step; more augmentation than published."""


def defaults(cuda: bool, said: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Settings for the machine at hand, and for the network that the settings `said` name (a Multi-Unet where none).

    Who says how many patches go through the network at once, or how often a step, says both.
    """
    chosen = CUDA_DEFAULTS if cuda else CPU_DEFAULTS
    workers = min(chosen["stream"]["workers"], max(1, (os.cpu_count() or 2) - 1))
    said = said or {}
    builder = said.get("model", {}).get("builder", "multi_unet")
    network = NETWORKS.get(builder, NETWORKS["multi_unet"])  # an unknown name fails where the network is made
    sizes = {} if is_own(builder) else network.defaults(cuda)
    found = merged(chosen, {"stream": {"workers": workers}, "model": sizes, **_decay(said)})
    if cuda and said.get("stream", {}).get("batch_size") is None and said.get("fit", {}).get("accumulate") is None:
        parts = network.cuda_parts
        at_once = {"stream": {"batch_size": found["stream"]["batch_size"] // parts}, "fit": {"accumulate": parts}}
        found = merged(found, at_once)
    return found


def _decay(said: Mapping[str, Any]) -> dict[str, Any]:
    """The weight decay of the optimiser that is named, where it has one of its own."""
    name = said.get("optimiser", {}).get("name")
    return {"optimiser": {"weight_decay": WEIGHT_DECAY[name]}} if name in WEIGHT_DECAY else {}


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Two nested tables as one; the second wins, None in it says nothing."""
    result = {key: value for key, value in below.items() if value is not None}
    for key, value in above.items():
        if isinstance(value, Mapping):
            result[key] = merged(result.get(key) or {}, value)
        elif value is not None:
            result[key] = value
    return result


def read_run_file(path: Path) -> dict[str, Any]:
    """The tables of a training's run file.

    Raises:
        UsageError: it is missing, no TOML, or has an unknown key.
    """
    return read_settings(path, TrainOptions, "Print one with: multiseg train STORE --print-config")


def read_settings(path: Path, options: type, hint: str = "") -> dict[str, Any]:
    """The tables of a TOML file that says what the dataclass `options` holds.

    Args:
        hint: where such a file comes from, said where there is none.

    Raises:
        UsageError: it is missing, cannot be read, is not valid TOML, or has an unknown key.
    """
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"there is no file {path}. {hint}".strip()) from None
    except OSError as error:
        raise UsageError(f"{path} could not be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is no TOML: {error}.") from error
    _refuse_unknown(settings, options, "")
    return settings


def to_options(settings: Mapping[str, Any]) -> TrainOptions:
    """Checked options of a training from nested settings.

    Raises:
        UsageError: an unknown key or a value of the wrong type, named by its place.
    """
    return checked(learning(settings), TrainOptions)


def learning(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings in which the one seed serves everything that has none of its own, and presets say their numbers.

    Raises:
        UsageError: there is no such preset, or a number that nothing hears.
    """
    seed = {"seed": settings.get("seed", 0)}
    settings = merged({"stream": {"draw": seed}, "augment": seed}, settings)
    settings["augment"] = _upon_preset(settings["augment"])
    return settings


def checked(settings: Mapping[str, Any], options: type[Options]) -> Options:
    """Options of a dataclass from nested settings.

    Raises:
        UsageError: an unknown key or a value of the wrong type, named by its place.
    """
    _refuse_unknown(settings, options, "")
    try:
        return TypeAdapter(options).validate_python(settings)
    except ValidationError as error:
        raise UsageError("these settings cannot be meant: " + "; ".join(map(_told, error.errors()))) from error


def _told(error: Mapping[str, Any]) -> str:
    """One of pydantic's errors: what checks a whole table names its number itself."""
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    return f"{'.'.join(str(part) for part in error['loc'])}: {error['msg']} (got {error['input']!r})"


def _upon_preset(said: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of the table's preset under those that the table says itself.

    Raises:
        UsageError: there is no such preset, or a number is of a transform that its preset leaves out.
    """
    chosen = preset(str(said.get("preset", AugmentOptions.preset)))
    for chance, names in TRANSFORMS.items():
        unheard = [name for name in names if name in said]
        if unheard and chance not in said and not getattr(chosen, chance):
            raise UsageError(
                f"[augment] sets {', '.join(unheard)}, but {chance} is 0 in the preset {chosen.preset!r}: "
                f"set {chance}, or another preset."
            )
    return merged(dataclasses.asdict(chosen), said)


def _refuse_unknown(settings: Mapping[str, Any], options: type, place: str) -> None:
    hints = get_type_hints(options)
    unknown = sorted(set(settings) - set(hints))
    if unknown:
        where = f"[{place.rstrip('.')}]" if place else "the file"
        raise UsageError(f"unknown settings {unknown} in {where}. It may hold: {', '.join(hints)}.")
    for key, value in settings.items():
        if dataclasses.is_dataclass(hints[key]):
            if not isinstance(value, Mapping):
                raise UsageError(f"{place}{key} is a table of settings, [{place}{key}], but got {value!r}.")
            _refuse_unknown(value, hints[key], f"{place}{key}.")
