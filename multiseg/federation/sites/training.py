"""A site's work in a round: evaluate the received model on its own data, then train it."""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress

import torch
from torch import Tensor, nn

from multiseg.errors import FederationError
from multiseg.evaluation.model_evaluation import check_spacing
from multiseg.federation.plan import FederationOptions
from multiseg.federation.sites import learning
from multiseg.federation.sites.drawing import drawing, drawn_in_round, stream_options, trained_by
from multiseg.federation.sites.evaluating import choose_cases, evaluate_model, request_for, why_none
from multiseg.federation.sites.personal import PersonalState, on_cpu
from multiseg.federation.sites.site import Order, Site, databases_of, labelled
from multiseg.loaders.batches import Batch, PatchStream
from multiseg.models.devices import resolve_device
from multiseg.models.network_parts import SHARED, Part, difference, groups_of, joined, leaves, split
from multiseg.models.saved import ModelInfo
from multiseg.store.catalogue import SPLITS
from multiseg.store.reader import Case, Store
from multiseg.training.events import Event, StepDone
from multiseg.training.fit import Hooks, Stream

MOST_SHARE = 0.5
"""The largest share of patches from one case."""

Groups = dict[str, list[tuple[str, str]]]
"""By group of parts, the database and the case of each patch."""


@dataclass(frozen=True, eq=False)
class Trained:
    """The result of a round at a site, before any protection.

    Attributes:
        update: new minus received, float32, by name of each shared part that the site trains.
        own: the state that it keeps.
        drawn: the cases that it drew from.
        exposure: patches by group of parts; 0 if too few cases showed the group.
        validated: the cases that the received model was evaluated on.
        validation: its score by database, or "database/SUBSET".
        seconds: "evaluate" and "train".
        events: notes for a person.
    """

    update: Mapping[str, Tensor]
    own: PersonalState
    drawn: Sequence[Case]
    exposure: Mapping[str, int]
    validated: Sequence[Case]
    validation: Mapping[str, float]
    learnt: learning.Learnt
    seconds: Mapping[str, float]
    events: tuple[str, ...] = ()


def train_round(
    store: Store, site: Site, order: Order, own: PersonalState | None = None, hooks: Hooks | None = None
) -> Trained:
    """Evaluate the received model with the site's own state in it, then train it for the steps of a round.

    All random numbers follow from the run's seed, the experiment, the site and the round; on a CPU the same order and
    the same `own` give the same bits.

    Raises:
        DataError: the store does not fit, or a file of it is damaged.
        FederationError: the site may not train, or the weights do not fit.
        StoppedError: `hooks.should_stop` returned True.
    """
    if not site.trains:
        raise FederationError(f"site {site.name} does not let others train on its data.")
    hooks, info = hooks or Hooks(), order.info
    check_spacing(info, store)
    options = order.options
    seed = learning.derived(options.augment.seed or 0, options.experiment, site.name, "augment")
    options = replace(options, augment=replace(options.augment, seed=seed))
    device = resolve_device(site.device)
    drawn, request = drawn_in_round(order, store, site), request_for(order)
    with learning.seeded(learning.derived(options.seed, options.experiment, site.name, order.round), device):
        network, events = own_network(store, site, order, own, device)
        received = on_cpu(network.state_dict())
        began = time.monotonic()
        cases, notes = choose_cases(order, store, site, request)
        scores = evaluate_model(network, order, store, site, cases, request, hooks.should_stop)
        evaluated = time.monotonic()
        stream, databases = drawing(order, store, site, drawn)
        counted = Counted(PatchStream(store, info.axis, info.space, stream, "train", databases), info, order.parts)
        sent = trained_by(order, drawn, store, site.leaves.least)
        _freeze(network, order, sent)
        learnt = learning.learn(network, counted, options, order.steps_done, _counting(counted, options, hooks), own)
        ended = time.monotonic()
    least = site.leaves.least
    check_shown(counted, least)
    shown = {group for group in counted.patches if counted.is_shown(group, least)}
    update = difference(on_cpu(network.state_dict()), received, sent)
    groups = {part.name: part.group for part in order.parts}
    return Trained(
        update={name: t if groups[name] in {*shown, ""} else torch.zeros_like(t) for name, t in update.items()},
        own=_own(network, order, learnt),
        drawn=drawn,
        exposure={group: count if group in shown else 0 for group, count in counted.patches.items()},
        validated=cases,
        validation={name: score.score for name, score in scores.items() if not math.isnan(score.score)},
        learnt=learnt,
        seconds={"evaluate": evaluated - began, "train": ended - evaluated},
        events=(*events, *notes, *why_none(scores, least)),
    )


def _freeze(network: nn.Module, order: Order, sent: Sequence[Part]) -> None:
    """Freeze the parameters of which the site neither sends nor keeps anything, such as the branch of lesions at a site
    of tissues: learning there would only disturb the rest."""
    learning_tensors = {part.tensor for part in (*sent, *(part for part in order.parts if _is_personal(part, order)))}
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in learning_tensors)


def _counting(counted: Counted, options: FederationOptions, hooks: Hooks) -> Hooks:
    """The hooks, which also count what every step learnt from."""

    def hear(event: Event) -> None:
        if isinstance(event, StepDone):
            counted.stepped(options.fit.accumulate, has_learnt=not event.skipped)
        hooks.on_event(event)

    return replace(hooks, on_event=hear)


