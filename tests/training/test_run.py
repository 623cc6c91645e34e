import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from dataclasses import replace

import pytest
import torch
from commands import Command

from multiseg.errors import CheckpointError, ResourceError, UsageError
from multiseg.labels import LabelSpace
from multiseg.loaders.augment import AugmentOptions
from multiseg.loaders.batches import StreamOptions
from multiseg.loaders.draw import DrawOptions
from multiseg.models.saved import load_model, read_contrasts, read_info
from multiseg.processes import stop_on_signals
from multiseg.store.ingest.ingest_plan import IngestOptions
from multiseg.store.ingest.ingestion import ingest
from multiseg.store.sources.manifest import find_manifest
from multiseg.training import run
from multiseg.training.events import StepDone, Validated, Validation
from multiseg.training.fit import FitOptions
from multiseg.training.run import train
from multiseg.training.run_folder import ModelOptions, TrainOptions, to_toml


def options_for(url, **fit):
    return TrainOptions(
        store=url,
        device="cpu",
        seed=3,
        model=ModelOptions(widths=(8, 16), dropout=0.2),
        stream=StreamOptions(DrawOptions(patch=(16, 16, 16), seed=3), batch_size=2, workers=0),
        fit=FitOptions(**{"num_steps": 4, "validate_every": 2, "validation_cases": 0} | fit),
    )


def entries(folder, kind="StepDone"):
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [entry for entry in map(json.loads, lines) if entry["event"] == kind]


def weights(path):
    return load_model(path).network.state_dict()


def assert_same_weights(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(tensor, b[name]) for name, tensor in a.items())


@pytest.fixture
def small_store(hospitals, tmp_path):
    """One hospital whose cases are all for training; and a function that brings in another one."""
    found = {files.name: files for files in find_manifest(hospitals / "manifest.toml")}
    url = str(tmp_path / "small.zarr")

    def bring(name):
        ingest([found[name]], url, IngestOptions(spacing_mm=(5.0, 5.0, 5.0), split={"train": 1.0}))

    bring("dogwood")
    return url, bring


class Training:
    """`multiseg train` as a process of its own, in a session of its own, as in a terminal."""

    def __init__(self, run_file, out):
        self.log, self.said = out / "log.jsonl", run_file.with_name("said.txt")
        self.said.unlink(missing_ok=True)
        # No pipe, which workers of a killed process keep open for seconds.
        self.process = Command(["train", "--run", str(run_file), "--out", str(out)], self.said)

    def wait_for_step(self, step):
        while self.process.poll() is None:
            if self.log.exists() and f'"step": {step},' in self.log.read_text(encoding="utf-8"):
                return
            time.sleep(0.01)
        pytest.fail(f"it ended before step {step}: {self.said.read_text(encoding='utf-8')}")

    def end(self):
        return self.process.wait(timeout=600), self.said.read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_killed_and_interrupted_training_ends_in_the_same_weights(store_url, tmp_path):
    """SIGKILL, the same command, Ctrl-C to every process of the terminal, the same command once more."""
    options = options_for(store_url, num_steps=40, validate_every=16, validation_cases=1, save_minutes=0.002)
    options = replace(options, databases=("alder", "dogwood"), stream=replace(options.stream, workers=1))
    undisturbed, out, file = tmp_path / "straight", tmp_path / "runs" / "killed", tmp_path / "run.toml"
    train(replace(options, stream=replace(options.stream, workers=0)), undisturbed)
    file.write_text(to_toml(options))

    first = Training(file, out)
    first.wait_for_step(6)
    os.kill(first.process.pid, signal.SIGKILL)
    assert first.end()[0] == -signal.SIGKILL

    second = Training(file, out)
    second.wait_for_step(14)
    os.killpg(second.process.pid, signal.SIGINT)
    code, said = second.end()
    assert code == 130, said
    assert "saved" in said
    stopped_at = read_info(out / "last.safetensors").step
    assert stopped_at == entries(out)[-1]["step"] < 40

    code, said = Training(file, out).end()
    assert code == 0, said
    assert_same_weights(weights(out / "last.safetensors"), weights(undisturbed / "last.safetensors"))
    assert_same_weights(weights(out / "model.safetensors"), weights(undisturbed / "model.safetensors"))
    assert [entry["step"] for entry in entries(out)] == list(range(1, 41))
    assert [entry["loss"] for entry in entries(out)] == [entry["loss"] for entry in entries(undisturbed)]
    assert entries(out, "Validated") == entries(undisturbed, "Validated")
    assert [entry["step"] for entry in entries(out, "Validated")] == [16, 32, 40]


