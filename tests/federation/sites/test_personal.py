import os
import signal
from pathlib import Path

import pytest
import torch
from asked import KEEPING, round_task, site_of

from multiseg.errors import CheckpointError, ResourceError
from multiseg.federation.messages import ROUND, SiteTask
from multiseg.federation.sites import answering, personal
from multiseg.federation.sites.answering import answer
from multiseg.federation.sites.personal import (
    PersonalState,
    commit,
    forget,
    key_of,
    moments_of,
    newest,
    own_after,
    stored_answer,
    take_moments,
)

KEY, OTHER = "a" * 64, "b" * 64
OWN = PersonalState(
    {"norm.weight": torch.arange(3.0)}, {"n": torch.tensor(7)}, {"w": {"step": torch.tensor(2.0)}}, {"scale": 2.0}
)


def names(folder):
    return sorted(file.name for file in folder.glob("*.pt"))


def test_a_round_comes_back_as_it_was_committed(tmp_path):
    assert stored_answer(tmp_path, 3, KEY) is None
    assert own_after(tmp_path, 3) is None
    assert newest(tmp_path) == 0
    commit(tmp_path, 3, KEY, b"answer", OWN)
    assert stored_answer(tmp_path, 3, KEY) == b"answer"
    assert stored_answer(tmp_path, 3, OTHER) is None
    assert stored_answer(tmp_path, 4, KEY) is None
    found = own_after(tmp_path, 3)
    assert torch.equal(found.parts["norm.weight"], torch.arange(3.0))
    assert found.counters["n"] == 7
    assert found.moments["w"]["step"] == 2
    assert found.scaler == {"scale": 2.0}
    assert newest(tmp_path) == 3


def test_only_what_may_still_be_asked_for_is_held(tmp_path):
    for number in (1, 2, 3, 4):
        commit(tmp_path, number, KEY, b"x", OWN)
    commit(tmp_path, 4, OTHER, b"x", OWN)
    (tmp_path / ".000004-x.pt.99.tmp").write_bytes(b"half")
    (tmp_path / "model.safetensors").write_bytes(b"kept")
    forget(tmp_path, 4, OTHER, {3, 1})
    assert names(tmp_path) == [f"000001-{KEY[:32]}.pt", f"000003-{KEY[:32]}.pt", f"000004-{OTHER[:32]}.pt"]
    assert sorted(file.name for file in tmp_path.iterdir() if file.suffix != ".pt") == ["model.safetensors"]
    forget(tmp_path, 2, OTHER, {1, 3})  # the server went back: what came later is of another lineage
    assert names(tmp_path) == [f"000001-{KEY[:32]}.pt"]


def test_a_damaged_file_is_told(tmp_path):
    commit(tmp_path, 1, KEY, b"answer", OWN)
    (file,) = tmp_path.glob("*.pt")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="damaged"):
        own_after(tmp_path, 1)
    torch.save({"format": 9}, file)
    with pytest.raises(CheckpointError, match="format 9"):
        stored_answer(tmp_path, 1, KEY)


def test_the_key_is_of_what_the_answer_depends_on():
    def key(site="here", tensor=1.0, number=1, **body):
        return key_of(SiteTask(ROUND, "trial", number, body, {"w": torch.tensor([tensor])}), site)

    assert key(kept=1, hold=[1], steps_done=2) == key(kept=1, steps_done=2)
    assert len({key(), key("there"), key(tensor=2.0), key(number=2), key(steps_done=1), key(kept=1)}) == 6


def test_moments_grow_with_a_network():
    def trained(inputs):
        network = torch.nn.Linear(inputs, 2)
        optimiser = torch.optim.Adam(network.parameters(), lr=0.1)
        network(torch.ones(1, inputs)).sum().backward()
        optimiser.step()
        return network, optimiser

    moments = moments_of(*trained(2))
    assert moments.keys() == {"weight", "bias"}
    network = torch.nn.Linear(3, 2)
    optimiser = torch.optim.Adam(network.parameters(), lr=0.1)
    take_moments(network, optimiser, moments)
    grown = optimiser.state[network.weight]
    assert torch.equal(grown["exp_avg"][:, :2], moments["weight"]["exp_avg"])
    assert not grown["exp_avg"][:, 2].any()
    assert grown["step"] == 1
    assert moments["weight"]["exp_avg"].any()
    network(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    assert optimiser.state[network.bias]["step"] == 2


def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def killed(work):
    """Do it in a child that kills itself on the way."""
    child = os.fork()
    if not child:
        try:
            work()
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["in a step", "before the commit", "in the commit", "before it leaves"])
def test_a_round_killed_at_any_moment_gives_the_same_bits(moment, site_stores, tmp_path, info, smooth, monkeypatch):
    site, expected = site_of("alder", site_stores, tmp_path), smooth.answers[1]
    smooth.after(1, tmp_path)
    task, record = round_task(info, 2, options=KEEPING), answering.audit_log.record
    with monkeypatch.context() as patch:
        if moment == "before the commit":
            patch.setattr(personal, "commit", kill)
        elif moment == "in the commit":
            rename = Path.replace
            patch.setattr(Path, "replace", lambda path, to: kill() if ".pt." in path.name else rename(path, to))
        elif moment == "before it leaves":
            patch.setattr(answering.audit_log, "record", lambda p, e: kill() if e.direction == "out" else record(p, e))
        killed(lambda: answer(task, site, on_event=kill if moment == "in a step" else lambda event: None))
    steps = []
    again = answer(task, site, on_event=steps.append)
    assert len(steps) == (0 if moment == "before it leaves" else 2)
    assert again.tensors.keys() == expected.tensors.keys()
    assert all(torch.equal(tensor, again.tensors[name]) for name, tensor in expected.tensors.items())
    assert again.body["metrics"] == expected.body["metrics"]
    assert not list((tmp_path / "alder" / "experiments" / "trial").glob(".*.tmp"))
    mine, others = (own_after(x / "alder" / "experiments" / "trial", 2) for x in (tmp_path, smooth.states[1]))
    assert all(torch.equal(mine.parts[name], others.parts[name]) for name in others.parts)
    assert mine.parts


@pytest.mark.slow
def test_a_full_disk_lets_nothing_leave(site_stores, tmp_path, info, monkeypatch):
    site = site_of("alder", site_stores, tmp_path)

    def full(path, data):
        raise ResourceError(f"cannot write {path}: No space left on device. It was not changed.")

    with monkeypatch.context() as patch:
        patch.setattr(personal, "write_atomically", full)
        found = answer(round_task(info), site)
    assert found.error == "cannot write (path): No space left on device. It was not changed."
    assert not found.tensors
    assert found.passing
    assert not answer(round_task(info), site).error
