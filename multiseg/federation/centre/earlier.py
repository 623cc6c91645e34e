"""The last rounds of a run, to go back to: a folder each with its state and models, beside those of the newest.

The files are the same ones by another name (hard links), so that a round costs the room of what it changed: the network
and the server's optimiser. Where the file system has no hard links they are copies.
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
    """The rounds that a run's folder can be put back to, the oldest first."""
    places = (folder / EARLIER).iterdir() if (folder / EARLIER).is_dir() else ()
    return tuple(sorted(int(place.name) for place in places if place.name.isdigit()))


def keep(folder: Path, number: int, most: int) -> None:
    """Keep the state that was committed last, which is that after round `number`, and `most` before it.

    What is there already stays as it is. Later rounds are of a course that the run has left, and go.

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
        known = kept_rounds(folder)
        before = [one for one in known if one <= number][-most - 1 :] if most else []
        for one in set(known) - set(before):
            shutil.rmtree(_place(folder, one))
    except OSError as error:
        raise ResourceError(
            f"round {number} is saved, but {place}, from which the run could be put back to it, could not be written: "
            f"{error.strerror}. Make room; the same command resumes the run."
        ) from error


def rounds_to_hold(folder: Path, site: str) -> set[int]:
    """The rounds whose part of a site's own it needs where the run is put back; see `personal.forget`."""
    return {read_history(_place(folder, one))["kept"].get(site, 0) for one in kept_rounds(folder)}


def go_back(folder: Path, experiment: str, number: int, on_event: Callable[[Event], None] = lambda event: None) -> None:
    """Put a run back to what it was after round `number`; later rounds are forgotten, but for the log.

    The rounds that follow are another course of the run: sites train them, whatever they have stored of the rounds that
    are forgotten, from what was their own after round `number`.

    Raises:
        UsageError: that round is not kept; the message says which are.
        ResourceError: another process runs the experiment, or the disk is full.
        CheckpointError: what is kept of it is damaged.
    """
    known = kept_rounds(folder)
    if number not in known:
        listed = ", ".join(map(str, known)) or "none"
        raise UsageError(
            f"{folder} cannot be put back to round {number}: the rounds that are kept are {listed} "
            "(schedule.keep_rounds)."
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
        opened(folder)  # models of the forgotten rounds go
        keep(folder, number, len(known))
        with RunLogs(folder, experiment, number, on_event) as logs:
            logs.event(WentBack(number, before))


def _newest(folder: Path, kept: State) -> tuple[int, int]:
    """The round and the course of the state that counts now; a damaged one is no hindrance."""
    try:
        content = read_history(folder)
    except (CheckpointError, UsageError):
        return kept.round, kept.course
    return int(content["round"]), int(content.get("course", 0))


def _place(folder: Path, number: int) -> Path:
    return folder / EARLIER / f"{number:06d}"
