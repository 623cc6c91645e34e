"""The round loop, with sites that pretend and a clock that is wound by hand."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fake_link import FakeLink, FakeSite, broken, lost, options, spoilt

from multiseg.errors import FederationError, UsageError
from multiseg.federation.centre import site_roster
from multiseg.federation.centre.experiment_folder import opened
from multiseg.federation.centre.rounds import RunResult, run
from multiseg.federation.centre.run_events import Came, Event, Left, Noted, Refused, Resent, RoundDone, Waiting
from multiseg.federation.centre.run_logs import read_status
from multiseg.federation.centre.run_report import notable_events
from multiseg.federation.messages import DESCRIBE, EVALUATE, FINGERPRINT, FINISH, ROUND, Answer, SiteTask
from multiseg.federation.plan import AggregateOptions, LocalOptions, PrivacyOptions
from multiseg.federation.privacy import epsilon
from multiseg.models.network_parts import parts, split
from multiseg.models.saved import load_model, load_weights, read_info
from multiseg.training.run_folder import ModelOptions

FIRST = "encoder.0.first.conv.weight"
LAST_BIAS = "decoder.0.reduce.bias"
ASH, ELM, OAK = FakeSite("ash", num_cases=10), FakeSite("elm", num_cases=30, change=0.5), FakeSite("oak")


def go(link: FakeLink, folder: Path, *, events: list[Event] | None = None, **others: object) -> RunResult:
    """A run with all sites of the link."""
    said = others["said"] if "said" in others else options(*link.sites, **others)
    return run(said, link, folder, (events if events is not None else []).append, clock=link.clock)  # type: ignore


def of(kind: type, events: list[Event]) -> list:
    return [event for event in events if isinstance(event, kind)]


def test_two_rounds_to_the_end(tmp_path: Path) -> None:
    events: list[Event] = []
    link = FakeLink(ASH, ELM)
    result = go(link, tmp_path, events=events)
    assert (result.finished, result.round) == (True, 2)
    assert (result.best, result.best_round) == (0.52, 2)
    assert result.test == {"ash": {"ash": 0.52}, "elm": {"elm": 0.52}}
    kinds = [kind for site, kind, _, _ in link.sent if site == "ash"]
    assert kinds == [DESCRIBE, ROUND, ROUND, EVALUATE, FINISH]
    assert [(done.mean, done.is_best) for done in of(RoundDone, events)] == [(0.5, False), (0.51, True)]
    assert read_info(tmp_path / "model.safetensors").step == 2
    load_model(tmp_path)


@pytest.mark.slow
def test_who_sends_which_part_is_found_once_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To list the parts the network is built: a run does so when it knows its sites, and not in every round."""
    listed = []
    monkeypatch.setattr(site_roster, "parts", lambda info: listed.append(info) or parts(info))
    go(FakeLink(ASH, ELM, OAK), tmp_path, rounds=3)
    assert len(listed) == 1


def test_the_mean_is_weighted_by_cases_over_those_who_have_it(tmp_path: Path) -> None:
    """ash (10 cases) adds 0.25 and elm (30) adds 0.5: together 0.4375; only elm has T2: 0.5 to its slice."""
    link = FakeLink(ASH, replace(ELM, modalities=("FLAIR", "T2")))
    go(link, tmp_path, rounds=1)
    info = read_info(tmp_path / "last.safetensors")
    before = split(link.tasks[2].tensors, parts(info))
    after = split(load_weights(tmp_path / "last.safetensors"), parts(info))
    by_name = {name: (after[name] - before[name]).unique() for name in after}
    for name, change in by_name.items():
        expected = {f"{FIRST}[T1]": 0.25, f"{FIRST}[T2]": 0.5}.get(name, 0.4375)
        assert torch.allclose(change, torch.tensor(expected), atol=1e-6), name


@pytest.mark.parametrize(("weights", "expected"), [("equal", 0.375), ("exposure", 0.3), ("cases", 0.4375)])
def test_weights_of_the_mean(weights: str, expected: float, tmp_path: Path) -> None:
    """By exposure ash, which adds 0.25, counts four times as much as elm, which adds 0.5."""
    link = FakeLink(replace(ASH, exposure=4), replace(ELM, exposure=1))
    go(link, tmp_path, rounds=1, aggregate=AggregateOptions(weights=weights))
    change = load_weights(tmp_path / "last.safetensors")[FIRST] - link.tasks[2].tensors[FIRST]
    assert torch.allclose(change, torch.tensor(expected), atol=1e-6)


@pytest.mark.slow
def test_waits_for_exactly_its_sites(tmp_path: Path) -> None:
    events: list[Event] = []
    link = FakeLink(ASH, ELM, OAK)
    link.away["oak"] = [(0.0, 5000.0)]  # far beyond the deadline of a round
    result = go(link, tmp_path, events=events)
    assert result.finished
    assert events[0] == Waiting(0, ("oak",))
    assert Waiting(0, ()) in events
    assert min(at for _, kind, _, at in link.sent if kind == ROUND) >= 5000
    assert set(of(RoundDone, events)[0].sites) == {"ash", "elm", "oak"}


