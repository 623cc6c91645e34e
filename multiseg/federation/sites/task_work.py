"""What a site does for a task: describes its data, trains a round or evaluates a model, without damaged cases."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from multiseg.errors import FederationError, ResourceError, StoppedError, StoreError, TrainingError
from multiseg.federation import messages
from multiseg.federation.messages import Answer, SiteTask, answer_from_bytes, to_bytes
from multiseg.federation.sites import personal, policy
from multiseg.federation.sites.damaged_cases import check_share, known_damage, sound_store, unsound, write_damage
from multiseg.federation.sites.describing import describe, fingerprint
from multiseg.federation.sites.evaluating import choose_cases, evaluate_model, request_for, why_none
from multiseg.federation.sites.limits import check_model, check_options, check_sequences, count_scores
from multiseg.federation.sites.protecting import check_circle, circle_of, count_release, note_circle, protected
from multiseg.federation.sites.remembered import remember, remembered
from multiseg.federation.sites.site import Order, Site, databases_of, experiment_folder, least_of, releasable_count
from multiseg.federation.sites.tasks import check_round, options_of, order_of
from multiseg.federation.sites.training import Trained, own_network, train_round
from multiseg.locks import locked
from multiseg.models.devices import resolve_device
from multiseg.models.saved import BEST, save_model
from multiseg.store.catalogue import SPLITS, select
from multiseg.store.reader import Store
from multiseg.training.fit import Hooks

LOCK = ".lock"
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
VAL, TEST = "val", "test"


@dataclass(frozen=True, eq=False)
class Work:
    """A task at a site."""

    task: SiteTask
    site: Site
    store: Store
    hooks: Hooks
    num_damaged: int = 0

    @property
    def folder(self) -> Path:
        return experiment_folder(self.site, self.task.experiment)


def done_soundly(work: Work) -> Answer:
    """Do the task without the cases with damaged files.

    Known damage is checked first. If the task finds more, all of its cases are read once, and it starts again without
    the damaged ones.
    """
    if work.task.kind not in _KINDS:
        raise FederationError(f"this site knows no task {work.task.kind!r}: is the server a multiseg of this version?")
    do = _KINDS[work.task.kind]
    if not re.fullmatch(NAME, work.task.experiment):  # it becomes a folder's name
        raise FederationError("the experiment's name is invalid: use letters, digits, '.', '_' and '-', at most 64.")
    check_options(options_of(work.task), work.site.limits)
    splits = (str(work.task.body.get("split", "val")),) if work.task.kind != messages.ROUND else ("train", "val")
    if work.task.kind not in (messages.ROUND, messages.EVALUATE, messages.FINISH) or not set(splits) <= set(SPLITS):
        return do(work)
    names = databases_of(work.site, work.store)
    cases = [case for split in splits for case in select(work.store, names, split=split)]
    known = known_damage(work.folder)
    damaged = unsound(work.store, [case for case in cases if f"{case.database}/{case.name}" in known])
    while True:
        write_damage(work.folder, damaged, cases)
        check_share(len(damaged), len(cases), work.site.max_damaged)
        try:
            return do(replace(work, store=sound_store(work.site, work.store, damaged), num_damaged=len(damaged)))
        except StoreError:
            found = unsound(work.store, cases)
            if found.keys() <= damaged.keys():  # the error has another cause
                raise
            damaged = damaged | found


def _described(work: Work) -> Answer:
    return _plain(work, describe(work.store, work.site, options_of(work.task)))


def _fingerprinted(work: Work) -> Answer:
    leaves = work.site.leaves
    if not leaves.fingerprint:
        return _plain(work, {"databases": {}, "events": ["this site does not share statistics of its data."]})
    least = max(int(work.task.body.get("least", 1)), leaves.least)
    return _plain(work, {"databases": fingerprint(work.store, work.site, least)})


def _plain(work: Work, body: Mapping[str, Any]) -> Answer:
    least = least_of(work.site, options_of(work.task)) if work.num_damaged else 1
    num = releasable_count(work.num_damaged, work.site, least)
    if num:
        text = f"up to {num} cases were left out, since their files are damaged: this site's log lists them."
        body = {**body, "damaged": num, "events": [*body.get("events", ()), text]}
    return Answer(work.task.kind, work.site.name, work.task.round, body)


def _round(work: Work) -> Answer:
    task, folder = work.task, work.folder
    options = options_of(task)
    key = personal.key_of(task, work.site.name)
    with _alone(folder, work.hooks.should_stop):
        stored = personal.stored_answer(folder, task.round, key)
        found = _trained(work, key) if stored is None else answer_from_bytes(stored)
        if options.privacy.masked:
            note_circle(folder, task.round, circle_of(task), found.tensors)
        return found


def _trained(work: Work, key: str) -> Answer:
    """Train a round that was not answered before, and store the answer."""
    task, site, folder = work.task, work.site, work.folder
    began = time.monotonic()
    kept = int(task.body.get("kept", 0))
    order = _order(work)
    check_round(order, site, work.store)
    count_scores(site.state, site.limits)
    personal.forget(folder, task.round, key, {kept, *task.body.get("hold", ())})
    own = personal.own_after(folder, kept) if kept else None
    trained = train_round(work.store, site, order, own, work.hooks)
    local = order.options.local
    if kept and own is None and (local.personal or order.personal_parts or local.keep_optimiser):
        note = f"this site has lost its own parts of round {kept}: it continued from the received model."
        trained = replace(trained, events=(note, *trained.events))
    _check_finite(trained.update)
    remember(folder, task.round, work.store, trained.drawn, trained.validated)
    sent = protected(task, site, order, trained.update)
    if order.options.privacy.masked:
        check_circle(folder, task.round, circle_of(task), sent.tensors)
    body = _round_body(work, order, trained, sent.norm, began)
    if sent.release:
        body["releases"] = count_release(folder, task.round, sent.release)
    found = replace(_plain(work, body), tensors=sent.tensors)
    personal.commit(folder, task.round, key, to_bytes(found), trained.own)
    return found


def _check_finite(update: Mapping[str, Tensor]) -> None:
    """Raises TrainingError, before anything is stored, if an update would spoil the mean of all sites."""
    broken = [name for name, tensor in update.items() if not bool(tensor.isfinite().all())]
    if broken:
        raise TrainingError(
            f"the round left {broken[0]} and {len(broken) - 1} other parts with numbers that are not finite: start "
            "again under another experiment name, with a lower learning rate or without amp."
        )


def _round_body(work: Work, order: Order, trained: Trained, norm: float, began: float) -> dict[str, Any]:
    site, learnt = work.site, trained.learnt
    least = least_of(site, order.options)
    bad_steps = policy.coarse(learnt.bad_steps, least)
    metrics: dict[str, Any] = {"validation": dict(trained.validation), "bad_steps": bad_steps}
    if not order.options.privacy.noise:  # it protects only the update, and these are measured on training cases
        metrics |= {"update_norm": policy.short(norm)}
        metrics |= {"loss": policy.short(learnt.loss)} if math.isfinite(learnt.loss) else {}
    return {
        "num_cases": releasable_count(len(trained.drawn), site, least),
        "exposure": {name: policy.rounded(count, least) for name, count in trained.exposure.items()}
        if site.leaves.counts
        else {},
        "metrics": metrics,
        "seconds": {
            name: math.ceil(seconds) for name, seconds in {**trained.seconds, "total": time.monotonic() - began}.items()
        },
        "events": list(trained.events),
    }


def _evaluated(work: Work) -> Answer:
    """Dice of a model on a split; for FINISH the site also keeps the model, for `multiseg predict`."""
    task, site = work.task, work.site
    order, split = _order(work), str(task.body.get("split", "val"))
    schedule = order.options.schedule
    if split not in (VAL, TEST) or task.body.get("subsets", schedule.evaluate_subsets) != schedule.evaluate_subsets:
        raise FederationError(
            f"a site evaluates only on {VAL} or {TEST} cases, with the subsets of the run's settings."
        )
    request = request_for(order, split)
    count_scores(site.state, site.limits)
    with _alone(work.folder, work.hooks.should_stop):
        own, notes = _own_of_model(work)
        network, events = own_network(work.store, site, order, own, resolve_device(site.device))
        if task.kind == messages.FINISH:
            # The digests of scans stay at the site: neither answers nor the server's model hold any.
            save_model(work.folder / BEST, network, order.info, remembered(work.folder))
        cases, left_out = choose_cases(order, work.store, site, request)
        scores = evaluate_model(network, order, work.store, site, cases, request, work.hooks.should_stop)
    least = least_of(site, order.options)
    # Validation reports the score that chooses the best model: a false alarm counts as a Dice of 0.
    found = {name: score.score if split == VAL else score.dice for name, score in scores.items()}
    metrics = {
        name: {"dice": value, "num_cases": releasable_count(scores[name].num_cases, site, least)}
        for name, value in found.items()
        if not math.isnan(value)
    }
    notes = (*notes, *left_out, *events, *why_none(scores, site.leaves.least))
    return _plain(work, {"split": split, "metrics": metrics, "events": list(notes)})


def _order(work: Work) -> Order:
    """The order of a task, checked against the site's limits."""
    order = order_of(work.task)
    num_sequences = len(order.info.axis)
    check_sequences(num_sequences)
    check_model(order.parts, num_sequences, order.options, work.site.limits)
    return order


