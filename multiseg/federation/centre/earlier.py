"""Keeps the last rounds of a run, to go back to: a folder for each with its state and models.

The files are hard links, so a round needs space only for what it changed: the network and the server's optimiser. On
file systems without hard links they are copies.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from multiseg.errors import CheckpointError, ResourceError, UsageError
from multiseg.federation.centre.experiment_folder import STATE, WORST, State, commit, opened, read_history
from multiseg.federation.centre.run_events import Event, WentBack
from multiseg.federation.centre.run_logs import RunLogs
from multiseg.files import add_name, lock_folder, rename_folder
from multiseg.models.saved import BEST, LAST, load_weights, read_info
from multiseg.training.run_folder import LOCK

EARLIER = "earlier"
FILES = (STATE, LAST, BEST, WORST)


def kept_rounds(folder: Path) -> tuple[int, ...]:
    """The rounds that a run can be put back to, the oldest first."""
    places = (folder / EARLIER).iterdir() if (folder / EARLIER).is_dir() else ()
    return tuple(sorted(int(place.name) for place in places if place.name.isdigit()))


def keep(folder: Path, number: int, most: int) -> None:
    """Keep the last committed state, that of round `number`, and up to `most` before it.

    A round that is kept already stays unchanged. Later rounds, from before the run was put back, are deleted.

    Raises:
        ResourceError: the disk is full.
    """
    place = _place(folder, number)
    try:
        if number and most and not place.exists():
            half = place.with_name(f".{place.name}.tmp")
            shutil.rmtree(half, ignore_errors=True)
            half.mkdir(parents=True)
            for name in FILES:
                if (folder / name).is_file():
                    add_name(folder / name, half / name)
            rename_folder(half, place)
        rounds = kept_rounds(folder)
        wanted = [round_ for round_ in rounds if round_ <= number][-most - 1 :] if most else []
        for round_ in set(rounds) - set(wanted):
            shutil.rmtree(_place(folder, round_))
    except OSError as error:
        raise ResourceError(
            f"round {number} is saved, but its copy {place}, to put the run back to it, could not be written: "
            f"{error.strerror}. Free some space; the same command resumes the run."
        ) from error


def rounds_to_hold(folder: Path, site: str) -> set[int]:
    """The rounds of which a site must keep its own parts in case the run is put back; see `personal.forget`."""
    return {read_history(_place(folder, number))["kept"].get(site, 0) for number in kept_rounds(folder)}


def go_back(folder: Path, experiment: str, number: int, on_event: Callable[[Event], None] = lambda event: None) -> None:
    """Put a run back to its state after round `number`; later rounds are deleted, except in the log.

    The rounds that follow are a new course of the run: sites train them from their own parts after round `number`,
    whatever they have stored of the deleted rounds.

    Raises:
        UsageError: that round is not kept; the message says which are.
        ResourceError: another process runs the experiment, or the disk is full.
        CheckpointError: the kept files are damaged.
    """
    rounds = kept_rounds(folder)
    if number not in rounds:
        listed = ", ".join(map(str, rounds)) or "none"
        raise UsageError(
            f"{folder} cannot be put back to round {number}: the kept rounds are {listed} (schedule.keep_rounds)."
        )
    place = _place(folder, number)
    with lock_folder(folder / LOCK, "it runs this experiment. Stop the run first: multiseg fed stop."):
        state = opened(place)
        if state is None:
            raise CheckpointError(f"{place} holds no {STATE}: choose another round.")
        before, course = _newest(folder, state)
        models = {
            name: (load_weights(place / name), read_info(place / name))
            for name in (LAST, BEST, WORST)
            if (place / name).is_file()
        }
        commit(folder, replace(state, course=course + 1, final={}), models, alone=True)
        opened(folder)  # deletes the models of later rounds
        keep(folder, number, len(rounds))
        with RunLogs(folder, experiment, number, on_event) as logs:
            logs.event(WentBack(number, before))


def _newest(folder: Path, kept: State) -> tuple[int, int]:
    """The round and the course of the current state; those of the kept one if it is damaged."""
    try:
        content = read_history(folder)
    except (CheckpointError, UsageError):
        return kept.round, kept.course
    return int(content["round"]), int(content.get("course", 0))


def _place(folder: Path, number: int) -> Path:
    return folder / EARLIER / f"{number:06d}"
