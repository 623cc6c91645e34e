"""Submits, lists and stops the runs of a running server, and follows their logs across its restarts."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multiseg import shown
from multiseg.errors import FederationError, UsageError
from multiseg.federation.flower.control import Control, SuperLinkNode, SuperLinkRun, controlling
from multiseg.federation.flower.flower_words import COLOURS, FAILURE, OWN_LINE
from multiseg.federation.gate.traffic import Count, read_traffic
from multiseg.federation.identity import home
from multiseg.federation.identity.home import Home, read_home
from multiseg.federation.identity.registry import EnrolledSite, read_registry, revoked

if TYPE_CHECKING:
    from multiseg.federation.plan import FederationOptions

PAUSE_S, TIMES = 5.0, 18
"""How often to retry a server that does not answer, and to look for the run that continues a lost one."""
OURS = re.compile(r"round \d+[:/]|all \d+ rounds done")
"""Starts a line of a run that still continues: what looked like its failure was none."""


def submit(folder: Path, file: Path, cards: bool = True, from_round: int | None = None) -> tuple[int, list[str]]:
    """Check a run's settings and start it; its number, and notes for a person.

    Args:
        cards: whether the defaults are those for a CUDA card (the published network and patches) or for CPUs.
        from_round: put the experiment back to its state after this round, before it is resumed.

    Raises:
        UsageError: the settings are invalid or ignored, list a site that is not enrolled, or the experiment is running.
        FederationError: the server does not answer, or refuses.
    """
    from multiseg.config import checked, defaults, merged, training_settings
    from multiseg.federation.centre.earlier import go_back
    from multiseg.federation.centre.experiment_folder import check_same
    from multiseg.federation.plan import FederationOptions, check, left_to_sites, read_run

    server = read_home(folder)
    given = read_run(file, "See docs/federation.md for one.")
    settings = training_settings(merged(defaults(cards, given), given))
    options = checked(settings, FederationOptions)
    check(options)
    check_same(server.at(home.RUNS) / options.experiment, options)
    wanted = (*options.sites, *options.held_out)
    registry = read_registry(folder)
    strangers = sorted(set(wanted) - set(registry))
    if strangers:
        raise UsageError(
            f"{', '.join(strangers)} in {file} are not enrolled at {folder}: multiseg fed enrol site {folder} NAME"
        )
    revoked_sites = [site for site in wanted if site in revoked(registry)]
    _check_enough(options, revoked_sites, folder)
    with controlling(server) as control:
        for run in control.runs():
            if run.experiment == options.experiment and run.status != "finished":
                raise UsageError(f"{run.experiment} is {run.status} as run {run.run_id}: stop it first, or wait.")
        online = {node.name for node in control.nodes() if node.status == "online"}
        if from_round is not None:
            go_back(server.at(home.RUNS) / options.experiment, options.experiment, from_round)
        number = control.start(settings)
    notes = left_to_sites(given)
    if revoked_sites:
        notes.append(f"The run continues without revoked sites: {', '.join(revoked_sites)}.")
    if away := sorted(set(wanted) - online - set(revoked_sites)):
        notes.append(f"Waiting for sites that are offline: {', '.join(away)}.")
    return number, notes


def _check_enough(options: FederationOptions, revoked_sites: Sequence[str], folder: Path) -> None:
    """Raises UsageError if the run's settings do not allow it without the revoked sites."""
    from multiseg.federation.plan import without

    try:
        without(options, revoked_sites)
    except UsageError as error:
        raise UsageError(
            f"the run cannot continue without these revoked sites: {', '.join(revoked_sites)}. {error} To register one "
            f"again, with a new key: multiseg fed enrol site {folder} NAME"
        ) from error


def status(folder: Path) -> dict[str, Any]:
    """Sites and runs for tables: {"error", "sites": [...], "runs": [...]}. A server that is off is not an error.

    A run's "waits_for" lists the sites that owe its round an answer, and whether each is away, at work or revoked;
    before the first round and after the last it lists those that are away or revoked. "without" lists the sites that
    the run continues without, such as revoked ones.
    """
    server = read_home(folder)
    registry, (counts, _) = read_registry(folder), read_traffic(server.at(home.TRAFFIC))
    error, nodes, runs = "", {}, []
    try:
        with controlling(server) as control:
            nodes = {node.name: node for node in control.nodes()}
            runs = control.runs()
    except FederationError as caught:
        error = str(caught)
    sites = [_site(name, entry, nodes.get(name), counts.get(name, Count()), error) for name, entry in registry.items()]
    return {"error": error, "sites": sites, "runs": [_run(run, server, registry) for run in runs]}


def active_with(folder: Path, site: str) -> list[str]:
    """Running experiments with this site; none if the server is off."""
    try:
        with controlling(read_home(folder)) as control:
            runs = [run for run in control.runs() if run.status != "finished"]
    except FederationError:
        return []
    return [run.experiment for run in runs if any(site in run.settings.get(key, ()) for key in ("sites", "held_out"))]


