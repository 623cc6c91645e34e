"""Who a site is: its data, its own word on the machine and on what leaves, and what was ordered from it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor

from multiseg.federation.pairwise_masks import new_private_key
from multiseg.federation.plan import FederationOptions
from multiseg.federation.sites.limits import Limits
from multiseg.federation.sites.policy import Leaves, rounded
from multiseg.files import write_atomically
from multiseg.labels import LabelSpace
from multiseg.models.network_parts import Part, parts
from multiseg.models.saved import ModelInfo
from multiseg.store.catalogue import select
from multiseg.store.reader import Case, Store

KEY_FILE, EXPERIMENTS = "masks.key", "experiments"


@dataclass(frozen=True)
class Site:
    """Who answers: a hospital, its data, and its own word on the machine and on what leaves.

    Attributes:
        store: path or URL.
        state: folder of its own memory.
        databases: those of the store that take part; empty takes all.
        trains: whether others may train on its data; if not, it only evaluates.
        max_damaged: the largest share of its cases that may be damaged; with more it refuses a task.
        approve_runs: whether a person approves every run before anything of it is answered.
        limits: what a run may cost it.
    """

    name: str
    store: str
    state: Path
    databases: tuple[str, ...] = ()
    device: str = "auto"
    workers: int = 1
    cache: str = "0"
    trains: bool = True
    approve_runs: bool = False
    leaves: Leaves = Leaves()
    max_damaged: float = 0.05
    limits: Limits = Limits()


@dataclass(frozen=True, eq=False)
class Order:
    """A model that came, and what the server asks for.

    Attributes:
        state: the global network's tensors, float32.
        personal_parts: names of parts that are the site's own, beside those of `options.local.personal`.
        steps_done: by every site in the rounds before.
    """

    info: ModelInfo
    options: FederationOptions
    state: Mapping[str, Tensor]
    round: int = 0
    personal_parts: tuple[str, ...] = ()
    steps_done: int = 0

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """The parts of the network. To list them the network is built, so it is done once for an order."""
        return parts(self.info)


def experiment_folder(site: Site, name: str) -> Path:
    """What the site keeps of an experiment: none can have the name of one of the site's own files."""
    return site.state / EXPERIMENTS / name


def private_key(site: Site) -> bytes:
    """The site's X25519 key for masks, made when it is first asked for; only its user may read it."""
    file = site.state / KEY_FILE
    if not file.is_file():
        site.state.mkdir(parents=True, exist_ok=True)
        before = os.umask(0o077)
        try:
            write_atomically(file, new_private_key())
        finally:
            os.umask(before)
    return file.read_bytes()


def databases_of(site: Site, store: Store) -> tuple[str, ...]:
    """The databases that take part; StoreError for one that is not there."""
    for name in site.databases:
        store[name]
    return site.databases or tuple(store)


def labelled(store: Store, database: str, space: LabelSpace, split: str) -> list[Case]:
    """The cases of a split in which somebody looked for a label of the space."""
    cases = select(store, [database], split=split)
    return [case for case in cases if store[database].label_view(case, space).annotated.any()]


def least_of(site: Site, options: FederationOptions) -> int:
    """What counts are rounded to: the site's number or the run's, whichever hides more."""
    return max(site.leaves.least, options.privacy.least)


def told(count: int, site: Site, least: int) -> int:
    """A count as it may leave: rounded up, or only whether there are any where the site tells no counts.

    0 where there are fewer than the site's own `least`: one case more or less does not show.
    """
    if count < site.leaves.least:
        return 0
    return rounded(count if site.leaves.counts else 1, least)
