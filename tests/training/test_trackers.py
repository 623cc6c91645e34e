"""Trackers hear of a training through small fakes of their modules, which write down what they are told."""

import json
import math
import sys

import pytest

from multiseg.errors import UsageError
from multiseg.training.distributed import Peers
from multiseg.training.events import StepDone, Validated
from multiseg.training.run import _reported
from multiseg.training.run_folder import TrainOptions
from multiseg.training.trackers import TrackOptions, check_trackers, tracked

WANDB = """
import json, pathlib
from types import SimpleNamespace as Settings

def init(**said):
    if said["project"] == "unreachable":
        raise ConnectionError("no route to host")
    return Run(said)

class Run:
    def __init__(self, said):
        self.id = said["id"] or "w1"
        self.file = pathlib.Path(said["dir"]) / "told.jsonl"
        self.tell("init", {key: value for key, value in said.items() if key != "settings"})
    def tell(self, what, *values):
        with self.file.open("a") as file:
            file.write(json.dumps([what, *values]) + "\\n")
    def log(self, scalars, step):
        if step == 20:
            raise RuntimeError("full")
        self.tell("log", step, scalars)
    def finish(self, exit_code):
        self.tell("finish", exit_code)
"""
MLFLOW = """
told = []

class Thing:
    def __init__(self, *values):
        self.values = values

class MlflowClient:
    def __init__(self, tracking_uri):
        told.append(("uri", tracking_uri))
    def get_experiment_by_name(self, name):
        return None
    def create_experiment(self, name):
        told.append(("experiment", name))
        return "e1"
    def create_run(self, experiment, run_name):
        told.append(("run", experiment, run_name))
        run = Thing()
        run.info = Thing()
        run.info.run_id = "m1"
        return run
    def update_run(self, run_id, status):
        told.append(("update", run_id, status))
    def log_batch(self, run_id, metrics=(), params=(), tags=()):
        told.append(("batch", run_id, {m.values[0]: (m.values[1], m.values[3]) for m in metrics},
                     dict(p.values for p in params)))
    def set_terminated(self, run_id, status):
        told.append(("end", run_id, status))
"""
SETTINGS = {
    "store": "/secret/brain.zarr",
    "fit.num_steps": 30,
    "start.model": "/secret/m",
    "labels": ["lesion"],
}


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    folder = tmp_path / "fakes"
    (folder / "mlflow").mkdir(parents=True)
    (folder / "wandb.py").write_text(WANDB)
    (folder / "mlflow" / "__init__.py").write_text(MLFLOW)
    (folder / "mlflow" / "entities.py").write_text("from mlflow import Thing\nMetric = Param = RunTag = Thing\n")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    yield
    for name in ("mlflow", "mlflow.entities", "wandb"):
        sys.modules.pop(name, None)


def step(number, loss=0.5):
    return StepDone(number, loss, {"dice_loss": 0.25}, 1.0, 0.1, 8.0, 0.0, skipped="alder/secret-name")


def told_wandb(folder):
    return [json.loads(line) for line in (folder / "told.jsonl").read_text().splitlines()]


def test_wandb_is_told_offline_every_tenth_step_and_each_validation(fakes, tmp_path):
    with tracked(TrackOptions(("wandb",)), tmp_path, SETTINGS, lambda: True) as track:
        for number in range(1, 12):
            track(step(number))
        track(Validated(11, 0.5, {"alder": 0.25, "birch": math.nan}, True))
    init, *logged, finish = told_wandb(tmp_path)
    assert (init[1]["mode"], init[1]["project"], init[1]["name"]) == ("offline", "multiseg", tmp_path.name)
    assert [(one[1], one[2].get("train/loss", one[2].get("validation/score"))) for one in logged] == [
        (10, 0.5),
        (11, 0.5),
    ]
    assert logged[0][2]["train/dice_loss"] == 0.25
    assert logged[1][2] == {"validation/score": 0.5, "validation/alder": 0.25}
    assert finish == ["finish", 0]


def test_paths_and_names_of_cases_are_not_told(fakes, tmp_path):
    with tracked(TrackOptions(("wandb",)), tmp_path, SETTINGS, lambda: False) as track:
        track(step(10, loss=math.nan))
    text = (tmp_path / "told.jsonl").read_text()
    assert "/secret" not in text
    assert "secret-name" not in text
    assert "NaN" not in text
    assert told_wandb(tmp_path)[0][1]["config"] == {"fit.num_steps": "30", "labels": "['lesion']"}
    assert told_wandb(tmp_path)[-1] == ["finish", 1]


