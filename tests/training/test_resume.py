"""What a run learns from: written down, compared when it resumes, and taken up only where it was accepted."""

import json
import math
import shutil
import tomllib
from dataclasses import replace

import numpy as np
import pytest
import torch
import zarr

from multiseg.cli.app import run as command
from multiseg.errors import CheckpointError, UsageError
from multiseg.evaluation.evaluation_result import EvaluateOptions
from multiseg.evaluation.model_evaluation import evaluate
from multiseg.loaders.batches import StreamOptions
from multiseg.loaders.draw import DrawOptions
from multiseg.models.saved import load_model, load_weights, read_info, read_learnt, save_weights
from multiseg.store.arrays import DatabaseArrays
from multiseg.store.ingest.ingest_plan import IngestOptions
from multiseg.store.ingest.ingestion import ingest
from multiseg.store.reader import open_store
from multiseg.store.sources.manifest import find_manifest
from multiseg.training.events import Noted, StepDone, Validation
from multiseg.training.fit import FitOptions
from multiseg.training.run import train
from multiseg.training.run_data import changes, data_of, read_data
from multiseg.training.run_folder import ModelOptions, TrainOptions
from multiseg.training.start import StartOptions


def options_for(url, **fit):
    return TrainOptions(
        store=url,
        databases=("alder", "dogwood"),
        device="cpu",
        seed=3,
        model=ModelOptions(widths=(4, 8), dropout=0.2),
        stream=StreamOptions(DrawOptions(patch=(16, 16, 16), seed=3), batch_size=2, workers=0),
        fit=FitOptions(**{"num_steps": 4, "validate_every": 4, "validation_cases": 1} | fit),
    )


class Copy:
    """A copy of the hospitals' store, whose rows a test may change as a later ingest does."""

    def __init__(self, url):
        self.url = url
        self.root = zarr.open_group(url, mode="r+")

    def case(self, split, database="alder"):
        return next(case for case in open_store(self.url)[database].cases if case.split == split)

    def put(self, case, column, value):
        self.root[case.database][column][case.row] = value


@pytest.fixture
def store(store_url, tmp_path):
    shutil.copytree(store_url, tmp_path / "copy.zarr")
    return Copy(str(tmp_path / "copy.zarr"))


@pytest.fixture(scope="module")
def four_steps(store_url, tmp_path_factory):
    """A run of four steps on the hospitals' store. Only for reading."""
    out = tmp_path_factory.mktemp("four_steps") / "run"
    train(options_for(store_url), out)
    return out


def begun(four_steps, store_url, out, url=None):
    """A copy of that run, as if trained on the store at `url`, which is a copy of the first one."""
    shutil.copytree(four_steps, out)
    settings = (out / "run.toml").read_text()
    assert store_url in settings
    (out / "run.toml").write_text(settings.replace(store_url, url or store_url))
    return out


def notes(folder):
    lines = map(json.loads, (folder / "log.jsonl").read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line["event"] == "Noted"]


def rates(folder):
    lines = map(json.loads, (folder / "log.jsonl").read_text(encoding="utf-8").splitlines())
    return [line["learning_rate"] for line in lines if line["event"] == "StepDone"]


def same_weights(a, b):
    one, two = load_weights(a), load_weights(b)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def changed_since(store, before):
    opened = open_store(store.url)
    now = data_of(
        opened, [c for c in opened.cases if c.split == "train"], [c for c in opened.cases if c.split == "val"]
    )
    return changes(before, now, opened)


def all_data(store):
    opened = open_store(store.url)
    return data_of(
        opened, [c for c in opened.cases if c.split == "train"], [c for c in opened.cases if c.split == "val"]
    )


def test_every_change_of_a_case_is_told_in_words(store):
    before = all_data(store)
    assert changed_since(store, before) == {}
    moved, other, label, grid, gone = [c for c in open_store(store.url).cases if c.split == "train"][:5]
    new = next(c for c in open_store(store.url).cases if c.split == "test")
    store.put(moved, "split", "val")
    store.put(new, "split", "train")
    store.put(gone, "status", 2)
    content = store.root[other.database]["content"]
    row = content[other.row]
    row[list(row).index(next(iter(other.content.values())))] = "0" * 64
    content[other.row] = row
    store.put(label, "foreground_count", store.root[label.database]["foreground_count"][label.row] + 1)
    store.put(grid, "extent", np.array(grid.extent) - 1)
    files = next(c for c in open_store(store.url).cases if c.split == "val" and c.name != moved.name)
    store.put(files, "source_sha256", "f" * 64)

    def name(case):
        return f"{case.database}/{case.name}"

    assert changed_since(store, before) == {
        "moved from train to val": (name(moved),),
        "new for training": (name(new),),
        "no longer in the store, before for training": (name(gone),),
        "with other scans": (name(other),),
        "with another label": (name(label),),
        "prepared differently (recipe, brain mask or grid)": (name(grid),),
        "from other files, with the same scans": (name(files),),
    }


