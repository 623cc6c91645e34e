"""A training with parts of the caller's own: recorded by name, tried first, resumed to the same bits."""

import importlib
import sys
import tomllib
from dataclasses import replace

import pytest
import tomli_w
import torch
from torch import nn

from multiseg.cli.app import run as command
from multiseg.errors import CheckpointError, UsageError
from multiseg.evaluation.evaluation_result import EvaluateOptions
from multiseg.evaluation.model_evaluation import evaluate
from multiseg.loaders.augment import AugmentOptions
from multiseg.loaders.batches import StreamOptions
from multiseg.loaders.draw import DrawOptions
from multiseg.models.builders import multi_unet
from multiseg.models.saved import load_model, load_weights, read_info
from multiseg.training.fit import FitOptions
from multiseg.training.objectives import OBJECTIVES
from multiseg.training.optimisers import OptimiserOptions
from multiseg.training.run import train
from multiseg.training.run_folder import ModelOptions, TrainOptions, to_toml
from multiseg.training.start import StartOptions

MINE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_modalities: int, num_logits: int, width: int = 3):
        super().__init__()
        self.first, self.head = nn.Conv3d(num_modalities, width, 1), nn.Conv3d(width, num_logits, 1)
        self.dropout = nn.Dropout(0.2)
    def forward(self, images, present):
        return self.head(self.dropout(self.first(images * present[:, :, None, None, None])))

def loss(network, batch, step):
    logits = network(batch.images, batch.present)
    value = nn.functional.binary_cross_entropy_with_logits(logits[:, 0], (batch.target == 1).float())
    return value, {"half": value.detach() / 2, "step": step}

def radam(parameters, learning_rate):
    return torch.optim.RAdam(parameters, learning_rate)

def noise(images, target, generator):
    return images + torch.rand(images.shape, generator=generator), target
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "mine_parts.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("mine_parts")
    del sys.modules["mine_parts"]


def options_for(url, **others):
    plain = TrainOptions(
        store=url,
        device="cpu",
        seed=3,
        databases=("dogwood",),
        model=ModelOptions(widths=(4, 8), dropout=0.2),
        stream=StreamOptions(DrawOptions(patch=(8, 8, 8), seed=3), batch_size=2, workers=0),
        fit=FitOptions(num_steps=4, validate_every=2, validation_cases=0),
    )
    return replace(plain, **others)


def small(url, **others):
    return options_for(url, model=ModelOptions(), **others)


def same(one, other):
    a, b = load_weights(one / "last.safetensors"), load_weights(other / "last.safetensors")
    return a.keys() == b.keys() and all(torch.equal(tensor, b[name]) for name, tensor in a.items())


class StoppedError(Exception):
    pass


def stopped_and_resumed(options, out, **own):
    """Trained to the end, but thrown out after the save of step 2."""

    def fall(event):
        if event.step == 3:
            raise StoppedError

    with pytest.raises(StoppedError):
        train(options, out, on_event=fall, **own)
    return train(options, out, **own)


OPTIMISERS = [
    OptimiserOptions(weight_decay=0.1),
    OptimiserOptions("adamw", weight_decay=0.1),
    OptimiserOptions("sgd", weight_decay=0.1),
    OptimiserOptions("torch.optim:RAdam"),
]