@pytest.mark.slow
def test_a_site_that_was_away_is_asked_again(tmp_path: Path) -> None:
    events: list[Event] = []
    link = FakeLink(ASH, ELM)
    link.replies["elm", ROUND, 1] = [lost]
    link.away["elm"] = [(5.0, 20.0)]
    link.delay["elm"] = 4.0  # the description comes before it goes
    result = go(link, tmp_path, events=events)
    assert result.finished
    assert link.rounds_of("elm") == [1, 1, 2]
    assert [(event.site, event.reason) for event in of(Resent, events)] == [("elm", "it was offline in between")]


@pytest.mark.slow
def test_two_answers_of_one_site_count_once(tmp_path: Path) -> None:
    """elm was away, is asked again, is away again, and when it is back both answers are there."""
    link = FakeLink(ASH, ELM)
    link.delay |= {"ash": 40.0, "elm": 10.0}
    link.away["elm"] = [(41.0, 43.0), (45.0, 55.0)]
    link.replies["elm", ROUND, 1] = [ELM.answer, spoilt(ELM, error="this one came too late")]
    events: list[Event] = []
    go(link, tmp_path, events=events, rounds=1)
    assert len(link.rounds_of("elm")) == 2
    change = load_weights(tmp_path / "last.safetensors")[FIRST] - link.tasks[2].tensors[FIRST]
    assert torch.allclose(change, torch.tensor(0.4375), atol=1e-6)
    assert [came.site for came in of(Came, events) if came.kind == ROUND] == ["elm", "ash"]
    assert not of(Refused, events)


@pytest.mark.slow
def test_an_error_that_may_pass_is_tried_again_after_a_pause(tmp_path: Path) -> None:
    link = FakeLink(ASH, ELM)
    full = spoilt(ELM, error="the disk is full.", passing=True)
    link.replies["elm", ROUND, 1] = [full, full]
    events: list[Event] = []
    assert go(link, tmp_path / "passes", events=events, schedule={"deadline_minutes": 5.0}).finished
    assert link.rounds_of("elm") == [1, 1, 1, 2]
    assert [event.reason for event in of(Resent, events)] == ["the disk is full."] * 2
    first, second, third = [at for site, kind, number, at in link.sent if (site, kind, number) == ("elm", ROUND, 1)]
    assert (second - first, third - second) == (16.0, 31.0)  # a second for the answer, then 15 and 30
    link = FakeLink(ASH, ELM)
    link.replies["elm", ROUND, 1] = [full] * 4
    with pytest.raises(FederationError, match=r"elm: the disk is full\. \(tried 4 times\)\. All finished"):
        go(link, tmp_path / "stays", schedule={"deadline_minutes": 5.0})


def test_the_reasons_of_a_round_that_failed_are_sentences(tmp_path: Path) -> None:
    link = FakeLink(ASH, ELM)
    link.replies["elm", ROUND, 1] = [spoilt(ELM, error="a case is damaged.")]
    with pytest.raises(FederationError, match=r"elm: a case is damaged\. All finished rounds are saved"):
        go(link, tmp_path)


@pytest.mark.slow
def test_a_failure_that_passes_is_tried_again(tmp_path: Path) -> None:
    link = FakeLink(ASH, ELM)
    link.replies["elm", ROUND, 1] = [broken, broken]
    events: list[Event] = []
    assert go(link, tmp_path, events=events).finished
    assert link.rounds_of("elm") == [1, 1, 1, 2]
    assert [event.reason for event in of(Resent, events)] == ["the process was killed"] * 2


@pytest.mark.slow
def test_a_failure_of_what_was_asked_again_since_is_old_news(tmp_path: Path) -> None:
    """elm is asked at 30, goes, and is asked again at 50; at 60 it says that the first came to nothing."""
    link = FakeLink(ASH, ELM)
    link.delay["elm"] = 30.0
    link.replies["elm", ROUND, 1] = [broken]
    link.away["elm"] = [(32.0, 50.0)]
    events: list[Event] = []
    assert go(link, tmp_path, events=events, schedule={"deadline_minutes": 5.0}).finished
    assert [at for site, kind, number, at in link.sent if (site, kind, number) == ("elm", ROUND, 1)] == [30.0, 50.0]


@pytest.mark.slow
def test_sites_are_told_what_to_keep(tmp_path: Path) -> None:
    """The best model is that of round 1, so what was theirs after it is still needed in round 3, and at the end."""
    link = FakeLink(*(replace(site, dice=lambda step: [0.0, 0.9, 0.4, 0.4][step]) for site in (ASH, ELM)))
    go(link, tmp_path, rounds=3, schedule={"keep_rounds": 0})
    asked = [task.body for task, sent in zip(link.tasks, link.sent, strict=True) if sent[:2] == ("ash", ROUND)]
    assert [body["kept"] for body in asked] == [0, 1, 2]
    assert [body["hold"] for body in asked] == [[], [], [1]]
    assert [body["steps_done"] for body in asked] == [0, 3, 6]
    (last,) = [task for task, sent in zip(link.tasks, link.sent, strict=True) if sent[:2] == ("ash", FINISH)]
    assert (last.round, last.body["info"]["step"], last.body["split"]) == (1, 1, "test")


def test_long_updates_are_scaled_and_it_is_said(tmp_path: Path) -> None:
    events: list[Event] = []
    link = FakeLink(ASH, replace(ELM, change=1e-6))
    go(link, tmp_path, events=events, rounds=1, aggregate=AggregateOptions(max_update_norm=0.5))
    assert [event.site for event in of(Noted, events) if "longer than 0.5" in event.text] == ["ash"]


