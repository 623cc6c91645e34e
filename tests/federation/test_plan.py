"""Settings of a federated run that cannot be meant are refused, by name."""

from dataclasses import replace

import pytest

from multiseg.config import checked, training_settings
from multiseg.errors import UsageError
from multiseg.federation.plan import FederationOptions, check

PLAIN = FederationOptions("e1", ("alder", "birch", "cedar"))


def of(**tables):
    return checked(
        training_settings({"experiment": "e1", "sites": ["alder", "birch", "cedar"], **tables}), FederationOptions
    )


def test_the_defaults_can_be_meant() -> None:
    check(PLAIN)
    check(of(privacy={"masked": True, "clip": 1.0, "noise": 0.5}))


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"experiment": "../e1"}, "'../e1' is not a valid name"),
        ({"sites": []}, "needs sites"),
        ({"held_out": ["alder"]}, "each listed once, but got alder, birch, cedar, alder"),
        ({"aggregate": {"strategy": "fedsgd"}}, "'fedsgd': choose from fedavg"),
        ({"aggregate": {"weights": "size"}}, "aggregate.weights is 'size'"),
        ({"aggregate": {"strategy": "fedadam"}}, "fedadam moves every weight"),
        ({"aggregate": {"trim": 0.5}}, "aggregate.trim is 0.5"),
        ({"aggregate": {"max_update_norm": -1.0}}, "aggregate.max_update_norm is -1.0: give a number 0 or more"),
        ({"aggregate": {"learning_rate": 0.0}}, "aggregate.learning_rate is 0.0: give a number above 0"),
        ({"aggregate": {"strategy": "fedadam", "learning_rate": 0.0}}, "aggregate.learning_rate is 0.0"),
        ({"aggregate": {"momentum": 1.0}}, "aggregate.momentum is 1.0: give a number from 0 to below 1"),
        ({"aggregate": {"beta1": -0.1}}, "aggregate.beta1 is -0.1"),
        ({"aggregate": {"beta2": 1.0}}, "aggregate.beta2 is 1.0"),
        ({"aggregate": {"tau": 0.0}}, "aggregate.tau is 0.0: give a number above 0"),
        ({"local": {"proximal": -1.0}}, "local.proximal is -1.0"),
        (
            {"model": {"builder": "mine:Net"}},
            "model.builder is 'mine:Net': a federation runs only multiseg's own code",
        ),
        ({"fit": {"objective": "mine:loss"}}, "fit.objective is 'mine:loss': a federation runs"),
        ({"augment": {"own": "mine:turn"}}, "augment.own is 'mine:turn': a federation runs"),
        ({"model": {"numbers": {"width": 3}}}, "sets width, but it is for networks of your own"),
        ({"local": {"optimiser": "lion"}}, "local.optimiser is 'lion'"),
        ({"local": {"steps": 0}}, "0 steps"),
        ({"schedule": {"quorum": 4}}, "quorum is 4, but there are 3 sites"),
        ({"schedule": {"deadline_minutes": 0}}, "deadline of 0"),
        ({"fit": {"ema": 0.9}}, "fit.ema"),
        ({"fit": {"class_weights": "inverse-root"}}, "fit.class_weights"),
        ({"model": {"builder": "progressive"}}, "progressive network"),
        ({"privacy": {"noise": 1.0}}, "multiples of privacy.clip"),
        ({"privacy": {"clip": -1.0}}, "privacy.clip is -1.0"),
        ({"privacy": {"masked": True}, "sites": ["alder", "birch"]}, "needs 3 sites"),
        ({"privacy": {"masked": True}, "schedule": {"quorum": 2}}, "all of them in every round"),
        ({"privacy": {"masked": True}, "aggregate": {"strategy": "median"}}, "cannot trim"),
        ({"privacy": {"masked": True}, "schedule": {"cross_site": True}}, "leave schedule.cross_site = false"),
        ({"privacy": {"masked": True}, "aggregate": {"unit": "tensors"}}, "by part"),
        ({"privacy": {"masked": True}, "aggregate": {"weights": "exposure"}}, "fixed before the round"),
    ],
)
def test_what_cannot_be_meant_is_named(tables, said) -> None:
    with pytest.raises(UsageError, match=said):
        check(of(**tables))


def test_a_key_that_is_unknown_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown settings \\['rounds'\\]"):
        of(local={"rounds": 3})


def test_options_are_values() -> None:
    assert replace(PLAIN, seed=0) == PLAIN
