"""The experiment on two branches: which stages the arms share, what is compared, and the whole way, tiny."""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from multiseg.errors import UsageError
from multiseg.evaluation.zones import zones_of
from multiseg.experiments import decoupled
from multiseg.experiments.anatomy_ground import synthetic_grafting_ground
from multiseg.experiments.by_name import EXPERIMENTS
from multiseg.experiments.decoupled import (
    ADAPTED,
    COTRAINED,
    FIRST_ORDER,
    FOUND_LABELS,
    GRAFTED,
    JOINT,
    KINDS,
    LESIONS,
    OF_BRANCH,
    PRETRAINED,
)
from multiseg.experiments.grafted_ground import grafted_ground_of
from multiseg.experiments.ground import Ground, Roles
from multiseg.experiments.results import Machine, run_experiment
from multiseg.experiments.runs import Arm, Exam, Run, in_order
from multiseg.experiments.scales import SCALES
from multiseg.labels import LabelSpace
from multiseg.models.saved import read_info
from multiseg.store.catalogue import select
from multiseg.store.reader import open_store
from multiseg.training import joint_loss

SPACE = LabelSpace.of(["tissue:CSF", "tissue:grey matter", "tissue:white matter", "lesion"])
ROLES = Roles("hazel", "ivy", ("ivy/tissue",), ("CSF", "grey matter"), ("CSF", "grey matter"), "hazel/H001")
GROUND = Ground("nowhere.zarr", {"hazel": ("T1",), "ivy": ("FLAIR", "T1")}, SCALES["tiny"], 2, "", True, ROLES)


def arms(seed: int = 0) -> dict[str, Arm]:
    return {arm.name: arm for arm in decoupled.plan(GROUND) if arm.run.seed == seed}


def chain(run: Run) -> list[str]:
    """The stages that led to a run, and its databases."""
    before = chain(run.parent) if run.parent else []
    return [*before, f"{run.settings['stage']} {' '.join(run.settings['databases'])}"]


def test_every_arm_begins_with_the_same_two_stages() -> None:
    found = arms()
    pretrained = ["pretrain_tissue hazel", "pretrain_lesion ivy"]
    assert chain(found[PRETRAINED].run) == [*pretrained, "pretrain_tissue hazel"]
    assert chain(found[COTRAINED].run) == [*pretrained, "cotrain hazel"]
    joint = found[JOINT].run
    assert chain(joint) == [*pretrained, "cotrain hazel", "joint ivy"]
    assert joint.pseudo_labels is not None
    assert chain(joint.pseudo_labels) == [*pretrained, "cotrain hazel", "pseudo_label ivy"]
    runs = in_order(found.values())
    assert len(runs) == 10
    assert runs.index(joint.pseudo_labels) < runs.index(joint)
    assert len({run.key for run in runs}) == 10
    found_labels = found[FOUND_LABELS].run
    assert found_labels.settings == joint.settings
    assert found_labels.parent == joint.parent
    assert found_labels.pseudo_labels is not None
    assert found_labels.pseudo_labels.settings["meta"] == {"adapt_to": "found"}
    assert found_labels.pseudo_labels.parent == joint.pseudo_labels.parent
    assert replace(joint, pseudo_labels=None).key != joint.key