@pytest.mark.slow
def test_a_failure_that_stays_ends_the_run_saved(tmp_path: Path) -> None:
    link = FakeLink(ASH, ELM)
    link.replies["elm", ROUND, 2] = [broken] * 4
    with pytest.raises(FederationError, match=r"round 2 \(round\).*elm: the process was killed \(tried 4 times\)"):
        go(link, tmp_path, schedule={"deadline_minutes": 60.0})
    assert read_info(tmp_path / "last.safetensors").step == 1
    again = FakeLink(ASH, ELM)
    assert go(again, tmp_path).finished
    assert again.rounds_of("elm") == [2]


def _with(name: str, tensor: torch.Tensor) -> Callable[[SiteTask], Answer]:
    def reply(task: SiteTask) -> Answer:
        answer = ELM.answer(task)
        return replace(answer, tensors={**answer.tensors, name: tensor})

    return reply


def _saying(**said: object) -> Callable[[SiteTask], Answer]:
    def reply(task: SiteTask) -> Answer:
        answer = ELM.answer(task)
        return replace(answer, body={**answer.body, **said})

    return reply


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (_with(f"{FIRST}[T1]", torch.full((4, 1, 3, 3, 3), float("nan"))), r"\[T1\]' holds 108 values of 108 that are"),
        (_with(f"{FIRST}[T1]", torch.zeros(4, 2, 3, 3, 3)), r"\[T1\]' is of shape \(4, 2, 3, 3, 3\), but the part is"),
        (_with(f"{FIRST}[DWI]", torch.zeros(4, 1, 3, 3, 3)), "which is not a part that this site trains"),
        (spoilt(ELM, tensors={}), "it lacks"),
        (spoilt(ELM, body={}), "its answer is invalid"),
        (spoilt(ELM, error="out of memory"), "out of memory"),
        (_with(f"{FIRST}[T1]", torch.zeros(4, 1, 3, 3, 3, dtype=torch.complex64)), "holds torch.complex64"),
        (_saying(num_cases=float("inf")), "num_cases is inf"),
        (_saying(num_cases=-5), "num_cases is -5"),
        (_saying(exposure={"": -1.0}), " is -1"),
        (_saying(exposure={"": float("nan")}), "is nan, not an integer"),
        (_saying(exposure=[6]), "exposure is list, not a mapping"),
        (_saying(seconds={"total": -1.0}), "seconds/total is -1"),
        (_saying(events=7), "not a list of texts"),
        (_saying(events=["well", {"path": 1}]), "not a list of texts"),
        (_saying(metrics={"validation": {"elm": 1.5}}), "elm is 1.5"),
        (_saying(metrics={"validation": {"elm": -0.5}}), "elm is -0.5"),
        (_saying(metrics={"loss": float("inf")}), "loss is inf"),
    ],
)
def test_what_cannot_be_used_is_refused_and_the_site_named(
    reply: Callable[[SiteTask], Answer], reason: str, tmp_path: Path
) -> None:
    events: list[Event] = []
    link = FakeLink(ASH, ELM, OAK)
    link.replies["elm", ROUND, 1] = [reply]
    result = go(link, tmp_path, events=events, schedule={"quorum": 2})
    assert result.finished
    (refused,) = of(Refused, events)
    assert (refused.round, refused.site) == (1, "elm")
    first, second = of(RoundDone, events)
    assert (list(first.sites), list(first.failed)) == (["ash", "oak"], ["elm"])
    assert list(second.sites) == ["ash", "elm", "oak"]
    assert re.search(reason, refused.reason)
    kept = [
        task.body["kept"] for task, sent in zip(link.tasks, link.sent, strict=True) if sent[:3] == ("elm", ROUND, 2)
    ]
    assert kept == [0]  # round 1 of elm is not in the network


def test_without_a_quorum_a_refused_update_ends_the_run(tmp_path: Path) -> None:
    link = FakeLink(ASH, ELM)
    link.replies["elm", ROUND, 1] = [_with(f"{FIRST}[T1]", torch.full((4, 1, 3, 3, 3), float("inf")))]
    with pytest.raises(FederationError, match=r"elm: its update was refused: .*not finite"):
        go(link, tmp_path)
    assert len(link.rounds_of("elm")) == 1  # it is not asked again


@pytest.mark.slow
def test_the_deadline_closes_a_round_on_its_quorum_only(tmp_path: Path) -> None:
    events: list[Event] = []
    link = FakeLink(ASH, ELM, OAK)
    link.replies["oak", ROUND, 1] = [lost]
    assert go(link, tmp_path / "quorum", events=events, schedule={"quorum": 2}).finished
    first, second = of(RoundDone, events)
    assert first.failed == {"oak": "it had not answered yet"}
    assert 60 <= first.seconds < 70
    assert second.failed == {}
    assert second.seconds < 5
    link = FakeLink(ASH, ELM, OAK)
    link.replies["oak", ROUND, 1] = [lost]
    with pytest.raises(FederationError, match=r"2 answers of 3 and needs 3. oak: it had not answered yet"):
        go(link, tmp_path / "all")


