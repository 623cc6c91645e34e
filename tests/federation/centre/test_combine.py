"""From answers to the next model."""

from dataclasses import replace

import pytest
import torch
from fake_link import FakeLink, FakeSite, options

from multiseg.federation.centre.combine import combined, refuse_outliers, weight_of
from multiseg.federation.centre.exchange import Desk, ExchangeOutcome
from multiseg.federation.centre.experiment_folder import State
from multiseg.federation.centre.handshake import fresh
from multiseg.federation.centre.scores import scored
from multiseg.federation.centre.site_info import site_info
from multiseg.federation.centre.site_roster import enrolled
from multiseg.federation.messages import DESCRIBE, ROUND, Answer, SiteTask
from multiseg.federation.plan import WEIGHTS, AggregateOptions
from multiseg.federation.strategies import STRATEGIES
from multiseg.models.network_parts import parts, split
from multiseg.training.run_folder import ModelOptions

ASH, ELM = FakeSite("ash", change=0.5), FakeSite("elm", change=1.5)
BATCH = ModelOptions(widths=(4, 8), norm="batch")


def state_of(said, *sites: FakeSite) -> State:
    infos = {site.name: site_info(site.answer(SiteTask(DESCRIBE, "fake"))) for site in sites}
    roster = enrolled(infos, said)
    return State(0, roster, fresh(roster.info, 0))


@pytest.mark.parametrize("strategy", ["fedavgm", "fedadam"])
def test_running_statistics_follow_the_plain_mean(strategy: str) -> None:
    """Whatever the optimiser and its rate, in the second round, too, where it has a momentum."""
    rate = AggregateOptions(strategy, weights="equal", learning_rate=0.1)
    said = replace(options("ash", "elm"), model=BATCH, aggregate=rate)
    state = state_of(said, ASH, ELM)
    task = SiteTask(ROUND, "fake", 1, {"info": state.roster.info.to_json()})
    answers = {site.name: site.answer(task) for site in (ASH, ELM)}
    every = parts(state.roster.info)
    first, optimiser, _ = combined(state, answers, every, said)
    second, _, _ = combined(replace(state, network=first, optimiser=optimiser), answers, every, said)
    statistics = {part.name for part in every if part.is_statistic}
    assert {name.rpartition(".")[2] for name in statistics} == {"running_mean", "running_var"}
    for name in statistics:
        begin = float(name.endswith("var"))
        assert torch.allclose(first[name], torch.tensor(begin + 1.0)), name
        assert torch.allclose(second[name], torch.tensor(begin + 2.0)), name


def test_a_running_variance_never_falls_below_zero() -> None:
    """As noise on an update may have it."""
    said = replace(options("ash"), model=BATCH)
    state = state_of(said, ASH)
    noisy = replace(ASH, change=-3.0).answer(SiteTask(ROUND, "fake", 1, {"info": state.roster.info.to_json()}))
    network, _, _ = combined(state, {"ash": noisy}, parts(state.roster.info), said)
    variances = [tensor for name, tensor in network.items() if name.endswith("running_var")]
    assert variances
    assert all(torch.equal(tensor, torch.zeros_like(tensor)) for tensor in variances)
    assert min(float(t.min()) for name, t in network.items() if name.endswith("running_mean")) == -3.0


def test_exposure_of_a_label_is_its_own() -> None:
    said = replace(options("ash"), aggregate=AggregateOptions(weights="exposure"))
    state = state_of(said, ASH)
    answer = Answer(ROUND, "ash", 1, {"exposure": {"": 8, "T1": 5, "label:core": 3}})
    weights = [weight_of("ash", state, group, answer, said) for group in ("", "T1", "label:core", "label:oedema")]
    assert weights == [8, 5, 3, 0]


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_site_changes_no_head_of_a_label_that_it_does_not_annotate(strategy: str, weights: str) -> None:
    """The rows of a label are, for two rounds, what they are without the sites that do not annotate it."""
    rule = AggregateOptions(strategy, weights=weights, learning_rate=0.1)
    said = replace(options("ash", "elm", labels=("tissue:CSF", "lesion")), aggregate=rule)
    tissue, lesion = replace(ASH, labels=(("CSF", "tissue"),)), replace(ELM, num_cases=30)
    state = state_of(said, tissue, lesion)
    every = parts(state.roster.info)
    task = SiteTask(ROUND, "fake", 1, {"info": state.roster.info.to_json()})
    exposure = {"ash": {"": 8, "label:CSF": 8, "label:lesion": 0}, "elm": {"": 8, "label:CSF": 0, "label:lesion": 8}}
    answers = {site.name: site.answer(task) for site in (tissue, lesion)}
    answers = {name: replace(one, body={**one.body, "exposure": exposure[name]}) for name, one in answers.items()}

    def after_two(*names: str) -> dict[str, torch.Tensor]:
        now = state
        for _ in range(2):
            network, optimiser, _ = combined(now, {name: answers[name] for name in names}, every, said)
            now = replace(now, network=network, optimiser=optimiser)
        return split(now.network, every)

    together, before = after_two("ash", "elm"), split(state.network, every)
    for group, alone in (("label:CSF", after_two("ash")), ("label:lesion", after_two("elm"))):
        rows = [part.name for part in every if part.group == group]
        assert [name.partition("[")[0].rpartition(".")[2] for name in rows] == ["weight", "bias"]
        for name in rows:
            assert torch.equal(together[name], alone[name]), name
            assert not torch.equal(together[name], before[name]), name


def desk_of(said, folder) -> Desk:
    return Desk(said, folder, FakeLink(ASH, ELM), lambda event: None, lambda: False)


def test_two_sites_are_compared_with_the_last_five_rounds_alone(tmp_path) -> None:
    said = options("ash", "elm")
    state = state_of(said, ASH, ELM)
    task = SiteTask(ROUND, "fake", 1, {"info": state.roster.info.to_json()})
    outcome = ExchangeOutcome({site.name: site.answer(task) for site in (ASH, ELM)}, {}, {})
    long, short = ({"sites": {"ash": {"norm": norm, "norm_of_statistics": 0.0}}} for norm in (1e9, 1e-3))
    for history, accepted in (((long, *[short] * 4), ["ash", "elm"]), ((long, *[short] * 5), [])):
        found, _ = refuse_outliers(desk_of(said, tmp_path), replace(state, history=history), outcome, 0)
        assert list(found.answers) == accepted
        assert list(found.failed) == [site for site in ("ash", "elm") if site not in accepted]


def test_a_first_model_of_dice_0_is_the_best_and_an_equal_one_does_not_replace_it(tmp_path) -> None:
    said = options("ash", "elm")
    desk, dice = desk_of(said, tmp_path), {"ash": 0.0, "elm": 0.0}
    first, models = scored(desk, replace(state_of(said, ASH, ELM), round=1), dice)
    assert (first.mean.score, first.mean.round, first.worst.round, len(models)) == (0.0, 1, 1, 2)
    second, models = scored(desk, replace(first, round=2), dice)
    assert (second.mean.round, second.worst.round, models) == (1, 1, {})
