import dataclasses
import importlib
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from multiseg.errors import CheckpointError
from multiseg.labels import LabelSpace, SpaceLabel
from multiseg.modalities import ModalityAxis
from multiseg.models.builders import multi_unet
from multiseg.models.saved import BEST, LAST, Model, ModelInfo, load_model, model_path, read_info, save_model

INFO = ModelInfo(
    builder="multi_unet",
    numbers={"widths": [4, 8], "dropout": 0.1},
    axis=ModalityAxis(("FLAIR", "T1", "SWI")),
    space=LabelSpace((SpaceLabel("lesion", "lesion"), SpaceLabel("CSF", "tissue"))),
    spacing_mm=(1.0, 1.0, 3.0),
    patch=(8, 8, 4),
    trained_on={"FLAIR": ("ms", "tbi"), "T1": ("ms",), "SWI": ()},
    databases={"ms": {"pathology": "multiple sclerosis", "num_cases": 7, "recipe": {"reference": "FLAIR"}}},
    step=12,
    metrics={"score": 0.5, "step": 10.0},
)


@pytest.fixture
def network():
    torch.manual_seed(3)
    return multi_unet(3, 3, widths=(4, 8), dropout=0.1)


@pytest.fixture
def file(tmp_path, network):
    save_model(tmp_path / BEST, network, INFO)
    return tmp_path / BEST


def test_a_saved_model_comes_back_whole(file, network):
    model = load_model(file)
    images, present = torch.randn(2, 3, 8, 8, 4), torch.tensor([[True, True, False], [True, True, True]])
    assert model.info == INFO
    assert not model.training
    assert torch.equal(model(images, present), network.eval()(images, present))


def test_the_file_says_what_it_is(file):
    with safe_open(file, framework="np") as tensors:
        said = json.loads(tensors.metadata()["multiseg"])
    assert said["axis"] == ["FLAIR", "T1", "SWI"]
    assert said["space"] == [{"name": "lesion", "kind": "lesion"}, {"name": "CSF", "kind": "tissue"}]
    assert said["trained_on"]["FLAIR"] == ["ms", "tbi"]
    assert said["spacing_mm"] == [1.0, 1.0, 3.0]
    assert said["databases"]["ms"]["recipe"] == {"reference": "FLAIR"}
    assert set(said["versions"]) == {"multiseg", "torch"}


def test_undefined_metrics_leave_the_metadata_valid_json(tmp_path, network):
    save_model(tmp_path / LAST, network, INFO.at(5, {"score": float("nan"), "step": 5.0}))
    with safe_open(tmp_path / LAST, framework="np") as tensors:
        text = tensors.metadata()["multiseg"]
    assert "NaN" not in text
    assert read_info(tmp_path / LAST).metrics == {"step": 5.0}


def test_no_pickle_is_in_the_file(file):
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])  # the format: a length, JSON, raw numbers
    assert len(data) == 8 + length + max(t["data_offsets"][1] for n, t in header.items() if n != "__metadata__")


def test_only_channels_that_were_trained_are_usable():
    assert INFO.usable(("T1", "SWI", "PD", "FLAIR")) == ("T1", "FLAIR")


def test_a_folder_stands_for_its_best_else_its_last_model(tmp_path, network):
    with pytest.raises(CheckpointError, match=r"has no model\.safetensors"):
        model_path(tmp_path)
    save_model(tmp_path / LAST, network, INFO)
    assert model_path(tmp_path) == tmp_path / LAST
    save_model(tmp_path / BEST, network, INFO)
    assert model_path(tmp_path) == tmp_path / BEST
    assert load_model(tmp_path).info == INFO


@pytest.mark.parametrize("keep", [0, 7, 100, 0.5, -1])
def test_a_truncated_file(file, keep):
    data = file.read_bytes()
    file.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        load_model(file)


def test_files_of_others(tmp_path, network):
    with pytest.raises(CheckpointError, match="no model at"):
        load_model(tmp_path / "none.safetensors")
    (tmp_path / "pickled.pt").write_bytes(b"not a model")
    torch.save(network.state_dict(), tmp_path / "pickled.pt")
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        load_model(tmp_path / "pickled.pt")
    save_file(network.state_dict(), tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match="not written by multiseg"):
        load_model(tmp_path / "foreign.safetensors")


def rewritten(path, network, **changes):
    said = INFO.to_json() | changes
    save_file(network.state_dict(), path, metadata={"multiseg": json.dumps(said)})
    return path


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": 99}, "model format 99; this multiseg reads 1"),
        ({"axis": ["T1", "T1"]}, "the description of the model in"),
        ({"patch": None}, "the description of the model in"),
        ({"colour": "red"}, "the description of the model in.*colour"),
        ({"numbers": {"widths": [4, 16], "dropout": 0.1}}, "do not fit the network it names"),
        ({"numbers": {"depth": 4}}, "do not fit the network it names"),
        ({"builder": "unetr"}, "no network 'unetr'"),
    ],
)
def test_a_description_that_does_not_fit(tmp_path, network, changes, said):
    with pytest.raises(CheckpointError, match=said):
        load_model(rewritten(tmp_path / "wrong.safetensors", network, **changes))


