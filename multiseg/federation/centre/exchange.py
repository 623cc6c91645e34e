"""Tasks out, answers in: one exchange with the sites, over whatever carries the messages."""

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
"""Of a task at a site whose failures may pass: the first and three more."""
POLL_S = 1.0
PAUSE_S = 15.0
"""Before a task is sent again after a failure; twice as long after the second, and so on."""
MARGIN_S = 600.0
"""A task outlives its deadline by this, so that an answer that is being sent then still counts."""

APPROVAL_S = 60.0
"""Before a site that waits for a person's approval is asked again."""
SLOW_S = 20.0
"""After so long of an answer that takes no work the log says that it is missing."""
LONGEST_S = 7 * 86400.0
"""No task outlives this, however long it is waited for."""


SHORT = (DESCRIBE, FINGERPRINT)
"""Tasks that take a site no time."""


@dataclass(frozen=True)
class Presence:
    """Whether a site is there; `since` is another text whenever it has come back. One that is shut out never comes."""

    online: bool
    since: str = ""
    revoked: bool = False


class SetAsideError(Exception):
    """Sites that the run has to be conducted without, and why: for the centre alone, which then does so."""

    def __init__(self, reasons: Mapping[str, str]) -> None:
        super().__init__(f"set aside: {dict(reasons)}")
        self.reasons = dict(reasons)


@dataclass(frozen=True)
class Failure:
    """A task that came to nothing on its way: the process was killed, the node lost.

    Attributes:
        remedy: what a person has to do; "" where it may pass by itself, and the task is sent again.
    """

    text: str
    remedy: str = ""


@runtime_checkable
class Link(Protocol):
    """What carries tasks to sites, and their answers back."""

    def presence(self) -> Mapping[str, Presence]:
        """The sites that are known."""
        ...

    def send(self, site: str, task: SiteTask, ttl_s: float) -> str:
        """Hand a task over; the id to ask for its answer by."""
        ...

    def collect(self, ids: Sequence[str]) -> Mapping[str, Answer | Failure]:
        """What has come of these since; never asks for the answer of a site that is offline."""
        ...

    def wait(self, seconds: float) -> None:
        """Let time pass, or less of it where something has come."""
        ...


@dataclass(frozen=True)
class Terms:
    """When an exchange ends.

    Attributes:
        least: answers it cannot do without; fewer are an error.
        deadline_s: how long it waits for the others.
        refuse: why an answer is of no use; "" where it is.
        described: the databases of each site, where they are known.
    """

    least: int
    deadline_s: float
    refuse: Callable[[Answer], str] = lambda answer: ""
    described: Mapping[str, Databases] = field(default_factory=dict)


@dataclass(frozen=True)
class Desk:
    """From where a run is conducted: what it is, how it reaches the sites, whom it tells what happens."""

    options: FederationOptions
    folder: Path
    link: Link
    on_event: Callable[[Event], None]
    should_stop: Callable[[], bool]
    clock: Callable[[], float] = time.monotonic
    busy: Callable[[str], str] = lambda site: "it is busy"

    def note(self, number: int, text: str, site: str = "") -> None:
        """Tell something that a person should know, of a site or of the run."""
        self.on_event(Noted(number, site, text))

    def task(self, kind: str, number: int, tensors: Mapping[str, Tensor] | None = None, **body: Any) -> SiteTask:
        """A task of this run; the options are in every one."""
        return SiteTask(kind, self.options.experiment, number, {"options": asdict(self.options), **body}, tensors or {})

    def terms(self, refuse: Callable[[Answer], str] = lambda answer: "", least: int | None = None) -> Terms:
        """Those of a round; `least` where fewer or more answers are needed than in one."""
        schedule = self.options.schedule
        needed = schedule.quorum or len(self.options.sites)
        return Terms(needed if least is None else least, 60 * schedule.deadline_minutes, refuse)


