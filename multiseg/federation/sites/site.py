"""What a site does with its own data: trains a round on them, evaluates a model on them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from multiseg.errors import FederationError, StoppedError
from multiseg.evaluation.evaluate import check_spacing
from multiseg.evaluation.metrics import mean_of_defined
from multiseg.federation.masks import new_private_key
from multiseg.federation.plan import FederationOptions
from multiseg.federation.sites.learning import Counted, Learnt, derived, learn, network_of, seeded
from multiseg.federation.sites.norms import NUM_BATCHES, estimate, personal_norms
from multiseg.federation.sites.personal import Own
from multiseg.federation.sites.policy import Leaves, rounded
from multiseg.federation.sites.remembered import fair
from multiseg.files import write_atomically
from multiseg.labels import LabelSpace
from multiseg.loaders.batches import PatchStream, StreamOptions
from multiseg.models.devices import resolve_device
from multiseg.models.parts import Part, difference, joined, parts, split, trained_parts
from multiseg.models.saved import Model, ModelInfo
from multiseg.store.catalogue import SPLITS, select
from multiseg.store.reader import Case, Store
from multiseg.training.fit import Hooks
from multiseg.training.run import learnt_from
from multiseg.training.validate import Judged, database_score, judged_by_subset, validation_cases

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
    """

    name: str
    store: str
    state: Path
    databases: tuple[str, ...] = ()
    device: str = "auto"
    workers: int = 1
    cache: str = "0"
    trains: bool = True
    leaves: Leaves = Leaves()
    max_damaged: float = 0.05


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


@dataclass(frozen=True, eq=False)
class Trained:
    """A round at a site, before anything of it is clipped, hidden or left out.

    Attributes:
        update: new minus received, float32, by the name of each part that the site trains for all.
        own: what it keeps.
        num_cases: that it drew from.
        exposure: patches by group of parts.
        validation: score of the received model by database, or "database/SUBSET".
        seconds: "evaluate" and "train".
        events: what a person should know.
    """

    update: Mapping[str, Tensor]
    own: Own
    num_cases: int
    exposure: Mapping[str, int]
    validation: Mapping[str, float]
    learnt: Learnt
    seconds: Mapping[str, float]
    events: tuple[str, ...] = ()


@dataclass(frozen=True)
class Score:
    """Mean Dice over the cases that have a structure, and how many these are; and what chooses the best model, in
    which a false alarm counts as a Dice of 0 (`validate.database_score`)."""

    dice: float
    num_cases: int
    score: float


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
    """A count as it may leave: rounded up, or only whether there are any where the site tells no counts."""
    return rounded(count if site.leaves.counts else min(count, 1), least)


def stream_options(site: Site, store: Store, options: FederationOptions) -> StreamOptions:
    """The run's options with the site's own for its machine, its databases and its share of the random numbers."""
    draw = options.stream.draw
    own = databases_of(site, store)
    draw = replace(
        draw,
        weights={name: weight for name, weight in draw.weights.items() if name in own},
        seed=derived(draw.seed or 0, options.experiment, site.name, "draw"),
    )
    return replace(options.stream, draw=draw, workers=site.workers, cache=site.cache, disk_cache="")


def train_round(store: Store, site: Site, order: Order, own: Own | None = None, hooks: Hooks | None = None) -> Trained:
    """Evaluate the received model with what is the site's own in it, then train it for the steps of a round.

    All random numbers come from the run's seed, the experiment, the site and the round; on a CPU the same order and
    the same `own` give the same bits.

    Raises:
        DataError: the store does not fit, or a file of it is damaged.
        FederationError: the site may not train, or the weights do not fit.
        StoppedError: `hooks.should_stop` said so.
    """
    if not site.trains:
        raise FederationError(f"site {site.name} does not let others train on its data.")
    hooks, info = hooks or Hooks(), order.info
    check_spacing(info, store)
    options = _seeded_options(site, order)
    device = resolve_device(site.device)
    with seeded(derived(options.seed, options.experiment, site.name, order.round), device):
        stream = _stream(store, site, order, "train")
        network, events = own_network(store, site, order, own, device)
        received = _state(network)
        began = time.monotonic()
        scores = evaluate_model(network, order, store, site, hooks.should_stop)
        events += examined(order, store, site, asked_in_round(order))[1]
        evaluated = time.monotonic()
        counted = Counted(stream, info)
        learnt = learn(network, counted, options, order.steps_done, hooks, own)
        ended = time.monotonic()
    drawn = drawn_in_round(order, store, site)
    chosen = trained_by(order, drawn, store)
    return Trained(
        update=difference(_state(network), received, chosen),
        own=_own(network, order, learnt),
        num_cases=len(drawn),
        exposure=counted.patches,
        validation={name: score.score for name, score in scores.items()},
        learnt=learnt,
        seconds={"evaluate": evaluated - began, "train": ended - evaluated},
        events=events,
    )


def drawn_in_round(order: Order, store: Store, site: Site) -> list[Case]:
    """The cases that a round may draw from. Not those of the stream's plan, which also has databases of weight 0."""
    draw = stream_options(site, store, order.options).draw
    return learnt_from(store, databases_of(site, store), order.info.space, draw)


def _seeded_options(site: Site, order: Order) -> FederationOptions:
    options = order.options
    seed = derived(options.augment.seed or 0, options.experiment, site.name, "augment")
    return replace(options, augment=replace(options.augment, seed=seed))


def _stream(store: Store, site: Site, order: Order, split: str) -> PatchStream:
    options = stream_options(site, store, order.options)
    return PatchStream(store, order.info.axis, order.info.space, options, split, databases_of(site, store))


