"""A site, with its data and settings, and the order that the server sends it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor

from multiseg.errors import FederationError, UsageError
from multiseg.federation.pairwise_masks import new_private_key
from multiseg.federation.plan import FederationOptions
from multiseg.federation.sites.limits import Limits
from multiseg.federation.sites.policy import Leaves, rounded
from multiseg.files import write_atomically
from multiseg.labels import LabelSpace
from multiseg.models.network_parts import Part, parts
from multiseg.models.saved import ModelInfo
from multiseg.store.catalogue import select
from multiseg.store.reader import Case, Store, open_store
from multiseg.store.structures import hide

KEY_FILE, EXPERIMENTS = "masks.key", "experiments"


@dataclass(frozen=True)
class Site:
    """A hospital that answers tasks, with its data and settings.

    Attributes:
        store: path or URL.
        state: folder of what it remembers.
        databases: those of the store that take part; empty for all.
        trains: whether others may train on its data; if not, it only evaluates.
        max_damaged: the largest share of damaged cases; with more it refuses a task.
        approve_runs: whether a person has to approve every run before the site answers.
        limits: on the cost of a run.
        hide: annotations and sequences that do not take part, as "DATABASE/NAME".
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
    hide: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Order:
    """The model and settings of a task.

    Attributes:
        state: the global network's tensors, float32.
        personal_parts: names of parts that the site keeps, besides those of `options.local.personal`.
        steps_done: by each site in the rounds before.
    """

    info: ModelInfo
    options: FederationOptions
    state: Mapping[str, Tensor]
    round: int = 0
    personal_parts: tuple[str, ...] = ()
    steps_done: int = 0

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """The parts of the network. Listing them builds the network, so they are cached."""
        return parts(self.info)


def experiment_folder(site: Site, name: str) -> Path:
    """Where the site keeps an experiment: in a subfolder, so that no name collides with the site's own files."""
    return site.state / EXPERIMENTS / name


def private_key(site: Site) -> bytes:
    """The site's X25519 key for masks, made on first use; only its user may read it."""
    file = site.state / KEY_FILE
    if not file.is_file():
        site.state.mkdir(parents=True, exist_ok=True)
        write_atomically(file, new_private_key(), 0o600)
    return file.read_bytes()


def store_of(site: Site) -> Store:
    """The site's store, opened, without what the site hides.

    Raises:
        StoreError: it cannot be opened.
        FederationError: it does not have what is to be hidden. Unlike the error of `hide`, whose text is the cause, the
            message lists no names of the store, so that the server may read it.
    """
    store = open_store(site.store)
    try:
        hide(store, site.hide)
    except UsageError as error:
        raise FederationError(
            "this site's setting hide names an annotation or a sequence that its store does not have: the site finds "
            "it with multiseg fed join --check, and corrects it in site.toml."
        ) from error
    return store


def databases_of(site: Site, store: Store) -> tuple[str, ...]:
    """The databases that take part; StoreError for a missing one."""
    for name in site.databases:
        store[name]
    return site.databases or tuple(store)


def labelled(store: Store, database: str, space: LabelSpace, split: str) -> list[Case]:
    """The cases of a split that are annotated for a label of the space."""
    cases = select(store, [database], split=split)
    return [case for case in cases if store[database].label_view(case, space).annotated.any()]


def least_of(site: Site, options: FederationOptions) -> int:
    """What counts are rounded up to multiples of: the site's number or the run's, whichever is larger."""
    return max(site.leaves.least, options.privacy.least)


def releasable_count(count: int, site: Site, least: int) -> int:
    """A count as it may leave: rounded up, or only whether there are any if the site reports no counts.

    0 if it is below the site's own `least`, so that one case more or less does not show.
    """
    if count < site.leaves.least:
        return 0
    return rounded(count if site.leaves.counts else 1, least)
