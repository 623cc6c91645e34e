import pickle

import pytest
import torch

from multiseg.errors import CheckpointError
from multiseg.models.builders import multi_unet
from multiseg.training.average import average_of
from multiseg.training.checkpoint import TrainState, load_state, save_state


def fresh(widths=(4, 8), seed=0, scaler=False):
    torch.manual_seed(seed)
    network = multi_unet(2, 1, widths=widths)
    scale = torch.amp.GradScaler("cpu", init_scale=64.0, enabled=scaler)
    return TrainState(network, torch.optim.Adam(network.parameters(), lr=0.01), scale)


@pytest.fixture
def saved(tmp_path):
    state = fresh()
    state.network(torch.randn(1, 2, 8, 8, 8), torch.ones(1, 2, dtype=torch.bool)).sum().backward()
    state.optimiser.step()
    state.step, state.best, state.bad_steps = 7, 0.25, 2
    state.history.append({"step": 5.0, "score": 0.25})
    save_state(tmp_path / "resume.pt", state)
    return tmp_path / "resume.pt", state


def test_everything_comes_back(saved):
    path, state = saved
    drawn = torch.rand(3)  # the first numbers after the save
    other = fresh(seed=1)
    load_state(path, other)
    assert torch.equal(torch.rand(3), drawn)
    assert (other.step, other.best, other.bad_steps, other.history) == (7, 0.25, 2, [{"step": 5.0, "score": 0.25}])
    for a, b in zip(state.network.parameters(), other.network.parameters(), strict=True):
        assert torch.equal(a, b)
        for key, value in state.optimiser.state[a].items():
            assert torch.equal(value, other.optimiser.state[b][key]), key


@pytest.mark.parametrize(("before", "after"), [(False, True), (True, False), (True, True)])
def test_a_run_may_go_on_with_another_precision(tmp_path, before, after):
    save_state(tmp_path / "resume.pt", fresh(scaler=before))
    other = fresh(scaler=after)
    other.scaler = torch.amp.GradScaler("cpu", init_scale=2.0, enabled=after)
    load_state(tmp_path / "resume.pt", other)
    assert other.scaler.get_scale() == {(False, True): 2.0, (True, False): 1.0, (True, True): 64.0}[before, after]


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_a_damaged_file(saved, keep):
    path, _ = saved
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    with pytest.raises(CheckpointError, match=r"cannot resume from .*resume\.pt"):
        load_state(path, fresh())


def test_a_file_of_another_network(saved):
    with pytest.raises(CheckpointError, match=r"(?s)cannot resume from.*size mismatch"):
        load_state(saved[0], fresh(widths=(4, 16)))


@pytest.mark.parametrize("content", [{"weights": 1}, [1, 2], 5, {"format": 1}])
def test_a_file_of_others(tmp_path, content):
    torch.save(content, tmp_path / "resume.pt")
    with pytest.raises(CheckpointError, match="cannot resume from"):
        load_state(tmp_path / "resume.pt", fresh())


def test_another_format(saved):
    path, _ = saved
    torch.save(torch.load(path, weights_only=True) | {"format": 2}, path)
    with pytest.raises(CheckpointError, match="resume format 2; this multiseg reads 1"):
        load_state(path, fresh())


class Evil:
    def __reduce__(self):
        return print, ("run by unpickling",)


def test_nothing_in_a_file_is_run(tmp_path, capsys):
    (tmp_path / "resume.pt").write_bytes(pickle.dumps(Evil(), protocol=2))
    with pytest.raises(CheckpointError, match="cannot resume from"):
        load_state(tmp_path / "resume.pt", fresh())
    torch.save({"format": Evil()}, tmp_path / "resume.pt")
    with pytest.raises(CheckpointError, match="cannot resume from"):
        load_state(tmp_path / "resume.pt", fresh())
    assert capsys.readouterr().out == ""


def test_the_average_comes_back_too(tmp_path):
    state = fresh()
    state.average = average_of(fresh(seed=3).network)
    save_state(tmp_path / "resume.pt", state)
    other = fresh(seed=1)
    load_state(tmp_path / "resume.pt", other)
    for name, tensor in state.average.state_dict().items():
        assert torch.equal(tensor, other.average.state_dict()[name])
        assert torch.equal(state.network.state_dict()[name], other.network.state_dict()[name])
    assert other.model is other.average
    assert fresh().model is not None
    assert not any(parameter.requires_grad for parameter in other.average.parameters())


def test_a_file_from_before_there_were_averages_and_peers(tmp_path):
    state = fresh()
    save_state(tmp_path / "resume.pt", state)
    content = torch.load(tmp_path / "resume.pt", weights_only=True)
    del content["average"], content["others"]
    torch.save(content, tmp_path / "resume.pt")
    other = fresh(seed=1)
    load_state(tmp_path / "resume.pt", other)
    assert other.average is None
    assert other.model is other.network