@dataclass
class _Errand:
    """What one site owes."""

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
    """What became of an exchange.

    Attributes:
        answers: by site, in the order of the tasks.
        failed: the other sites, and why.
        came: bytes and seconds of each answer.
    """

    answers: Mapping[str, Answer]
    failed: Mapping[str, str]
    came: Mapping[str, Came]


def exchange(desk: Desk, tasks: Mapping[str, SiteTask], terms: Terms) -> ExchangeOutcome:
    """What the sites answered, once all answers have come or failed, or the deadline has passed.

    A site that is not there gets its task when it comes, and again when it was away in between: its answer may have
    been lost, and a site that has it just sends it again. A second answer of a site is ignored.

    Raises:
        FederationError: fewer answers than `terms.least`; it names the sites that are missing and why.
        StoppedError: the run was asked to stop.
        SetAsideError: a site that owes an answer was shut out.
    """
    began = desk.clock()
    errands = [_Errand(site, task) for site, task in tasks.items()]
    awaited: tuple[str, ...] = ()
    while True:
        if desk.should_stop():
            raise StoppedError("the run was asked to stop; the same command goes on.")
        came = _collect(desk, errands, terms)
        away = _send(desk, errands, terms)
        if away != awaited:
            awaited = away
            desk.on_event(Waiting(_round(errands), away))
        still = [errand for errand in errands if errand.is_open]
        answers = [errand for errand in errands if errand.answer is not None]
        if len(answers) + len(still) < terms.least:
            raise FederationError(_missing(errands, terms))
        is_late = not came and desk.clock() - began >= terms.deadline_s
        if is_late and len(answers) < terms.least:
            raise FederationError(_missing(errands, terms))
        if is_late or not still:
            return _outcome(errands)
        _tell_slow(desk, still)
        if not came:
            desk.link.wait(POLL_S)


def _tell_slow(desk: Desk, errands: Sequence[_Errand]) -> None:
    """Say once of each site that has a short task for long that it has not answered, and what may keep it busy."""
    for errand in errands:
        is_slow = errand.ids and not errand.held and desk.clock() - errand.sent_at > SLOW_S
        if is_slow and errand.task.kind in SHORT:
            errand.held = f"has not answered yet ({errand.task.kind}): {desk.busy(errand.site)}"
            desk.on_event(Held(errand.task.round, errand.site, errand.held))


def _outcome(errands: Sequence[_Errand]) -> ExchangeOutcome:
    answers = {errand.site: errand.answer for errand in errands if errand.answer is not None}
    failed = {errand.site: _told(errand) for errand in errands if errand.answer is None}
    return ExchangeOutcome(answers, failed, {errand.site: errand.came for errand in errands if errand.came is not None})


def _told(errand: _Errand) -> str:
    """Why there is no answer of a site."""
    return errand.failure or errand.why or ("it had not answered yet" if errand.ids else "it was not there")