def trained_by(order: Order, cases: Sequence[Case], store: Store) -> tuple[Part, ...]:
    """The parts of the network that these cases train for all."""
    space = order.info.space
    views = [store[case.database].label_view(case, space).annotated for case in cases]
    return trained_parts(
        parts(order.info),
        {name for case in cases for name in case.modalities},
        {name for at, name in enumerate(space.names) if any(view[at] for view in views)},
        order.options.local.personal,
        order.personal_parts,
    )


def own_network(
    store: Store, site: Site, order: Order, own: Own | None, device: torch.device
) -> tuple[nn.Module, tuple[str, ...]]:
    """The received network with what is the site's own in it, and what a person should know of that.

    Where running statistics are personal and the site has none, they are estimated on its own cases.
    """
    all_parts = {part.name: part for part in parts(order.info)}
    mine = {name for name in all_parts if _is_personal(all_parts[name], order)}
    events = []
    state: Mapping[str, Tensor] = order.state
    if own is not None:
        kept = {n: t for n, t in own.parts.items() if n in mine and tuple(t.shape) == all_parts[n].shape}
        state = joined(kept, state, all_parts.values())
        state = {**state, **{name: value for name, value in own.counters.items() if name in state}}
    network = network_of(order.info, state, device)
    layers = personal_norms(network, order.options.local.personal)
    if layers and own is None:
        splits = [split for split in SPLITS if _labelled_anywhere(store, site, order.info, split)]
        if splits:
            stream = _stream(store, site, _unlooked(order, site), splits[0])
            estimate(network, layers, stream.batches(0, NUM_BATCHES))
            events.append(
                f"normalisation statistics were estimated on {NUM_BATCHES} batches of the {splits[0]} cases, since the "
                "site has none of its own yet."
            )
    return network, tuple(events)


def _unlooked(order: Order, site: Site) -> Order:
    """The order as it is for a site that only evaluates: where its lesions are may not shape the model."""
    if site.trains and site.name not in order.options.held_out:
        return order
    stream = order.options.stream
    draw = replace(stream.draw, lesion_share=0.0)
    return replace(order, options=replace(order.options, stream=replace(stream, draw=draw)))


def _is_personal(part: Part, order: Order) -> bool:
    return not trained_parts(
        [part], [part.group], [part.group.removeprefix("label:")], order.options.local.personal, order.personal_parts
    )


def _labelled_anywhere(store: Store, site: Site, info: ModelInfo, split: str) -> bool:
    return any(
        set(case.modalities) & set(info.axis)
        for name in databases_of(site, store)
        for case in labelled(store, name, info.space, split)
    )


def _own(network: nn.Module, order: Order, learnt: Learnt) -> Own:
    state = _state(network)
    personal = [part for part in parts(order.info) if _is_personal(part, order)]
    counters = {name: tensor for name, tensor in state.items() if not tensor.is_floating_point()}
    return Own(split(state, personal), counters, learnt.moments, learnt.scaler)


def _state(network: nn.Module) -> dict[str, Tensor]:
    """A copy of the network's tensors on the CPU."""
    return {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}


@dataclass(frozen=True)
class Asked:
    """What to evaluate on; as a round does, by default.

    Attributes:
        num_cases: of each database; None for all.
        overlap: of the windows.
    """

    split: str = "val"
    subsets: str = "full"
    num_cases: int | None = None
    overlap: float = 0.25


def asked_in_round(order: Order) -> Asked:
    """What a round evaluates the received model on."""
    schedule = order.options.schedule
    return Asked("val", schedule.evaluate_subsets, schedule.validation_cases)


def examined(order: Order, store: Store, site: Site, asked: Asked) -> tuple[list[Case], tuple[str, ...]]:
    """The cases to evaluate on, and that some were left out, since the experiment has learnt from their scans here."""
    cases = validation_cases(store, order.info, databases_of(site, store), asked.num_cases, asked.split)
    left = fair(cases, experiment_folder(site, order.options.experiment), asked.split)
    note = f"some {asked.split} cases were left out: the experiment has learnt from their scans at this site."
    return left, () if len(left) == len(cases) else (note,)


def evaluate_model(
    network: nn.Module,
    order: Order,
    store: Store,
    site: Site,
    should_stop: Callable[[], bool] = lambda: False,
    asked: Asked | None = None,
) -> dict[str, Score]:
    """How good a model is by database ("full"), or by "database/SUBSET" of its sequences ("all").

    Cases that the experiment has learnt from at this site are left out, see `examined`.

    Raises:
        StoppedError: `should_stop`, asked before each case, said so.
        DataError: the store does not fit, or a file of it is damaged.
    """
    info, asked = order.info, asked or asked_in_round(order)
    check_spacing(info, store)
    model = Model(network, info).eval()
    found: dict[str, list[list[Judged]]] = {}
    for case in examined(order, store, site, asked)[0]:
        if should_stop():
            raise StoppedError("the evaluation was stopped at the site; it begins anew when the site is back.")
        for subset, judged in judged_by_subset(model, store, case, asked.subsets, asked.overlap).items():
            name = case.database if asked.subsets == "full" else f"{case.database}/{subset}"
            found.setdefault(name, []).append(judged)
    return {name: _score(cases) for name, cases in found.items()}


def _score(cases: Sequence[Sequence[Judged]]) -> Score:
    everything = [one for judged in cases for one in judged]
    num_cases = sum(any(not one.is_absent for one in judged) for judged in cases)
    return Score(mean_of_defined([one.dice for one in everything]), num_cases, database_score(everything))
