"""One exchange with the sites: sends tasks and collects answers, over any link."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from multiseg.errors import FederationError, StoppedError
from multiseg.federation.centre.run_events import Came, Event, Held, Noted, Refused, Resent, Waiting
from multiseg.federation.centre.site_answers import Databases, fault
from multiseg.federation.messages import DESCRIBE, FINGERPRINT, Answer, SiteTask
from multiseg.federation.plan import FederationOptions
from multiseg.shown import line

TRIES = 4
"""Attempts at a task whose failures may be temporary."""
POLL_S = 1.0
PAUSE_S = 15.0
"""Before a task is sent again after a failure; doubled after each further failure."""
MARGIN_S = 600.0
"""A task outlives its deadline by this, so that an answer on its way still counts."""
APPROVAL_S = 60.0
"""Before a site that waits for approval is asked again."""
SLOW_S = 20.0
"""After this time the log says that the answer to a short task is missing."""
LONGEST_S = 7 * 86400.0
"""No task outlives this, whatever its deadline."""
SHORT = (DESCRIBE, FINGERPRINT)
"""Tasks that a site answers almost at once."""


@dataclass(frozen=True)
class Presence:
    """Whether a site is online; `since` changes whenever it comes back. A revoked site never comes back."""

    online: bool
    since: str = ""
    revoked: bool = False


class SetAsideError(Exception):
    """Sites that the run has to continue without, and why; `rounds.run` catches it."""

    def __init__(self, reasons: Mapping[str, str]) -> None:
        super().__init__(f"set aside: {dict(reasons)}")
        self.reasons = dict(reasons)


@dataclass(frozen=True)
class Failure:
    """A task that got no answer: the process was killed, or the node lost.

    Attributes:
        remedy: what a person has to do; "" if the failure may be temporary, and the task is sent again.
    """

    text: str
    remedy: str = ""


@runtime_checkable
class Link(Protocol):
    """Carries tasks to sites, and their answers back."""

    def presence(self) -> Mapping[str, Presence]:
        """The known sites."""
        ...

    def send(self, site: str, task: SiteTask, ttl_s: float) -> str:
        """Send a task; the id of its answer."""
        ...

    def collect(self, ids: Sequence[str]) -> Mapping[str, Answer | Failure]:
        """New answers and failures of these tasks; never asks for the answer of an offline site."""
        ...

    def wait(self, seconds: float) -> None:
        """Wait, or less if something arrives."""
        ...


@dataclass(frozen=True)
class Terms:
    """When an exchange ends.

    Attributes:
        least: answers that are required; fewer are an error.
        deadline_s: how long it waits for more.
        refuse: why an answer cannot be used; "" if it can.
        described: the databases of each site, if known.
    """

    least: int
    deadline_s: float
    refuse: Callable[[Answer], str] = lambda answer: ""
    described: Mapping[str, Databases] = field(default_factory=dict)


@dataclass(frozen=True)
class Desk:
    """The context of a run: its settings and folder, the link to the sites, and the callbacks."""

    options: FederationOptions
    folder: Path
    link: Link
    on_event: Callable[[Event], None]
    should_stop: Callable[[], bool]
    clock: Callable[[], float] = time.monotonic
    busy: Callable[[str], str] = lambda site: "it is busy"

    def note(self, number: int, text: str, site: str = "") -> None:
        """Note something on a site or on the run."""
        self.on_event(Noted(number, site, text))

    def task(self, kind: str, number: int, tensors: Mapping[str, Tensor] | None = None, **body: Any) -> SiteTask:
        """A task of this run, with its options."""
        return SiteTask(kind, self.options.experiment, number, {"options": asdict(self.options), **body}, tensors or {})

    def terms(self, least: int | None = None, **others: Any) -> Terms:
        """The terms of a round; `least` overrides the required number of answers."""
        schedule = self.options.schedule
        needed = schedule.quorum or len(self.options.sites)
        return Terms(needed if least is None else least, 60 * schedule.deadline_minutes, **others)


@dataclass(eq=False)
class _Errand:
    """The task of one site, and what has become of it."""

    site: str
    task: SiteTask
    ids: list[str] = field(default_factory=list)
    since: str = ""
    sent_at: float = 0.0
    not_before: float = 0.0
    tries: int = 0
    why: str = ""
    held: str = ""
    answer: Answer | None = None
    came: Came | None = None
    failure: str = ""
    remedy: str = ""

    @property
    def is_open(self) -> bool:
        return self.answer is None and not self.failure


@dataclass(frozen=True, eq=False)
class ExchangeOutcome:
    """The outcome of an exchange.

    Attributes:
        answers: by site, in the order of the tasks.
        failed: why the other sites have not answered.
        came: bytes and seconds of each answer.
    """

    answers: Mapping[str, Answer]
    failed: Mapping[str, str]
    came: Mapping[str, Came]


def exchange(desk: Desk, tasks: Mapping[str, SiteTask], terms: Terms) -> ExchangeOutcome:
    """Send the tasks, and wait until all sites have answered or failed, or the deadline has passed.

    An offline site gets its task when it comes online, and again if it was offline in between: its answer may have
    been lost, and a site that has stored the answer just sends it again. A second answer of a site is ignored.

    Raises:
        FederationError: fewer answers than `terms.least`; the message lists the missing sites and why.
        StoppedError: the run was asked to stop.
        SetAsideError: a site that owes an answer was revoked.
    """
    began = desk.clock()
    errands = [_Errand(site, task) for site, task in tasks.items()]
    awaited: tuple[str, ...] = ()
    while True:
        if desk.should_stop():
            raise StoppedError("the run was asked to stop; the same command resumes it.")
        came = _collect(desk, errands, terms)
        away = _send(desk, errands, terms)
        if away != awaited:
            awaited = away
            desk.on_event(Waiting(_round(errands), away))
        pending = [errand for errand in errands if errand.is_open]
        num_answers = sum(errand.answer is not None for errand in errands)
        is_late = not came and desk.clock() - began >= terms.deadline_s
        if num_answers + (0 if is_late else len(pending)) < terms.least:
            raise FederationError(_missing(errands, terms))
        if is_late or not pending:
            return _outcome(errands)
        _note_slow(desk, pending)
        if not came:
            desk.link.wait(POLL_S)


def _note_slow(desk: Desk, errands: Sequence[_Errand]) -> None:
    """Say once for each site with an overdue short task that it has not answered, and what may keep it busy."""
    for errand in errands:
        is_slow = errand.ids and not errand.held and desk.clock() - errand.sent_at > SLOW_S
        if is_slow and errand.task.kind in SHORT:
            errand.held = f"has not answered yet ({errand.task.kind}): {desk.busy(errand.site)}"
            desk.on_event(Held(errand.task.round, errand.site, errand.held))


def _outcome(errands: Sequence[_Errand]) -> ExchangeOutcome:
    answers = {errand.site: errand.answer for errand in errands if errand.answer is not None}
    failed = {errand.site: _reason(errand) for errand in errands if errand.answer is None}
    return ExchangeOutcome(answers, failed, {errand.site: errand.came for errand in errands if errand.came is not None})


def _reason(errand: _Errand) -> str:
    """Why a site has not answered."""
    return errand.failure or errand.why or ("it had not answered yet" if errand.ids else "it was offline")


def withdrawn(desk: Desk, outcome: ExchangeOutcome, reasons: Mapping[str, str], least: int) -> ExchangeOutcome:
    """The outcome without answers that turned out to be unusable by comparison; they are reported as refused.

    Raises:
        FederationError: fewer than `least` are left.
    """
    for site, why in reasons.items():
        desk.on_event(Refused(outcome.answers[site].round, site, why))
    kept = {site: answer for site, answer in outcome.answers.items() if site not in reasons}
    if len(kept) < least:
        errands = [
            _Errand(site, desk.task(answer.kind, answer.round), answer=kept.get(site), failure=reasons.get(site, ""))
            for site, answer in outcome.answers.items()
        ]
        errands += [_Errand(site, errands[0].task, failure=why) for site, why in outcome.failed.items()]
        raise FederationError(_missing(errands, Terms(least, 0.0)))
    return ExchangeOutcome(kept, {**outcome.failed, **reasons}, outcome.came)


def note_events(desk: Desk, number: int, outcome: ExchangeOutcome) -> None:
    """Pass on the notes in the sites' answers."""
    for site, answer in outcome.answers.items():
        for text in answer.body.get("events", ()):
            desk.note(number, line(text), site)