def test_kept_runs_of_other_losses_of_the_stage_joint_are_not_mixed_in(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = {stage: Run("", {"seed": 0, "stage": stage}) for stage in ("", "cotrain", "joint")}
    before = {stage: run.key for stage, run in runs.items()}
    assert before["cotrain"] == "976939aa1160"  # as before the key had a version
    monkeypatch.setattr(joint_loss, "VERSION", joint_loss.VERSION + 1)
    assert {stage for stage, run in runs.items() if run.key != before[stage]} == {"joint"}


def test_no_stage_sees_the_tissues_of_the_patients_and_the_arms_differ_in_what_they_say() -> None:
    found = arms()
    for run in in_order(found.values()):
        is_lesions = run.settings["databases"] == ["ivy"]
        assert run.settings["hide"] == (["ivy/tissue"] if is_lesions else [])
    grafted, meta = (found[name].run.settings for name in (GRAFTED, COTRAINED))
    assert grafted == {**meta, "meta": {"donors": ["ivy"], "inner_rate": 0.0}}
    assert meta["meta"] == {"donors": ["ivy"]}
    assert found[FIRST_ORDER].run.settings == {**meta, "meta": {"donors": ["ivy"], "first_order": True}}
    assert found[FIRST_ORDER].run.parent == found[COTRAINED].run.parent
    further = found[PRETRAINED].run.settings
    assert further["fit"]["num_steps"] == meta["fit"]["num_steps"] == SCALES["tiny"].finetune_steps
    first = in_order(found.values())[0].settings
    assert first["meta"] == {"anchor": "hazel/H001"}
    assert "start" not in first


def test_the_exams_of_the_arms() -> None:
    found = arms()
    plain = Exam(("ivy",), zones=True, branch="pasted")
    assert found[PRETRAINED].exam == plain
    assert found[JOINT].exam == replace(plain, branch="")
    assert found[JOINT + ADAPTED].exam == replace(plain, branch="", adapt=True)
    assert found[COTRAINED + ADAPTED + OF_BRANCH].exam == replace(plain, branch="anatomy", adapt=True)
    assert COTRAINED + ADAPTED not in found
    adapted = found[COTRAINED + ADAPTED + OF_BRANCH].exam
    assert {found[name + OF_BRANCH].run.key for name in LESIONS} == {found[COTRAINED].run.key}
    others = [replace(adapted, adapt_to=name) for name in ("half", "quarter", "true")]
    assert [found[name + OF_BRANCH].exam for name in LESIONS] == others
    assert others[0].options(0.25).adapt_to == "half"
    assert len({arm.exam.key for arm in found.values()}) == 8
    assert found[JOINT].exam.options(0.25).zones
    assert Exam(("ivy",)).key == Exam(("ivy",), zones=False).key != plain.key
    assert {arm.name for arm in decoupled.pictured(GROUND)} <= set(found)


def test_test_cases_apart_have_a_store_of_their_own() -> None:
    roles = replace(ROLES, anchor="", test_store="tests.zarr", test_databases=("hazel-grafted",))
    plan = decoupled.plan(replace(GROUND, roles=roles))
    assert {(arm.exam.store, arm.exam.databases) for arm in plan} == {("tests.zarr", ("hazel-grafted",))}
    assert plan[0].exam.key != decoupled.plan(GROUND)[0].exam.key
    note = decoupled.note_of(replace(GROUND, roles=roles))
    assert "held-out cases of hazel with lesions of ivy grafted in" in note
    assert "without an anchor" in note


def rows(arm: str, under: float, near: float, elsewhere: float, lesion: float | None) -> list[dict[str, object]]:
    zones = {"dice_under_lesion": under, "dice_near_lesion": near, "dice_elsewhere": elsewhere}
    none = dict.fromkeys(zones, float("nan"))
    tissues = [{"label": name, "dice": 0.99, **zones} for name in ("CSF", "grey matter")]
    both = [*tissues, *([] if lesion is None else [{"label": "lesion", "dice": lesion, **none}])]
    same = {"arm": arm, "seed": 0, "database": "ivy"}
    return [{**same, "case": case, **row} for case in ("1", "2") for row in both]


CASES = pd.DataFrame(
    [
        *rows(PRETRAINED, 0.0, 0.6, 0.8, 0.5), *rows(PRETRAINED + OF_BRANCH, 0.4, 0.61, 0.81, None),
        *rows(GRAFTED, 0.0, 0.7, 0.8, 0.5), *rows(GRAFTED + OF_BRANCH, 0.5, 0.71, 0.81, None),
        *rows(GRAFTED + ADAPTED + OF_BRANCH, 0.55, 0.71, 0.80, None),
        *rows(JOINT, 0.1, 0.65, 0.85, 0.6), *rows(JOINT + ADAPTED, 0.1, 0.66, 0.85, 0.58),
    ]
)  # fmt: skip


def test_tables_by_zone() -> None:
    branch, gaps, adapting, whole, whole_gaps = decoupled.tables(CASES, GROUND)
    by_zone = branch.frame.set_index("arm")
    assert by_zone.loc[GRAFTED, "under the lesion"] == pytest.approx(0.5)
    assert by_zone.loc[PRETRAINED, "within 10 mm"] == pytest.approx(0.61)
    assert by_zone.loc[GRAFTED, "elsewhere, seeds"] == "0.810 to 0.810"
    told = gaps.frame.set_index(["zone", "arms"])["difference"]
    assert told["under the lesion", f"{GRAFTED} - {PRETRAINED}"] == pytest.approx(0.1)
    told = adapting.frame.set_index(["zone", "arms"])["difference"]
    assert told["under the lesion", f"{GRAFTED}{ADAPTED} - {GRAFTED}"] == pytest.approx(0.05)
    answers = whole.frame.set_index("arm")
    assert list(answers.index) == [PRETRAINED, GRAFTED, JOINT, JOINT + ADAPTED]
    assert "under the lesion" not in answers
    assert answers.loc[JOINT, ["within 10 mm", "elsewhere", "lesion"]].tolist() == pytest.approx([0.65, 0.85, 0.6])
    told = whole_gaps.frame.set_index(["zone", "arms"])["difference"]
    assert told["lesion", f"{JOINT}{ADAPTED} - {JOINT}"] == pytest.approx(-0.02)
    assert "ivy/tissue hidden" in branch.note


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ground, Path]:
    """The tiny synthetic hospitals with a template, and the folder that they are in."""
    folder = tmp_path_factory.mktemp("grafting")
    scale = replace(SCALES["tiny"], num_cases=3, coarseness=3.0, steps=1, finetune_steps=1)
    return synthetic_grafting_ground(folder, scale, 1), folder