@pytest.mark.slow
def test_an_answer_to_an_older_round_is_not_counted(tmp_path: Path) -> None:
    link = FakeLink(ASH, ELM)
    link.replies["elm", ROUND, 2] = [spoilt(ELM, round=1, tensors={"nonsense": torch.zeros(1)})]
    events: list[Event] = []
    assert go(link, tmp_path, events=events).finished
    assert not of(Refused, events)
    assert link.rounds_of("elm") == [1, 2, 2]


@pytest.mark.slow
def test_single_contributors_are_told(tmp_path: Path) -> None:
    events: list[Event] = []
    go(FakeLink(ASH, replace(ELM, modalities=("FLAIR", "T1", "T2"))), tmp_path, events=events)
    assert of(RoundDone, events)[0].single == (f"{FIRST}[T2]",)
    assert [done.is_news for done in of(RoundDone, events)] == [True, False]  # it is said once
    assert any("T2: only elm has it" in event.text for event in of(Noted, events))


@pytest.mark.slow
def test_best_by_mean_and_by_worst_site_may_differ(tmp_path: Path) -> None:
    """After round 1: 0.9 and 0.1; after round 2: 0.4 and 0.4."""
    ash = replace(ASH, dice=lambda step: [0.0, 0.9, 0.4][step])
    elm = replace(ELM, dice=lambda step: [0.0, 0.1, 0.4][step])
    result = go(FakeLink(ash, elm), tmp_path)
    assert (result.best, result.best_round) == (0.5, 1)
    assert read_info(tmp_path / "model.safetensors").step == 1
    assert read_info(tmp_path / "worst.safetensors").step == 2
    assert read_info(tmp_path / "worst.safetensors").metrics == {"dice": 0.4, "ash": 0.4, "elm": 0.4}


@pytest.mark.slow
def test_without_validation_cases_the_last_model_is_the_best(tmp_path: Path) -> None:
    nothing = [replace(site, dice=lambda step: float("nan")) for site in (ASH, ELM)]
    assert go(FakeLink(*nothing), tmp_path).best_round == 2
    assert read_info(tmp_path / "model.safetensors").step == 2


@pytest.mark.slow
def test_held_out_sites_only_evaluate(tmp_path: Path) -> None:
    far = replace(OAK, can_train=False, modalities=("FLAIR", "T2"))
    link = FakeLink(ASH, ELM, far)
    result = go(link, tmp_path, said=replace(options("ash", "elm"), held_out=("oak",)))
    assert [kind for site, kind, _, _ in link.sent if site == "oak"] == [DESCRIBE, EVALUATE]
    assert set(result.test) == {"ash", "elm", "oak"}
    assert tuple(read_info(tmp_path / "model.safetensors").axis) == ("FLAIR", "T1")


@pytest.mark.slow
def test_a_site_with_a_new_sequence_joins(tmp_path: Path) -> None:
    """Its channel comes at the end; what was learnt stays; a site may leave, too."""
    go(FakeLink(ASH, ELM), tmp_path, rounds=2, schedule={}, fit=_constant())
    before = load_weights(tmp_path / "last.safetensors")
    link = FakeLink(ELM, replace(OAK, modalities=("PD", "FLAIR")))
    events: list[Event] = []
    result = go(link, tmp_path, events=events, rounds=3, fit=_constant())
    assert (result.round, result.best_round) == (3, 3)
    info = read_info(tmp_path / "last.safetensors")
    assert tuple(info.axis) == ("FLAIR", "T1", "PD")
    assert set(info.databases) == {"ash/ash", "elm/elm", "oak/oak"}
    sent = next(task for task in link.tasks if task.kind == ROUND)
    assert torch.equal(sent.tensors[FIRST][:, :2], before[FIRST])
    said = " ".join(event.text for event in of(Noted, events))
    assert "a channel for PD" in said
    assert "joined: oak; left: ash" in said


@pytest.mark.slow
def test_a_site_that_joins_after_the_last_round_teaches_nothing(tmp_path: Path) -> None:
    """It tests the model, whose channel for its sequence nobody has trained; more rounds go on from there."""
    go(FakeLink(ASH, ELM), tmp_path, rounds=2, fit=_constant())
    events: list[Event] = []
    sites = (ASH, ELM, replace(OAK, modalities=("PD", "FLAIR")))
    result = go(FakeLink(*sites), tmp_path, events=events, rounds=2, fit=_constant())
    assert (result.finished, set(result.test)) == (True, {"ash", "elm", "oak"})
    for name in ("last.safetensors", "model.safetensors", "worst.safetensors"):
        info = read_info(tmp_path / name)
        assert info.trained_on == {"FLAIR": ("ash/ash", "elm/elm"), "T1": ("ash/ash", "elm/elm"), "PD": ()}, name
        assert set(info.databases) == {"ash/ash", "elm/elm"}
    assert "which learns nothing from it" in " ".join(event.text for event in of(Noted, events))
    assert go(FakeLink(*sites), tmp_path, rounds=3, fit=_constant()).round == 3
    assert read_info(tmp_path / "last.safetensors").trained_on["PD"] == ("oak/oak",)


def _constant() -> object:
    return replace(options("a").fit, schedule="constant")


@pytest.mark.slow
def test_a_stop_between_rounds_is_gone_on_from(tmp_path: Path) -> None:
    link = FakeLink(ASH, ELM)
    rounds: list[Event] = []
    said = options("ash", "elm", rounds=3)
    result = run(said, link, tmp_path, rounds.append, lambda: len(of(RoundDone, rounds)) == 1, link.clock)
    assert (result.finished, result.round) == (False, 1)
    again = FakeLink(ASH, ELM)
    assert go(again, tmp_path, rounds=3).round == 3
    assert again.rounds_of("ash") == [2, 3]