def _own_of_model(work: Work) -> tuple[personal.PersonalState | None, tuple[str, ...]]:
    """The site's own parts of the round of the task's model; else the latest ones, with a note."""
    number = work.task.round
    found = personal.own_after(work.folder, number) if number else None
    if found is not None or not number:
        return found, ()
    latest = int(work.task.body.get("kept", 0)) or personal.newest(work.folder)
    found = personal.own_after(work.folder, latest)
    return found, () if found is None else (f"the site used its own part of the model of round {latest}.",)


_KINDS: dict[str, Callable[[Work], Answer]] = {
    messages.DESCRIBE: _described,
    messages.FINGERPRINT: _fingerprinted,
    messages.ROUND: _round,
    messages.EVALUATE: _evaluated,
    messages.FINISH: _evaluated,
}


@contextmanager
def _alone(folder: Path, should_stop: Callable[[], bool]) -> Iterator[None]:
    """Lock the experiment, waiting for another process that works on it: it may store the answer wanted here."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a") as file, ExitStack() as stack:
        try:
            stack.enter_context(locked(file, folder / LOCK, wait=lambda: not should_stop()))
        except BlockingIOError:
            raise StoppedError("the site was stopped while it waited for another of its processes.") from None
        except OSError as error:
            raise ResourceError(f"{folder} cannot be locked: {error.strerror}.") from error
        yield
