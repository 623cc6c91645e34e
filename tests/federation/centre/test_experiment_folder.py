"""The server's folder: whenever a process dies, the same command goes on as if it had not."""

import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fake_link import FakeLink, FakeSite, options
from safetensors import safe_open

from multiseg.errors import CheckpointError, ResourceError, UsageError
from multiseg.federation.centre.experiment_folder import WORST, claimed, opened, read_history
from multiseg.federation.centre.rounds import RunResult, run
from multiseg.federation.plan import AggregateOptions, ScheduleOptions
from multiseg.models.saved import BEST, LAST, read_info

SITES = (FakeSite("ash"), FakeSite("elm", modalities=("FLAIR", "T2"), dice=lambda step: [0.1, 0.3, 0.2, 0.2][step]))
OPTIONS = replace(options("ash", "elm", rounds=2), aggregate=AggregateOptions(strategy="fedadam", learning_rate=0.01))
MODELS = (LAST, BEST, WORST)
SAVED = (*MODELS, "state.safetensors", "roster.json", "rounds.csv", "run.toml")


class Killed(BaseException):
    """As by kill -9: nobody catches it."""


def go(folder: Path, said: object = OPTIONS) -> RunResult:
    link = FakeLink(*SITES)
    return run(said, link, folder, clock=link.clock)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    go(folder)
    return folder


class Reaper:
    """Kills at the n-th file that a commit moves into its place, before or after it has."""

    def __init__(self, patch: pytest.MonkeyPatch, number: int, after: bool) -> None:
        self.number, self.after, self.moved = number, after, 0
        self._replace = Path.replace
        reaper = self
        patch.setattr(Path, "replace", lambda path, target: reaper.move(path, target))

    def move(self, path: Path, target: Path) -> Path:
        """In place of `Path.replace`."""
        if Path(target).name.strip(".").removesuffix(".next") not in SAVED:
            return self._replace(path, target)
        self.moved += 1
        if self.moved == self.number and not self.after:
            raise Killed
        moved = self._replace(path, target)
        if self.moved == self.number:
            raise Killed
        return moved


def go_and_be_killed(folder: Path, number: int, after: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        Reaper(patch, number, after)
        with pytest.raises(Killed):
            go(folder)


def num_moves(folder: Path) -> int:
    with pytest.MonkeyPatch.context() as patch:
        reaper = Reaper(patch, -1, after=False)
        go(folder)
        return reaper.moved


@pytest.mark.slow
def test_a_kill_at_every_write_loses_nothing(undisturbed: Path, tmp_path: Path) -> None:
    moves = num_moves(tmp_path / "counted")
    assert moves > 20
    for number in range(1, moves + 1):
        folder = tmp_path / str(number)
        go_and_be_killed(folder, number, after=number % 2 == 0)
        go(folder)
        for name in SAVED:
            assert (folder / name).read_bytes() == (undisturbed / name).read_bytes(), (number, name)
        assert not [path for path in folder.iterdir() if path.suffix in (".next", ".tmp")]


@pytest.mark.slow
def test_a_kill_while_the_network_grows_loses_nothing(undisturbed: Path, tmp_path: Path) -> None:
    """By a sequence of a site that joins after the last round: the grown model is of the same step as the old one."""
    new = (*SITES, FakeSite("oak", modalities=("FLAIR", "PD")))
    said = replace(OPTIONS, sites=("ash", "elm", "oak"))

    def join(folder: Path) -> RunResult:
        link = FakeLink(*new)
        return run(said, link, folder, clock=link.clock)

    straight = tmp_path / "straight"
    shutil.copytree(undisturbed, straight)
    with pytest.MonkeyPatch.context() as patch:
        reaper = Reaper(patch, -1, after=False)
        join(straight)
    assert reaper.moved > 5
    for number in range(1, reaper.moved + 1):
        folder = tmp_path / str(number)
        shutil.copytree(undisturbed, folder)
        with pytest.MonkeyPatch.context() as patch:
            Reaper(patch, number, after=number % 2 == 0)
            with pytest.raises(Killed):
                join(folder)
        join(folder)
        for name in SAVED:
            assert (folder / name).read_bytes() == (straight / name).read_bytes(), (number, name)


@pytest.mark.slow
def test_a_state_that_grew_without_its_model_grows_anew(undisturbed: Path, tmp_path: Path) -> None:
    """As an earlier version left it."""
    folder = tmp_path / "run"
    shutil.copytree(undisturbed, folder)
    before = (folder / "last.safetensors").read_bytes()
    new = (*SITES, FakeSite("oak", modalities=("FLAIR", "PD")))
    said = replace(OPTIONS, sites=("ash", "elm", "oak"))
    link = FakeLink(*new)
    run(said, link, folder, clock=link.clock)
    axis = tuple(read_info(folder / "last.safetensors").axis)
    (folder / "last.safetensors").write_bytes(before)
    state = opened(folder)
    assert state is not None
    assert tuple(state.roster.info.axis) == tuple(read_info(folder / "last.safetensors").axis) == axis[:-1]
    link = FakeLink(*new, FakeSite("fir"))
    assert run(replace(said, held_out=("fir",)), link, folder, clock=link.clock).finished
    assert tuple(read_info(folder / "last.safetensors").axis) == axis


def test_models_of_a_round_that_was_not_committed_do_not_count(tmp_path: Path) -> None:
    # run.toml; round 1: last, state, move, roster, rounds; round 2: last, best, worst, and before its state
    go_and_be_killed(tmp_path, 10, after=False)
    assert {path.name for path in tmp_path.glob(".*.next")} == {f".{name}.next" for name in MODELS}
    state = opened(tmp_path)
    assert state is not None
    assert state.round == 1
    assert not list(tmp_path.glob(".*.next"))
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.slow
def test_a_full_disk_leaves_the_last_round(undisturbed: Path, tmp_path: Path) -> None:
    import multiseg.federation.centre.experiment_folder as folder_of

    def full(path: Path, data: bytes) -> None:
        raise ResourceError(f"{path} could not be written: No space left on device.")

    constant = replace(OPTIONS.fit, schedule="constant")
    go(tmp_path, replace(OPTIONS, schedule=replace(OPTIONS.schedule, rounds=1), fit=constant))
    before = (tmp_path / "state.safetensors").read_bytes()
    real = folder_of.write_atomically
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            folder_of,
            "write_atomically",
            lambda path, data: full(path, data) if path.name == "state.safetensors" else real(path, data),
        )
        with pytest.raises(ResourceError, match="No space left"):
            go(tmp_path, replace(OPTIONS, fit=constant))
    assert (tmp_path / "state.safetensors").read_bytes() == before
    go(tmp_path, replace(OPTIONS, fit=constant))
    assert read_info(tmp_path / "last.safetensors").step == 2


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (replace(OPTIONS, seed=7), "seed was 0, now 7"),
        (replace(OPTIONS, schedule=replace(OPTIONS.schedule, rounds=5)), "schedule.rounds was 2, now 5"),
    ],
)
def test_other_settings_are_refused(undisturbed: Path, changed: object, told: str) -> None:
    with pytest.raises(UsageError, match=re.escape(told)):
        go(undisturbed, changed)


