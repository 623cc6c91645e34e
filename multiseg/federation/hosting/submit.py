"""Runs of a server that serves: submitted, told of, followed and stopped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from multiseg.errors import FederationError, UsageError
from multiseg.federation.hosting import home
from multiseg.federation.hosting.control import Control, Node, Run, controlling
from multiseg.federation.hosting.following import Sieve, follow
from multiseg.federation.hosting.home import read_home
from multiseg.federation.hosting.registry import Entry, allowed, read_registry
from multiseg.federation.hosting.traffic import Count, read_traffic


def submit(folder: Path, file: Path, cards: bool = True) -> tuple[int, list[str]]:
    """Check a run's settings and start it; its number, and what a person should know.

    Args:
        cards: whether what the file leaves open is set as for a CUDA card (the published network and patches) or as
            for processors.

    Raises:
        UsageError: the settings cannot be meant, name a site that is not enrolled, or the experiment runs already.
        FederationError: the server does not answer, or refuses.
    """
    from multiseg.config import checked, defaults, learning, merged, read_settings
    from multiseg.federation.centre.experiment import check_same
    from multiseg.federation.plan import FederationOptions, check

    server = read_home(folder)
    said = read_settings(file, FederationOptions, "See docs/federation.md for one.")
    settings = learning(merged(defaults(cards, said), said))
    options = checked(settings, FederationOptions)
    check(options)
    check_same(server.at(home.RUNS) / options.experiment, options)
    wanted = (*options.sites, *options.held_out)
    strangers = sorted(set(wanted) - set(allowed(read_registry(folder)).values()))
    if strangers:
        raise UsageError(
            f"{', '.join(strangers)} in {file} are not enrolled at {folder}: multiseg fed enrol site {folder} NAME"
        )
    with controlling(server) as control:
        for run in control.runs():
            if run.experiment == options.experiment and run.status != "finished":
                raise UsageError(f"{run.experiment} is {run.status} as run {run.run_id}: stop it first, or wait.")
        online = {node.name for node in control.nodes() if node.status == "online"}
        number = control.start(settings)
    away = sorted(set(wanted) - online)
    return number, [f"Not online yet, and waited for: {', '.join(away)}."] if away else []


def status(folder: Path) -> dict[str, Any]:
    """Sites and runs for a table: {"error", "sites": [...], "runs": [...]}. A server that is off is no error."""
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
    told = [
        {
            "run": str(run.run_id),
            "experiment": run.experiment,
            "status": run.outcome or run.status,
            "round": _round(server.at(home.RUNS) / run.experiment),
            "submitted": run.submitted[:19],
            "details": run.details,
        }
        for run in runs
    ]
    return {"error": error, "sites": sites, "runs": told}


def _round(folder: Path) -> str:
    """How far an experiment is, as "3/20"; "" before its first round."""
    try:
        lines = (folder / "metrics.prom").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    numbers = {line.split("{")[0]: line.rsplit(" ", 1)[-1] for line in lines if not line.startswith("#")}
    done, every = (float(numbers.get(f"multiseg_federation_{name}", 0)) for name in ("round", "rounds"))
    return f"{done:.0f}/{every:.0f}" if every else ""


def _site(name: str, entry: Entry, node: Node | None, count: Count, error: str) -> dict[str, Any]:
    state = "revoked" if entry.revoked else "unknown" if error else node.status if node else "enrolled"
    return {"site": name, "status": state, "since": node.since if node else "", "up": count.up, "down": count.down}


def show(folder: Path, which: str, until_end: bool, write: Callable[[str], object]) -> Run:
    """Hand what a run says to `write`, to its end or so far; the run as it then stands.

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
            break  # all that there is so far comes in one
        return run


def stop(folder: Path, which: str) -> int:
    """End a run; its number.

    Raises:
        UsageError: there is no such run, or it has ended.
        FederationError: the server does not answer, or refuses.
    """
    with controlling(read_home(folder)) as control:
        run = _chosen(control, which)
        if run.status == "finished":
            raise UsageError(f"run {run.run_id} ({run.experiment}) has ended: {run.outcome}.")
        control.stop(run.run_id)
        return run.run_id


def _chosen(control: Control, which: str) -> Run:
    runs = control.runs()
    found = [run for run in runs if which in ("", str(run.run_id), run.experiment)]
    if not found:
        known = ", ".join(f"{run.run_id} ({run.experiment})" for run in runs) or "none"
        raise UsageError(f"there is no run {which!r}; there are: {known}." if which else "there is no run yet.")
    return found[0]
