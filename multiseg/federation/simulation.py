"""Simulates a federation in one process: the same rounds and messages as deployed, one site after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from multiseg.errors import UsageError
from multiseg.federation.centre.exchange import Failure, Presence
from multiseg.federation.centre.rounds import RunResult, run
from multiseg.federation.centre.run_events import Event
from multiseg.federation.messages import Answer, SiteTask, answer_from_bytes, task_from_bytes, to_bytes
from multiseg.federation.plan import FederationOptions
from multiseg.federation.sites.answering import answer
from multiseg.federation.sites.limits import NONE
from multiseg.federation.sites.policy import Leaves
from multiseg.federation.sites.site import Site
from multiseg.processes import stop_on_signals
from multiseg.store.reader import open_store
from multiseg.store.structures import hide
from multiseg.training.events import Event as StepEvent

OnStep = Callable[[str, StepEvent], None]


@dataclass(frozen=True)
class SimulationMachine:
    """What the sites of a simulation have beside their stores.

    Attributes:
        least: `least` of every site's [leaves] settings.
        hide: by site, the annotations and sequences that it does not use, as "DATABASE/NAME".
    """

    device: str = "auto"
    workers: int = 0
    cache: str = "0"
    least: int = Leaves.least
    hide: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


class LocalLink:
    """See `exchange.Link`. Each collect answers one task, so the sites take turns on the device."""

    def __init__(
        self,
        sites: Mapping[str, Site],
        should_stop: Callable[[], bool] = lambda: False,
        on_step: OnStep = lambda site, event: None,
    ) -> None:
        self._sites, self._should_stop, self._on_step = sites, should_stop, on_step
        self._tasks: dict[str, tuple[Site, SiteTask]] = {}
        self._num_sent = 0

    def presence(self) -> Mapping[str, Presence]:
        """All sites are online."""
        return {name: Presence(online=True) for name in self._sites}

    def send(self, site: str, task: SiteTask, ttl_s: float) -> str:
        """Queue the task."""
        self._num_sent += 1
        self._tasks[str(self._num_sent)] = (self._sites[site], task)
        return str(self._num_sent)

    def collect(self, ids: Sequence[str]) -> Mapping[str, Answer | Failure]:
        """Answer the first of these tasks.

        Raises:
            StoppedError: the run was asked to stop.
        """
        id_ = next((id_ for id_ in ids if id_ in self._tasks), None)
        if id_ is None:
            return {}
        site, task = self._tasks.pop(id_)
        # Through bytes, as deployed: nothing is shared, and what does not serialise fails here, too.
        reply = answer(
            task_from_bytes(to_bytes(task)), site, self._should_stop, lambda event: self._on_step(site.name, event)
        )
        return {id_: answer_from_bytes(to_bytes(reply))}

    def wait(self, seconds: float) -> None:
        """Return at once: nothing arrives while waiting."""


def simulate(
    options: FederationOptions,
    stores: Mapping[str, str],
    out: Path,
    on_event: Callable[[Event], None] = lambda event: None,
    on_step: OnStep = lambda site, event: None,
    machine: SimulationMachine | None = None,
) -> RunResult:
    """Run a federation over these stores into `out`; each site keeps its state and logs in out/sites/NAME.

    SIGINT and SIGTERM stop it after the current step; the same call resumes it.

    Args:
        stores: path or URL by site, for all sites of the options, held-out sites included.
        machine: that the sites share.

    Raises:
        UsageError: a site has no store, a store no site, or a site does not have what it hides; and see `rounds.run`.
        StoreError: a store is missing or damaged.
    """
    names = (*options.sites, *options.held_out)
    if set(stores) != set(names):
        raise UsageError(
            f"the run has the sites {', '.join(names)}, but there are stores for {', '.join(stores) or 'none'}: give "
            "each site one store, as --store SITE=URL."
        )
    machine = machine or SimulationMachine()
    if unknown := sorted(machine.hide.keys() - set(names)):
        raise UsageError(f"hide is for {unknown[0]!r}, but the run has the sites {', '.join(names)}.")
    for name, url in stores.items():
        # Fail here, where the error may show the path and names: a site's answer would not.
        hide(open_store(url), machine.hide.get(name, ()))
    sites = _sites(options, stores, out / "sites", machine)
    with stop_on_signals() as should_stop:
        return run(options, LocalLink(sites, should_stop, on_step), out, on_event, should_stop)


def _sites(
    options: FederationOptions, stores: Mapping[str, str], folder: Path, machine: SimulationMachine
) -> dict[str, Site]:
    leaves = Leaves(least=machine.least, to_sites=True)
    shared = Site("", "", folder, (), machine.device, machine.workers, machine.cache, leaves=leaves, limits=NONE)
    return {
        name: replace(
            shared,
            name=name,
            store=url,
            state=folder / name,
            trains=name in options.sites,
            hide=machine.hide.get(name, ()),
        )
        for name, url in stores.items()
    }
