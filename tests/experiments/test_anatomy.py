"""Experiments on anatomy with lesions: the roles of databases, models that answer as one, tables by structure."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from multiseg.errors import UsageError
from multiseg.experiments import ace, anatomy_ground, hetero
from multiseg.experiments.anatomy_ground import anatomy_ground_of, synthetic_anatomy_ground
from multiseg.experiments.by_name import EXPERIMENTS
from multiseg.experiments.ground import Ground, Roles
from multiseg.experiments.pictures import median_case
from multiseg.experiments.results import Machine, run_experiment
from multiseg.experiments.runs import Arm, in_order
from multiseg.experiments.scales import SCALES
from multiseg.labels import LabelSchema
from multiseg.store.reader import open_store
from multiseg.store.structures import hide

ROLES = Roles("hazel", "ivy", ("ivy/tissue",), ("CSF", "grey matter"), ("CSF", "grey matter"))
GROUND = Ground(
    "nowhere.zarr",
    {"hazel": ("T1",), "ivy": ("FLAIR", "T1")},
    SCALES["tiny"],
    num_seeds=2,
    digest="",
    synthetic=True,
    roles=ROLES,
)
T1_ALONE, T1_TESTED = "ACE of T1 alone", "ACE, tested on T1"
NAMES = ("naive CE", "naive Dice", "ACE", "ACE + Dice", "multi-network", T1_ALONE, T1_TESTED)


def arms(ground: Ground = GROUND, seed: int = 0) -> dict[str, Arm]:
    return {arm.name: arm for arm in ace.plan(ground) if arm.run.seed == seed}


def test_arms_differ_in_their_loss_or_in_what_is_hidden_and_in_nothing_else() -> None:
    found = arms()
    assert tuple(found) == NAMES
    ours = found["ACE"].run.settings
    assert ours["hide"] == ["ivy/tissue"]
    assert ours["labels"] == ["tissue:CSF", "tissue:grey matter", "lesion"]
    assert ours["fit"]["class_weights"] == "inverse-root"
    objectives = {"naive CE": "naive_ce", "naive Dice": "naive_dice", "ACE + Dice": "ace+dice"}
    for name, objective in objectives.items():
        fit = {**ours["fit"], "objective": objective}
        if name == "naive Dice":
            del fit["class_weights"]  # it has no cross entropy
        assert found[name].run.settings == {**ours, "fit": fit}
    assert found[T1_ALONE].run.settings == {**ours, "hide": ["ivy/tissue", "ivy/FLAIR"]}
    assert found[T1_TESTED].run == found["ACE"].run
    assert {arm.exam.subsets for name, arm in found.items() if name != T1_TESTED} == {"full"}
    assert found[T1_TESTED].exam.subsets == "T1"
    assert {arm.exam.databases for arm in found.values()} == {("ivy",)}


def test_the_multi_network_is_two_models_with_as_many_patches_of_each_database() -> None:
    run = arms()["multi-network"].run
    tissue, lesion = run.fused
    assert tissue.settings["fit"]["class_weights"] == lesion.settings["fit"]["class_weights"] == "inverse-root"
    assert (tissue.settings["databases"], lesion.settings["databases"]) == (["hazel"], ["ivy"])
    assert tissue.settings["labels"] == ["tissue:CSF", "tissue:grey matter"]
    assert lesion.settings["labels"] == ["lesion"]
    assert (tissue.settings["hide"], lesion.settings["hide"]) == ([], ["ivy/tissue"])
    assert {one.settings["stream"]["batch_size"] for one in (tissue, lesion)} == {1}
    assert arms()["ACE"].run.settings["stream"]["batch_size"] == 2
    assert [one.key for one in in_order([arms()["multi-network"]])] == [tissue.key, lesion.key, run.key]
    assert run.cost == 0
    assert len({run.key, replace(run, fused=()).key, replace(run, fused=(lesion, tissue)).key}) == 3


def test_without_a_further_sequence_there_is_nothing_to_gain_from_a_union() -> None:
    ground = replace(GROUND, sequences={"hazel": ("T1",), "ivy": ("T1",)})
    assert tuple(arms(ground)) == NAMES[:5]
    assert [arm.name for arm in ace.pictured(GROUND)] == list(NAMES[:6])


def hetero_arms() -> dict[str, Arm]:
    return {arm.name: arm for arm in hetero.plan(GROUND) if arm.run.seed == 0}


def test_hetero_modal_arms_differ_in_consistency_or_in_what_is_hidden() -> None:
    found = hetero_arms()
    ours = found["both, from T1"].run.settings
    fit = ours["fit"]
    assert (fit["objective"], fit["consistency"], fit["consistency_partner"]) == ("joint_jaccard", 1.0, "T1")
    assert (ours["databases"], ours["hide"]) == (["hazel", "ivy"], ["ivy/tissue"])
    assert (ours["model"]["builder"], ours["stream"]["draw"]["drop"]) == ("unet_hetero", "none")
    without = {**ours, "fit": {**fit, "consistency": 0.0}}
    assert found["both, no consistency, from T1"].run.settings == without
    assert found["upper bound, from T1"].run.settings == {**without, "hide": []}
    tissue, lesion = found["each alone, from T1"].run.fused
    assert [one.settings["databases"] for one in (tissue, lesion)] == [["hazel"], ["ivy"]]
    assert [one.settings["labels"] for one in (tissue, lesion)] == [["tissue:CSF", "tissue:grey matter"], ["lesion"]]
    assert (tissue.settings["hide"], lesion.settings["hide"]) == ([], ["ivy/tissue"])
    assert tissue.settings["fit"] == lesion.settings["fit"] == without["fit"]


def test_the_upper_bound_reveals_tissues_only() -> None:
    """Lesions that the database of tissues is annotated for stay hidden."""
    ground = replace(GROUND, roles=replace(ROLES, hidden=("ivy/tissue", "hazel/lesion")))
    (upper, _) = [arm for arm in hetero.plan(ground) if arm.name == "upper bound, from T1"]
    assert upper.run.settings["hide"] == ["hazel/lesion"]


def test_hetero_modal_models_are_tested_from_one_sequence_and_from_all() -> None:
    found = hetero_arms()
    assert len(found) == 8
    for kind in hetero.KINDS:
        few, full = found[f"{kind}, from T1"], found[f"{kind}, from T1+FLAIR"]
        assert (few.exam.subsets, full.exam.subsets) == ("T1", "full")
        assert few.run.key == full.run.key
    assert [arm.name for arm in hetero.pictured(GROUND)] == [f"{kind}, from T1+FLAIR" for kind in hetero.KINDS]


@pytest.mark.parametrize("lesions", [("T1",), ("FLAIR", "T1", "T2")])
def test_hetero_modal_learning_needs_one_shared_sequence_and_more_of_the_lesions(lesions: tuple[str, ...]) -> None:
    ground = replace(GROUND, sequences={"hazel": ("T1", "T2"), "ivy": lesions})
    with pytest.raises(UsageError, match=rf"hazel has T1, T2, ivy has {', '.join(lesions)}\. Choose others"):
        hetero.plan(ground)


def test_hetero_modal_tables() -> None:
    cases = pd.DataFrame(
        [
            *rows("both, from T1+FLAIR", 0.50, 0.60, 0.80), *rows("each alone, from T1+FLAIR", 0.52, 0.70, 0.80),
            *rows("both, no consistency, from T1+FLAIR", 0.50, 0.50, 0.80), *rows("both, from T1", 0.20, 0.70, 0.80),
            *rows("each alone, from T1", 0.10, 0.70, 0.82),
        ]
    )  # fmt: skip
    few, full, gaps, _, checks = hetero.tables(cases, replace(GROUND, num_seeds=1))
    assert list(few.frame["arm"]) == ["both, from T1", "each alone, from T1"]
    assert full.frame.set_index("arm").loc["both, from T1+FLAIR", "mean of the tissues"] == pytest.approx(0.70)
    told = gaps.frame.set_index(["structure", "arms"])["difference"]
    assert told["lesion", "both, from T1+FLAIR - both, from T1"] == pytest.approx(0.30)
    assert [row["verdict"] for row in checks.frame.to_dict("records")] == [
        "shown",  # the lesion 0.02 below its own model
        "shown",  # tissues from T1 0.01 below
        "not shown",  # tissues from all 0.05 below
        "shown",  # and 0.05 above those without consistency
    ]
    assert "ivy/tissue hidden" in few.note


def rows(arm: str, lesion: float, csf: float, grey: float, seed: int = 0) -> list[dict[str, object]]:
    dices = {"lesion": lesion, "CSF": csf, "grey matter": grey}
    return [
        {"arm": arm, "seed": seed, "database": "ivy", "case": case, "label": label, "dice": dice}
        for case in ("1", "2")
        for label, dice in dices.items()
    ]


CASES = pd.DataFrame(
    [
        *rows("ACE", 0.50, 0.60, 0.80), *rows("naive CE", 0.51, 0.30, 0.46), *rows("multi-network", 0.40, 0.68, 0.80),
        *rows("ACE", 0.40, 0.60, 0.60, seed=1), *rows("naive CE", 0.50, 0.40, 0.44, seed=1),
    ]
)  # fmt: skip


def test_tables_by_structure() -> None:
    by_structure, differences, each, _ = ace.tables(CASES, GROUND)
    ours = by_structure.frame.set_index("arm").loc["ACE"]
    assert ours["lesion"] == pytest.approx(0.45)
    assert ours["mean of the tissues"] == pytest.approx(0.65)
    assert ours["grey matter"] == pytest.approx(0.70)
    assert ours["lesion, seeds"] == "0.400 to 0.500"
    gaps = differences.frame.set_index(["structure", "arms"])
    assert gaps.loc[("mean of the tissues", "ACE - naive CE"), "difference"] == pytest.approx(0.25)
    assert gaps.loc[("mean of the tissues", "ACE - naive CE"), "single seeds"] == "+0.320, +0.180"
    assert gaps.loc[("lesion", "ACE - multi-network"), "difference"] == pytest.approx(0.10)
    assert set(each.frame["structure"]) == {"CSF", "grey matter"}
    assert "ivy/tissue hidden" in by_structure.note


def test_checks_are_shown_or_not_by_seed() -> None:
    (*_, checks) = ace.tables(CASES, GROUND)
    told = [(row["seed"], row["verdict"]) for row in checks.frame.to_dict("records")]
    assert told == [
        (0, "shown"), (1, "not shown"),  # tissues 0.32 and 0.18 above naive CE
        (0, "shown"), (1, "not shown"),  # the lesion 0.01 and 0.10 below it
        (0, "shown"), (1, "not shown"),  # tissues 0.04 below the multi-network, which has no second seed
    ]  # fmt: skip


def test_two_arms_that_find_nothing_show_nothing() -> None:
    nothing = pd.DataFrame([*rows("ACE", 0.0, 0.6, 0.8), *rows("naive CE", 0.0, 0.1, 0.1)])
    (*_, checks) = ace.tables(nothing, replace(GROUND, num_seeds=1))
    lesion = checks.frame.set_index("check").loc["lesion: ACE - naive CE at least -0.02"]
    assert (lesion["difference"], lesion["Dice of the first"], lesion["verdict"]) == (0.0, 0.0, "not shown")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("experiments")


@pytest.fixture(scope="module")
def synthetic(folder: Path) -> Ground:
    return synthetic_anatomy_ground(folder, replace(SCALES["tiny"], steps=1), num_seeds=1)


@pytest.mark.slow
def test_the_roles_are_found(synthetic: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    found = anatomy_ground_of(synthetic.store, synthetic.scale, 1)
    tissues = ("CSF", "grey matter", "white matter")
    assert found.roles == synthetic.roles == Roles("hazel", "ivy", ("ivy/tissue",), tissues, tissues)
    assert found.sequences["hazel"] == ("T1",)
    assert set(found.sequences["ivy"]) == {"FLAIR", "T1", "T1c", "T2"}
    with pytest.raises(UsageError, match=r"--lesions hazel does not fit: .* for lesions and tissues are: ivy"):
        anatomy_ground_of(synthetic.store, synthetic.scale, 1, lesions="hazel")
    with pytest.raises(UsageError, match=r"--tissues ivy does not fit: .* \(besides ivy, from which .* are: hazel"):
        anatomy_ground_of(synthetic.store, synthetic.scale, 1, tissues="ivy")
    opened = open_store(synthetic.store)
    opened["ivy"].schemas["tissue"] = LabelSchema.parse("1=tissue:CSF,2=lesion:cyst", "tissue")
    monkeypatch.setattr(anatomy_ground, "open_store", lambda url: opened)
    with pytest.raises(UsageError, match=r"ivy/tissue has lesions and tissues in one annotation"):
        anatomy_ground_of(synthetic.store, synthetic.scale, 1)


@pytest.mark.slow
def test_a_store_without_another_database_of_tissues_is_refused(store_url: str) -> None:
    with pytest.raises(UsageError, match=r"for tissues \(besides alder, .* are: none. One is needed"):
        anatomy_ground_of(store_url, SCALES["tiny"], 1)


@pytest.mark.slow
def test_a_hidden_sequence_is_as_one_that_a_case_does_not_have(store_url: str) -> None:
    store = open_store(store_url)
    hide(store, ["alder/FLAIR"])
    assert {case.modalities for case in store["alder"].cases} == {
        tuple(name for name in store["alder"].modalities if name != "FLAIR")
    }
    assert all("FLAIR" in case.modalities for case in store["dogwood"].cases)
    assert all(case.annotated.all() for case in store["alder"].cases)
    with pytest.raises(UsageError, match=r"hide has 'alder/DWI', .* and its sequences are .*alder/FLAIR"):
        hide(store, ["alder/DWI"])


@pytest.mark.slow
def test_from_nothing_to_tables_and_a_picture(synthetic: Ground, folder: Path) -> None:
    result = run_experiment(EXPERIMENTS["ace-tumour"], synthetic, folder, Machine(jobs=1))
    assert result.failures == {}
    assert "Roulet et al. 2019: table 1, tissues and tumour. Data: synthetic hospitals, 4 cases" in result.text
    cases = pd.read_csv(result.folder / "cases.csv")
    assert set(cases["arm"]) == set(NAMES)
    assert set(cases["label"]) == {"CSF", "grey matter", "white matter", "lesion"}
    assert set(cases[cases["arm"].isin([T1_ALONE, T1_TESTED])]["modalities"]) == {"T1"}
    assert set(cases[cases["arm"] == "multi-network"]["num_modalities"]) == {4}
    assert (result.folder / "montage.png").read_bytes().startswith(b"\x89PNG")
    case = median_case(open_store(synthetic.store), ace.plan(synthetic)[0])
    assert case.split == "test"


@pytest.mark.slow
def test_hetero_modal_arms_run_to_the_end(synthetic: Ground, folder: Path) -> None:
    result = run_experiment(EXPERIMENTS["hetero"], synthetic, folder, Machine(jobs=1))
    assert result.failures == {}
    cases = pd.read_csv(result.folder / "cases.csv")
    assert set(cases["arm"]) == {arm.name for arm in hetero.plan(synthetic)}
    from_one = cases["arm"].str.endswith(", from T1")
    assert set(cases[from_one]["modalities"]) == {"T1"}
    assert set(cases[~from_one]["num_modalities"]) == {4}
    assert (result.folder / "montage.png").read_bytes().startswith(b"\x89PNG")
