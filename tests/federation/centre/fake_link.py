"""Sites that only pretend, a link to them, and a clock that stands still until somebody waits."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import version

import torch

from multiseg.errors import FederationError
from multiseg.federation.centre.exchange import Failure, Presence
from multiseg.federation.messages import DESCRIBE, PROTOCOL, ROUND, Answer, SiteTask, answer_from_bytes, to_bytes
from multiseg.federation.plan import FederationOptions, LocalOptions, ScheduleOptions
from multiseg.federation.privacy import to_payload
from multiseg.models.network_parts import Part, groups_of, parts, trained_parts
from multiseg.models.saved import ModelInfo
from multiseg.training.fit import FitOptions
from multiseg.training.run_folder import ModelOptions

Reply = Callable[[SiteTask], Answer | bytes | Failure | None]
"""What comes back of a task that was sent; None: nothing ever."""


def options(*sites: str, rounds: int = 2, **others: object) -> FederationOptions:
    """Those of a run with a tiny network, whose deadline is a minute."""
    said = {"rounds": rounds, "deadline_minutes": 1.0, **others.pop("schedule", {})}  # type: ignore[dict-item]
    schedule = ScheduleOptions(**said)  # type: ignore[arg-type]
    common = {"model": ModelOptions(widths=(4, 8)), "local": LocalOptions(steps=3), "schedule": schedule}
    common["fit"] = FitOptions(learning_rate=1.0)  # sites that pretend move every weight a long way
    return FederationOptions(experiment="fake", sites=sites, **{**common, **others})  # type: ignore


@cache
def parts_of(info: str) -> tuple[Part, ...]:
    """The parts of a model's network, by its description: all sites of all tests ask for those of a few."""
    return tuple(parts(ModelInfo.from_json(json.loads(info))))


@dataclass
class FakeSite:
    """A hospital with one database of its own name.

    Attributes:
        change: added to every value that it trains, in every round.
        dice: of the model that comes, by its step.
        exposure: patches of a round, of each sequence and label that it has.
    """

    name: str
    modalities: tuple[str, ...] = ("FLAIR", "T1")
    num_cases: int = 10
    num_validation: int = 5
    change: float = 0.25
    dice: Callable[[int], float] = lambda step: 0.5 + step / 100
    labels: tuple[tuple[str, str], ...] = (("lesion", "lesion"),)
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    versions: Mapping[str, object] = field(
        default_factory=lambda: {"multiseg": version("multiseg"), "torch": "2", "protocol": PROTOCOL}
    )
    can_train: bool = True
    exposure: int = 3

    def about(self) -> dict[str, object]:
        """Its description of itself."""
        return {
            "site": self.name,
            "databases": {
                self.name: {
                    "pathology": "stroke",
                    "num_cases": {"train": self.num_cases, "val": self.num_validation, "test": 5},
                    "modalities": list(self.modalities),
                    "labels": [{"name": name, "kind": kind} for name, kind in self.labels],
                    "recipe": {},
                    "licence": "",
                }
            },
            "spacing_mm": list(self.spacing_mm),
            "versions": dict(self.versions),
            "can_train": self.can_train,
            "public_key": "",
            "device": "cpu",
        }

    def answer(self, task: SiteTask) -> Answer:
        """What it says to any task."""
        return replace(self._answer(task), experiment=task.experiment)

    def _answer(self, task: SiteTask) -> Answer:
        if task.kind == DESCRIBE:
            return Answer(task.kind, self.name, task.round, self.about())
        info = ModelInfo.from_json(task.body["info"])
        dice = self.dice(info.step)
        if task.kind != ROUND:
            return Answer(task.kind, self.name, task.round, {"metrics": {self.name: {"dice": dice, "num_cases": 5}}})
        personal = task.body.get("options", {}).get("local", {}).get("personal", ())
        of_every_round = {"step": 0, "metrics": {}, "trained_on": {}}
        all_parts = parts_of(json.dumps(task.body["info"] | of_every_round, sort_keys=True))
        groups = groups_of(self.modalities, [name for name, _ in self.labels], info.space)
        mine = trained_parts(all_parts, groups, personal)
        body = {
            "num_cases": self.num_cases,
            "exposure": dict.fromkeys(("", *self.modalities), self.exposure),
            "metrics": {"validation": {self.name: dice}, "loss": 1.0, "bad_steps": 0, "update_norm": 1.0},
            "seconds": {"total": 1.0},
            "events": [],
        }
        payload = task.body.get("options", {}).get("privacy", {}).get("payload", "float32")
        tensors = to_payload({part.name: torch.full(part.shape, self.change) for part in mine}, payload)
        return Answer(task.kind, self.name, task.round, body, tensors)


