"""The experiment on two branches: which stages the arms share, what is compared, and the whole way, tiny."""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from multiseg.experiments import decoupled
from multiseg.experiments.anatomy_ground import synthetic_grafting_ground
from multiseg.experiments.by_name import EXPERIMENTS
from multiseg.experiments.decoupled import ADAPTED, COTRAINED, GRAFTED, JOINT, KINDS, OF_BRANCH, PRETRAINED
from multiseg.experiments.ground import Ground, Roles
from multiseg.experiments.results import Machine, run_experiment
from multiseg.experiments.runs import Arm, Exam, Run, in_order
from multiseg.experiments.scales import SCALES
from multiseg.models.saved import read_info
from multiseg.store.reader import open_store

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
    assert len(runs) == 7
    assert runs.index(joint.pseudo_labels) < runs.index(joint)
    assert len({run.key for run in runs}) == 7
    assert replace(joint, pseudo_labels=None).key != joint.key


def test_no_stage_sees_the_tissues_of_the_patients_and_the_arms_differ_in_what_they_say() -> None:
    found = arms()
    for run in in_order(found.values()):
        is_lesions = run.settings["databases"] == ["ivy"]
        assert run.settings["hide"] == (["ivy/tissue"] if is_lesions else [])
    grafted, meta = (found[name].run.settings for name in (GRAFTED, COTRAINED))
    assert grafted == {**meta, "meta": {"donors": ["ivy"], "inner_rate": 0.0}}
    assert meta["meta"] == {"donors": ["ivy"]}
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
    assert len({arm.exam.key for arm in found.values()}) == 5
    assert found[JOINT].exam.options(0.25).zones
    assert Exam(("ivy",)).key == Exam(("ivy",), zones=False).key != plain.key
    assert {arm.name for arm in decoupled.pictured(GROUND)} <= set(found)


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


@pytest.mark.slow
def test_from_heads_to_tables(tmp_path: Path) -> None:
    ground = synthetic_grafting_ground(tmp_path, replace(SCALES["tiny"], coarseness=3.0, steps=1, finetune_steps=1), 1)
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