@pytest.fixture(scope="module")
def plain_adam(store_url, tmp_path_factory):
    """A run with the optimiser that is taken by default."""
    folder = tmp_path_factory.mktemp("adam") / "run"
    train(options_for(store_url), folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("optimiser", OPTIMISERS, ids=lambda one: one.name)
def test_every_optimiser_resumes_bit_for_bit_and_is_its_own(store_url, plain_adam, tmp_path, optimiser):
    options = options_for(store_url, optimiser=optimiser)
    train(options, tmp_path / "whole")
    assert stopped_and_resumed(options, tmp_path / "resumed").finished
    assert same(tmp_path / "whole", tmp_path / "resumed")
    assert not same(tmp_path / "whole", plain_adam)


@pytest.mark.slow
def test_own_parts_resume_bit_for_bit(store_url, tmp_path, mine):
    own = {"network": mine.Net, "objective": mine.loss, "optimiser": mine.radam, "augment": mine.noise}
    train(small(store_url), tmp_path / "whole", **own)
    assert stopped_and_resumed(small(store_url), tmp_path / "resumed", **own).step == 4
    assert same(tmp_path / "whole", tmp_path / "resumed")


@pytest.mark.slow
def test_names_are_recorded_and_another_part_is_refused(store_url, tmp_path, mine):
    own = {"network": mine.Net, "objective": mine.loss, "optimiser": mine.radam, "augment": mine.noise}
    train(small(store_url), tmp_path / "run", **own)
    held = tomllib.loads((tmp_path / "run" / "run.toml").read_text())
    assert held["model"]["builder"] == "mine_parts:Net"
    assert held["fit"]["objective"] == "mine_parts:loss"
    assert held["optimiser"]["name"] == "mine_parts:radam"
    assert held["augment"]["own"] == "mine_parts:noise"
    for name in own:
        others = {key: value for key, value in own.items() if key != name}
        options = options_for(store_url) if name == "network" else small(store_url)
        with pytest.raises(UsageError, match=r"holds a run with other settings: .* was 'mine_parts:"):
            train(options, tmp_path / "run", **others)
    # The folder's own run file is the same run, and by names alone.
    assert command(["train", "--run", str(tmp_path / "run" / "run.toml"), "--out", str(tmp_path / "run")]) == 0


@pytest.mark.slow
def test_numbers_reach_the_network_and_the_model_file(store_url, tmp_path, mine):
    train(options_for(store_url, model=ModelOptions("mine_parts:Net", numbers={"width": 5})), tmp_path / "run")
    assert read_info(tmp_path / "run" / "last.safetensors").numbers == {"width": 5}
    assert load_model(tmp_path / "run").network.first.out_channels == 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "said"),
    [
        (ModelOptions("mine_parts:Net", widths=(4, 8)), "sets widths, which mine_parts:Net does not take"),
        (ModelOptions("mine_parts:Net", numbers={"depth": 3}), "mine_parts:Net failed: TypeError.*depth"),
        (ModelOptions("mine_parts:Net", numbers={"width": {1}}), "a model file cannot hold model.numbers"),
        (ModelOptions("multi_unet", numbers={"width": 5}), "sets width, but it is for networks of your own"),
        (ModelOptions("mine_parts:loss"), "is not a network, and is not called"),
        (ModelOptions("nets:Net"), r"no module 'nets'.*PYTHONPATH=\. multiseg"),
        (ModelOptions("unet"), "no network 'unet': give one of multi_unet"),
    ],
)
def test_numbers_and_names_that_do_not_fit(store_url, tmp_path, mine, model, said):
    with pytest.raises(UsageError, match=said):
        train(options_for(store_url, model=model), tmp_path / "run")


@pytest.mark.slow
def test_a_network_without_a_path_trains_and_warns_that_it_has_to_be_passed(store_url, tmp_path, mine):
    make = lambda m, n: mine.Net(m, n, 4)  # noqa: E731
    with pytest.warns(UserWarning, match=r"only load_model\(path, network=...\) can open the trained model"):
        train(small(store_url), tmp_path / "run", network=make)
    with pytest.raises(CheckpointError, match="pass what is defined in a script, a notebook or a function from Python"):
        load_model(tmp_path / "run")
    model = load_model(tmp_path / "run", network=make)
    found = evaluate(model, store_url, EvaluateOptions(databases=("dogwood",), subsets="full"))
    assert found.cases["case"].tolist() == [case for case in found.cases["case"] if case.startswith("D")]
    assert len(found.cases) == 1