def _any_stream(store: Store, site: Site, order: Order, split: str) -> PatchStream:
    options = stream_options(site, store, order.options)
    return PatchStream(store, order.info.axis, order.info.space, options, split, databases_of(site, store))


def own_network(
    store: Store, site: Site, order: Order, own: PersonalState | None, device: torch.device
) -> tuple[nn.Module, tuple[str, ...]]:
    """The received network with the site's own state in it, and notes on it.

    If running statistics are personal and the site has none yet, they are estimated on its own cases.
    """
    all_parts = {part.name: part for part in order.parts}
    personal = {name for name in all_parts if _is_personal(all_parts[name], order)}
    events = []
    state: Mapping[str, Tensor] = order.state
    if own is not None:
        kept = {n: t for n, t in own.parts.items() if n in personal and tuple(t.shape) == all_parts[n].shape}
        state = joined(kept, state, all_parts.values())
        state = {**state, **{name: value for name, value in own.counters.items() if name in state}}
    network = learning.network_of(order.info, state, device)
    layers = learning.personal_norms(network, order.options.local.personal)
    if layers and own is None:
        splits = [split for split in SPLITS if _labelled_anywhere(store, site, order.info, split)]
        if splits:
            stream = _any_stream(store, site, _without_lesion_share(order, site), splits[0])
            learning.estimate_norms(network, layers, stream.batches(0, learning.NUM_BATCHES))
            events.append(
                f"normalisation statistics were estimated on {learning.NUM_BATCHES} batches of the {splits[0]} cases, "
                "since the site has none of its own yet."
            )
    return network, tuple(events)


def _without_lesion_share(order: Order, site: Site) -> Order:
    """For a site that only evaluates, draw without regard to lesions: their places may not influence the model."""
    if site.trains and site.name not in order.options.held_out:
        return order
    stream = order.options.stream
    draw = replace(stream.draw, lesion_share=0.0)
    return replace(order, options=replace(order.options, stream=replace(stream, draw=draw)))


def _is_personal(part: Part, order: Order) -> bool:
    return not leaves(part, order.options.local.personal, order.personal_parts)


def _labelled_anywhere(store: Store, site: Site, info: ModelInfo, split: str) -> bool:
    return any(
        set(case.modalities) & set(info.axis)
        for name in databases_of(site, store)
        for case in labelled(store, name, info.space, split)
    )


def _own(network: nn.Module, order: Order, learnt: learning.Learnt) -> PersonalState:
    state = on_cpu(network.state_dict())
    personal = [part for part in order.parts if _is_personal(part, order)]
    counters = {name: tensor for name, tensor in state.items() if not tensor.is_floating_point()}
    return PersonalState(split(state, personal), counters, learnt.moments, learnt.scaler)


class Counted:
    """A stream that counts its patches by the groups of parts that they train (`models.network_parts.groups_of`).

    Attributes:
        patches: by group.
        cases: by group, the patches of each case that the steps learnt from. `stepped` counts them: a step with a loss
            or gradient that is not finite learns from none.
    """

    def __init__(self, stream: Stream, info: ModelInfo, parts: Sequence[Part]) -> None:
        self.stream, self.info = stream, info
        self.patches = dict.fromkeys((SHARED, *(part.group for part in parts)), 0)
        self.cases: dict[str, Counter[tuple[str, str]]] = {group: Counter() for group in self.patches}
        self._given: deque[Groups] = deque()

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        for batch in self.stream.batches(start, stop):
            groups = self._groups(batch)
            for group, cases in groups.items():
                self.patches[group] += len(cases)
            self._given.append(groups)
            yield batch

    def stepped(self, num_batches: int, has_learnt: bool) -> None:
        """Count a step that used the next `num_batches` batches."""
        for _ in range(num_batches):
            groups = self._given.popleft()
            for group, cases in groups.items() if has_learnt else ():
                self.cases[group].update(cases)

    def is_shown(self, group: str, least: int) -> bool:
        """Whether the steps learnt a group from at least `least` cases, and not mostly from one."""
        counts = self.cases[group]
        return least <= 1 or (len(counts) >= least and max(counts.values()) <= MOST_SHARE * counts.total())

    def _groups(self, batch: Batch) -> Groups:
        cases: list[tuple[str, str]] = list(zip(batch.database, batch.case, strict=True))
        axis, space = self.info.axis, self.info.space
        trained = [
            groups_of(compress(axis, present), tuple(compress(space.names, annotated)), space)
            for present, annotated in zip(batch.present.tolist(), batch.annotated.tolist(), strict=True)
        ]
        return {
            group: [case for case, groups in zip(cases, trained, strict=True) if group in groups]
            for group in self.patches
        }


def check_shown(counted: Counted, least: int) -> None:
    """Raises FederationError if the steps of a round learnt from too few cases for their update to leave."""
    if not counted.is_shown("", least):
        raise FederationError(
            f"the steps of the round learnt from fewer than {least} cases of this site, or took more than half of the "
            "patches from one case: give it more steps or larger batches (local.steps, stream.batch_size)."
        )
