"""Damaged cases at a site: left out, named there alone, counted in the answer."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from asked import OPTIONS, first_state, round_task, site_of

from multiseg.errors import StoppedError, StoreError
from multiseg.federation.messages import EVALUATE, Answer, SiteTask, to_bytes
from multiseg.federation.sites import task_work
from multiseg.federation.sites.answering import answer
from multiseg.federation.sites.policy import Leaves
from multiseg.store.catalogue import select
from multiseg.store.reader import Case, open_store


@pytest.fixture
def stores(site_stores, tmp_path) -> dict[str, str]:
    return {"birch": shutil.copytree(site_stores["birch"], tmp_path / "birch.zarr").__fspath__()}


def here(stores, state: Path, **others):
    return site_of("birch", stores, state, leaves=Leaves(least=1), **{"max_damaged": 0.5, **others})


def case_of(url: str, split: str) -> Case:
    return select(open_store(url), split=split)[0]


def spoil(url: str, case: Case) -> dict[Path, bytes]:
    """Flip a byte in the middle of every image file of a case; the files as they were."""
    before = {}
    for file in (Path(url) / case.database / "image" / "c" / str(case.row)).rglob("*"):
        if file.is_file():
            before[file] = file.read_bytes()
            data = bytearray(before[file])
            data[len(data) // 2] ^= 0xFF
            file.write_bytes(data)
    assert before
    return before


def bits(found: Answer) -> dict[str, bytes]:
    assert not found.error, found.error
    return {name: tensor.numpy().tobytes() for name, tensor in found.tensors.items()}


@pytest.mark.slow
def test_a_round_leaves_a_damaged_case_out_and_counts_it(stores, tmp_path, info, caplog) -> None:
    sound = bits(answer(round_task(info), here(stores, tmp_path / "sound")))
    case = case_of(stores["birch"], "train")
    before = spoil(stores["birch"], case)
    name = f"{case.database}/{case.name}"
    with caplog.at_level(logging.WARNING, "multiseg.federation"):
        found = answer(round_task(info), here(stores, tmp_path / "one"))
    assert found.body["damaged"] == 5  # one, rounded up
    (event,) = [text for text in found.body["events"] if "damaged" in text]
    assert event == "up to 5 cases were left out, since their files are damaged: this site's log lists them."
    assert case.name not in str(found.body)
    assert any(name in record.getMessage() for record in caplog.records)
    assert list(json.loads((tmp_path / "one/birch/experiments/trial/damaged.json").read_text())) == [name]
    assert bits(found) != sound
    assert bits(answer(round_task(info), here(stores, tmp_path / "two"))) == bits(found)
    assert to_bytes(answer(round_task(info), here(stores, tmp_path / "one"))) == to_bytes(found)
    for file, data in before.items():
        file.write_bytes(data)
    state = first_state(info, seed=4)
    mended = answer(round_task(info, state=state), here(stores, tmp_path / "one"))
    assert "damaged" not in mended.body
    assert bits(mended) == bits(answer(round_task(info, state=state), here(stores, tmp_path / "new")))
    assert json.loads((tmp_path / "one/birch/experiments/trial/damaged.json").read_text()) == {}


@pytest.mark.slow
def test_a_round_that_was_stopped_after_the_damage_came_to_light_is_the_same(stores, tmp_path, info) -> None:
    spoil(stores["birch"], case_of(stores["birch"], "train"))
    whole = answer(round_task(info), here(stores, tmp_path / "whole"))
    steps = []
    site = here(stores, tmp_path / "cut")
    with pytest.raises(StoppedError):
        answer(round_task(info), site, lambda: len(steps) > 0, steps.append)
    assert bits(answer(round_task(info), site)) == bits(whole)


@pytest.mark.slow
def test_more_damage_than_the_site_allows_is_refused(stores, tmp_path, info) -> None:
    case = case_of(stores["birch"], "train")
    spoil(stores["birch"], case)
    found = answer(round_task(info), here(stores, tmp_path, max_damaged=0.05))
    assert "more of this site's cases are damaged than it allows (max_damaged" in found.error
    assert case.name not in found.error
    assert not found.tensors


@pytest.mark.slow
def test_an_evaluation_leaves_a_damaged_case_out(stores, tmp_path, info) -> None:
    spoil(stores["birch"], case_of(stores["birch"], "val"))
    body = {"info": info.to_json(), "options": round_task(info).body["options"], "split": "val", "subsets": "full"}
    task = SiteTask(EVALUATE, OPTIONS.experiment, 0, body, first_state(info))
    found = answer(task, here(stores, tmp_path, max_damaged=1.0))
    assert not found.error, found.error
    assert (found.body["damaged"], found.body["metrics"]) == (5, {})
    assert "max_damaged" in answer(task, here(stores, tmp_path / "strict")).error


def test_what_is_no_damage_of_a_case_stays_an_error(stores, tmp_path, info, monkeypatch) -> None:
    def fails(work: object) -> Answer:
        raise StoreError("something else")

    monkeypatch.setitem(task_work._KINDS, "round", fails)
    assert "something else" in answer(round_task(info), here(stores, tmp_path)).error


@pytest.mark.slow
def test_torch_is_left_alone(stores, tmp_path, info) -> None:
    """The second attempt draws the same numbers as the first, whatever happened in between."""
    spoil(stores["birch"], case_of(stores["birch"], "train"))
    one = answer(round_task(info), here(stores, tmp_path / "one"))
    torch.manual_seed(7)
    assert bits(answer(round_task(info), here(stores, tmp_path / "two"))) == bits(one)