@pytest.mark.slow
def test_a_function_without_an_annotation_warns_too(store_url, tmp_path, mine):
    mine.bare = lambda m, n: mine.Net(m, n)
    mine.bare.__module__, mine.bare.__qualname__ = "mine_parts", "bare"
    with pytest.warns(UserWarning, match="annotated to return one"):
        train(small(store_url), tmp_path / "run", network=mine.bare)


class Wrong(nn.Module):
    """A network whose answer does not fit in some way."""

    how = ""

    def __init__(self, num_modalities, num_logits):
        super().__init__()
        self.layer = nn.Conv3d(num_modalities, num_logits, 1)

    def forward(self, images, present):
        logits = self.layer(images)
        return {
            "label": logits.argmax(1),
            "half": logits[..., ::2],
            "list": [logits],
            "deep": [logits] if self.training else logits,
            "whole": logits.long(),
            "error": logits,
        }[self.how] + (torch.zeros(7) if self.how == "error" else 0)


class Frozen(Wrong):
    how = "label"

    def __init__(self, num_modalities, num_logits):
        super().__init__(num_modalities, num_logits)
        self.requires_grad_(False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("label", r"returned \(2, 8, 8, 8\) in eval mode.*it must return one tensor of logits \(2, 1, 8, 8, 8\)"),
        ("half", r"returned \(2, 1, 8, 8, 4\) in eval mode"),
        ("error", r"failed: RuntimeError: .*test_own_parts.py, line"),
        ("whole", "must return one tensor of logits"),
    ],
)
def test_a_network_is_tried_before_anything_is_trained(store_url, tmp_path, monkeypatch, how, said):
    monkeypatch.setattr(Wrong, "how", how)
    with pytest.raises(UsageError, match=said):
        train(small(store_url), tmp_path / "run", network=Wrong)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_network_that_learns_nothing_or_is_made_already(store_url, tmp_path):
    with pytest.raises(UsageError, match="has no parameter with requires_grad"):
        train(small(store_url), tmp_path / "run", network=Frozen)
    with pytest.raises(UsageError, match="is an instance of Wrong: pass its class"):
        train(small(store_url), tmp_path / "run", network=Wrong(2, 1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "said"),
    [
        (lambda n, b: 1, r"does not take \(network, batch, step\)"),
        (lambda n, b, s: n(b.images, b.present).mean(), r"returned Tensor: return \(loss, dict of scalars\)"),
        (lambda n, b, s: (n(b.images, b.present), {}), r"the loss of .* is \(2, 1, 8, 8, 8\)"),
        (lambda n, b, s: (n(b.images, b.present).mean().detach(), {}), "requires_grad=False: return a tensor"),
        (lambda n, b, s: (0.5, {}), "the loss of .* is 0.5"),
        (
            lambda n, b, s: (n(b.images, b.present).mean(), {"a": b.images}),
            r"the scalar 'a' of .* is a tensor \(2, 2, 8, 8, 8\): return one number",
        ),
        (lambda n, b, s: (n(b.images, b.present).mean(), {"loss": 1}), 'none called "loss"'),
        (
            lambda n, b, s: (n(b.image, b.present).mean(), {}),
            "failed: AttributeError: .*'image'.*test_own_parts.py, line",
        ),
        (lambda n, b, s: (n(b.images, b.present).mean(), {f"at{s}": 1}), r"the scalars \['at1'\] after \['at0'\]"),
        ("dice+", "fit.objective is 'dice\\+': give one of dice\\+bce"),
        ("mine_nowhere:loss", r"PYTHONPATH=\. multiseg"),
    ],
)
def test_an_objective_that_does_not_fit(store_url, tmp_path, objective, said):
    with pytest.raises(UsageError, match=said):
        train(options_for(store_url), tmp_path / "run", objective=objective)


@pytest.mark.slow
def test_an_augmentation_is_tried(store_url, tmp_path):
    with pytest.raises(UsageError, match=r"the augmentation .* returned images of .*\(2, 4, 8, 8\)"):
        train(options_for(store_url), tmp_path / "run", augment=lambda i, t, g: (i[:, ::2], t))


