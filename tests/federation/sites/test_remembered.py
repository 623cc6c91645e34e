"""Which scans a site has learnt from: it knows them again, and nobody else hears of them."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import zarr
from asked import OPTIONS, first_state, round_task, site_of

from multiseg.evaluation.evaluation_result import EvaluateOptions
from multiseg.evaluation.model_evaluation import evaluate
from multiseg.federation import simulation
from multiseg.federation.messages import EVALUATE, FINISH, SiteTask
from multiseg.federation.plan import ScheduleOptions
from multiseg.federation.simulation import SimulationMachine, simulate
from multiseg.federation.sites.answering import answer
from multiseg.federation.sites.remembered import remembered
from multiseg.models.saved import read_learnt
from multiseg.store.reader import open_store


@pytest.fixture
def stores(site_stores, tmp_path):
    """Stores of which alder's may be changed."""
    shutil.copytree(site_stores["alder"], tmp_path / "alder.zarr")
    return {**site_stores, "alder": str(tmp_path / "alder.zarr")}


def in_split(url, split):
    return [case for case in open_store(url).cases if case.split == split]


def move(url, case, split):
    zarr.open_group(url, mode="r+")[case.database]["split"][case.row] = split


def digests(cases):
    return {digest[:16] for case in cases for digest in case.content.values()}


def evaluate_task(info, split, kind=EVALUATE):
    body = {"info": info.to_json(), "options": asdict(OPTIONS), "split": split, "kept": 1}
    return SiteTask(kind, OPTIONS.experiment, 1, body, first_state(info))


@pytest.mark.slow
def test_a_site_leaves_out_of_its_test_what_the_experiment_has_learnt_from(stores, tmp_path, info):
    site = site_of("alder", stores, tmp_path)
    train, (val,), (test,) = (in_split(stores["alder"], split) for split in ("train", "val", "test"))
    assert not answer(round_task(info), site).error
    known = remembered(tmp_path / "alder/experiments/trial")
    assert (known.train, known.val) == (digests(train), digests([val]))
    clean = answer(evaluate_task(info, "test"), site).body
    for case in (train[0], val):
        move(stores["alder"], case, "test")
    told = answer(evaluate_task(info, "test"), site).body
    assert told["metrics"] == clean["metrics"]
    assert told["events"] == ["some test cases were left out: the experiment has learnt from their scans at this site."]
    assert clean["events"] == []
    move(stores["alder"], test, "train")
    assert answer(evaluate_task(info, "test"), site).body["metrics"] == {}


@pytest.mark.slow
def test_a_training_case_that_moves_to_validation_is_not_judged_by(stores, tmp_path, info):
    site = site_of("alder", stores, tmp_path)
    train, (val,) = in_split(stores["alder"], "train"), in_split(stores["alder"], "val")
    answer(round_task(info), site)
    move(stores["alder"], val, "test")
    move(stores["alder"], train[0], "val")
    told = answer(round_task(info, 2), site)
    assert not told.error
    assert "validation" not in told.body["metrics"]
    assert "some val cases were left out" in told.body["events"][0]


@pytest.mark.slow
def test_data_may_change_between_rounds_which_the_site_writes_down(stores, tmp_path, info):
    site, folder = site_of("alder", stores, tmp_path), tmp_path / "alder/experiments/trial"
    (new,) = in_split(stores["alder"], "test")
    before = digests(in_split(stores["alder"], "train"))
    answer(round_task(info), site)
    answer(round_task(info, 2), site)
    assert not (folder / "changes.jsonl").exists()
    move(stores["alder"], new, "train")
    told = answer(round_task(info, 3), site)
    assert not told.error
    (line,) = (folder / "changes.jsonl").read_text().splitlines()
    assert json.loads(line) == {"round": 3, "changes": {"new for training": [f"alder/{new.name}"]}}
    assert remembered(folder).train == before | digests([new])
    assert told.body["events"] == []  # the centre hears of it by the number of cases alone


@pytest.mark.slow
def test_the_model_that_a_site_keeps_knows_the_sites_own_cases(stores, tmp_path, info):
    site, model = site_of("alder", stores, tmp_path), tmp_path / "alder/experiments/trial/model.safetensors"
    answer(round_task(info), site)
    assert not answer(evaluate_task(info, "test", FINISH), site).error
    learnt = read_learnt(model)
    assert learnt.train == digests(in_split(stores["alder"], "train"))
    result = evaluate(model, stores["alder"], EvaluateOptions("", (), "full"))
    expected = {"train": "train", "val": "val", "test": "not known"}  # another site may have had the same patient
    splits = {case.name: expected[case.split] for case in open_store(stores["alder"]).cases}
    assert dict(zip(result.cases["case"], result.cases["learnt"], strict=True)) == splits


@pytest.mark.slow
def test_no_digest_of_a_scan_leaves_a_site(site_stores, tmp_path, monkeypatch):
    sent: list[bytes] = []

    def heard(message):
        data = to_bytes(message)
        sent.append(data)
        return data

    to_bytes = simulation.to_bytes
    monkeypatch.setattr(simulation, "to_bytes", heard)
    out = tmp_path / "run"
    options = replace(OPTIONS, schedule=ScheduleOptions(rounds=2, validation_cases=1, cross_site=True))
    assert simulate(options, site_stores, out, machine=SimulationMachine(device="cpu", least=1)).finished
    secrets = {
        text
        for url in site_stores.values()
        for case in open_store(url).cases
        for digest in (*case.content.values(), case.source_sha256)
        for text in (digest[:16].encode(), bytes.fromhex(digest[:16]))
    }
    assert len(secrets) > 60
    at_the_centre = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and "sites" not in path.parts}
    assert {"model.safetensors", "last.safetensors", "state.safetensors"} <= {path.name for path in at_the_centre}
    assert len(sent) > 2 * 2 * 2 * 3
    for data in (*sent, *at_the_centre.values()):
        assert not any(secret in data for secret in secrets)
    assert read_learnt(out / "model.safetensors") is None
    # They are where they belong, so that this test would find them.
    held = (out / "sites/alder/experiments/trial/model.safetensors").read_bytes()
    assert sum(secret in held for secret in secrets) >= len(digests(in_split(site_stores["alder"], "train")))


@pytest.mark.slow
def test_a_damaged_memory_is_an_error_and_not_forgotten(stores, tmp_path, info):
    site = site_of("alder", stores, tmp_path)
    answer(round_task(info), site)
    file: Path = tmp_path / "alder/experiments/trial/learnt.json"
    file.write_text("{")
    assert "learnt" in answer(round_task(info, 2), site).error
    assert file.read_text() == "{"