@pytest.mark.slow
def test_the_augmentation_of_the_settings_is_used(store_url, tmp_path):
    options = options_for(store_url, num_steps=2)
    train(options, tmp_path / "none")
    train(replace(options, augment=AugmentOptions(noise_probability=1.0)), tmp_path / "noise")
    plain, noisy = ([entry["loss"] for entry in entries(tmp_path / name)] for name in ("none", "noise"))
    assert plain[0] != noisy[0]
    with pytest.raises(UsageError, match=r"augment\.noise_probability was 1\.0, now 0\.0"):
        train(options, tmp_path / "noise")


@pytest.mark.slow
def test_the_same_call_on_a_finished_run_changes_nothing(store_url, tmp_path):
    train(options_for(store_url), tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.glob("*") if path.is_file()}
    events = []
    result = train(options_for(store_url), tmp_path, on_event=events.append)
    assert (result.step, result.finished, events) == (4, True, [])
    assert {path: path.read_bytes() for path in tmp_path.glob("*") if path.is_file()} == before


@pytest.mark.slow
def test_other_settings_in_the_same_folder_are_refused(store_url, tmp_path):
    options = options_for(store_url)
    train(options, tmp_path)
    other = replace(options, seed=4, fit=replace(options.fit, learning_rate=0.5))
    with pytest.raises(UsageError, match=r"fit\.learning_rate was 0\.001, now 0\.5; seed was 3, now 4"):
        train(other, tmp_path)
    free = replace(
        options, stream=replace(options.stream, workers=1), fit=replace(options.fit, save_minutes=1.0), device="auto"
    )
    assert train(free, tmp_path).finished


@pytest.mark.slow
def test_settings_that_failed_before_anything_was_saved_bind_nobody(store_url, tmp_path):
    options = options_for(store_url)
    odd = replace(options, stream=replace(options.stream, draw=replace(options.stream.draw, patch=(9, 9, 9))))
    with pytest.raises(UsageError, match=r"\(9, 9, 9\) voxels do not fit"):
        train(odd, tmp_path)
    assert train(options, tmp_path).finished
    assert [entry["step"] for entry in entries(tmp_path)] == [1, 2, 3, 4]


