"""A site's answer to a task: done or taken from the store of answers, protected, passed by the policy, written down."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from multiseg.config import checked
from multiseg.errors import FederationError, ResourceError, StoppedError, TrainingError
from multiseg.federation.masks import Circle, digest_of, masked, members_by_part
from multiseg.federation.messages import (
    DESCRIBE,
    EVALUATE,
    FINGERPRINT,
    FINISH,
    ROUND,
    Answer,
    Task,
    answer_from_bytes,
    to_bytes,
)
from multiseg.federation.plan import FederationOptions, check
from multiseg.federation.privacy import (
    clipped,
    from_payload,
    noise_generator,
    noise_std,
    noised,
    to_payload,
    update_norm,
)
from multiseg.federation.sites import audit, personal, policy
from multiseg.federation.sites.describing import describe
from multiseg.federation.sites.fingerprint import fingerprint
from multiseg.federation.sites.site import (
    Asked,
    Order,
    Site,
    Trained,
    evaluate_model,
    least_of,
    own_network,
    private_key,
    told,
    train_round,
)
from multiseg.models.devices import resolve_device
from multiseg.models.parts import parts
from multiseg.models.saved import BEST, ModelInfo, save_model
from multiseg.store.reader import Store, open_store
from multiseg.training.events import Event
from multiseg.training.fit import Hooks

LOCK = ".lock"
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
LOGGER = logging.getLogger("multiseg.federation")
POLL_S = 0.5


@dataclass(frozen=True, eq=False)
class _Work:
    """A task at a site."""

    task: Task
    site: Site
    store: Store
    hooks: Hooks

    @property
    def folder(self) -> Path:
        return self.site.state / self.task.experiment


def answer(
    task: Task,
    site: Site,
    should_stop: Callable[[], bool] = lambda: False,
    on_event: Callable[[Event], None] = lambda event: None,
) -> Answer:
    """What the site says to a task. What goes wrong is an answer, too: `error`, free of paths and names of cases.

    A round that was answered before is answered alike, without training again, also by a new process.

    Args:
        should_stop: asked between steps and between cases.
        on_event: hears every training step. These events may name cases: they are for the site alone.

    Raises:
        StoppedError: `should_stop` said so. Nothing has to be sent: the task can be begun anew.
        ResourceError: the audit log cannot be written, so that nothing may leave.
    """
    path = site.state / audit.LOG
    audit.record(path, _entry("in", task.experiment, task, to_bytes(task)))
    store: Store | None = None
    left_out: tuple[str, ...] = ()
    try:
        store = open_store(site.store)
        found = _done(_Work(task, site, store, Hooks(on_event=on_event, should_stop=should_stop)))
        found, left_out = policy.released(found, site.leaves)
    except StoppedError:
        raise
    except Exception as error:  # the one border: what the server may read of an error is decided here
        LOGGER.error("%s of %s, round %d", task.kind, task.experiment, task.round, exc_info=error)
        names = policy.names_of(store, (site.store, str(site.state), str(site.state.absolute())))
        found = Answer(task.kind, site.name, task.round, error=policy.cleaned(error, names))
    notes = tuple(f"left out: {name}" for name in left_out) + ((f"error: {found.error}",) if found.error else ())
    audit.record(path, _entry("out", task.experiment, found, to_bytes(found), notes))
    return found


def _entry(
    direction: str, experiment: str, message: Task | Answer, data: bytes, notes: tuple[str, ...] = ()
) -> audit.Entry:
    said = message if isinstance(message, Answer) else None
    return audit.Entry(
        direction,
        message.kind,
        experiment,
        message.round,
        len(data),
        hashlib.sha256(data).hexdigest(),
        audit.described(message.tensors),
        policy.flat_metrics(said) if said else {},
        notes,
        {name: value for name, value in message.body.items() if name != "metrics"} if said else {},
    )


def _done(work: _Work) -> Answer:
    if work.task.kind not in _KINDS:
        raise FederationError(f"this site knows no task {work.task.kind!r}: is the server a multiseg of this version?")
    if not re.fullmatch(NAME, work.task.experiment):  # it becomes a folder's name
        raise FederationError("the experiment's name is none: give letters, digits, '.', '_' and '-', at most 64.")
    return _KINDS[work.task.kind](work)


def _described(work: _Work) -> Answer:
    return _plain(work, describe(work.store, work.site, _options(work.task)))


def _fingerprinted(work: _Work) -> Answer:
    leaves = work.site.leaves
    if not leaves.fingerprint:
        return _plain(work, {"databases": {}, "events": ["this site tells no statistics of its data."]})
    least = max(int(work.task.body.get("least", 1)), leaves.least)
    return _plain(work, {"databases": fingerprint(work.store, work.site, least)})


def _plain(work: _Work, body: Mapping[str, Any]) -> Answer:
    return Answer(work.task.kind, work.site.name, work.task.round, body)


def _round(work: _Work) -> Answer:
    task, folder = work.task, work.folder
    key = personal.key_of(task, work.site.name)
    with _alone(folder, work.hooks.should_stop):
        held = personal.stored_answer(folder, task.round, key)
        if held is not None:
            return answer_from_bytes(held)
        began = time.monotonic()
        kept = int(task.body.get("kept", 0))
        personal.forget(folder, task.round, key, {kept, *task.body.get("hold", ())})
        order = _order(task)
        own = personal.own_after(folder, kept) if kept else None
        trained = train_round(work.store, work.site, order, own, work.hooks)
        if kept and own is None and _needs_own(order):
            note = f"what this site kept of round {kept} is not there: it went on from what it received."
            trained = replace(trained, events=(note, *trained.events))
        policy.check_tensors(trained.update, work.site.leaves)
        _check_finite(trained.update)
        tensors, norm = _protected(work, order, trained.update, key)
        found = replace(_plain(work, _round_body(work, order, trained, norm, began)), tensors=tensors)
        personal.commit(folder, task.round, key, to_bytes(found), trained.own)
        return found


def _check_finite(update: Mapping[str, Tensor]) -> None:
    """Raises TrainingError, so that nothing is kept, where an update would spoil the mean of all sites."""
    bad = [name for name, tensor in update.items() if not bool(tensor.isfinite().all())]
    if bad:
        raise TrainingError(
            f"the round left {bad[0]} and {len(bad) - 1} other parts with numbers that are not finite: lower the "
            "learning rate, or turn amp off."
        )


def _needs_own(order: Order) -> bool:
    return bool(order.options.local.personal or order.personal_parts or order.options.local.keep_optimiser)


def _protected(work: _Work, order: Order, update: Mapping[str, Tensor], key: str) -> tuple[dict[str, Tensor], float]:
    """The update as it leaves, clipped, with noise, and masked or in the precision of the wire; and its own length."""
    privacy, task, site = order.options.privacy, work.task, work.site
    sent = clipped(update, privacy.clip)
    norm = update_norm(sent)
    weight = float(_said(task, "weight")) if privacy.masked else 1.0
    members = members_by_part(parts(order.info), _said(task, "holders")) if privacy.masked else {}
    if privacy.noise:
        std = {name: noise_std(privacy.noise, privacy.clip, len(members.get(name, (site,))), weight) for name in sent}
        sent = noised(sent, std, noise_generator(private_key(site), task.experiment, task.round, key))
    if not privacy.masked:
        return to_payload(sent, privacy.payload), norm
    common = {name: _said(task, name) for name in ("info", "options", "holders", "personal_parts", "keys")}
    digest = digest_of(task.tensors, json.dumps(common, sort_keys=True))
    personal.claim_circle(work.folder, digest, key)
    circle = Circle(task.experiment, task.round, digest, _said(task, "keys"), members)
    return masked(sent, weight, site.name, private_key(site), circle), norm


def _round_body(work: _Work, order: Order, trained: Trained, norm: float, began: float) -> dict[str, Any]:
    site, learnt = work.site, trained.learnt
    if not site.leaves.counts and order.options.aggregate.weights == "exposure":
        raise FederationError('this site tells no counts, and the run weighs sites by them: set weights = "equal".')
    metrics: dict[str, Any] = {"validation": dict(trained.validation), "bad_steps": learnt.bad_steps}
    if not order.options.privacy.noise:  # which covers the update, and not what these tell of the training cases
        metrics |= {"update_norm": norm}
        metrics |= {"loss": learnt.loss} if math.isfinite(learnt.loss) else {}
    return {
        "num_cases": told(trained.num_cases, site, least_of(site, order.options)),
        "exposure": dict(trained.exposure) if site.leaves.counts else {},
        "metrics": metrics,
        "seconds": {**trained.seconds, "total": time.monotonic() - began},
        "events": list(trained.events),
    }


def _evaluated(work: _Work) -> Answer:
    """Dice of a model on a split; for FINISH the model is kept, too, as `multiseg predict` takes it."""
    task, site = work.task, work.site
    order = _order(task)
    split = str(task.body.get("split", "val"))
    subsets = str(task.body.get("subsets", order.options.schedule.evaluate_subsets))
    asked = Asked(split, subsets)
    if split == "val":
        asked = replace(asked, num_cases=order.options.schedule.validation_cases)
    with _alone(work.folder, work.hooks.should_stop):
        own, notes = _own_of_model(work)
        network, events = own_network(work.store, site, order, own, resolve_device(site.device))
        if task.kind == FINISH:
            save_model(work.folder / BEST, network, order.info)
        scores = evaluate_model(network, order, work.store, site, work.hooks.should_stop, asked)
    least = least_of(site, order.options)
    metrics = {
        name: {"dice": score.dice, "num_cases": told(score.num_cases, site, least)} for name, score in scores.items()
    }
    return _plain(work, {"split": split, "metrics": metrics, "events": [*notes, *events]})


def _own_of_model(work: _Work) -> tuple[personal.Own | None, tuple[str, ...]]:
    """What was the site's own when the model of the task was made, else the latest; and if so, that it is."""
    number = work.task.round
    found = personal.own_after(work.folder, number) if number else None
    if found is not None or not number:
        return found, ()
    latest = int(work.task.body.get("kept", 0)) or personal.newest(work.folder)
    found = personal.own_after(work.folder, latest)
    return found, () if found is None else (f"the site's own part of the model is that of round {latest}.",)


