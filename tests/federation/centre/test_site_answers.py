"""Lies of one site, through the real exchange: refused, the site named, the others' round bit for bit as without it."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

import pytest
import torch
from fake_link import FakeLink, FakeSite, options
from safetensors.torch import load, save

from multiseg.errors import FederationError
from multiseg.federation.centre.rounds import RunResult, run
from multiseg.federation.centre.run_events import Event, Left, Noted, Refused, RoundDone
from multiseg.federation.messages import (
    ANSWER_BOUNDS,
    DESCRIBE,
    EVALUATE,
    FINGERPRINT,
    FINISH,
    ROUND,
    Answer,
    Bounds,
    SiteTask,
    bounded_json,
    to_bytes,
)
from multiseg.federation.plan import AggregateOptions, PrivacyOptions
from multiseg.models.saved import load_weights

ASH, ELM, OAK = (
    FakeSite(name, num_cases=num_cases, change=change, dice=lambda step: 0.5)
    for name, num_cases, change in (("ash", 10, 0.25), ("elm", 10, 0.5), ("oak", 30, 0.25))
)
Lie = Callable[[SiteTask], Answer | bytes | None]
Tensors = Mapping[str, torch.Tensor]


def go(link: FakeLink, folder: Path, events: list[Event], **others: object) -> RunResult:
    said = options("ash", "elm", "oak", schedule={"quorum": 2, "deadline_minutes": 10.0}, **others)
    return run(said, link, folder, events.append, clock=link.clock)


def lying(kind: str, number: int, lie: Lie, times: int = 4) -> FakeLink:
    """A link to three sites, of which elm lies once, and as often as it is asked again."""
    link = FakeLink(ASH, ELM, OAK)
    link.replies["elm", kind, number] = [lie] * times
    return link


def tensors_of(change: Callable[[Tensors], Tensors]) -> Lie:
    def lie(task: SiteTask) -> Answer:
        honest = ELM.answer(task)
        return replace(honest, tensors=change(honest.tensors))

    return lie


def each(change: Callable[[torch.Tensor], torch.Tensor]) -> Lie:
    return tensors_of(lambda tensors: {name: change(tensor) for name, tensor in tensors.items()})


def says(**changes: object) -> Lie:
    """Of the body; what is nested is given whole."""

    def lie(task: SiteTask) -> Answer:
        honest = ELM.answer(task)
        return replace(honest, body={**honest.body, **changes})

    return lie


def measures(**changes: object) -> Lie:
    return lambda task: says(metrics={**ELM.answer(task).body["metrics"], **changes})(task)


def head(**changes: object) -> Lie:
    return lambda task: replace(ELM.answer(task), **changes)  # type: ignore[arg-type]


def raw(change: Callable[[str], str]) -> Lie:
    """The JSON of an honest answer with something else in it."""

    def lie(task: SiteTask) -> bytes:
        data = to_bytes(ELM.answer(task))
        size = int.from_bytes(data[:8], "little")
        text = json.loads(data[8 : 8 + size])["__metadata__"]["multiseg"]
        changed = change(text)
        assert changed != text
        return save(load(data), metadata={"multiseg": changed})

    return lie


def renamed(tensors: Tensors) -> Tensors:
    first, *others = tensors
    return {"../../" + first: tensors[first], **{name: tensors[name] for name in others}}


def shaped(tensors: Tensors) -> Tensors:
    first, *others = tensors
    return {first: tensors[first][..., None], **{name: tensors[name] for name in others}}


def poisoned(value: float) -> Callable[[Tensors], Tensors]:
    """One value of one tensor, which is of the sort that a mean does not forgive."""

    def change(tensors: Tensors) -> Tensors:
        first, *others = tensors
        bad = tensors[first].clone()
        bad.view(-1)[0] = value
        return {first: bad, **{name: tensors[name] for name in others}}

    return change


LONG = ", ".join(['"x"'] * 1_800_000)
DEEP = "[" * 100_000 + "]" * 100_000
LIES: dict[str, tuple[Lie, str]] = {
    "float64 of 1e300": (each(lambda t: torch.full_like(t, 1e300, dtype=torch.float64)), "holds torch.float64"),
    "float64": (each(lambda t: t.double()), r"torch\.float64, but torch\.float32 is expected"),
    "float16": (each(lambda t: t.half()), r"torch\.float16, but torch\.float32 is expected"),
    "bfloat16": (each(lambda t: t.bfloat16()), r"torch\.bfloat16"),
    "whole numbers": (each(lambda t: t.int()), r"torch\.int32"),
    "true and false": (each(lambda t: t.bool()), r"torch\.bool"),
    "complex": (each(lambda t: t.to(torch.complex64)), "complex64|damaged"),
    "infinite": (tensors_of(poisoned(float("inf"))), "1 values of .* not finite"),
    "not a number": (tensors_of(poisoned(float("nan"))), "1 values of .* not finite"),
    "the largest float32": (tensors_of(poisoned(3e38)), r"3e\+38 long, but 3 steps with these settings give"),
    "a million times as long": (each(lambda t: t * 1e6), "steps with these settings give"),
    "long, yet as training might be": (each(lambda t: t * 30), r"times the median of the sites .*max_norm_ratio = 20"),
    "another shape": (tensors_of(shaped), "is of shape"),
    "another name": (tensors_of(renamed), r"which is not a part that this site trains"),
    "one more tensor": (tensors_of(lambda t: {**t, "more": torch.ones(3)}), "'more', which is not a part"),
    "a name of 10 kB": (tensors_of(lambda t: {**t, "x" * 10_000: torch.ones(1)}), "x{50}"),
    "no tensors": (tensors_of(lambda t: {}), "it lacks"),
    "cases: 10^15": (says(num_cases=10**15), "num_cases is 10{15}, but the site has described 10"),
    "cases: 10^400": (raw(lambda s: s.replace('"num_cases": 10', '"num_cases": 1' + "0" * 400)), "401 digits"),
    "cases: more than described": (says(num_cases=11), "num_cases is 11, but the site has described 10"),
    "cases: negative": (says(num_cases=-1), "num_cases is -1"),
    "cases: true": (says(num_cases=True), "num_cases is True, not an integer"),
    "cases: 1.5": (says(num_cases=1.5), "num_cases is 1.5"),
    "cases: a text": (says(num_cases="10"), "num_cases is '10'"),
    "patches: negative": (says(exposure={"": -3}), "exposure/ is -3"),
    "patches: true": (says(exposure={"": True}), "not an integer"),
    "patches: 10^15": (says(exposure={"": 10**15}), "exposure/ is 10{15}"),
    "loss: infinite": (measures(loss=float("inf")), "loss is inf"),
    "loss: a text": (measures(loss="1"), "loss is '1', not a number"),
    "loss: true": (measures(loss=True), "loss is True, not a number"),
    "Dice: 1.5": (measures(validation={"elm": 1.5}), "Dice of elm is 1.5"),
    "Dice: infinite": (measures(validation={"elm": float("inf")}), "validation/elm is inf"),
    "Dice: a text": (measures(validation={"elm": "0.9"}), "Dice of elm is '0.9'"),
    "Dice: a list": (measures(validation=[0.9]), "Dice is list"),
    "Dice: of another's": (measures(validation={"oak": 0.9}), "described no such database"),
    "Dice: a name with escape codes": (measures(validation={"elm\x1b[2J": 0.9}), "cannot be printed"),
    "Dice: a name that turns letters round": (measures(validation={"elm\u202e": 0.9}), "cannot be printed"),
    "Dice: a name of 10 kB": (measures(validation={"e" * 10_000: 0.9}), "a text of 10000 characters"),
    "length: 1e300": (measures(update_norm=1e300), "update_norm is 1e"),
    "steps skipped: 10^12": (measures(bad_steps=10**12), "bad_steps is 10{12}"),
    "a number nobody asked for": (measures(own=1.0), "'own'"),
    "an entry nobody asked for": (says(own={"a": 1}), "'own'"),
    "no metrics": (head(body={}), "'metrics' is missing"),
    "metrics: a list": (says(metrics=[1]), "metrics is list"),
    "seconds: infinite": (says(seconds={"total": float("inf")}), "seconds/total is inf"),
    "updates with noise: 10^15": (says(releases=10**15), "releases is 10{15}"),
    "3000 events": (says(events=["once more"] * 3000), "events has 3000 entries, more than 100"),
    "an event of 1 MB": (says(events=["x" * 1_000_000]), "events has a text of 1000000 characters"),
    "an event with escape codes": (says(events=["\x1b]0;title\x07"]), "cannot be printed"),
    "an event that forges a line": (says(events=["fine\nround 9: all sites are online"]), "cannot be printed"),
    "an event that is no text": (says(events=[{"a": 1}]), "not a list of texts"),
    "an event of half a letter": (raw(lambda s: s.replace('"events": []', '"events": ["\\ud800"]')), "be printed"),
    "100,000 brackets": (raw(lambda s: s.replace('"events": []', f'"events": {DEEP}')), "nested more than 16 deep"),
    "a name twice": (raw(lambda s: s.replace('"events": []', '"events": [], "events": []')), "'events' occurs twice"),
    "9 MB of JSON": (raw(lambda s: s.replace('"events": []', f'"events": [{LONG}]')), "more than 8000000"),
    "another round": (head(round=777), "it answered as 'elm' to 'round' of round 777"),
    "another kind": (head(kind=EVALUATE), r"to 'evaluate' of round \d"),
    "another site": (head(site="oak"), "it answered as 'oak'"),
    "another experiment": (head(experiment="other"), "it answered for experiment 'other'"),
    "no message at all": (lambda task: b"hello", "damaged or not from multiseg"),
    "a message of no protocol": (raw(lambda s: s.replace('"protocol": 1', '"protocol": "1"')), "of protocol '1'"),
}  # fmt: skip


@dataclass
class Told:
    """What a run came to.

    Attributes:
        weights: after every round.
    """

    result: RunResult
    events: list[Event] = field(default_factory=list)
    weights: list[Tensors] = field(default_factory=list)


def lied(folder: Path, lies: Mapping[int, list[Lie]], rounds: int, minutes: float) -> Told:
    """A run in which elm tells these lies, in the order in which it is asked, in each round.

    Args:
        minutes: until nobody waits for it any more.
    """
    link, events, weights = FakeLink(ASH, ELM, OAK), list[Event](), list[Tensors]()
    link.replies = {("elm", ROUND, number): list(replies) for number, replies in lies.items()}

    def hear(event: Event) -> None:
        events.append(event)
        if isinstance(event, RoundDone):
            weights.append(load_weights(folder / "last.safetensors"))

    said = options("ash", "elm", "oak", rounds=rounds, schedule={"quorum": 2, "deadline_minutes": minutes})
    return Told(run(said, link, folder, hear, clock=link.clock), events, weights)


@pytest.fixture(scope="module")
def with_lies(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """A run in which elm tells another lie in every round from the second on, as often as it is asked."""
    lies = {number: [lie] * 4 for number, (lie, _) in zip(count(2), LIES.values(), strict=False)}
    return lied(tmp_path_factory.mktemp("lies"), lies, 1 + len(lies), minutes=10.0)


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """The same run where elm says nothing from the second round on."""
    silence: dict[int, list[Lie]] = {number: [lambda task: None] for number in range(2, 2 + len(LIES))}
    return lied(tmp_path_factory.mktemp("without"), silence, 1 + len(LIES), minutes=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("name", LIES)
def test_a_lie_is_refused_and_the_others_carry_on(name: str, with_lies: Told, without: Told) -> None:
    number, (_, reason) = 2 + list(LIES).index(name), LIES[name]
    (refused,) = [event for event in with_lies.events if isinstance(event, Refused) and event.round == number]
    assert refused.site == "elm"
    assert re.search(reason, refused.reason), refused.reason
    assert len(refused.reason) < 1100
    assert refused.reason.isprintable()
    entry = with_lies.result.history[number - 1]
    assert (list(entry["sites"]), list(entry["failed"])) == (["ash", "oak"], ["elm"])
    a, b = with_lies.weights[number - 1], without.weights[number - 1]
    assert all(torch.equal(a[name], b[name]) for name in b)


@pytest.mark.slow
def test_a_run_of_lies_ends(with_lies: Told, without: Told) -> None:
    assert with_lies.result.finished
    assert without.result.finished
    assert [event.round for event in with_lies.events if isinstance(event, Refused)] == [*range(2, 2 + len(LIES))]
    first, second = without.weights[:2]
    assert not any(torch.equal(first[name], second[name]) for name in first), "the others' updates count"


def test_without_a_quorum_the_run_ends_and_names_the_liar(tmp_path: Path) -> None:
    link = lying(ROUND, 2, LIES["a million times as long"][0])
    said = options("ash", "elm", "oak")
    with pytest.raises(
        FederationError, match=r"got 2 answers of 3 and needs 3\. elm: its update was refused: it is"
    ) as e:
        run(said, link, tmp_path, clock=link.clock)
    assert "ash" not in str(e.value)
    link = lying(ROUND, 1, LIES["long, yet as training might be"][0])
    with pytest.raises(FederationError, match=r"elm: its update was refused: .* the median of the sites") as e:
        run(said, link, tmp_path / "b", clock=link.clock)
    assert "ash" not in str(e.value)


def test_a_float16_that_overflows_is_refused(tmp_path: Path) -> None:
    events: list[Event] = []
    half = PrivacyOptions(payload="float16")
    link = lying(ROUND, 1, each(lambda t: (t.float() * 1e9).half()))
    go(link, tmp_path, events, rounds=1, privacy=half)
    (refused,) = [event for event in events if isinstance(event, Refused)]
    assert (refused.site, "not finite" in refused.reason) == ("elm", True)


@pytest.mark.slow
def test_an_answer_that_comes_twice_counts_once(tmp_path: Path) -> None:
    """Also where the second one is another: the first that is sound stands."""
    link = FakeLink(ASH, ELM, OAK)
    plain = go(link, tmp_path / "a", [])
    assert plain.history[1]["failed"] == {}
    link = FakeLink(ASH, ELM, OAK)
    link.away["elm"] = [(1.5, 1.9)]  # asked again, and both answers come
    again = go(link, tmp_path / "b", [])
    assert again.history[1]["failed"] == {}
    a, b = (load_weights(tmp_path / name / "last.safetensors") for name in "ab")
    assert all(torch.equal(a[name], b[name]) for name in b)


def describes(**changes: object) -> Lie:
    def lie(task: SiteTask) -> Answer:
        return replace(ELM.answer(task), body={**ELM.about(), **changes})

    return lie


def of_database(**changes: object) -> Lie:
    return lambda task: describes(databases={"elm": {**ELM.about()["databases"]["elm"], **changes}})(task)


COUNTS = {"train": 10, "val": 5, "test": 5}
DESCRIPTIONS: dict[str, tuple[Lie, str]] = {
    "a recipe of 30 MB": (of_database(recipe={"own": "x" * 30_000_000}), "more than 8000000"),
    "a recipe of 200 kB": (of_database(recipe={f"own{n}": "x" * 1000 for n in range(99)}), "its recipe has|it has"),
    "10^15 cases": (of_database(num_cases={**COUNTS, "train": 10**15}), "num_cases/train is 10{15}"),
    "10^400 cases": (
        raw(lambda s: s.replace('"train": 10', '"train": 1' + "0" * 400)), "a whole number of 401 digits"),
    "-1 cases": (of_database(num_cases={**COUNTS, "val": -1}), "num_cases/val is -1"),
    "true cases": (of_database(num_cases={**COUNTS, "val": True}), "num_cases/val is True"),
    "a sequence with escape codes": (of_database(modalities=["T1\x1b[2J"]), "cannot be printed"),
    "a sequence that is a path": (of_database(modalities=["../T1"]), "'../T1', which is not a valid name"),
    "1000 sequences": (of_database(modalities=[f"T{n}" for n in range(1000)]), "modalities has 1000 entries"),
    "a sequence twice": (of_database(modalities=["T1", "T1"]), "twice"),
    "a database that is a path": (describes(databases={"a/b": ELM.about()["databases"]["elm"]}), "'a/b', which is not"),
    "10 kB of pathology": (of_database(pathology="x" * 10_000), "a text of 10000 characters"),
    "voxels of no size": (describes(spacing_mm=[0, 1, 1]), "spacing_mm is 0"),
    "voxels of a text": (describes(spacing_mm=["1", 1, 1]), "spacing_mm is '1'"),
    "deep": (raw(lambda s: s.replace('"recipe": {}', f'"recipe": {DEEP}')), "nested more than 16 deep"),
    "a key that is none": (describes(public_key="x"), "public_key is not a valid key"),
    "an entry nobody asked for": (describes(own=1), "'own'"),
    "tensors": (lambda task: replace(ELM.answer(task), tensors={"a": torch.ones(1)}), "it holds 1 tensors"),
}  # fmt: skip


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_a_site_whose_description_is_none_is_named(name: str, tmp_path: Path) -> None:
    lie, reason = DESCRIPTIONS[name]
    link = lying(DESCRIBE, 0, lie)
    with pytest.raises(FederationError, match="elm: ") as caught:
        run(options("ash", "elm", "oak"), link, tmp_path, clock=link.clock)
    assert re.search(reason, str(caught.value))


@pytest.mark.parametrize("name", ["-1 cases", "deep", "tensors"])
def test_with_a_quorum_it_is_set_aside(name: str, tmp_path: Path) -> None:
    """What it says reaches the centre as an answer, as a failure of the link, or with what belongs to another kind."""
    lie, reason = DESCRIPTIONS[name]
    events: list[Event] = []
    result = go(lying(DESCRIBE, 0, lie), tmp_path, events, rounds=1)
    (left,) = [event for event in events if isinstance(event, Left)]
    assert (left.site, bool(re.search(reason, left.reason))) == ("elm", True), left
    assert (result.finished, list(result.history[0]["sites"])) == (True, ["ash", "oak"])


@pytest.mark.parametrize(
    ("kind", "body", "reason"),
    [
        (EVALUATE, {"metrics": {"elm": {"dice": 2.0}}}, "Dice of elm is 2.0"),
        (EVALUATE, {"metrics": {"elm": {"dice": "1"}}}, "not a number"),
        (EVALUATE, {"metrics": {"ash": {"dice": 0.5}}}, "described no such database"),
        (FINISH, {"metrics": {"elm": {"dice": 0.5, "num_cases": 10**15}}, "split": "test"}, "described 5"),
        (FINISH, {"metrics": {"elm": {"dice": 0.5, "patients": ["x"]}}}, "'patients'"),
        (FINISH, {"metrics": {"elm": {"dice": float("inf")}}}, "is inf"),
    ],
)
def test_lies_about_tests_are_refused(kind: str, body: dict[str, object], reason: str, tmp_path: Path) -> None:
    number = {EVALUATE: 1, FINISH: 1}[kind]
    events: list[Event] = []
    link = lying(kind, number, head(body=body))
    go(link, tmp_path, events, rounds=1)
    (refused,) = [event for event in events if isinstance(event, Refused)]
    assert (refused.site, reason in refused.reason) == ("elm", True), refused


@pytest.mark.parametrize(
    "databases", [{"elm": {"num_cases": None}}, {"elm": {"a": float("inf")}}, {"oak": {}}, {"elm": {"a": True}}, [1]]
)
def test_lies_about_images_are_refused(databases: object, tmp_path: Path) -> None:
    events: list[Event] = []
    asked = PrivacyOptions(fingerprint=True)
    link = FakeLink(ASH, ELM, OAK)
    for site in (ASH, OAK):
        link.replies[site.name, FINGERPRINT, 0] = [
            lambda task, name=site.name: Answer(FINGERPRINT, name, 0, {"databases": {}}, experiment="fake")
        ]
    lie = Answer(FINGERPRINT, "elm", 0, {"databases": databases}, experiment="fake")
    link.replies["elm", FINGERPRINT, 0] = [lambda task: lie]
    go(link, tmp_path, events, rounds=1, privacy=asked)
    (refused,) = [event for event in events if isinstance(event, Refused)]
    assert (refused.site, "is invalid" in refused.reason) == ("elm", True), refused


@pytest.mark.slow
def test_what_a_site_may_say_is_told_once_each(tmp_path: Path) -> None:
    events: list[Event] = []
    go(lying(ROUND, 2, says(events=[f"note {n}" for n in range(100)])), tmp_path, events)
    assert [event.text for event in events if isinstance(event, Noted) and event.site] == [
        f"note {n}" for n in range(100)
    ]


def test_patches_weigh_no_more_than_were_drawn(tmp_path: Path) -> None:
    """By exposure elm (0.5) claims 10^9 patches, and gets the 12 of 3 steps of 4, rounded up to 15; ash and oak (0.25)
    tell 3: (0.5 * 15 + 0.25 * 6) / 21."""
    exposure = AggregateOptions(weights="exposure")
    link = lying(ROUND, 1, says(exposure=dict.fromkeys(("", "FLAIR", "T1"), 10**9)))
    go(link, tmp_path, [], rounds=1, aggregate=exposure)
    name = "decoder.0.reduce.bias"
    before = link.tasks[3].tensors[name]
    change = load_weights(tmp_path / "last.safetensors")[name] - before
    torch.testing.assert_close(change, torch.full_like(change, (0.5 * 15 + 0.25 * 6) / 21))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 17 + "]" * 17, "nested more than 16 deep"),
        ('{"":' * 17 + "1" + "}" * 17, "nested more than 16 deep"),
        ('{"a": 1, "a": 2}', "'a' occurs twice"),
        ("1" * 21, "a whole number of 21 digits"),
        ("[" + "1," * 50 + "1]", "103 characters of JSON, more than 100"),
        ('{"a": 1, "b": {"c": 1, "d": 2}}', "more than 3 entries"),
    ],
)
def test_json_is_read_within_bounds(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        bounded_json(text, Bounds(length=100, entries=3))


def test_brackets_in_a_text_do_not_count() -> None:
    assert bounded_json('["' + "[" * 50 + '\\"[", [1]]', Bounds(length=100)) == ["[" * 50 + '"[', [1]]
    assert ANSWER_BOUNDS.depth == 16
