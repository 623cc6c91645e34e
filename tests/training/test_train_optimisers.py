import pytest
import torch
from torch import nn

from multiseg.errors import UsageError
from multiseg.models.builders import NETWORKS, build
from multiseg.training.optimisers import OptimiserOptions, check_optimiser, decaying, make_optimiser


def one_step(options, weight=2.0, gradient=0.5, rate=0.1, steps=1):
    """A weight after steps with a constant gradient."""
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, weight)
    optimiser = make_optimiser(network, options, rate)
    for _ in range(steps):
        network.weight.grad = torch.full_like(network.weight, gradient)
        optimiser.step()
    return network.weight.item()


def test_adam_moves_by_the_learning_rate_and_takes_decay_into_the_gradient():
    assert one_step(OptimiserOptions()) == pytest.approx(2 - 0.1)
    # The decayed gradient 0.5 - 0.5 x 2 points the other way.
    assert one_step(OptimiserOptions(weight_decay=0.5), gradient=-0.5) == pytest.approx(2 - 0.1)


def test_adamw_takes_decay_beside_the_step():
    assert one_step(OptimiserOptions("adamw", weight_decay=0.5)) == pytest.approx(2 - 0.1 * 0.5 * 2 - 0.1)


def test_sgd_has_nesterovs_momentum():
    # v1 = g, step g + m v1; v2 = m v1 + g, step g + m v2; with m = 0.9 and g = 0.5: 0.95 and 1.355.
    assert one_step(OptimiserOptions("sgd", momentum=0.9)) == pytest.approx(2 - 0.1 * 0.95)
    assert one_step(OptimiserOptions("sgd", momentum=0.9), steps=2) == pytest.approx(2 - 0.1 * (0.95 + 1.355))
    assert one_step(OptimiserOptions("sgd", momentum=0.0)) == pytest.approx(2 - 0.1 * 0.5)
    assert one_step(OptimiserOptions("sgd", weight_decay=0.25, momentum=0.0)) == pytest.approx(2 - 0.1 * (0.5 + 0.5))


@pytest.mark.parametrize("name", NETWORKS)
def test_biases_and_norms_do_not_decay_and_convolutions_do(name):
    network = build(name, 3, 2, widths=(4, 8, 8), dropout=0.0, norm="instance_affine")
    decays = decaying(network)
    convolutions = {f"{key}.weight" for key, part in network.named_modules() if isinstance(part, nn.Conv3d)}
    assert convolutions <= decays
    assert not any(key.endswith("bias") for key in decays)
    norms = [key for key, part in network.named_modules() if isinstance(part, nn.InstanceNorm3d)]
    assert norms
    assert not any(key.rpartition(".")[0] in norms for key in decays)


def test_a_norm_of_many_axes_does_not_decay():
    network = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm((2, 3)))
    assert decaying(network) == {"0.weight"}


def test_every_parameter_is_in_one_group():
    network = build("multi_unet", 3, 1, widths=(4, 8), dropout=0.0, norm="batch")
    two = make_optimiser(network, OptimiserOptions("adamw", weight_decay=0.01), 0.1).param_groups
    assert [group["weight_decay"] for group in two] == [0.01, 0.0]
    held = [id(p) for group in two for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in network.parameters())
    assert len(make_optimiser(network, OptimiserOptions(), 0.1).param_groups) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (OptimiserOptions("adagrad"), "optimiser.name is 'adagrad': give one of adam, adamw, sgd, or your own"),
        (OptimiserOptions(weight_decay=-0.1), "weight_decay is -0.1"),
        (OptimiserOptions(weight_decay=float("nan")), "weight_decay is nan"),
        (OptimiserOptions("sgd", momentum=1.0), "momentum 1.0"),
        (OptimiserOptions("adam", momentum=0.9), "momentum is 0.9, but adam has none"),
        (OptimiserOptions("adamw"), "adamw without weight decay is adam: set optimiser.weight_decay, such as 0.01"),
        (
            OptimiserOptions("torch.optim:RAdam", weight_decay=0.1),
            "weight_decay is set, but torch.optim:RAdam does not",
        ),
        (OptimiserOptions("torch.optim:NoSuch"), "torch.optim has no NoSuch"),
        (OptimiserOptions("torch:manual_seed"), r"does not take \(parameters, learning_rate\)"),
    ],
)
def test_invalid_settings_are_refused_by_name(options, said):
    with pytest.raises(UsageError, match=said):
        check_optimiser(options)


def test_a_class_of_torch_is_an_optimiser_by_name():
    network = nn.Linear(2, 1)
    made = make_optimiser(network, OptimiserOptions("torch.optim:RAdam"), 0.03)
    assert isinstance(made, torch.optim.RAdam)
    assert [group["lr"] for group in made.param_groups] == [0.03]


@pytest.mark.parametrize(
    ("own", "said"),
    [
        (lambda some, rate: "adam", "returned a str, not a torch.optim.Optimizer"),
        (
            lambda some, rate: torch.optim.SGD(some[:1], rate),
            "has 1 parameters, but the network has 2; it leaves out bias",
        ),
        (lambda some, rate: torch.optim.SGD([nn.Parameter(torch.ones(1)), some[0]], rate), "it leaves out bias"),
        (lambda some, rate: torch.optim.SGD(some, 0.5), r"has the learning rates \[0.5\]"),
        (lambda some, rate: torch.optim.LBFGS(some, rate), "LBFGS.* evaluates the loss several times per step"),
        (lambda some, rate: 1 / 0, "failed: ZeroDivisionError"),
    ],
)
def test_an_optimiser_that_the_loop_cannot_use_is_refused(own, said):
    with pytest.raises(UsageError, match=said):
        make_optimiser(nn.Linear(2, 1), OptimiserOptions("mine:own"), 0.1, own)