def withdrawn(desk: Desk, outcome: ExchangeOutcome, reasons: Mapping[str, str], least: int) -> ExchangeOutcome:
    """The outcome without the answers that only the others showed to be of no use, and which are told as refused.

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


def tell_events(desk: Desk, number: int, outcome: ExchangeOutcome) -> None:
    """Pass on what sites have to say to a person."""
    for site, answer in outcome.answers.items():
        for text in answer.body.get("events", ()):
            desk.note(number, line(text), site)


def tell_failed(desk: Desk, number: int, outcome: ExchangeOutcome, lacks: str) -> None:
    """Say of each site that has not answered what is lacking for it, and why."""
    for site, why in outcome.failed.items():
        desk.note(number, f"{lacks}: {why.removesuffix('.')}. The same command asks it again.", site)


def size_of(message: SiteTask | Answer) -> int:
    """Bytes of what a message carries."""
    return sum(t.numel() * t.element_size() for t in message.tensors.values()) + len(json.dumps(dict(message.body)))


def _round(errands: Sequence[_Errand]) -> int:
    return errands[0].task.round if errands else 0


def _send(desk: Desk, errands: Sequence[_Errand], terms: Terms) -> tuple[str, ...]:
    """Send what is due; the sites that are not there."""
    present = desk.link.presence()
    gone = [one.site for one in errands if one.is_open and present.get(one.site, Presence(False)).revoked]
    if gone:
        raise SetAsideError(dict.fromkeys(gone, "its key was revoked"))
    away = []
    for errand in errands:
        if not errand.is_open:
            continue
        now = present.get(errand.site, Presence(online=False))
        if not now.online:
            away.append(errand.site)
            continue
        if errand.ids and not errand.why and now.since != errand.since:
            errand.why = "it was away in between"
        due = not errand.ids or (errand.why and desk.clock() >= errand.not_before)
        if due:
            _hand_over(desk, errand, terms, now.since)
    return tuple(away)


def _hand_over(desk: Desk, errand: _Errand, terms: Terms, since: str) -> None:
    if errand.ids and not errand.held:
        desk.on_event(Resent(errand.task.round, errand.site, errand.why))
    ttl_s = min(terms.deadline_s, LONGEST_S) + MARGIN_S
    errand.ids.append(desk.link.send(errand.site, errand.task, ttl_s))
    errand.since, errand.why, errand.sent_at = since, "", desk.clock()


def _collect(desk: Desk, errands: Sequence[_Errand], terms: Terms) -> bool:
    """Take in what has come; whether anything has."""
    owner = {id_: errand for errand in errands if errand.is_open for id_ in errand.ids}
    found = desk.link.collect(list(owner)) if owner else {}
    for id_, what in found.items():
        errand = owner[id_]
        is_old_news = _may_be_mended(what) and id_ != errand.ids[-1]  # it was asked again since
        if errand.is_open and not is_old_news:
            _take(desk, errand, what, terms)
    return bool(found)


def _may_be_mended(what: Answer | Failure) -> bool:
    return isinstance(what, Failure) or bool(what.error and what.passing)


def _take(desk: Desk, errand: _Errand, what: Answer | Failure, terms: Terms) -> None:
    """Judge what came: an answer, a failure that may pass, or one that will not."""
    task = errand.task
    if isinstance(what, Failure):
        errand.remedy = what.remedy
        if what.remedy:
            _fail(desk, errand, line(what.text))
        else:
            _again(desk, errand, line(what.text))
    elif what.site == errand.site and what.error and what.passing and what.body.get("waits") is True:
        why = line(what.error)
        if errand.held != why:
            errand.held = why
            desk.on_event(Held(task.round, errand.site, why))
        errand.why, errand.not_before = why, desk.clock() + APPROVAL_S
    elif what.site == errand.site and _may_be_mended(what):
        _again(desk, errand, line(what.error))
    elif (what.site, what.kind, what.round) != (errand.site, task.kind, task.round):
        told = f"it answered as {what.site!r:.80} to {what.kind!r:.80} of round {what.round}"
        _again(desk, errand, line(f"{told}: {what.error}" if what.error else told))
    elif what.experiment != task.experiment and not what.error:
        _fail(desk, errand, f"it answered to experiment {what.experiment!r:.80}")
    elif reason := what.error or fault(what, terms.described.get(errand.site)) or terms.refuse(what):
        _fail(desk, errand, line(reason))
    else:
        errand.answer = what
        seconds = desk.clock() - errand.sent_at
        errand.came = Came(task.round, errand.site, task.kind, size_of(task), size_of(what), seconds)
        desk.on_event(errand.came)


def _again(desk: Desk, errand: _Errand, why: str) -> None:
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
    told = [f"{errand.site}: {_told(errand).removesuffix('.')}" for errand in errands if errand.answer is None]
    answered = len(errands) - len(told)
    remedies = " ".join(dict.fromkeys(errand.remedy for errand in errands if errand.remedy))
    advice = ": see to the sites and start the same run again, or set schedule.quorum."
    if remedies:
        advice = f". {remedies} Then start the same run again."
    return (
        f"round {_round(errands)} ({errands[0].task.kind}) got {answered} answers of {len(errands)} and needs "
        f"{terms.least}. {'; '.join(told)}. All finished rounds are saved{advice}"
    )
