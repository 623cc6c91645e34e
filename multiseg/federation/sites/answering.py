"""A site's answer to a task: approved, worked out, let out by the policy, and logged."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from multiseg.allocator import keep_memory
from multiseg.errors import FederationError, MultisegError, ResourceError, StoppedError
from multiseg.federation.messages import Answer, SiteTask, to_bytes
from multiseg.federation.sites import approvals, audit_log, policy
from multiseg.federation.sites.site import Site, store_of
from multiseg.federation.sites.task_work import Work, done_soundly
from multiseg.federation.sites.tasks import options_of
from multiseg.shown import line
from multiseg.store.reader import Store
from multiseg.training.events import Event
from multiseg.training.fit import Hooks

LOGGER = logging.getLogger("multiseg.federation")
MEASURED = ("metrics", "exposure", "seconds")
"""The entries of an answer that the audit log flattens to numbers by name."""


def answer(
    task: SiteTask,
    site: Site,
    should_stop: Callable[[], bool] = lambda: False,
    on_event: Callable[[Event], None] = lambda event: None,
) -> Answer:
    """The site's answer to a task. A failure is an answer, too: its `error` has no paths and names of cases.

    A round that was answered before gets the stored answer, without training again, also from a new process.

    Args:
        should_stop: asked between steps and between cases.
        on_event: gets every training step. These events may name cases and must not leave the site.

    Raises:
        StoppedError: `should_stop` returned True. Nothing has to be sent: the task can start again later.
        ResourceError: the audit log cannot be written, so nothing may leave.
    """
    keep_memory()
    if unapproved := _unapproved(task, site):
        return unapproved
    clock = _Clock(site.limits.minutes, should_stop)
    _log("in", task, site)
    store: Store | None = None
    left_out: tuple[str, ...] = ()
    try:
        store = store_of(site)
        found = done_soundly(Work(task, site, store, Hooks(on_event=on_event, should_stop=clock)))
        found, left_out = policy.released(found, site.leaves)
    except StoppedError:
        if should_stop() or not clock.is_late():
            raise
        found = Answer(task.kind, site.name, task.round, error=clock.reason())
    except Exception as error:  # the border: decides what the server may read of an error
        LOGGER.error("%s of %s, round %d", line(task.kind, 40), line(task.experiment, 80), task.round, exc_info=error)
        names = policy.names_of(store, (site.store, str(site.state), str(site.state.absolute())))
        passing = isinstance(error, ResourceError) or not isinstance(error, MultisegError)  # such as GPU memory
        found = Answer(task.kind, site.name, task.round, error=policy.cleaned(error, names), passing=passing)
    found = replace(found, experiment=task.experiment)
    notes = tuple(f"left out: {name}" for name in left_out) + ((f"error: {found.error}",) if found.error else ())
    _log("out", found, site, notes)
    return found


def _unapproved(task: SiteTask, site: Site) -> Answer | None:
    """The answer to a run that is not approved; None if it is, or needs no approval. Only the first is logged."""
    if not site.approve_runs:
        return None
    try:
        options = options_of(task)
    except MultisegError:
        return None  # it is refused and logged later
    decision = approvals.answer_to(site.state, options)
    if decision == approvals.APPROVED:
        return None
    digest = approvals.digest_of(options)[: approvals.SHOWN]
    why = f"this site has refused the run of settings {digest}."
    found = Answer(task.kind, site.name, task.round, error=why, experiment=task.experiment)
    if decision == approvals.WAITS:
        why = f"waits for its approval of this run (settings {digest})"
        found = replace(found, error=why, passing=True, body={"waits": True})
    try:
        is_news = decision == approvals.REFUSED or approvals.note_waiting(site.state, options)
    except FederationError as error:
        return replace(found, error=str(error), passing=False, body={})
    if is_news:
        _log("in", task, site)
        _log("out", found, site, (f"error: {found.error}",))
    return found


@dataclass(frozen=True)
class _Clock:
    """Whether work has to stop: on request, or because it took longer than the site allows."""

    minutes: float
    should_stop: Callable[[], bool]
    began: float = field(default_factory=time.monotonic)

    def __call__(self) -> bool:
        return self.should_stop() or self.is_late()

    def is_late(self) -> bool:
        return bool(self.minutes) and time.monotonic() - self.began > 60 * self.minutes

    def reason(self) -> str:
        return (
            f"it took longer than the {self.minutes:g} minutes that this site allows (its limits.minutes), "
            "and was stopped: give it less to do (local.steps)."
        )


def _log(direction: str, message: SiteTask | Answer, site: Site, notes: tuple[str, ...] = ()) -> None:
    """Write a message that came in ("in") or leaves ("out") into the site's audit log."""
    data, is_answer = to_bytes(message), isinstance(message, Answer)
    rest = {name: value for name, value in message.body.items() if name not in MEASURED}
    entry = audit_log.AuditEntry(
        direction,
        message.kind,
        message.experiment,
        message.round,
        len(data),
        hashlib.sha256(data).hexdigest(),
        audit_log.described(message.tensors),
        policy.flat_metrics(message) if isinstance(message, Answer) else {},
        notes,
        rest if is_answer else _logged_settings(message.body),
    )
    audit_log.record(site.state / audit_log.LOG, entry)


def _logged_settings(body: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a task for the audit log: protection, local training, drawing of cases, cross-site tests."""
    options = body.get("options")
    options = options if isinstance(options, Mapping) else {}
    stream = options.get("stream")
    draw = stream.get("draw") if isinstance(stream, Mapping) else None
    schedule = options.get("schedule")
    cross_site = schedule.get("cross_site") if isinstance(schedule, Mapping) else None
    asked = {"privacy": options.get("privacy"), "local": options.get("local"), "draw": draw, "cross_site": cross_site}
    return {name: value for name, value in asked.items() if value is not None}
