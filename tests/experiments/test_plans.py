"""What each experiment trains and asks, without training anything."""

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest

from multiseg.config import to_options
from multiseg.errors import UsageError
from multiseg.experiments.by_name import EXPERIMENTS, check_name, chosen
from multiseg.experiments.drop import ARCHITECTURES, CONSISTENCY, CONSISTENT
from multiseg.experiments.ground import Ground, Roles
from multiseg.experiments.leave_one_out import lone_sequence
from multiseg.experiments.new_database import new_databases
from multiseg.experiments.runs import Arm, Run, in_order, joint, single, without
from multiseg.experiments.scales import SCALES

GROUND = Ground(
    "nowhere.zarr",
    {
        "alder": ("PD", "FLAIR", "T1", "T2"),
        "birch": ("FLAIR", "T1", "T1c", "T2"),
        "cedar": ("FLAIR", "DWI", "ADC"),
        "dogwood": ("FLAIR", "T1"),
        "elm": ("T1",),
    },
    SCALES["tiny"],
    num_seeds=2,
    digest="",
    synthetic=True,
)
WITH_ROLES = replace(
    GROUND,
    sequences={"hazel": ("T1",), "ivy": ("FLAIR", "T1", "T1c")},
    roles=Roles("hazel", "ivy", ("ivy/tissue",), ("CSF", "grey matter"), ("CSF",)),
)


def arms(name: str) -> Sequence[Arm]:
    return EXPERIMENTS[name].plan(WITH_ROLES if EXPERIMENTS[name].has_roles else GROUND)


def trained(arm: Arm) -> list[Run]:
    """The runs behind an arm that are trainings."""
    return [run for run in in_order([arm]) if not run.fused]


def databases(run: Run) -> list[str]:
    return list(run.settings["databases"])


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_arm_has_every_seed_and_settings_that_training_takes(name: str) -> None:
    by_arm: dict[tuple[str, tuple[str, ...], str], list[int]] = {}
    for arm in arms(name):
        for run in trained(arm):
            to_options(run.settings)
            assert run.seed == arm.run.seed
        assert json.loads(json.dumps(arm.run.settings))["seed"] == arm.run.seed
        by_arm.setdefault((arm.name, arm.exam.databases, arm.exam.subsets), []).append(arm.run.seed)
    assert all(seeds == [0, 1] for seeds in by_arm.values())


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_nobody_is_tested_on_cases_that_were_trained_on(name: str) -> None:
    for arm in arms(name):
        learnt = {database for run in trained(arm) for database in databases(run)}
        assert arm.exam.split == "test" or not learnt & set(arm.exam.databases)
        assert not learnt & {"fir", "gorse"}


def test_experiments_share_their_trainings() -> None:
    runs = {name: {run.key for run in in_order(arms(name))} for name in EXPERIMENTS}
    model = joint(GROUND, 0).key
    assert all(model in runs[name] for name in ("joint", "unseen-combinations", "drop", "plus"))
    assert without(GROUND, "alder", 0).key in runs["leave-one-out"] & runs["finetune"]
    assert runs["unseen-combinations"] - runs["joint"] == {joint(GROUND, seed, "none").key for seed in (0, 1)}
    assert len(in_order(arms("joint"))) == 2 * (5 + 4 + 1)  # elm has nothing to drop


def test_a_run_is_its_settings_and_its_parent_not_its_name() -> None:
    run = joint(GROUND, 0)
    assert Run("another name", dict(reversed(run.settings.items()))).key == run.key
    assert len({run.key, joint(GROUND, 1).key, joint(GROUND, 0, "none").key, Run("", run.settings, run).key}) == 4


def test_parents_come_before_their_children() -> None:
    keys: list[str] = []
    for run in in_order(arms("finetune")):
        assert run.parent is None or run.parent.key in keys
        keys.append(run.key)
    assert len(keys) == len(set(keys))