def ask(desk: Desk, number: int, tasks: Mapping[str, SiteTask], terms: Terms, missing: str = "") -> ExchangeOutcome:
    """An exchange outside of a round, with the sites' notes; for each other site a note says what is missing, and why.

    Args:
        missing: such as "it has not tested the best model"; "" for no such notes.
    """
    outcome = exchange(desk, tasks, terms)
    note_events(desk, number, outcome)
    for site, why in outcome.failed.items() if missing else ():
        desk.note(number, f"{missing}: {why.removesuffix('.')}. The same command asks it again.", site)
    return outcome


def size_of(message: SiteTask | Answer) -> int:
    """Bytes of a message's tensors and body."""
    return sum(t.numel() * t.element_size() for t in message.tensors.values()) + len(json.dumps(dict(message.body)))


def _round(errands: Sequence[_Errand]) -> int:
    return errands[0].task.round if errands else 0


def _send(desk: Desk, errands: Sequence[_Errand], terms: Terms) -> tuple[str, ...]:
    """Send the tasks that are due; the sites that are offline."""
    presence = desk.link.presence()
    pending = {errand: presence.get(errand.site, Presence(online=False)) for errand in errands if errand.is_open}
    revoked = [errand.site for errand, now in pending.items() if now.revoked]
    if revoked:
        raise SetAsideError(dict.fromkeys(revoked, "its key was revoked"))
    for errand, now in pending.items():
        if not now.online:
            continue
        if errand.ids and not errand.why and now.since != errand.since:
            errand.why = "it was offline in between"
        if not errand.ids or (errand.why and desk.clock() >= errand.not_before):
            if errand.ids and not errand.held:
                desk.on_event(Resent(errand.task.round, errand.site, errand.why))
            errand.ids.append(desk.link.send(errand.site, errand.task, min(terms.deadline_s, LONGEST_S) + MARGIN_S))
            errand.since, errand.why, errand.sent_at = now.since, "", desk.clock()
    return tuple(errand.site for errand, now in pending.items() if not now.online)