@pytest.mark.slow
def test_a_resumed_run_goes_on_without_those_that_its_quorum_spares(tmp_path: Path) -> None:
    said = options("ash", "elm", "oak", schedule={"quorum": 2})
    rounds: list[Event] = []
    link = FakeLink(ASH, ELM, OAK)
    run(said, link, tmp_path, rounds.append, lambda: len(of(RoundDone, rounds)) == 1, link.clock)
    link = FakeLink(ASH, ELM, OAK)
    link.away["oak"] = [(0.0, 50_000.0)]
    assert run(said, link, tmp_path, clock=link.clock).finished


def test_what_sites_say_at_any_time_is_passed_on(tmp_path: Path) -> None:
    link = FakeLink(ASH, ELM)
    said = {"metrics": {}, "events": ["look here"]}
    about = {"databases": {}, "events": ["look here"]}
    for kind, number in ((FINGERPRINT, 0), (EVALUATE, 1), (FINISH, 1)):
        link.replies["elm", kind, number] = [spoilt(ELM, body=said)]
    link.replies["ash", FINGERPRINT, 0] = [
        lambda task: Answer(FINGERPRINT, "ash", 0, {"databases": {}}, experiment="fake")
    ]
    link.replies["elm", FINGERPRINT, 0] = [lambda task: Answer(FINGERPRINT, "elm", 0, about, experiment="fake")]
    events: list[Event] = []
    assert go(link, tmp_path, events=events, rounds=1, privacy=PrivacyOptions(fingerprint=True)).finished
    noted = [(event.round, event.site) for event in of(Noted, events) if event.text == "look here"]
    assert noted == [(0, "elm"), (1, "elm"), (1, "elm")]


@pytest.mark.slow
def test_odd_numbers_of_an_evaluation_are_refused(tmp_path: Path) -> None:
    link = FakeLink(ASH, ELM)
    link.replies["elm", FINISH, 2] = [spoilt(ELM, body={"metrics": {"elm": {"dice": 2.0}}})]
    events: list[Event] = []
    result = go(link, tmp_path, events=events)
    assert set(result.test) == {"ash"}
    assert [(event.site, "elm is 2.0" in event.reason) for event in of(Refused, events)] == [("elm", True)]


def _asked(link: FakeLink, site: str, kind: str) -> list[SiteTask]:
    return [task for task, sent in zip(link.tasks, link.sent, strict=True) if sent[:2] == (site, kind)]


@pytest.mark.slow
def test_models_are_compared_over_the_same_sites_only(tmp_path: Path) -> None:
    """oak, where Dice is low, does not answer in round 2, so the others' 0.9 of the first model says nothing."""
    high, low = (lambda step: [0.0, 0.9, 0.5, 0.5][step]), (lambda step: [0.0, 0.1, 0.2, 0.1][step])
    link = FakeLink(replace(ASH, dice=high), replace(ELM, dice=high), replace(OAK, dice=low))
    link.replies["oak", ROUND, 2] = [spoilt(OAK, error="a case is damaged")]
    events: list[Event] = []
    result = go(link, tmp_path, events=events, rounds=3, schedule={"quorum": 2})
    assert result.best_round == 2
    assert result.best == pytest.approx(0.4)
    assert read_info(tmp_path / "worst.safetensors").step == 2
    assert "this model is not compared with the best: no Dice from oak." in [e.text for e in of(Noted, events)]


@pytest.mark.slow
def test_the_last_model_is_compared_over_the_same_sites_only(tmp_path: Path) -> None:
    """It is when the same command is run again and oak is there; the new best model is then tested everywhere."""
    high, low = (lambda step: [0.0, 0.5, 0.9][step]), (lambda step: [0.0, 0.1, 0.2][step])
    sites = (replace(ASH, dice=high), replace(ELM, dice=high), replace(OAK, dice=low))
    link = FakeLink(*sites)
    link.replies["oak", EVALUATE, 2] = [spoilt(OAK, error="a case is damaged")]
    assert go(link, tmp_path, schedule={"quorum": 2}).best_round == 1
    again = FakeLink(*sites)
    result = go(again, tmp_path, schedule={"quorum": 2})
    assert result.best_round == 2
    assert result.test["oak"] == {"oak": 0.2}
    assert {site for site, kind, _, _ in again.sent if kind == FINISH} == {"ash", "elm", "oak"}


@pytest.mark.slow
def test_a_site_without_validation_cases_is_not_waited_for(tmp_path: Path) -> None:
    link = FakeLink(ASH, ELM, replace(OAK, dice=lambda step: float("nan")))
    result = go(link, tmp_path, rounds=3)
    assert (result.best, result.best_round) == (0.53, 3)


