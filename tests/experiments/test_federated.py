"""A federation as an arm of an experiment: planned, run, and its misses counted."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from multiseg.experiments.federated import (
    CENTRAL,
    FEDERATED,
    LONE,
    MANNERS,
    SIMPLE,
    STOCK,
    federated,
    lone_sequences,
    lone_subsets,
    plan,
    with_misses,
)
from multiseg.experiments.ground import Ground, ground_of
from multiseg.experiments.runs import Exam
from multiseg.experiments.scales import SCALES
from multiseg.experiments.worker import RunTask, do, is_finished, read_cases, read_done, run_folder
from multiseg.models.saved import read_info

GROUND = Ground(
    "nowhere.zarr",
    {"a": ("FLAIR", "T1", "PD"), "b": ("FLAIR", "T1"), "c": ("FLAIR", "DWI", "ADC")},
    SCALES["small"],
    num_seeds=1,
    digest="",
    synthetic=False,
)


def test_what_only_one_site_has_is_asked_for_alone() -> None:
    assert lone_sequences(GROUND) == {"a": ("PD",), "c": ("DWI", "ADC")}
    assert lone_subsets(("DWI", "ADC")) == "DWI,ADC,DWI+ADC"
    exams = {(arm.name, arm.exam.databases, arm.exam.subsets) for arm in plan(GROUND) if arm.name.startswith(LONE)}
    assert exams == {
        (LONE + name, (database,), subsets)
        for name in (FEDERATED, STOCK, SIMPLE, CENTRAL)
        for database, subsets in (("a", "PD"), ("c", "DWI,ADC,DWI+ADC"))
    }


def test_all_manners_take_the_central_number_of_steps() -> None:
    for manner in MANNERS.values():
        told = federated(GROUND, 0, manner).federation
        assert told["local"]["steps"] * told["schedule"]["rounds"] == GROUND.scale.steps
    assert federated(GROUND, 0, MANNERS[STOCK]).federation["aggregate"]["unit"] == "tensors"
    keys = {federated(GROUND, 0, manner).key for manner in MANNERS.values()}
    assert len(keys) == 3


def test_a_case_that_a_model_cannot_take_counts_as_nothing_found() -> None:
    rows = [("ours", "x", 0.5), ("ours", "y", 0.7), ("ours", "empty", float("nan")), ("theirs", "x", 0.4)]
    cases = pd.DataFrame([{"arm": a, "seed": 0, "database": "d", "case": c, "dice": v} for a, c, v in rows])
    filled = with_misses(cases, ["ours", "theirs"]).set_index(["arm", "case"])["dice"]
    assert filled.to_dict() == {("ours", "x"): 0.5, ("ours", "y"): 0.7, ("theirs", "x"): 0.4, ("theirs", "y"): 0.0}


@pytest.mark.slow
def test_every_database_is_a_site_and_the_model_is_tested_as_all_others(store_url: str, tmp_path: Path) -> None:
    ground = ground_of(store_url, replace(SCALES["tiny"], num_cases=4), num_seeds=1)
    run = federated(ground, 0, MANNERS[FEDERATED])
    task = RunTask(run, (Exam(("alder",)),), tmp_path, overlap=0.0, device="cpu")
    outcome = do(task)
    assert outcome.failure == ""
    assert is_finished(task)
    assert read_done(tmp_path, run)["step"] == ground.scale.steps
    info = read_info(run_folder(tmp_path, run) / "last.safetensors")
    assert set(info.databases) == {f"{name}/{name}" for name in ground.training}
    assert info.trained_on["PD"] == ("alder/alder",)
    assert set(read_cases(tmp_path, run, Exam(("alder",)))["database"]) == {"alder"}
