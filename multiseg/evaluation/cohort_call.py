"""What all cases of a cohort have in common in one call, and whether a worker sees the same of it."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock

from multiseg.errors import CheckpointError, ResourceError
from multiseg.evaluation.cohort_records import CohortFolder
from multiseg.evaluation.prediction_inputs import PredictOptions
from multiseg.evaluation.voting import Voters, load_voters
from multiseg.models.brain_network import carried_bytes
from multiseg.models.saved import model_path, read_info

_ONE_AT_A_TIME = Lock()


@dataclass(frozen=True)
class CohortCall:
    """What all cases of a call have in common.

    Attributes:
        key: of the models and the options.
        brain: the digest of the network that finds brains; "" if no model carries one.
        call: another text for each call, which opens the store again.
        num_threads: of torch in each of several workers, which share the processors; 0 leaves it.
        place: the folder that relative paths begin in, for the workers of a cluster; "" for the current one.
    """

    model: str
    options: PredictOptions
    digests: tuple[str, ...]
    root: Path
    key: str
    source: Path | None
    overwrite: bool
    brain: str
    call: str
    num_threads: int = 0
    place: str = ""


def digests_of(model: Path | str, options: PredictOptions) -> tuple[str, ...]:
    """The sha256 of every model file.

    Raises:
        CheckpointError: one is missing or damaged.
    """
    files = [model_path(Path(path)) for path in (model, *options.others)]
    for file in files:
        read_info(file)
    return tuple(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)


def brain_digest(model: Path | str, options: PredictOptions) -> str:
    """The sha256 of the brain network of the first model that carries one."""
    files = (carried_bytes(path) for path in (Path(model), *map(Path, options.others)))
    return next((hashlib.sha256(data).hexdigest() for data in files if data is not None), "")


def loaded_voters(model: Path | str, options: PredictOptions) -> Voters:
    """The models as they are now."""
    return voters_of(str(model), options, (*digests_of(model, options), brain_digest(model, options)))


@lru_cache(maxsize=1)
def voters_of(model: str, options: PredictOptions, digests: tuple[str, ...]) -> Voters:
    """The models, loaded once in each process while their files have these digests."""
    return load_voters(model, options)


@contextmanager
def in_place_of(run: CohortCall) -> Iterator[None]:
    """On a worker of a cluster: be in the folder of the call, and let the other threads of its process wait.

    The current folder and the loaded model belong to the whole process.

    Raises:
        ResourceError: the worker does not see the folder, the model or the output, or sees others there.
    """
    if not run.place:
        yield
        return
    with _ONE_AT_A_TIME:
        before = Path.cwd()
        try:
            os.chdir(run.place)
        except OSError as error:
            raise _not_seen(run.place) from error
        try:
            _check_seen(run)
            yield
        finally:
            os.chdir(before)


def _check_seen(run: CohortCall) -> None:
    """Raises ResourceError if the output folder is not that of the run, or its models are others here."""
    if CohortFolder(run.root).key() != run.key:
        raise _not_seen(f"{run.root} of this run")
    try:
        seen = (*digests_of(run.model, run.options), brain_digest(run.model, run.options))
    except (OSError, CheckpointError) as error:
        raise _not_seen(f"the model {run.model}") from error
    if seen != (*run.digests, run.brain):
        raise _not_seen(f"the same model at {run.model}")


def _not_seen(what: str) -> ResourceError:
    return ResourceError(
        f"the dask worker on {socket.gethostname()} does not see {what}. The workers need the model, the source and "
        "the output under the same paths as this machine."
    )