@pytest.mark.slow
def test_a_site_that_was_not_heard_yet_is_known_by_its_cases(tmp_path: Path) -> None:
    """In rounds 2 and 3 oak fails, which has validation cases; where it has none, the others are enough."""
    for name, num_cases, expected in (("some", 5, -1), ("none", 0, 2)):
        link = FakeLink(ASH, ELM, replace(OAK, num_validation=num_cases))
        for number in (1, 2, 3):
            link.replies["oak", ROUND, number] = [spoilt(OAK, error="a case is damaged")]
        said = options("ash", "elm", "oak", rounds=3, schedule={"quorum": 2})
        rounds: list[Event] = []
        stop = lambda rounds=rounds: len(of(RoundDone, rounds)) == 3  # noqa: E731
        assert run(said, link, tmp_path / name, rounds.append, stop, link.clock).best_round == expected


@pytest.mark.slow
def test_each_site_is_told_what_was_its_own_in_the_best_model(tmp_path: Path) -> None:
    """oak's update of round 2 is not in the best model, which is that of round 2, so with it goes oak's round 1."""
    link = FakeLink(*(replace(site, dice=lambda step: [0.0, 0.2, 0.9, 0.4, 0.4][step]) for site in (ASH, ELM, OAK)))
    link.replies["oak", ROUND, 2] = [spoilt(OAK, tensors={})]
    assert go(link, tmp_path, rounds=4, schedule={"quorum": 2, "keep_rounds": 0}).best_round == 2
    assert [task.body["kept"] for task in _asked(link, "oak", ROUND)] == [0, 1, 1, 3]
    assert [_asked(link, site, ROUND)[3].body["hold"] for site in ("ash", "oak")] == [[2], [1]]
    for site, number in (("ash", 2), ("oak", 1)):
        (task,) = _asked(link, site, FINISH)
        assert (task.round, task.body["kept"], task.body["info"]["step"]) == (number, number, 2)


@pytest.mark.slow
def test_the_last_model_is_evaluated_with_what_was_a_sites_own_in_it(tmp_path: Path) -> None:
    link = FakeLink(ASH, ELM, OAK)
    link.replies["oak", ROUND, 2] = [spoilt(OAK, tensors={})]
    go(link, tmp_path, schedule={"quorum": 2})
    numbers = {site: [(task.round, task.body["kept"]) for task in _asked(link, site, EVALUATE)] for site in link.sites}
    assert numbers == {"ash": [(2, 2)], "elm": [(2, 2)], "oak": [(1, 1)]}


@pytest.mark.slow
def test_each_sites_model_is_handed_to_all(tmp_path: Path) -> None:
    """It is what the last round began with and what that site alone added."""
    link = FakeLink(ASH, ELM, OAK)
    said = replace(options("ash", "elm", schedule={"cross_site": True}), held_out=("oak",))
    result = go(link, tmp_path, said=said)
    assert set(result.final["cross"]) == {"ash", "elm"}
    assert result.final["cross"]["ash"] == {site: {site: 0.52} for site in ("ash", "elm", "oak")}
    begun = next(task for task in link.tasks if (task.kind, task.round) == (ROUND, 2)).tensors[LAST_BIAS]
    handed = [task.tensors[LAST_BIAS] for task in _asked(link, "oak", EVALUATE)][-2:]
    for tensor, site in zip(handed, (ASH, ELM), strict=True):
        torch.testing.assert_close(tensor, begun + site.change)
    assert not torch.equal(*handed)
    again = FakeLink(ASH, ELM, OAK)
    go(again, tmp_path, said=said)
    assert again.sent == []


@pytest.mark.slow
def test_handing_models_round_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    said = options("ash", "elm", schedule={"cross_site": True})
    link = FakeLink(ASH, ELM)
    # The second one that it is asked for; the first is the model of the last round.
    stopped = run(said, link, tmp_path, lambda _: None, lambda: len(_asked(link, "elm", EVALUATE)) == 3, link.clock)
    assert (stopped.finished, set(stopped.final["cross"])) == (False, {"ash"})
    again = FakeLink(ASH, ELM)
    assert set(go(again, tmp_path, said=said).final["cross"]) == {"ash", "elm"}
    assert len(_asked(again, "ash", EVALUATE)) == 1


@pytest.mark.slow
def test_sites_that_are_gone_cost_one_deadline_and_are_asked_again(tmp_path: Path) -> None:
    link = FakeLink(ASH, ELM, OAK)
    said = options("ash", "elm", "oak", schedule={"cross_site": True})
    events: list[Event] = []

    def hear(event: Event) -> None:
        events.append(event)
        if isinstance(event, Came) and event.kind == FINISH and event.site == "oak":
            link.away["oak"] = [(link.now, 100_000.0)]

    began = link.now
    result = run(said, link, tmp_path, hear, clock=link.clock)
    assert result.finished
    assert {whose: set(scores) for whose, scores in result.final["cross"].items()} == {
        site: {"ash", "elm"} for site in ("ash", "elm", "oak")
    }
    assert 60 <= link.now - began < 120  # seconds of the pretended clock; a deadline is 60
    assert [event.site for event in of(Noted, events) if "has not tested the model of ash" in event.text] == ["oak"]
    again = FakeLink(ASH, ELM, OAK)
    result = go(again, tmp_path, said=said)
    assert all(set(scores) == {"ash", "elm", "oak"} for scores in result.final["cross"].values())
    assert {sent[0] for sent in again.sent if sent[1] == EVALUATE} == {"oak"}