@pytest.mark.slow
def test_own_cases_are_tested_with_grafted_lesions(synthetic: tuple[Ground, Path], tmp_path: Path) -> None:
    made, _ = synthetic
    ground = grafted_ground_of(tmp_path, made.store, made.scale, 1)
    roles = ground.roles
    assert roles is not None
    assert (roles.tissues, roles.lesions) == ("hazel", "ivy")
    assert set(roles.hidden) == {"ivy/tissue", "ivy/FLAIR", "ivy/T1c", "ivy/T2"}
    assert ground.sequences == {"hazel": ("T1",), "ivy": ("T1",)}
    assert roles.anchor.startswith("hazel/")
    tests = open_store(roles.test_store)
    assert tuple(tests) == roles.test_databases == ("hazel-grafted",)
    held_out = {case.subject for case in select(open_store(made.store), ["hazel"], split="test")}
    for case in select(tests):
        assert case.subject in held_out
        zones = zones_of(tests[case.database], case, tests[case.database].whole(case)[1], SPACE)
        assert (zones.tissue[zones.masks["dice_under_lesion"]] != 255).all()
        assert zones.tissue[zones.masks["dice_under_lesion"]].any()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert grafted_ground_of(tmp_path, made.store, made.scale, 1, "hazel", "ivy") == ground
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    with pytest.raises(UsageError, match="--lesions hazel does not fit"):
        grafted_ground_of(tmp_path, made.store, made.scale, 1, lesions="hazel")


@pytest.mark.slow
def test_a_store_without_a_template_is_refused(store_url: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no template"):
        grafted_ground_of(tmp_path, store_url, SCALES["tiny"], 1, "alder", "birch")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_from_heads_to_tables(synthetic: tuple[Ground, Path]) -> None:
    ground, tmp_path = synthetic
    store = open_store(ground.store)
    assert store["hazel"].pathology == "phantom"
    assert all(case.to_template is not None for name in store for case in store[name].cases)
    result = run_experiment(EXPERIMENTS["two-branch"], ground, tmp_path, Machine(jobs=1))
    assert result.failures == {}
    cases = pd.read_csv(result.folder / "cases.csv")
    assert set(cases["arm"]) == {arm.name for arm in decoupled.plan(ground)}
    lesions = cases[cases["label"] == "lesion"]
    assert not lesions["arm"].str.endswith(OF_BRANCH).any()
    under = cases[cases["arm"].str.endswith(OF_BRANCH)]["dice_under_lesion"]
    assert under.notna().any()
    assert (result.folder / "montage.png").read_bytes().startswith(b"\x89PNG")
    runs = {run["settings"]["stage"]: run for run in json.loads((result.folder / "runs.json").read_text())["runs"]}
    assert runs["joint"]["pseudo_labels"] == runs["pseudo_label"]["key"]
    joint = tmp_path / "runs" / runs["joint"]["key"]
    info = read_info(joint / "model.safetensors")
    assert info.numbers["anchor"] == [8, 8, 8]
    assert len(info.ancestry) == 3
    assert set(KINDS) <= set(cases["arm"])