def test_a_deadline_may_change(undisturbed: Path) -> None:
    assert go(undisturbed, replace(OPTIONS, schedule=ScheduleOptions(rounds=2, deadline_minutes=7.0))).finished
    assert go(undisturbed).finished


def test_two_processes_cannot_run_one_experiment(tmp_path: Path) -> None:
    code = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX); print('held'); input()"
    holds = [sys.executable, "-u", "-c", code, str(tmp_path / ".lock")]
    with subprocess.Popen(holds, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8") as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        told = r"is in use by process \?: it runs this experiment"
        with pytest.raises(ResourceError, match=told), claimed(tmp_path, OPTIONS):
            pass
        other.communicate("\n")
    with claimed(tmp_path, OPTIONS):
        pass


@pytest.mark.slow
def test_a_state_without_its_model_is_damaged(tmp_path: Path) -> None:
    go(tmp_path)
    (tmp_path / "last.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes())  # of round 1
    with pytest.raises(CheckpointError, match=r"is of step 1 and .*, but state\.safetensors expects step 2"):
        opened(tmp_path)


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    (tmp_path / "state.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"state\.safetensors cannot be resumed"):
        opened(tmp_path)
    with pytest.raises(UsageError, match="has no federated run"):
        read_history(tmp_path / "elsewhere")


def test_a_history_is_read_without_the_tensors(undisturbed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import multiseg.federation.centre.experiment_folder as folder_of

    class MetadataOnly:
        def __init__(self, path: Path, framework: str) -> None:
            with safe_open(path, framework) as file:
                said = file.metadata()
            self.metadata = lambda: said

        def __enter__(self) -> "MetadataOnly":
            return self

        def __exit__(self, *error: object) -> None:
            pass

    monkeypatch.setattr(folder_of, "safe_open", MetadataOnly)
    assert read_history(undisturbed)["round"] == 2


def test_the_optimiser_goes_on(undisturbed: Path) -> None:
    state = opened(undisturbed)
    assert state is not None
    assert state.kept == {"ash": 2, "elm": 2}
    assert any(name.startswith("second:") and torch.any(moment > 0) for name, moment in state.optimiser.items())