@pytest.mark.slow
def test_a_network_that_grows_after_the_end_is_saved_with_its_state(tmp_path: Path) -> None:
    """A site has a new sequence by then, and something is still to be tested."""
    go(FakeLink(ASH, ELM), tmp_path)
    sites = (ASH, replace(ELM, modalities=("FLAIR", "T1", "PD")), OAK)
    said = replace(options("ash", "elm"), held_out=("oak",))
    assert go(FakeLink(*sites), tmp_path, said=said).finished
    state = opened(tmp_path)
    assert state is not None
    assert tuple(state.roster.info.axis) == ("FLAIR", "T1", "PD")
    assert read_info(tmp_path / "last.safetensors").trained_on["PD"] == ()
    assert set(go(FakeLink(*sites), tmp_path, said=said).test) == {"ash", "elm", "oak"}


@pytest.mark.slow
def test_a_model_of_an_earlier_end_is_not_handed_round_again(tmp_path: Path) -> None:
    """A run of more rounds begins the table anew, and a site that was missing in its last round has no model."""
    schedule = {"cross_site": True, "quorum": 1}
    go(FakeLink(ASH, ELM), tmp_path, said=options("ash", "elm", schedule=schedule, fit=_constant()))
    link = FakeLink(ASH, ELM)
    link.replies["elm", ROUND, 3] = [spoilt(ELM, tensors={})]
    result = go(link, tmp_path, said=options("ash", "elm", rounds=3, schedule=schedule, fit=_constant()))
    assert set(result.final["cross"]) == {"ash"}


@pytest.mark.slow
def test_a_run_that_lacks_nothing_asks_nobody(tmp_path: Path) -> None:
    first = go(FakeLink(ASH, ELM), tmp_path)
    link = FakeLink(ASH, ELM)
    again = go(link, tmp_path)
    assert link.sent == []
    assert (again.finished, again.test, again.best_round) == (True, first.test, first.best_round)


@pytest.mark.slow
def test_the_same_command_completes_the_end(tmp_path: Path) -> None:
    link = FakeLink(ASH, ELM)
    link.replies["elm", FINISH, 2] = [spoilt(ELM, error="a case is damaged")]
    assert set(go(link, tmp_path).test) == {"ash"}
    again = FakeLink(ASH, ELM)
    assert go(again, tmp_path).test == {"ash": {"ash": 0.52}, "elm": {"elm": 0.52}}
    assert [sent[:2] for sent in again.sent if sent[1] != DESCRIBE] == [("elm", FINISH)]


@pytest.mark.slow
def test_a_site_may_be_held_out_after_the_end(tmp_path: Path) -> None:
    go(FakeLink(ASH, ELM), tmp_path)
    link = FakeLink(ASH, ELM, OAK)
    result = go(link, tmp_path, said=replace(options("ash", "elm"), held_out=("oak",)))
    assert set(result.test) == {"ash", "elm", "oak"}
    assert [sent[:2] for sent in link.sent if sent[1] != DESCRIBE] == [("oak", EVALUATE)]


@pytest.mark.slow
def test_what_never_leaves_the_sites_does_not_count_as_trained(tmp_path: Path) -> None:
    """Neither in the server's files nor for a site that is held out; each site's own model reads its sequences."""
    link = FakeLink(ASH, replace(ELM, modalities=("FLAIR", "T2")), OAK)
    said = replace(options("ash", "elm"), local=LocalOptions(steps=3, personal=(FIRST,)), held_out=("oak",))
    events: list[Event] = []
    go(link, tmp_path, events=events, said=said)
    for name in ("model.safetensors", "last.safetensors", "worst.safetensors"):
        assert read_info(tmp_path / name).usable(("FLAIR", "T1", "T2")) == ()
    (held_out,) = _asked(link, "oak", EVALUATE)
    assert set(held_out.body["info"]["trained_on"].values()) == {()}
    told = {site: _asked(link, site, FINISH)[0].body["info"]["trained_on"] for site in ("ash", "elm")}
    assert told["ash"] == {"FLAIR": ("ash/ash",), "T1": ("ash/ash",), "T2": ()}
    assert told["elm"] == {"FLAIR": ("elm/elm",), "T1": (), "T2": ("elm/elm",)}
    assert _asked(link, "ash", ROUND)[0].body["info"]["trained_on"]["T2"] == ("elm/elm",)
    assert len([event for event in of(Noted, events) if "1 personal tensors, such as" in event.text]) == 1


def test_a_personal_pattern_without_a_tensor_is_named(tmp_path: Path) -> None:
    said = options("ash", "elm", local=LocalOptions(steps=3, personal=("*first*", "*batchnorm*")))
    with pytest.raises(
        UsageError, match=r"local\.personal has '\*batchnorm\*', which fits no tensor of the multi_unet with"
    ):
        go(FakeLink(ASH, ELM), tmp_path, said=said)


@pytest.mark.slow
def test_noise_and_running_statistics_are_refused_together(tmp_path: Path) -> None:
    noisy = {"privacy": PrivacyOptions(clip=1.0, noise=1.0), "model": ModelOptions(widths=(4, 8), norm="batch")}
    with pytest.raises(UsageError, match=r"noise would be added to running statistics such as .*running_mean"):
        go(FakeLink(ASH, ELM), tmp_path / "all", **noisy)
    own = LocalOptions(steps=3, personal=("*.running_*",))
    assert go(FakeLink(ASH, ELM), tmp_path / "personal", **noisy, local=own).finished