@pytest.mark.parametrize("text", ["no JSON", "[]", "{}"])
def test_metadata_that_is_not_ours(tmp_path, network, text):
    save_file(network.state_dict(), tmp_path / "wrong.safetensors", metadata={"multiseg": text})
    with pytest.raises(CheckpointError, match="the description of the model in"):
        read_info(tmp_path / "wrong.safetensors")


def test_weights_of_another_network_are_refused(tmp_path):
    save_model(tmp_path / BEST, multi_unet(3, 1, widths=(4, 8)), INFO)
    with pytest.raises(CheckpointError, match=r"(?s)do not fit the network it names.*decoder\.0\.reduce"):
        load_model(tmp_path)


def test_a_file_is_replaced_whole_or_not_at_all(file, network, monkeypatch):
    before = file.read_bytes()

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(OSError, match="No space left"):
        save_model(file, network, INFO.at(99, {}))
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == [BEST]


def test_info_says_the_step_it_is_at():
    later = INFO.at(40, {"score": 0.75, "step": 40.0})
    assert later == dataclasses.replace(INFO, step=40, metrics={"score": 0.75, "step": 40.0})


def test_a_model_is_called_as_its_network(network):
    images, present = torch.from_numpy(np.ones((1, 3, 8, 8, 4), np.float32)), torch.ones(1, 3, dtype=torch.bool)
    model = Model(network, INFO).eval()
    assert torch.equal(model(images, present), network(images, present))


MINE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_modalities, num_logits, width=2):
        super().__init__()
        self.first, self.head = nn.Conv3d(num_modalities, width, 1), nn.Conv3d(width, num_logits, 1)
    def forward(self, images, present):
        return self.head(self.first(images))

def net(num_modalities: int, num_logits: int, width: int = 2) -> "nn.Module":
    return Net(num_modalities, num_logits, width)

def unannotated(num_modalities, num_logits):
    open("ran", "w")

def annotated_otherwise(num_modalities, num_logits) -> str:
    open("ran", "w")

class NoNetwork:
    def __init__(self, num_modalities, num_logits):
        open("ran", "w")

def returns_text(num_modalities, num_logits) -> nn.Module:
    return "a network"

something = Net(3, 1)
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module of somebody's own, which makes a file `ran` here where something of it is called that must not be."""
    (tmp_path / "mine_nets.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield importlib.import_module("mine_nets")
    del sys.modules["mine_nets"]


@pytest.mark.parametrize("name", ["Net", "net"])
def test_a_model_file_may_name_a_network_of_ones_own(tmp_path, mine, name):
    network = mine.Net(3, INFO.space.num_logits, width=4)
    info = replace(INFO, builder=f"mine_nets:{name}", numbers={"width": 4})
    save_model(tmp_path / BEST, network, info)
    loaded = load_model(tmp_path)
    images, present = torch.randn(1, 3, 4, 4, 4), torch.ones(1, 3, dtype=torch.bool)
    assert torch.equal(loaded(images, present), network(images, present))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("os:system", "in Python's standard library"),
        ("subprocess:run", "in Python's standard library"),
        ("mine_nets:unannotated", "is not a network, and is not called"),
        ("mine_nets:annotated_otherwise", "is not a network, and is not called"),
        ("mine_nets:NoNetwork", "is not a network, and is not called"),
        ("mine_nets:something", "is not a network, and is not called"),
        ("mine_nets:torch.load", "is not a network, and is not called"),
        ("mine_nets:torch.nn.functional.relu", "is not a network, and is not called"),
        ("numpy:load", "is not a network, and is not called"),
        ("mine_nets:returns_text", "returned a str"),
        ("torch.nn:Module", "failed: TypeError"),
        ("no_such_module:Net", r"PYTHONPATH=\. multiseg .*pass it from Python: load_model\(path, network=\.\.\.\)"),
    ],
)
def test_a_model_file_runs_nothing_but_networks(tmp_path, mine, name, said):
    save_model(tmp_path / BEST, mine.Net(3, INFO.space.num_logits), replace(INFO, builder=name, numbers={}))
    with pytest.raises(CheckpointError, match=f"cannot make the network that .* names: .*{said}"):
        load_model(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_network_without_a_path_is_opened_by_passing_it(tmp_path, mine):
    network = mine.Net(3, INFO.space.num_logits, width=5)
    save_model(tmp_path / BEST, network, replace(INFO, builder="__main__:<lambda>", numbers={"width": 5}))
    with pytest.raises(CheckpointError, match="pass what is defined in a script, a notebook or a function from Python"):
        load_model(tmp_path)
    loaded = load_model(tmp_path, network=lambda m, n, width: mine.Net(m, n, width))
    assert torch.equal(loaded.network.first.weight, network.first.weight)
    with pytest.raises(CheckpointError, match="do not fit the network"):
        load_model(tmp_path, network=lambda m, n, width: mine.Net(m, n, 6))