@pytest.mark.slow
def test_overwrite_starts_anew_and_keeps_what_is_not_ours(store_url, tmp_path):
    train(options_for(store_url), tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    result = train(replace(options_for(store_url, num_steps=2), seed=4), tmp_path, overwrite=True)
    assert result.step == 2
    assert [entry["step"] for entry in entries(tmp_path)] == [1, 2]
    assert (tmp_path / "notes.txt").read_text(encoding="utf-8") == "mine"
    assert len(list((tmp_path / "tensorboard").glob("events.*"))) == 1


@pytest.mark.slow
def test_what_a_killed_process_left_half_written_goes(store_url, tmp_path):
    half = tmp_path / ".resume.pt.4711.tmp"
    half.write_bytes(b"half")
    train(options_for(store_url), tmp_path)
    assert not half.exists()


@pytest.mark.slow
def test_a_store_without_validation_cases_still_gives_a_model(small_store, tmp_path):
    url, _ = small_store
    out = tmp_path / "run"
    result = train(options_for(url, validation_cases=8), out)
    assert result.finished
    assert not (out / "model.safetensors").exists()
    model = load_model(out)
    assert (model.info.step, model.info.metrics) == (4, {"step": 4.0})
    assert model.info.databases["dogwood"]["num_cases"] == 4
    assert [entry["score"] for entry in entries(out, "Validated")] == [None, None]


@pytest.mark.slow
def test_a_store_with_other_sequences_is_refused(small_store, tmp_path):
    url, bring = small_store
    out = tmp_path / "run"
    train(options_for(url, num_steps=2), out)
    bring("cedar")
    with pytest.raises(UsageError, match=r"on the sequences FLAIR, T1, but the store now holds FLAIR, T1, DWI, ADC"):
        train(options_for(url, num_steps=2), out)


@pytest.mark.slow
def test_one_folder_takes_one_training_at_a_time(store_url, tmp_path):
    hold = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX)"
    hold += "; print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", hold, str(tmp_path / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(ResourceError, match="another training writes to it"):
            train(options_for(store_url), tmp_path)
        other.stdin.close()
        other.wait()
    assert train(options_for(store_url), tmp_path).finished


@pytest.mark.slow
def test_the_best_model_is_the_one_of_the_best_validation(store_url, tmp_path, monkeypatch):
    scores = iter([0.2, 0.6, 0.4])
    seen = {}

    def validate(network, *others):
        score = next(scores)
        seen[score] = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        return Validation(score, {"alder": score})

    monkeypatch.setattr(run, "validate", validate)
    result = train(options_for(store_url, num_steps=6), tmp_path)
    assert result.best == 0.6
    assert read_info(tmp_path / "model.safetensors").metrics == {"alder": 0.6, "score": 0.6, "step": 4.0}
    assert_same_weights(weights(tmp_path / "model.safetensors"), seen[0.6])
    assert_same_weights(weights(tmp_path / "last.safetensors"), seen[0.4])
    assert_same_weights(weights(tmp_path), seen[0.6])


@pytest.mark.slow
def test_validation_is_whole_cases_with_all_their_sequences(store_url, tmp_path):
    events = []
    train(options_for(store_url, validation_cases=1), tmp_path, on_event=events.append)
    validated = [event for event in events if isinstance(event, Validated)]
    assert [event.step for event in validated] == [2, 4]
    for event in validated:
        assert set(event.parts) == {"alder", "birch", "cedar", "dogwood"}
        assert all(0 <= dice <= 1 for dice in event.parts.values())
    assert sum(isinstance(event, StepDone) for event in events) == 4


@pytest.mark.slow
def test_a_damaged_resume_file_is_named(store_url, tmp_path):
    train(options_for(store_url), tmp_path)
    (tmp_path / "resume.pt").write_bytes(b"PK broken")
    with pytest.raises(CheckpointError, match=r"cannot resume from .*resume\.pt"):
        train(options_for(store_url), tmp_path)


@pytest.mark.slow
def test_the_model_says_where_it_comes_from(store_url, tmp_path):
    train(options_for(store_url), tmp_path)
    info = read_info(tmp_path / "last.safetensors")
    assert info.axis.names == ("PD", "FLAIR", "T1", "T1c", "T2", "DWI", "ADC")
    assert info.trained_on["T1"] == ("alder", "birch", "dogwood")
    assert info.trained_on["DWI"] == ("cedar",)
    assert info.spacing_mm == (5.0, 5.0, 5.0)
    assert info.databases["birch"]["pathology"] == "glioma"
    assert info.databases["birch"]["licence"] == "CC0-1.0"
    contrasts = read_contrasts(tmp_path / "last.safetensors")
    assert {name: tuple(means) for name, means in contrasts.means.items()} == info.trained_on


def test_names_of_labels():
    assert [(label.name, label.kind) for label in LabelSpace.of(["lesion", "tissue:CSF"]).labels] == [
        ("lesion", "lesion"),
        ("CSF", "tissue"),
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_acts(number):
    def act(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(number, act)
    try:
        with stop_on_signals() as should_stop:
            assert not should_stop()
            os.kill(os.getpid(), number)
            assert should_stop()
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), number)
        assert signal.getsignal(number) is act
    finally:
        signal.signal(number, before)


@pytest.mark.slow
def test_the_model_is_the_average_and_the_state_holds_both(store_url, tmp_path, monkeypatch):
    seen = []

    def validate(network, *others):
        seen.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
        return Validation(0.5, {"alder": 0.5})

    monkeypatch.setattr(run, "validate", validate)
    train(options_for(store_url, ema=0.9), tmp_path)
    assert_same_weights(weights(tmp_path / "last.safetensors"), seen[-1])
    assert_same_weights(weights(tmp_path / "model.safetensors"), seen[0])
    saved = torch.load(tmp_path / "resume.pt", weights_only=True)
    assert_same_weights(saved["average"], seen[-1])
    assert any(not torch.equal(tensor, seen[-1][name]) for name, tensor in saved["network"].items())


@pytest.mark.slow
def test_a_few_cases_of_each_database_are_what_the_model_is_trained_on(store_url, tmp_path):
    options = options_for(store_url, num_steps=1)
    few = replace(options.stream, draw=replace(options.stream.draw, num_cases=1))
    train(replace(options, stream=few), tmp_path / "few")
    train(options, tmp_path / "all")
    counts = {
        name: [about["num_cases"] for about in read_info(tmp_path / name / "last.safetensors").databases.values()]
        for name in ("few", "all")
    }
    assert counts["few"] == [1, 1, 1, 1]
    assert max(counts["all"]) > 1


@pytest.mark.slow
def test_a_folder_from_before_a_setting_goes_on_with_its_default(store_url, tmp_path):
    train(options_for(store_url, num_steps=2), tmp_path)
    file = tmp_path / "run.toml"
    lines = [
        line for line in file.read_text(encoding="utf-8").splitlines() if not line.startswith(("ema", "num_cases"))
    ]
    file.write_text("\n".join(lines))
    assert train(options_for(store_url, num_steps=2), tmp_path).finished
    file.write_text("\n".join(lines))
    with pytest.raises(UsageError, match=r"fit\.ema was 0\.0, now 0\.9"):
        train(options_for(store_url, num_steps=2, ema=0.9), tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # by torch's own compiler
def test_how_it_is_computed_may_change_when_a_run_goes_on(store_url, tmp_path):
    train(options_for(store_url, num_steps=2), tmp_path)
    other = options_for(store_url, num_steps=2, channels_last=True, compile=True, deterministic=True)
    assert train(other, tmp_path).finished


def corners_of_training(monkeypatch, store_url, folder, seed, draw_seed=None):
    """Where the first patches of a training lie, and the seeds that its run.toml says."""
    corners = []

    def first_batch(state, stream, *others):
        corners.extend(next(iter(stream.batches(0, 1))).corner.tolist())
        return True

    monkeypatch.setattr(run, "fit", first_batch)
    options = options_for(store_url)
    draw = replace(options.stream.draw, seed=draw_seed)
    train(replace(options, seed=seed, stream=replace(options.stream, draw=draw)), folder)
    said = tomllib.loads((folder / "run.toml").read_text())
    return corners, (said["seed"], said["stream"]["draw"]["seed"], said["augment"]["seed"])


@pytest.mark.slow
def test_the_one_seed_serves_draws_and_augmentation_too(store_url, tmp_path, monkeypatch):
    """From Python it gave other weights, but always the same patches."""
    one, seeds_of_one = corners_of_training(monkeypatch, store_url, tmp_path / "one", 1)
    two, seeds_of_two = corners_of_training(monkeypatch, store_url, tmp_path / "two", 2)
    assert (seeds_of_one, seeds_of_two) == ((1, 1, 1), (2, 2, 2))
    assert one != two
    own, seeds_of_own = corners_of_training(monkeypatch, store_url, tmp_path / "own", 2, draw_seed=1)
    assert seeds_of_own == (2, 1, 2)
    assert own == one