def test_half_precision_on_the_wire(tmp_path: Path) -> None:
    link = FakeLink(ASH, ELM)
    go(link, tmp_path, rounds=1, privacy=PrivacyOptions(payload="float16"))
    assert link.tasks[2].tensors[FIRST].dtype == torch.float16
    assert load_weights(tmp_path / "last.safetensors")[FIRST].dtype == torch.float32


@pytest.mark.slow
def test_the_log_has_a_line_for_every_event(tmp_path: Path) -> None:
    events: list[Event] = []
    go(FakeLink(ASH, ELM), tmp_path, events=events)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == [type(event).__name__ for event in events]


@pytest.mark.slow
def test_epsilon_counts_what_a_site_says_it_sent(tmp_path: Path) -> None:
    class Repeated(FakeSite):
        """A site that was asked for the first round three times, and came to other updates."""

        def answer(self, task: SiteTask) -> Answer:
            said = super().answer(task)
            told = {"releases": task.round + 2 if task.round < 3 else 0}
            return replace(said, body={**said.body, **told}) if task.kind == ROUND else said

    noisy = PrivacyOptions(clip=1.0, noise=2.0)
    result = go(FakeLink(ASH, Repeated("elm")), tmp_path, rounds=3, privacy=noisy)
    expected = [epsilon(2.0, releases, noisy.delta) for releases in (3, 4, 4)]  # it never gets less
    assert [entry["epsilon"] for entry in result.history] == pytest.approx(expected)


@pytest.mark.slow
def test_a_revoked_site_does_not_stop_the_others(tmp_path: Path) -> None:
    """As if it had been taken out of the run file after the last round that was saved, to the bit."""
    events: list[Event] = []
    link = FakeLink(ASH, ELM, OAK)
    link.delay["elm"] = 50.0
    link.revoked["elm"] = 60.0  # in the middle of round 1: 50 s for its description, and 10 of the round
    result = go(link, tmp_path / "revoked", events=events, rounds=3)
    assert link.now < 120, "it is not waited for"
    assert (result.finished, result.round) == (True, 3)
    assert [(left.site, left.reason) for left in of(Left, events)] == [("elm", "its key was revoked")]
    assert [list(done.sites) for done in of(RoundDone, events)] == [["ash", "oak"]] * 3
    assert set(result.test) == {"ash", "oak"}
    assert read_status(tmp_path / "revoked")["left"] == ["elm"]
    assert [event["event"] for event in notable_events(tmp_path / "revoked")] == ["Left"]
    go(FakeLink(ASH, OAK), tmp_path / "two", rounds=3)
    for name in ("last.safetensors", "model.safetensors"):
        a, b = (load_weights(tmp_path / folder / name) for folder in ("revoked", "two"))
        assert all(torch.equal(a[key], b[key]) for key in b)


@pytest.mark.slow
def test_the_answer_of_a_site_that_is_revoked_later_counts(tmp_path: Path) -> None:
    events: list[Event] = []
    link = FakeLink(ASH, ELM, OAK)
    link.delay["oak"] = 50.0
    link.revoked["elm"] = 60.0  # it has answered to round 1, and oak has not
    go(link, tmp_path, events=events, rounds=2)
    assert [list(done.sites) for done in of(RoundDone, events)] == [["ash", "elm", "oak"], ["ash", "oak"]]
    assert [(left.site, left.round) for left in of(Left, events)] == [("elm", 1)]


def test_a_revoked_site_of_a_masked_run_is_left_out_where_three_remain(tmp_path: Path) -> None:
    sites = [replace(FakeSite(name), modalities=("T1",)) for name in ("ash", "elm", "oak")]
    link = FakeLink(*sites)
    link.revoked["elm"] = 0.5
    masked = {"privacy": PrivacyOptions(masked=True)}
    with pytest.raises(FederationError, match=r"cannot continue without .*elm: its key was revoked.*3 sites or more"):
        go(link, tmp_path, rounds=1, **masked)


def test_a_quorum_of_more_than_are_left_ends_the_run_by_name(tmp_path: Path) -> None:
    link = FakeLink(ASH, ELM, OAK, FakeSite("yew"))
    link.revoked = {"elm": 0.5, "oak": 0.5}
    with pytest.raises(FederationError, match=r"elm: its key was revoked; oak: .*quorum is 3, but there are 2 sites"):
        go(link, tmp_path, rounds=1, schedule={"quorum": 3})


@pytest.mark.slow
def test_a_site_that_was_enrolled_again_takes_part_once_the_run_is_submitted_again(tmp_path: Path) -> None:
    link = FakeLink(ASH, ELM, OAK)
    link.revoked["elm"] = 0.0
    constant = {"fit": _constant()}
    go(link, tmp_path, rounds=1, **constant)
    result = go(FakeLink(ASH, ELM, OAK), tmp_path, rounds=2, **constant)
    assert [list(entry["sites"]) for entry in result.history] == [["ash", "oak"], ["ash", "elm", "oak"]]


@pytest.mark.slow
def test_a_revoked_site_that_only_looks_on_is_left_out_too(tmp_path: Path) -> None:
    link = FakeLink(ASH, ELM, OAK)
    link.revoked["oak"] = 2.5
    result = go(link, tmp_path, said=options("ash", "elm", held_out=("oak",)))
    assert (result.finished, set(result.test)) == (True, {"ash", "elm"})