def test_a_joint_model_sees_as_many_patches_of_each_database_as_its_own_model() -> None:
    share = {run.settings["stream"]["batch_size"] / len(databases(run)) for run in in_order(arms("joint"))}
    assert share == {GROUND.scale.num_patches}
    assert {run.settings["fit"]["num_steps"] for run in in_order(arms("joint"))} == {GROUND.scale.steps}


def test_drop_differs_in_nothing_but_drop() -> None:
    for builder in ARCHITECTURES:
        one, other = joint(GROUND, 0, "uniform", builder), joint(GROUND, 0, "none", builder)
        assert json.dumps(one.settings).replace('"uniform"', '"none"') == json.dumps(other.settings)
        assert one.settings["model"]["builder"] == builder


def test_drop_with_consistency_differs_in_nothing_but_the_term() -> None:
    (ours, other) = [arm.run for arm in arms("drop") if arm.name == CONSISTENT]
    plain = joint(GROUND, 0)
    assert ours.settings == {**plain.settings, "fit": {**plain.settings["fit"], **CONSISTENCY}}
    assert (ours.seed, other.seed) == (0, 1)
    assert "consistency" not in plain.settings["fit"]


def test_what_is_held_out_is_fed_only_what_others_taught() -> None:
    assert GROUND.known_without("cedar") == ("FLAIR",)
    assert GROUND.known_without("alder") == ("FLAIR", "T1", "T2")
    assert [lone_sequence(GROUND, name) for name in GROUND.training] == ["FLAIR", "FLAIR", "FLAIR", "FLAIR", "T1"]
    for arm in arms("leave-one-out"):
        if arm.name.startswith("held out"):
            assert set(databases(arm.run)) == set(GROUND.training) - set(arm.exam.databases)
        else:
            assert databases(arm.run) == list(arm.exam.databases)


def test_fine_tuning_starts_from_the_model_that_never_saw_the_database() -> None:
    (name,) = new_databases(GROUND)  # the tiny scale takes one
    assert name == "alder"
    found = {arm.name: arm.run for arm in arms("finetune") if arm.run.seed == 0}
    assert found.keys() == {
        "none (never saw it)", "scratch, few", "finetune, few", "progressive, few", "scratch, all", "finetune, all",
        "progressive, all",
    }  # fmt: skip
    parent = without(GROUND, name, 0)
    assert found.pop("none (never saw it)").key == parent.key
    for arm, run in found.items():
        method, amount = arm.split(", ")
        assert databases(run) == [name]
        assert (run.parent is None) == (method == "scratch")
        assert run.parent is None or run.parent.key == parent.key
        assert run.settings.get("start", {}).get("method", "scratch") == method
        assert run.settings["stream"]["draw"].get("num_cases", 0) == (GROUND.scale.few if amount == "few" else 0)
        assert run.settings["fit"]["num_steps"] == GROUND.scale.finetune_steps


def test_a_database_that_shares_no_sequence_cannot_be_held_out() -> None:
    ground = Ground("x", {"a": ("T1",), "b": ("T1", "FLAIR"), "c": ("DWI",)}, SCALES["tiny"], 1, "", synthetic=False)
    assert {arm.exam.databases for arm in EXPERIMENTS["leave-one-out"].plan(ground)} == {("a",), ("b",)}
    assert "c" not in new_databases(ground)


def test_names() -> None:
    assert single(GROUND, "elm", 0, "uniform").key == single(GROUND, "elm", 0).key
    assert {one.name for one in chosen("all", synthetic=True)} == EXPERIMENTS.keys() - {"ace", "hetero"}
    assert {one.name for one in chosen("all", synthetic=False)} == EXPERIMENTS.keys() - {
        "unseen-combinations", "ace", "ace-tumour", "hetero", "two-branch",
    }  # fmt: skip
    with pytest.raises(UsageError, match="no experiment 'table5'; there are joint, unseen"):
        check_name("table5", synthetic=True)
    with pytest.raises(UsageError, match="about some of the synthetic hospitals: leave out --store"):
        check_name("unseen-combinations", synthetic=False)
