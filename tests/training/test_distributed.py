"""Two processes on one CPU train one model; torchrun starts one training, as a user would have it do."""

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from commands import Command
from torch.distributed import TCPStore

from multiseg.errors import UsageError
from multiseg.loaders.batches import Share, StreamOptions
from multiseg.loaders.draw import DrawOptions
from multiseg.models.saved import load_model
from multiseg.training.checkpoint import load_state, save_state
from multiseg.training.distributed import ALONE, Peers, is_first_process, joined
from multiseg.training.fit import FitOptions
from multiseg.training.run import train
from multiseg.training.run_folder import ModelOptions, TrainOptions, to_toml

TORCHRUN = """
import dataclasses, runpy, sys
from torch.distributed import run

launch = run.elastic_launch

def main(*arguments):
    sys.argv = list(arguments[2:])
    runpy.run_module(arguments[2], run_name="__main__", alter_sys=True)

def launch_forked(config, entrypoint):
    assert entrypoint == sys.executable
    return launch(dataclasses.replace(config, start_method="fork"), main)

run.elastic_launch = launch_forked
run.main()
"""
"""torchrun, whose processes are forked from it instead of started: each would import all again."""
SCENARIOS = "spoilt,stopped,head_first,encoders,scales"


def options_for(url, dropout=0.0, **fit):
    return TrainOptions(
        store=url,
        device="cpu",
        seed=3,
        model=ModelOptions(widths=(8, 16), dropout=dropout),
        stream=StreamOptions(DrawOptions(patch=(16, 16, 16), seed=3), batch_size=2, workers=0),
        fit=FitOptions(**{"num_steps": 6, "validate_every": 3, "validation_cases": 1, "objective": "dice"} | fit),
    )


def entries(folder, kind="StepDone"):
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [entry for entry in map(json.loads, lines) if entry["event"] == kind]


def arguments_for(options, out):
    file = out.with_name(f"{out.name}.toml")
    file.write_text(to_toml(options))
    return ["train", "--run", str(file), "--out", str(out)]


class Two:
    """Two processes with the environment that torchrun gives its own, but started at once."""

    def __init__(self, arguments, said, script=None):
        self.said = said
        self.meeting = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        shared = {
            **os.environ,
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self.meeting.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
        }
        self.processes = [
            Command(arguments, said, {**shared, "RANK": rank, "LOCAL_RANK": rank}, script) for rank in ("0", "1")
        ]

    def end(self):
        return [process.wait() for process in self.processes], self.said.read_text(encoding="utf-8")


def two_train(options, out):
    """`multiseg train` in both."""
    codes, said = Two(arguments_for(options, out), out.with_name(f"{out.name}.txt")).end()
    assert codes == [0, 0], said
    return said


class Torchrun:
    """`torchrun -m -- multiseg train`."""

    def __init__(self, options, out):
        self.log, self.said = out / "log.jsonl", out.with_name(f"{out.name}.txt")
        script = out.with_name("torchrun.py")
        script.write_text(TORCHRUN)
        arguments = ["--standalone", "--nproc-per-node", "2", "-m", "--", "multiseg", *arguments_for(options, out)]
        self.process = Command(arguments, self.said, script=script)

    def wait_for_step(self, step):
        while self.process.poll() is None:
            if self.log.exists() and f'"step": {step},' in self.log.read_text(encoding="utf-8"):
                return
            time.sleep(0.01)
        pytest.fail(f"it ended before step {step}: {self.said.read_text(encoding='utf-8')}")

    def end(self):
        return self.process.wait(), self.said.read_text(encoding="utf-8")