def default_objective(network, batch, step):
    return OBJECTIVES["dice+bce"](network, batch, step)


@pytest.mark.slow
def test_trying_moves_no_random_number(store_url, tmp_path):
    train(options_for(store_url), tmp_path / "house")
    train(options_for(store_url), tmp_path / "named", objective=default_objective)
    assert same(tmp_path / "house", tmp_path / "named")


@pytest.mark.slow
def test_a_house_network_that_is_passed_is_itself(store_url, tmp_path):
    train(options_for(store_url), tmp_path / "run", network=multi_unet)
    assert read_info(tmp_path / "run" / "last.safetensors").builder == "multi_unet"


@pytest.mark.slow
def test_an_own_network_fine_tunes_but_does_not_grow(store_url, tmp_path, mine):
    train(small(store_url), tmp_path / "first", network=mine.Net)
    start = StartOptions(str(tmp_path / "first"))
    again = small(store_url, start=start)
    train(again, tmp_path / "second", network=mine.Net)
    info = read_info(tmp_path / "second" / "last.safetensors")
    assert (info.builder, len(info.ancestry)) == ("mine_parts:Net", 1)
    with pytest.raises(UsageError, match=r"network is test_own_parts:Wrong, but .* keeps its network mine_parts:Net"):
        train(again, tmp_path / "third", network=Wrong)
    growing = replace(again, databases=("alder", "dogwood"), start=replace(start, grow=True))
    with pytest.raises(UsageError, match="mine_parts:Net is not a network of multiseg,"):
        train(growing, tmp_path / "fourth")


@pytest.mark.slow
def test_a_run_from_before_these_settings_is_resumed(store_url, tmp_path):
    train(options_for(store_url), tmp_path / "run")
    file = tmp_path / "run" / "run.toml"
    held = tomllib.loads(file.read_text())
    for table, name in (("model", "numbers"), ("augment", "own")):
        del held[table][name]
    del held["optimiser"], held["track"]
    file.write_text(tomli_w.dumps(held))
    assert train(options_for(store_url), tmp_path / "run").finished
    with pytest.raises(UsageError, match=r"optimiser.name was 'adam', now 'sgd'"):
        train(options_for(store_url, optimiser=OptimiserOptions("sgd")), tmp_path / "run")


def test_a_run_file_that_names_adamw_gets_its_weight_decay(tmp_path, capsys):
    file = tmp_path / "run.toml"
    file.write_text('[optimiser]\nname = "adamw"\n')
    assert command(["train", "x.zarr", "--run", str(file), "--print-config"]) == 0
    assert tomllib.loads(capsys.readouterr().out)["optimiser"] == {
        "name": "adamw",
        "weight_decay": 0.01,
        "momentum": 0.99,
    }
    file.write_text('[optimiser]\nname = "adamw"\nweight_decay = 0.05\n')
    assert command(["train", "x.zarr", "--run", str(file), "--print-config"]) == 0
    assert tomllib.loads(capsys.readouterr().out)["optimiser"]["weight_decay"] == 0.05
    file.write_text("[optimiser]\nbeta = 1\n")
    assert command(["train", "x.zarr", "--run", str(file), "--print-config"]) == 2
    assert "unknown settings ['beta'] in [optimiser]" in capsys.readouterr().err


@pytest.mark.slow
def test_a_preset_keeps_the_own_augmentation(tmp_path, capsys):
    file = tmp_path / "run.toml"
    file.write_text('[augment]\npreset = "standard"\nown = "mine:turn"\n')
    assert command(["train", "x.zarr", "--run", str(file), "--print-config"]) == 0
    said = tomllib.loads(capsys.readouterr().out)["augment"]
    assert (said["own"], said["flip_probability"]) == ("mine:turn", 0.5)
    assert to_toml(TrainOptions("x", augment=AugmentOptions(own="a:b"))).count('own = "a:b"') == 1