def _collect(desk: Desk, errands: Sequence[_Errand], terms: Terms) -> bool:
    """Process new answers and failures; whether there were any."""
    owner = {id_: errand for errand in errands if errand.is_open for id_ in errand.ids}
    replies = desk.link.collect(list(owner)) if owner else {}
    for id_, reply in replies.items():
        errand = owner[id_]
        is_outdated = _is_temporary(reply) and id_ != errand.ids[-1]  # the task has been sent again since
        if errand.is_open and not is_outdated:
            _take(desk, errand, reply, terms)
    return bool(replies)


def _is_temporary(reply: Answer | Failure) -> bool:
    return isinstance(reply, Failure) or bool(reply.error and reply.passing)


def _take(desk: Desk, errand: _Errand, reply: Answer | Failure, terms: Terms) -> None:
    """Accept an answer, or handle a temporary or final failure."""
    task = errand.task
    if isinstance(reply, Failure):
        errand.remedy = reply.remedy
        if reply.remedy:
            _fail(desk, errand, line(reply.text))
        else:
            _retry(desk, errand, line(reply.text))
    elif reply.site == errand.site and reply.error and reply.passing and reply.body.get("waits") is True:
        why = line(reply.error)
        if errand.held != why:
            errand.held = why
            desk.on_event(Held(task.round, errand.site, why))
        errand.why, errand.not_before = why, desk.clock() + APPROVAL_S
    elif reply.site == errand.site and _is_temporary(reply):
        _retry(desk, errand, line(reply.error))
    elif (reply.site, reply.kind, reply.round) != (errand.site, task.kind, task.round):
        why = f"it answered as {reply.site!r:.80} to {reply.kind!r:.80} of round {reply.round}"
        _retry(desk, errand, line(f"{why}: {reply.error}" if reply.error else why))
    elif reply.experiment != task.experiment and not reply.error:
        _fail(desk, errand, f"it answered for experiment {reply.experiment!r:.80}")
    elif reason := reply.error or fault(reply, terms.described.get(errand.site)) or terms.refuse(reply):
        _fail(desk, errand, line(reason))
    else:
        errand.answer = reply
        seconds = desk.clock() - errand.sent_at
        errand.came = Came(task.round, errand.site, task.kind, size_of(task), size_of(reply), seconds)
        desk.on_event(errand.came)


def _retry(desk: Desk, errand: _Errand, why: str) -> None:
    errand.tries += 1
    if errand.tries >= TRIES:
        _fail(desk, errand, f"{why} (tried {TRIES} times)")
    else:
        errand.why = why
        errand.not_before = desk.clock() + PAUSE_S * 2 ** (errand.tries - 1)


def _fail(desk: Desk, errand: _Errand, why: str) -> None:
    errand.failure = why
    text = f"{why}. {errand.remedy}" if errand.remedy else why
    desk.on_event(Refused(errand.task.round, errand.site, text))


def _missing(errands: Sequence[_Errand], terms: Terms) -> str:
    missing = [f"{errand.site}: {_reason(errand).removesuffix('.')}" for errand in errands if errand.answer is None]
    remedies = " ".join(dict.fromkeys(errand.remedy for errand in errands if errand.remedy))
    advice = ": fix the sites and start the same run again, or set schedule.quorum."
    if remedies:
        advice = f". {remedies} Then start the same run again."
    return (
        f"round {_round(errands)} ({errands[0].task.kind}) got {len(errands) - len(missing)} answers of {len(errands)} "
        f"and needs {terms.least}. {'; '.join(missing)}. All finished rounds are saved{advice}"
    )