class FakeLink:
    """Carries tasks to pretended sites.

    Attributes:
        now: the time; only `wait` moves it.
        away: by site, times (from, to) at which it is not there.
        replies: by (site, kind, round), what comes of the first, second, ... time that it is sent; then what the
            site answers.
        revoked: by site, the time from which it is shut out.
        delay: by site, seconds from the sending to the answer.
        sent: site, kind, round and time of all that was sent.
    """

    def __init__(self, *sites: FakeSite) -> None:
        self.sites = {site.name: site for site in sites}
        self.now = 0.0
        self.away: dict[str, list[tuple[float, float]]] = {}
        self.replies: dict[tuple[str, str, int], list[Reply]] = {}
        self.delay: dict[str, float] = {}
        self.revoked: dict[str, float] = {}
        self.sent: list[tuple[str, str, int, float]] = []
        self.tasks: list[SiteTask] = []
        self._on_its_way: dict[str, tuple[float, str, Answer | Failure | None]] = {}

    def clock(self) -> float:
        """Seconds since the link was made."""
        return self.now

    def presence(self) -> Mapping[str, Presence]:
        """Those that are there, and when each came last."""
        return {
            name: Presence(
                self._is_there(name),
                str([to for _, to in self.away.get(name, []) if to <= self.now]),
                revoked=self.revoked.get(name, math.inf) <= self.now,
            )
            for name in self.sites
        }

    def send(self, site: str, task: SiteTask, ttl_s: float) -> str:
        """Note it, and have the site answer."""
        assert self._is_there(site)
        self.sent.append((site, task.kind, task.round, self.now))
        self.tasks.append(task)
        replies = self.replies.get((site, task.kind, task.round), [])
        is_spoilt = bool(replies)
        what = replies.pop(0)(task) if is_spoilt else self.sites[site].answer(task)
        if is_spoilt and isinstance(what, Answer):  # what it always says needs no proof that it survives the way
            what = to_bytes(what)
        if isinstance(what, bytes):
            what = _received(what)
        id_ = str(len(self.sent))
        self._on_its_way[id_] = (self.now + self.delay.get(site, 1.0), site, what)
        return id_

    def collect(self, ids: Sequence[str]) -> Mapping[str, Answer | Failure]:
        """What has come of sites that are there."""
        found = {}
        for id_ in ids:
            at, site, what = self._on_its_way.get(id_, (0.0, "", None))
            if what is not None and at <= self.now and self._is_there(site):
                found[id_] = what
                del self._on_its_way[id_]
        return found

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds
        assert self.now < 100_000, "waits for ever"

    def rounds_of(self, site: str) -> list[int]:
        """The rounds that a site was asked for, in order."""
        return [number for name, kind, number, _ in self.sent if name == site and kind == ROUND]

    def _is_there(self, site: str) -> bool:
        return self.revoked.get(site, math.inf) > self.now and not any(
            begin <= self.now < end for begin, end in self.away.get(site, [])
        )


def _received(data: bytes) -> Answer | Failure:
    """As the link of a deployed run takes what a site sent."""
    try:
        return answer_from_bytes(data)
    except FederationError as error:
        return Failure(str(error))


def lost(task: SiteTask) -> None:
    """Nothing ever comes back."""


def broken(task: SiteTask) -> Failure:
    """The process died."""
    return Failure("the process was killed")


def spoilt(site: FakeSite, **changes: object) -> Reply:
    """The site's answer with something else in it."""
    return lambda task: replace(site.answer(task), **changes)  # type: ignore[arg-type]