def _run(run: SuperLinkRun, server: Home, registry: Mapping[str, EnrolledSite]) -> dict[str, Any]:
    from multiseg.federation.centre.run_logs import read_status

    status = read_status(server.at(home.RUNS) / run.experiment)
    rounds, dice = status.get("rounds"), status.get("mean")
    return {
        "run": str(run.run_id),
        "experiment": run.experiment,
        "status": run.outcome or run.status,
        "round": f"{status['round']}/{rounds}" if rounds else "",
        "dice": "" if dice is None else f"{dice:.3f}",
        "waits_for": _waits_for(status, registry) if run.status != "finished" else "",
        "without": ", ".join(status.get("left", ())),
        "submitted": run.submitted[:19],
        "details": run.details,
    }


def _waits_for(status: Mapping[str, Any], registry: Mapping[str, EnrolledSite]) -> str:
    """Which sites owe an answer, as "alder (at work), birch (away)"."""
    awaited, held = status.get("awaited", ()), status.get("held", {})
    owing = dict.fromkeys((*status.get("working", ()), *awaited, *held))

    def why(site: str) -> str:
        if site not in registry or registry[site].revoked:
            return "revoked"
        return "away" if site in awaited else held.get(site, "at work")

    return ", ".join(f"{site} ({why(site)})" for site in owing)


def _site(name: str, entry: EnrolledSite, node: SuperLinkNode | None, count: Count, error: str) -> dict[str, Any]:
    now = node.status if node else "enrolled"
    state = "revoked" if entry.revoked else "unknown" if error else now
    return {"site": name, "status": state, "since": node.since if node else "", "up": count.up, "down": count.down}


def show(folder: Path, which: str, until_end: bool, write: Callable[[str], object]) -> SuperLinkRun:
    """Write a run's log, to its end or so far; the run as it is then.

    Raises:
        UsageError: there is no such run.
        FederationError: the server does not answer.
    """
    with controlling(read_home(folder)) as control:
        run = _chosen(control, which)
        if until_end:
            return follow(control, run, write)
        sieve = Sieve(write)
        for piece, _ in control.log(run.run_id):
            sieve(piece)
            break  # the first piece holds everything so far
        return run


def stop(folder: Path, which: str) -> int:
    """End a run; its number.

    Raises:
        UsageError: there is no such run, or it has ended already.
        FederationError: the server does not answer, or refuses.
    """
    with controlling(read_home(folder)) as control:
        run = _chosen(control, which)
        if run.status == "finished":
            raise UsageError(f"run {run.run_id} ({run.experiment}) has ended: {run.outcome}.")
        control.stop(run.run_id)
        return run.run_id


def _chosen(control: Control, which: str) -> SuperLinkRun:
    runs = control.runs()
    found = [run for run in runs if which in ("", str(run.run_id), run.experiment)]
    if not found:
        known = ", ".join(f"{run.run_id} ({run.experiment})" for run in runs) or "none"
        raise UsageError(f"there is no run {which!r}; there are: {known}." if which else "there is no run yet.")
    return found[0]


class Sieve:
    """Passes on the lines of a run, without Flower's own."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write, self._rest, self._has_failed = write, "", False

    def __call__(self, piece: str) -> None:
        """Take in more of the log."""
        *lines, self._rest = (self._rest + COLOURS.sub("", piece)).split("\n")
        for line in lines:
            self._has_failed = bool(FAILURE.match(line)) or (self._has_failed and not OURS.match(line))
            if not self._has_failed and not OWN_LINE.match(line):
                self._write(shown.line(line, shown.TEXT) + "\n")


def follow(
    control: Control, run: SuperLinkRun, write: Callable[[str], object], sleep: Callable[[float], None] = time.sleep
) -> SuperLinkRun:
    """Write a run's log until it ends; the final run, with its outcome. FederationError if the server stays away."""
    while True:
        ended = _to_its_end(control, run, Sieve(write), sleep)
        later = _taken_up(control, ended, sleep) if ended.lost else None
        if later is None:
            return ended
        run = later


def _to_its_end(
    control: Control, run: SuperLinkRun, write: Callable[[str], object], sleep: Callable[[float], None]
) -> SuperLinkRun:
    after, misses = 0.0, 0
    while True:
        try:
            for piece, at in control.log(run.run_id, after):
                write(piece)
                after, misses = at, 0
            return next(listed for listed in control.runs() if listed.run_id == run.run_id)
        except FederationError:
            misses += 1
            if misses > TIMES:
                raise
            sleep(PAUSE_S)


def _taken_up(control: Control, lost: SuperLinkRun, sleep: Callable[[float], None]) -> SuperLinkRun | None:
    for _ in range(TIMES):
        for run in control.runs():
            if run.experiment == lost.experiment and run.submitted > lost.submitted:
                return run
        sleep(PAUSE_S)
    return None