_KINDS: dict[str, Callable[[_Work], Answer]] = {
    DESCRIBE: _described,
    FINGERPRINT: _fingerprinted,
    ROUND: _round,
    EVALUATE: _evaluated,
    FINISH: _evaluated,
}


def _order(task: Task) -> Order:
    try:
        info = ModelInfo.from_json(_said(task, "info"))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FederationError(f"a task's description of the model is not to be understood: {error!r}.") from error
    return Order(
        info,
        _options(task),
        from_payload(task.tensors),
        task.round,
        tuple(task.body.get("personal_parts", ())),
        int(task.body.get("steps_done", 0)),
    )


def _options(task: Task) -> FederationOptions:
    options = checked(_said(task, "options"), FederationOptions)
    check(options)
    if options.experiment != task.experiment:
        raise FederationError(f"a task of {task.experiment!r} with the settings of {options.experiment!r}.")
    return options


def _said(task: Task, name: str) -> Any:
    if name not in task.body:
        raise FederationError(f"a task {task.kind!r} without {name!r}: is the server a multiseg of this version?")
    return task.body[name]


@contextmanager
def _alone(folder: Path, should_stop: Callable[[], bool]) -> Iterator[None]:
    """Wait for another process that works at the experiment: its answer may be the one that is asked for."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a") as file:
        while True:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if should_stop():
                    raise StoppedError("the site was stopped while it waited for another process of its own.") from None
                time.sleep(POLL_S)
            except OSError as error:
                raise ResourceError(f"{folder} cannot be locked: {error.strerror}.") from error
        yield
