import pytest
import torch
from safetensors.torch import load, save

from multiseg.federation.centre.server_optimisers import stepped
from multiseg.federation.plan import AggregateOptions

MEAN = {"trunk": torch.tensor([1.0, -2.0]), "stem[T1]": torch.tensor([[0.5]])}
ADAM = AggregateOptions("fedadam", learning_rate=0.1, beta1=0.5, beta2=0.75, tau=0.5)


@pytest.mark.parametrize("strategy", ["fedavg", "trimmed_mean", "median"])
def test_a_mean_is_followed_as_far_as_the_learning_rate_says(strategy):
    change, state = stepped(MEAN, {}, AggregateOptions(strategy, learning_rate=0.5))
    assert change["trunk"].tolist() == [0.5, -1.0]
    assert change["stem[T1]"].tolist() == [[0.25]]
    assert state == {}


def test_momentum_by_hand():
    options = AggregateOptions("fedavgm", learning_rate=2.0, momentum=0.5)
    first, state = stepped(MEAN, {}, options)
    second, state = stepped({"trunk": torch.tensor([3.0, 0.0])}, state, options)
    assert first["trunk"].tolist() == [2.0, -4.0]
    assert second["trunk"].tolist() == [2 * (0.5 * 1 + 3), 2 * (0.5 * -2)]
    assert state["first:trunk"].tolist() == [3.5, -1.0]


def test_adam_by_hand():
    change, state = stepped({"w": torch.tensor([1.0])}, {}, ADAM)
    # m = 0.5 * 0 + 0.5 * 1; v = 0.75 * tau^2 + 0.25 * 1 = 0.4375
    assert change["w"].item() == pytest.approx(0.1 * 0.5 / (0.4375**0.5 + 0.5))
    change, state = stepped({"w": torch.tensor([-2.0])}, state, ADAM)
    # m = 0.5 * 0.5 - 0.5 * 2 = -0.75; v = 0.75 * 0.4375 + 0.25 * 4 = 1.328125
    assert change["w"].item() == pytest.approx(0.1 * -0.75 / (1.328125**0.5 + 0.5))
    assert state["second:w"].item() == pytest.approx(1.328125)


@pytest.mark.parametrize("strategy", ["fedavgm", "fedadam"])
def test_a_part_without_an_update_rests(strategy):
    options = AggregateOptions(strategy)
    _, state = stepped(MEAN, {}, options)
    change, after = stepped({"trunk": MEAN["trunk"]}, state, options)
    assert set(change) == {"trunk"}
    assert torch.equal(after["first:stem[T1]"], state["first:stem[T1]"])
    assert not torch.equal(after["first:trunk"], state["first:trunk"])


@pytest.mark.parametrize("strategy", ["fedavgm", "fedadam"])
def test_what_was_saved_goes_on_the_same(strategy):
    options = AggregateOptions(strategy, learning_rate=0.3)
    _, state = stepped(MEAN, {}, options)
    kept = {name: tensor.clone() for name, tensor in state.items()}
    through_a_file = load(save(state))
    change, _ = stepped(MEAN, state, options)
    again, _ = stepped(MEAN, through_a_file, options)
    assert all(torch.equal(change[name], again[name]) for name in MEAN)
    assert state.keys() == kept.keys()
    assert all(torch.equal(state[name], kept[name]) for name in kept)  # not changed in place
    # A part that is new begins like one in the first round.
    late, _ = stepped({"new": MEAN["trunk"]}, state, options)
    first, _ = stepped(MEAN, {}, options)
    assert torch.equal(late["new"], first["trunk"])


@pytest.mark.parametrize("strategy", ["fedavg", "fedavgm", "fedadam"])
def test_what_is_an_average_follows_the_plain_mean(strategy):
    options = AggregateOptions(strategy, learning_rate=0.05)
    change, state = stepped(MEAN, {}, options, statistics=("stem[T1]",))
    assert torch.equal(change["stem[T1]"], MEAN["stem[T1]"])
    assert not torch.equal(change["trunk"], MEAN["trunk"])
    assert not [name for name in state if name.endswith("stem[T1]")]