@pytest.mark.slow
def test_another_recipe_concerns_every_case_of_its_database(store):
    before = all_data(store)
    recipe = dict(store.root["alder"].attrs["recipe"])
    store.root["alder"].attrs["recipe"] = recipe | {"n4": True}
    DatabaseArrays(store.root["alder"]).keep_copy()
    ((what, names),) = changed_since(store, before).items()
    assert what == "prepared differently (recipe, brain mask or grid)"
    assert {name.partition("/")[0] for name in names} == {"alder"}
    assert len(names) == sum(name.startswith("alder/") for name in before.cases)


@pytest.mark.slow
def test_changed_data_are_refused_and_nothing_is_touched(store, four_steps, store_url, tmp_path):
    out = begun(four_steps, store_url, tmp_path / "run", store.url)
    before = {path: path.read_bytes() for path in out.glob("*") if path.is_file()}
    moved = store.case("train")
    store.put(moved, "split", "test")
    with pytest.raises(UsageError, match=rf"1 moved from train to test \(alder/{moved.name}\).*--accept-changes"):
        train(options_for(store.url, num_steps=6), out)
    assert {path: path.read_bytes() for path in out.glob("*") if path.is_file()} == before


@pytest.mark.slow
def test_an_accepted_change_is_logged_and_the_model_keeps_what_it_knew(store, four_steps, store_url, tmp_path):
    out = begun(four_steps, store_url, tmp_path / "run", store.url)
    old = read_learnt(out / "last.safetensors")
    at_step_4 = load_weights(out / "last.safetensors")
    gone, new = store.case("train"), store.case("test")
    store.put(gone, "split", "test")
    store.put(new, "split", "train")
    events = []
    result = train(options_for(store.url, num_steps=6), out, on_event=events.append, accept_changes=True)
    assert (result.step, result.steps_before) == (6, 4)
    (change,) = [event for event in events if isinstance(event, Noted) and event.code == "DATA_CHANGED"]
    assert change.step == 4
    assert set(change.cases) == {f"alder/{gone.name}", f"alder/{new.name}"}
    assert [note["code"] for note in notes(out)] == ["STEPS_CHANGED", "DATA_CHANGED", "LEARNT_BEFORE"]
    # The case that was trained on and is a test case now is named: results on it would flatter the model.
    assert notes(out)[-1]["cases"] == [f"alder/{gone.name}"]
    learnt = read_learnt(out / "last.safetensors")
    assert learnt.train == old.train | {digest[:16] for digest in new.content.values()}
    assert any(
        not torch.equal(tensor, at_step_4[name]) for name, tensor in load_weights(out / "last.safetensors").items()
    )
    # From now on this is what the run learns from.
    assert train(options_for(store.url, num_steps=6), out).step == 6


@pytest.mark.slow
def test_other_validation_cases_choose_the_best_model_anew(store, tmp_path, monkeypatch):
    from multiseg.training import run

    scores = iter([0.9, 0.2])
    monkeypatch.setattr(run, "validate", lambda *others: Validation(next(scores), {}))
    out = tmp_path / "run"
    assert train(options_for(store.url), out).best == 0.9
    store.put(store.case("val"), "split", "test")
    store.put(store.case("train"), "split", "val")
    result = train(options_for(store.url, num_steps=8), out, accept_changes=True)
    assert result.best == 0.2
    assert read_info(out / "model.safetensors").step == 8


@pytest.mark.slow
def test_what_a_run_does_not_learn_from_may_change(store, four_steps, store_url, tmp_path):
    out = begun(four_steps, store_url, tmp_path / "run", store.url)
    store.put(store.case("test"), "status", 2)
    store.put(store.case("train", "birch"), "split", "test")  # a database that the run leaves out
    assert train(options_for(store.url), out).steps_before == 4


@pytest.mark.slow
def test_a_run_from_before_says_once_that_its_data_are_not_known(store, four_steps, store_url, tmp_path):
    out = begun(four_steps, store_url, tmp_path / "run", store.url)
    (out / "data.json").unlink()
    info = read_info(out / "last.safetensors")
    save_weights(out / "last.safetensors", load_weights(out / "last.safetensors"), info)
    train(options_for(store.url, num_steps=5), out)
    train(options_for(store.url, num_steps=5), out)
    assert [note["code"] for note in notes(out)] == ["STEPS_CHANGED", "DATA_UNKNOWN"]
    assert read_data(out) is not None
    assert not read_learnt(out / "last.safetensors").is_complete


@pytest.mark.slow
def test_damaged_data_are_named(store, four_steps, store_url, tmp_path):
    out = begun(four_steps, store_url, tmp_path / "run", store.url)
    (out / "data.json").write_text('{"cases": {"alder/A": 1}}')
    with pytest.raises(CheckpointError, match=r"data\.json, which lists what the run learnt from, is damaged"):
        train(options_for(store.url), out)