def test_mlflow_gets_a_run_in_the_folder_and_the_same_one_on_resuming(fakes, tmp_path):
    import mlflow

    options = TrackOptions(("mlflow",), project="lesions", name="first")
    with tracked(options, tmp_path, SETTINGS, lambda: False) as track:
        track(Validated(10, 0.5, {"alder lesion (left)": 0.25}, True))
    with tracked(options, tmp_path, SETTINGS, lambda: True):
        pass
    uri = ("uri", f"sqlite:///{tmp_path / 'mlflow.db'}")
    settings = {"fit.num_steps": "30", "labels": "['lesion']"}
    scores = {"validation/score": (0.5, 10), "validation/alder lesion _left_": (0.25, 10)}
    assert mlflow.told == [
        uri, ("experiment", "lesions"), ("run", "e1", "first"), ("batch", "m1", {}, settings), ("batch", "m1", {}, {}),
        ("batch", "m1", scores, {}), ("end", "m1", "KILLED"),
        uri, ("update", "m1", "RUNNING"), ("end", "m1", "FINISHED"),
    ]  # fmt: skip


def test_mlflow_s_address_is_what_is_said_or_in_the_environment(fakes, tmp_path, monkeypatch):
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://there")
    for uri in ("http://here", ""):
        with tracked(TrackOptions(("mlflow",), uri=uri), tmp_path / (uri[-4:] or "x"), {}, lambda: True):
            pass
    assert [one[1] for one in mlflow.told if one[0] == "uri"] == ["http://here", "http://there"]


def test_a_tracker_that_fails_warns_once_and_stops_nothing(fakes, tmp_path):
    said = r"wandb failed and gets no more of this training.*RuntimeError: full"
    with (
        pytest.warns(UserWarning, match=said) as warned,
        tracked(TrackOptions(("wandb", "mlflow")), tmp_path, SETTINGS, lambda: True) as track,
    ):
        list(map(track, map(step, (10, 20, 30))))
    assert len(warned) == 1
    assert [one[1] for one in told_wandb(tmp_path) if one[0] == "log"] == [10]
    import mlflow

    assert [next(iter(one[2].values()))[1] for one in mlflow.told if one[0] == "batch" and one[2]] == [10, 20, 30]
    with (
        pytest.warns(UserWarning, match=r"wandb failed .*ConnectionError: no route to host"),
        tracked(TrackOptions(("wandb",), project="unreachable"), tmp_path, SETTINGS, lambda: True) as track,
    ):
        track(step(10))


def test_an_error_of_the_training_ends_the_run_and_passes(fakes, tmp_path):
    with pytest.raises(ArithmeticError, match="ours"), tracked(TrackOptions(("wandb",)), tmp_path, {}, lambda: False):
        raise ArithmeticError("ours")
    assert told_wandb(tmp_path)[-1] == ["finish", 1]


def test_of_several_processes_the_first_tells(fakes, tmp_path, few_state):
    options = TrainOptions("x.zarr", track=TrackOptions(("wandb",)))
    for rank in (1, 0):
        with _reported(tmp_path, few_state(), options, Peers(rank, 2), lambda event: None) as report:
            report(step(10))
        assert (tmp_path / "told.jsonl").exists() == (rank == 0)


def test_nothing_is_imported_unless_asked_for(fakes, tmp_path):
    with tracked(TrackOptions(), tmp_path, SETTINGS, lambda: True) as track:
        track(step(10))
    assert {"mlflow", "wandb"}.isdisjoint(sys.modules)
    assert not (tmp_path / "track.json").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (TrackOptions(("neptune",)), "track.to names 'neptune': give mlflow, wandb, both or none"),
        (TrackOptions(mode="of"), "track.mode is 'of': give offline or online"),
    ],
)
def test_unknown_settings(options, said):
    with pytest.raises(UsageError, match=said):
        check_trackers(options)


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_missing_package_is_told_before_the_training(name, monkeypatch):
    monkeypatch.setattr("multiseg.training.trackers.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=rf"{name}, which is not installed\. .*: pip install '\.\[{name}\]'"):
        check_trackers(TrackOptions((name,)))
