"""A run goes back to one of its last rounds, and carries on as one that never had the rounds after it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fake_link import FakeLink, FakeSite, options

from multiseg.errors import CheckpointError, FederationError, UsageError
from multiseg.federation.centre.combine import combined
from multiseg.federation.centre.earlier import go_back, kept_rounds
from multiseg.federation.centre.experiment_folder import opened, read_history
from multiseg.federation.centre.rounds import run
from multiseg.federation.centre.run_events import Event, RoundDone, WentBack
from multiseg.federation.centre.run_report import notable_events
from multiseg.federation.messages import ROUND, Answer, SiteTask
from multiseg.federation.plan import AggregateOptions, FederationOptions
from multiseg.models.network_parts import parts

ASH, ELM, OAK = FakeSite("ash"), FakeSite("elm", change=0.5), FakeSite("oak")
MODELS = ("last.safetensors", "model.safetensors", "worst.safetensors", "rounds.csv")


def asked(rounds: int, **schedule: int) -> FederationOptions:
    momentum = AggregateOptions(strategy="fedavgm")  # so that the server has a memory of its own
    said = options("ash", "elm", "oak", aggregate=momentum, schedule={"rounds": rounds, **schedule})
    return replace(said, fit=replace(said.fit, schedule="constant"))


def conduct(rounds: int, folder: Path, link: FakeLink | None = None, **schedule: int) -> list[Event]:
    events: list[Event] = []
    link = link or FakeLink(ASH, ELM, OAK)
    result = run(asked(rounds, **schedule), link, folder, events.append, clock=link.clock)
    assert (result.finished, result.round) == (True, rounds)
    return events


def wrong(task: SiteTask) -> Answer:
    """An update that no rule finds: of a usual length, and of the other sign."""
    honest = ELM.answer(task)
    return replace(honest, tensors={name: -tensor for name, tensor in honest.tensors.items()})


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    conduct(5, folder)
    return folder


def test_back_to_before_a_wrong_update_is_bit_for_bit_as_without_it(undisturbed: Path, tmp_path: Path) -> None:
    link = FakeLink(ASH, ELM, OAK)
    link.replies["elm", ROUND, 3] = [wrong]
    conduct(5, tmp_path, link)
    poisoned = {name: (tmp_path / name).read_bytes() for name in MODELS}
    assert poisoned["last.safetensors"] != (undisturbed / "last.safetensors").read_bytes()
    told: list[Event] = []
    go_back(tmp_path, "fake", 2, told.append)
    assert told == [WentBack(2, 5)]
    assert read_history(tmp_path)["round"] == 2
    again = conduct(5, tmp_path)
    assert [event.round for event in again if isinstance(event, RoundDone)] == [3, 4, 5]
    for name in MODELS[:3]:
        assert (tmp_path / name).read_bytes() == (undisturbed / name).read_bytes(), name
    assert notable_events(tmp_path)[0]["before"] == 5
    kinds = [json.loads(text)["event"] for text in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert kinds.count("RoundDone") == 5 + 3


@pytest.mark.slow
def test_the_last_rounds_are_kept_and_no_more(undisturbed: Path, tmp_path: Path) -> None:
    assert kept_rounds(undisturbed) == (2, 3, 4, 5)
    conduct(3, tmp_path, keep_rounds=1)
    assert kept_rounds(tmp_path) == (2, 3)
    conduct(4, tmp_path, keep_rounds=0)
    assert kept_rounds(tmp_path) == ()
    with pytest.raises(UsageError, match=r"cannot be put back to round 3: the kept rounds are none"):
        go_back(tmp_path, "fake", 3)
    with pytest.raises(UsageError, match=r"to round 1: the kept rounds are 2, 3, 4, 5 \("):
        go_back(undisturbed, "fake", 1)


def test_what_a_round_did_not_change_takes_no_room_again(tmp_path: Path) -> None:
    """The model after round 1 stays the best."""
    link = FakeLink(FakeSite("ash", dice=lambda step: 0.5))
    run(options("ash", rounds=3), link, tmp_path, clock=link.clock)
    best = tmp_path / "model.safetensors"
    assert all(best.samefile(tmp_path / "earlier" / name / "model.safetensors") for name in ("000002", "000003"))


@pytest.mark.slow
def test_sites_are_asked_for_another_course_and_hold_what_it_needs(tmp_path: Path) -> None:
    conduct(4, tmp_path)
    go_back(tmp_path, "fake", 2)
    link = FakeLink(ASH, ELM, OAK)
    conduct(4, tmp_path, link)
    tasks = [task for task in link.tasks if task.kind == ROUND]
    assert {task.body["course"] for task in tasks} == {1}
    assert [task.body["hold"] for task in tasks[:1]] == [[1, 2]]
    assert all(task.body["kept"] == task.round - 1 for task in tasks)
    fresh = FakeLink(ASH, ELM, OAK)
    conduct(5, tmp_path / "fresh", fresh)
    plain = [task for task in fresh.tasks if task.kind == ROUND]
    assert not any("course" in task.body for task in plain)
    assert plain[-1].body["hold"] == [1, 2, 3, 4]
    go_back(tmp_path, "fake", 3)
    assert read_history(tmp_path)["course"] == 2


@pytest.mark.slow
def test_a_process_that_died_before_it_kept_a_round_keeps_it_when_it_resumes(tmp_path: Path) -> None:
    conduct(3, tmp_path)
    shutil.rmtree(tmp_path / "earlier" / "000003")
    (tmp_path / "earlier" / ".000003.tmp").mkdir()
    conduct(3, tmp_path)
    assert kept_rounds(tmp_path) == (1, 2, 3)


@pytest.mark.slow
def test_the_best_model_of_a_forgotten_round_goes_with_it(tmp_path: Path) -> None:
    """The scores of rounds 2 and 3 are what made a model the best one."""
    late = FakeSite("ash", dice=lambda step: float("nan") if step < 2 else 0.9)
    alone = options("ash", rounds=4)
    link = FakeLink(late)
    run(alone, link, tmp_path, clock=link.clock)
    assert (tmp_path / "worst.safetensors").is_file()
    go_back(tmp_path, "fake", 1)
    assert not (tmp_path / "worst.safetensors").exists()
    assert not (tmp_path / "model.safetensors").exists()
    state = opened(tmp_path)
    assert state is not None
    assert state.mean.round == -1


@pytest.mark.slow
def test_a_damaged_newest_round_is_no_hindrance(tmp_path: Path) -> None:
    conduct(3, tmp_path)
    (tmp_path / "state.safetensors").write_bytes(b"\x08")
    with pytest.raises(CheckpointError):
        conduct(3, tmp_path)
    go_back(tmp_path, "fake", 2)
    conduct(3, tmp_path)


@pytest.mark.slow
def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    """Under masks nobody sees what one site sent: the network alone shows it."""
    state = opened(_of_one_round(tmp_path))
    assert state is not None
    bad = {name: torch.full_like(tensor, float("inf")) for name, tensor in state.network.items()}
    answers = {"ash": ASH.answer(_task(state))}
    broken = replace(state, network=bad)
    with pytest.raises(FederationError, match=r"round 2 would leave .* not finite"):
        combined(broken, answers, parts(state.roster.info), asked(1))


def _of_one_round(folder: Path) -> Path:
    conduct(1, folder)
    return folder


def _task(state: object) -> SiteTask:
    return SiteTask(ROUND, "fake", 2, {"info": state.roster.info.to_json()})  # type: ignore[attr-defined]