@pytest.mark.slow
def test_a_finished_run_gets_more_steps_and_their_schedule(store_url, four_steps, tmp_path):
    out = begun(four_steps, store_url, tmp_path / "run")
    assert rates(out) == pytest.approx([1e-3 * (1 + math.cos(math.pi * n / 4)) / 2 for n in range(4)])
    result = train(options_for(store_url, num_steps=10), out)
    assert (result.step, result.steps_before, result.finished) == (10, 4, True)
    assert rates(out)[4:] == pytest.approx([1e-3 * (1 + math.cos(math.pi * n / 10)) / 2 for n in range(4, 10)])
    assert tomllib.loads((out / "run.toml").read_text())["fit"]["num_steps"] == 10
    (note,) = notes(out)
    assert (note["step"], note["code"]) == (4, "STEPS_CHANGED")
    assert "the number of steps changed from 4 to 10 at step 4" in note["message"]
    assert "0.000655 here, instead of 0." in note["message"]


@pytest.mark.slow
def test_fewer_steps_than_are_done_are_refused_and_the_folder_keeps_its_settings(store_url, four_steps, tmp_path):
    out = begun(four_steps, store_url, tmp_path / "run")
    with pytest.raises(UsageError, match=r"has done 4 steps, but 3 are asked for: steps cannot be undone"):
        train(options_for(store_url, num_steps=3), out)
    assert tomllib.loads((out / "run.toml").read_text())["fit"]["num_steps"] == 4
    assert train(options_for(store_url), out).steps_before == 4


@pytest.mark.slow
def test_an_extended_run_that_was_interrupted_ends_in_the_same_bits(store_url, four_steps, tmp_path):
    straight, broken = (begun(four_steps, store_url, tmp_path / name) for name in ("straight", "broken"))
    train(options_for(store_url, num_steps=10), straight)

    class BreakError(Exception):
        pass

    def stop(event):
        if isinstance(event, StepDone) and event.step == 7:
            raise BreakError

    with pytest.raises(BreakError):
        train(options_for(store_url, num_steps=10, save_minutes=0.0), broken, on_event=stop)
    assert read_info(broken / "last.safetensors").step == 6
    assert train(options_for(store_url, num_steps=10), broken).step == 10
    for name in ("last.safetensors", "model.safetensors"):
        assert same_weights(straight / name, broken / name)
    assert rates(straight) == rates(broken)
    assert len(notes(broken)) == 1


@pytest.mark.slow
def test_the_command_says_finished_already_and_a_default_extends_nothing(store_url, tmp_path, capfd):
    arguments = ["train", store_url, "--out", str(tmp_path / "run"), "--database", "dogwood", "--device", "cpu"]
    arguments += ["--patch", "16", "--batch-size", "1", "--workers", "0", "--augment", "none"]
    assert command([*arguments, "--steps", "1"]) == 0
    assert "already finished" not in capfd.readouterr().err
    assert command(arguments) == 0  # its own number of steps, not the machine's 1000
    assert "is already finished, after 1 steps" in capfd.readouterr().err
    assert command([*arguments, "--steps", "2"]) == 0
    said = capfd.readouterr().err
    assert "STEPS_CHANGED: the number of steps changed from 1 to 2" in said
    assert "already finished" not in said


@pytest.fixture(scope="module")
def trained(store_url, tmp_path_factory):
    """A run that was trained and validated on cases of two hospitals."""
    out = tmp_path_factory.mktemp("trained") / "run"
    train(options_for(store_url, num_steps=1, validate_every=1), out)
    return out