@pytest.mark.slow
def test_two_processes_train_as_one_with_twice_the_batch_does(store_url, tmp_path):
    options = options_for(store_url)
    said = two_train(options, tmp_path / "two")
    assert said.count("6 steps, best validation Dice") == 1, "one process speaks for both"
    train(replace(options, stream=replace(options.stream, batch_size=4)), tmp_path / "one")
    for kind, names in (("StepDone", ("step", "loss", "gradient_norm")), ("Validated", ("step", "score"))):
        two, one = entries(tmp_path / "two", kind), entries(tmp_path / "one", kind)
        assert len(two) == len(one) > 0
        for a, b in zip(two, one, strict=True):
            assert [a[name] for name in names] == pytest.approx([b[name] for name in names], rel=1e-5, abs=1e-5)
    images = torch.randn(1, 7, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    present = torch.ones(1, 7, dtype=torch.bool)
    with torch.no_grad():
        a, b = (load_model(tmp_path / name / "last.safetensors")(images, present) for name in ("two", "one"))
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_an_interrupted_training_of_two_goes_on_bit_for_bit(store_url, tmp_path):
    options = options_for(store_url, dropout=0.2, ema=0.9, accumulate=2, num_steps=20, validate_every=10)
    options = replace(options, databases=("alder", "dogwood"))
    straight, out = tmp_path / "straight", tmp_path / "stopped"
    two_train(options, straight)

    first = Torchrun(options, out)
    first.wait_for_step(2)
    first.process.send_signal(signal.SIGINT)  # torchrun tells its processes
    _, said = first.end()
    assert "saved" in said
    assert 2 <= entries(out)[-1]["step"] < 20
    assert (out / "resume.pt").is_file()
    with pytest.raises(UsageError, match=r"saved by 2 processes, but 1 are running"):
        train(options, out)

    two_train(options, out)
    assert [entry["loss"] for entry in entries(out)] == [entry["loss"] for entry in entries(straight)]
    assert entries(out, "Validated") == entries(straight, "Validated")
    a, b = (load_model(folder / "last.safetensors").state_dict() for folder in (straight, out))
    assert all(torch.equal(tensor, b[name]) for name, tensor in a.items())


def run_scenarios(names, url, tmp_path):
    return Two([names, url], tmp_path / "said.txt", Path(__file__).with_name("several.py")).end()


@pytest.mark.slow
def test_what_happens_in_one_process_happens_in_all(store_url, tmp_path):
    """See several.py for each."""
    codes, said = run_scenarios(SCENARIOS, store_url, tmp_path)
    assert codes == [0, 0], said
    assert [line for line in said.splitlines() if line.endswith("went well")] == [
        f"{name} went well" for name in SCENARIOS.split(",")
    ]


@pytest.mark.slow
def test_a_failure_of_one_process_ends_all(store_url, tmp_path):
    began = time.monotonic()
    codes, said = run_scenarios("failing", store_url, tmp_path)
    assert codes == [1, 1], said
    assert "a disk went away" in said
    assert "process 0 of 2 lost the others" in said
    assert time.monotonic() - began < 120, "it waited for what never comes"


def test_alone_there_is_nobody_to_agree_with(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with joined("cpu") as (peers, device):
        assert (peers, device) == (ALONE, torch.device("cpu"))
    assert peers.share == Share()
    assert peers.sums([1.0, 2.0]) == [1.0, 2.0]
    assert peers.gather("x") == ["x"]
    assert is_first_process()


def test_several_processes_take_a_card_each(monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert not is_first_process()
    with pytest.raises(UsageError, match="2 processes need a GPU each, but the device is 'cuda:1'"), joined("cuda:1"):
        pass


def test_each_process_gets_its_own_random_numbers_back(tmp_path, few_state):
    path, state = tmp_path / "resume.pt", few_state()
    own, other = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
    torch.set_rng_state(own.get_state())
    save_state(path, state, [(other.get_state(), None)])
    drawn = {}
    for rank in (0, 1):
        load_state(path, few_state(), Peers(rank, 2))
        drawn[rank] = torch.rand(4)
    assert torch.equal(drawn[0], torch.rand(4, generator=own))
    assert torch.equal(drawn[1], torch.rand(4, generator=other))
    with pytest.raises(UsageError, match="saved by 2 processes, but 3 are running"):
        load_state(path, few_state(), Peers(0, 3))
