"""The network that finds the brain in a scan with its skull: a model of one channel, which a model may carry.

It is a model file of its own, `brain.safetensors`, beside the model in a run folder, and a member of a package.
"""

from __future__ import annotations

from pathlib import Path

from multiseg.errors import CheckpointError, UsageError
from multiseg.files import check_files, write_atomically
from multiseg.models.packages import is_package, read_package
from multiseg.models.saved import Model, ModelInfo, load_model, load_model_of, model_path, read_info

BRAIN_FILE = "brain.safetensors"
ANY_SEQUENCE = "any sequence"
"""The name of its only channel: it sees one sequence at a time, whichever that is."""
BRAIN = "brain"
"""The structure that it finds."""
RECIPE, NEWEST_RECIPE = "recipe", 2
"""Key, in its metrics, of how it learnt, since a score says other things after other trainings: 2 from the share of
brain in each voxel, and from phantoms, too; 1, which a file does not say, from outlines of stored brains alone."""


def is_brain_network(info: ModelInfo) -> bool:
    """Whether a model finds the brain."""
    return tuple(info.axis) == (ANY_SEQUENCE,) and info.space.names == (BRAIN,)


def place_in(into: Path, overwrite: bool) -> Path:
    """The file of a brain network that is to be written into a run folder, or under this name.

    Raises:
        CheckpointError: the folder has no model.
        UsageError: the file may not be written, see `check_files`; or it is a model of something else, which is never
            replaced; or there is no such run.
    """
    if not into.exists() and into.suffix != ".safetensors":
        raise UsageError(
            f"there is no run at {into}. Name the folder of a run, or a file for the network whose name ends in "
            ".safetensors."
        )
    out = model_path(into).with_name(BRAIN_FILE) if into.is_dir() else into
    if out.is_file() and _is_other_model(out):
        raise UsageError(f"{out} is not a brain network, but a model of something else: it is never replaced. Move it.")
    check_files([out], overwrite=overwrite, kinds=(".safetensors",))
    return out


def _is_other_model(file: Path) -> bool:
    try:
        return not is_brain_network(read_info(file))
    except CheckpointError:  # damaged
        return False


def carried_bytes(model: Path) -> bytes | None:
    """The file of the brain network that a run folder, a model file or a package carries; None if it has none.

    Raises:
        CheckpointError: there is no model, or the package is damaged.
    """
    file = model_path(model)
    if is_package(file):
        return read_package(file).get(BRAIN_FILE)
    beside = file.with_name(BRAIN_FILE)
    return beside.read_bytes() if beside.is_file() else None


def carry_on(model: Path, folder: Path) -> None:
    """Give the brain network that a model carries to one that is made from it, in a run folder that has none yet."""
    data = carried_bytes(model)
    if data is not None and not (folder / BRAIN_FILE).exists():
        write_atomically(folder / BRAIN_FILE, data)


def delete_in(folder: Path) -> None:
    """Delete the brain network of a run folder, since its model is replaced by another one.

    A model of something else under its name stays.
    """
    file = folder / BRAIN_FILE
    if file.is_file() and not _is_other_model(file):
        file.unlink()


def brain_network_at(path: Path, device: str = "cpu") -> Model | None:
    """The brain network in this file itself, or else the one that the model there carries; None if it has none.

    Raises:
        as `load_brain_network`.
    """
    file = model_path(path)
    return load_model(file, device) if is_brain_network(read_info(file)) else load_brain_network(file, device)


def load_brain_network(model: Path, device: str = "cpu") -> Model | None:
    """The brain network that a model carries, in eval mode; None if it has none, or if the file of that name is a
    model of something else.

    Raises:
        CheckpointError: it is damaged.
        UsageError: there is no such device.
    """
    data = carried_bytes(model)
    if data is None:
        return None
    where = f"{BRAIN_FILE} of {model}"
    network = load_model_of(data, where, device)
    return network if is_brain_network(network.info) else None