@pytest.mark.slow
def test_a_model_file_knows_the_scans_of_its_cases(store_url, trained):
    cases = [case for case in open_store(store_url).cases if case.database in ("alder", "dogwood")]
    learnt = load_model(trained).learnt
    assert learnt.train == {d[:16] for c in cases if c.split == "train" for d in c.content.values()}
    assert learnt.val == {d[:16] for c in cases if c.split == "val" for d in c.content.values()}
    assert learnt.is_complete


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_after_another_split_training_cases_are_not_called_held_out(store, trained, tmp_path, capfd):
    held_out, learnt = store.case("test"), store.case("train")
    chosen_by = store.case("val")
    store.put(learnt, "split", "test")
    store.put(chosen_by, "split", "test")
    result = evaluate(trained, store.url, EvaluateOptions(databases=("alder",), subsets="full", overlap=0.0))
    assert result.learnt == {
        "train": (f"alder/{learnt.name}",),
        "val": (f"alder/{chosen_by.name}",),
        "": (f"alder/{held_out.name}",),
        "not known": (),
    }
    assert dict(zip(result.cases["case"], result.cases["learnt"], strict=True)) == {
        learnt.name: "train",
        chosen_by.name: "val",
        held_out.name: "",
    }
    assert sorted(result.summary["learnt"]) == ["", "train", "val"]
    assert set(result.summary["num_cases"]) == {1}
    assert result.title == "Cases of the test split, some of them learnt from"
    out = tmp_path / "out"
    assert command(["evaluate", str(trained), "--store", store.url, "--database", "alder", "--subsets", "full",
                    "--overlap", "0", "--device", "cpu", "--out", str(out)]) == 0  # fmt: skip
    said = capfd.readouterr()
    assert "Held-out cases, mean" in said.out
    assert "TRAINED ON, mean" in " ".join(said.out.split())
    assert f"TRAINED ON 1 of the 3 cases (alder/{learnt.name})" in said.err
    assert f"CHOSEN BY 1 of the 3 cases (alder/{chosen_by.name})" in said.err
    assert json.loads((out / "summary.json").read_text())["learnt"]["train"] == [f"alder/{learnt.name}"]
    assert "database,case,learnt," in (out / "cases.csv").read_text()


@pytest.mark.slow
def test_another_store_of_the_same_scans_under_other_names_is_recognised(hospitals, trained, tmp_path, store_url):
    alder = next(files for files in find_manifest(hospitals / "manifest.toml") if files.name == "alder")
    renamed = tuple(
        replace(case, case=f"patient{n}", subject=f"patient{n}", split="test", split_given=True)
        for n, case in enumerate(alder.cases)
    )
    url = str(tmp_path / "other.zarr")
    ingest([replace(alder, name="clinic", cases=renamed)], url, IngestOptions(spacing_mm=(5.0, 5.0, 5.0)))
    coarse = str(tmp_path / "coarse.zarr")
    ingest([replace(alder, name="clinic", cases=renamed[:1])], coarse, IngestOptions(spacing_mm=(9.0, 9.0, 9.0)))
    contents = [
        [sorted(case.content.values()) for case in open_store(one)["clinic"].cases[:1]] for one in (url, coarse)
    ]
    assert contents[0] == contents[1]
    splits = {case.name: case.split for case in open_store(store_url)["alder"].cases}
    expected = {f"patient{n}": splits[case.case].replace("test", "") for n, case in enumerate(alder.cases)}
    result = evaluate(trained, url, EvaluateOptions(subsets="full"))
    assert dict(zip(result.cases["case"], result.cases["learnt"], strict=True)) == expected


@pytest.mark.slow
def test_a_model_that_does_not_say_is_not_called_tested_on_held_out_cases(store_url, trained, tmp_path):
    old = tmp_path / "model.safetensors"
    save_weights(old, load_weights(trained / "last.safetensors"), read_info(trained / "last.safetensors"))
    result = evaluate(old, store_url, EvaluateOptions(databases=("alder",), subsets="full"))
    assert set(result.cases["learnt"]) == {"not known"}
    assert result.title == "Cases of the test split; whether the model learnt from them is not known"


@pytest.mark.slow
def test_a_fine_tuned_model_keeps_what_its_parent_has_learnt_from(store, trained, tmp_path):
    learnt = store.case("train")
    store.put(learnt, "split", "test")
    options = replace(options_for(store.url, num_steps=1), databases=("alder",), start=StartOptions(str(trained)))
    train(options, tmp_path / "child")
    (note,) = notes(tmp_path / "child")
    assert (note["code"], note["cases"]) == ("LEARNT_BEFORE", [f"alder/{learnt.name}"])
    child, parent = read_learnt(tmp_path / "child/last.safetensors"), read_learnt(trained / "last.safetensors")
    assert child.train == parent.train
    assert child.is_complete
    result = evaluate(tmp_path / "child", store.url, EvaluateOptions(databases=("alder",), subsets="full"))
    assert result.learnt["train"] == (f"alder/{learnt.name}",)


@pytest.mark.slow
def test_the_child_of_a_model_that_does_not_say_knows_only_its_own(store_url, trained, tmp_path):
    old = tmp_path / "model.safetensors"
    save_weights(old, load_weights(trained / "last.safetensors"), read_info(trained / "last.safetensors"))
    options = replace(options_for(store_url, num_steps=1), databases=("alder",), start=StartOptions(str(old)))
    train(options, tmp_path / "child")
    assert [note["code"] for note in notes(tmp_path / "child")] == ["LEARNT_UNKNOWN"]
    result = evaluate(tmp_path / "child", store_url, EvaluateOptions("", ("alder",), "full"))
    expected = {"train": "train", "val": "val", "test": "not known"}
    splits = {case.name: expected[case.split] for case in open_store(store_url)["alder"].cases}
    assert dict(zip(result.cases["case"], result.cases["learnt"], strict=True)) == splits
