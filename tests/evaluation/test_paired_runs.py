"""Evaluations of several runs, compared case by case: by hand, and against what was known before."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from multiseg.errors import DataError, UsageError
from multiseg.evaluation.comparison import ScoringOptions, summary_of
from multiseg.evaluation.evaluation_result import Evaluation
from multiseg.evaluation.lesions import find_lesions, lesion_metrics
from multiseg.evaluation.metrics import case_metrics
from multiseg.evaluation.paired_runs import Comparison, compare, names_of
from multiseg.evaluation.paired_statistics import CompareOptions, bootstrap_interval, holm, signed_rank_p
from multiseg.evaluation.reliability import no_confidence

SPACING_MM = (1.0, 1.0, 1.0)
QUICK = CompareOptions(num_resamples=500)


def evaluation(dice: dict[tuple[str, str, str], float], learnt: str = "", **options: str) -> Evaluation:
    """An evaluation in which only the Dice of each (database, case, subset) is as given."""
    mask = np.ones((2, 2, 2), dtype=bool)
    scoring = ScoringOptions(**options)
    row = vars(case_metrics(mask, mask, SPACING_MM)) | lesion_metrics(
        find_lesions(mask, mask, SPACING_MM, scoring.rule)
    )
    rows = [
        {"database": database, "case": case, "learnt": learnt, "label": "lesion", "modalities": subset,
         "num_modalities": subset.count("+") + 1, **row, **no_confidence(), "dice": value}
        for (database, case, subset), value in dice.items()
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    return Evaluation(table, summary_of(table), (), "test", {}, {}, scoring=scoring)


def of_cases(database: str, values: list[float], subset: str = "T1") -> dict[tuple[str, str, str], float]:
    return {(database, f"c{index:02}", subset): value for index, value in enumerate(values)}


def row_of(found: Comparison, database: str, metric: str = "dice") -> dict[str, float]:
    table = found.by_database.query("database == @database and metric == @metric")
    assert len(table) == 1
    return table.iloc[0].to_dict()


def test_differences_are_paired_by_case() -> None:
    first = evaluation(of_cases("a", [0.1, 0.5, 0.9, 0.4, 0.3, 0.2]) | of_cases("b", [0.5, 0.5]))
    second = evaluation(of_cases("a", [0.2, 0.7, 1.0, 0.5, 0.4, 0.1]) | of_cases("b", [0.3, 0.4]))
    found = compare({"first": first, "second": second}, QUICK)
    row = row_of(found, "a")
    assert row["difference"] == pytest.approx(0.5 / 6)
    assert (row["baseline_mean"], row["mean"]) == (pytest.approx(0.4), pytest.approx(2.9 / 6))
    assert row["num_cases"] == 6
    assert row["low"] < row["difference"] < row["high"]
    # Ranks of |difference|: five times 0.1 (ranks 1 to 5, so 3 each) and 0.2; the one loss has rank 3.
    assert row["p"] > 0.05
    few = row_of(found, "b")
    assert math.isnan(few["low"])
    assert few["p"] == 0.5
    assert few["p_holm"] == pytest.approx(max(min(1, 2 * min(few["p"], row["p"])), few["p"], row["p"]))
    assert len(found.by_case.query("metric == 'dice'")) == 8


def test_a_case_counts_once_whatever_the_number_of_its_subsets() -> None:
    several = {("a", "c00", subset): value for subset, value in (("T1", 0.9), ("FLAIR", 0.5), ("FLAIR+T1", 0.7))}
    base = dict.fromkeys(several, 0.5) | {("a", "c01", "T1"): 0.5}
    found = compare({"x": evaluation(base), "y": evaluation(several | {("a", "c01", "T1"): 0.4})}, QUICK)
    assert row_of(found, "a")["difference"] == pytest.approx((0.2 - 0.1) / 2)
    assert row_of(found, "a")["num_cases"] == 2
    subsets = found.by_subset.query("metric == 'dice'").set_index("modalities")["difference"]
    assert subsets.to_dict() == pytest.approx({"T1": 0.15, "FLAIR": 0.0, "FLAIR+T1": 0.2})


def test_rows_of_one_run_alone_are_named() -> None:
    both = of_cases("a", [0.5, 0.6])
    first = evaluation(both | of_cases("b", [0.5]) | of_cases("a", [0.2], "FLAIR"))
    found = compare({"x": first, "y": evaluation(both | {("a", "c09", "T1"): 0.1})}, QUICK)
    assert found.missing_cases == {"x": ("a/c09",), "y": ("b/c00",)}
    assert found.missing_rows == {"y": ("a lesion FLAIR (1 cases)",)}
    assert set(found.by_case["case"]) == {"c00", "c01"}


def test_undefined_cases_are_left_out_and_counted() -> None:
    first, second = of_cases("a", [0.5, math.nan, 0.5]), of_cases("a", [0.6, math.nan, math.nan])
    row = row_of(compare({"x": evaluation(first), "y": evaluation(second)}, QUICK), "a")
    assert (row["num_cases"], row["num_undefined"]) == (1, 2)
    assert row["baseline_mean"] == 0.5


def test_cases_that_one_run_has_learnt_from_are_kept_apart() -> None:
    held_out, trained = evaluation(of_cases("a", [0.5])), evaluation(of_cases("a", [0.9]), learnt="train")
    for pair in ((held_out, trained), (trained, held_out)):
        found = compare(dict(zip("xy", pair, strict=True)), QUICK)
        assert set(found.by_database["learnt"]) == {"train"}


def test_the_worst_database_and_subset_are_named() -> None:
    first = of_cases("a", [0.8, 0.8]) | of_cases("b", [0.4], "FLAIR") | of_cases("b", [0.6], "T1")
    second = of_cases("a", [0.3, 0.3]) | of_cases("b", [0.5], "FLAIR") | of_cases("b", [0.5], "T1")
    found = compare({"x": evaluation(first), "y": evaluation(second)}, QUICK)
    worst = {(one["run"], one["what"], one["value_of"]): one for one in found.worst}
    assert worst["x", "database", "dice"]["database"] == "b"
    assert (worst["x", "subset", "dice"]["modalities"], worst["x", "subset", "dice"]["value"]) == ("FLAIR", 0.4)
    assert worst["y", "database", "dice"]["database"] == "a"
    assert worst["y", "database", "difference"]["value"] == pytest.approx(-0.5)
    assert worst["y", "subset", "difference"]["modalities"] == "T1"


def test_what_cannot_be_compared_is_refused() -> None:
    one, other = evaluation(of_cases("a", [0.5])), evaluation(of_cases("a", [0.5]), lesion_rule="brats-gli")
    with pytest.raises(UsageError, match="x and y were scored in different ways"):
        compare({"x": one, "y": other})
    with pytest.raises(DataError, match="x, y have no case, structure and subset of sequences in common"):
        compare({"x": one, "y": evaluation(of_cases("b", [0.5]))})
    with pytest.raises(UsageError, match="10 resamples"):
        CompareOptions(num_resamples=10)


@pytest.mark.slow
def test_a_comparison_is_written_and_never_over_another(tmp_path: Path) -> None:
    evaluations = {name: evaluation(of_cases("a", [0.5, 0.25])) for name in "xyz"}
    found = compare(evaluations, QUICK)
    found.save(tmp_path / "out")
    written = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert written["runs"] == ["x", "y", "z"]
    assert {row["run"] for row in written["databases"]} == {"y", "z"}
    assert len(pd.read_csv(tmp_path / "out" / "differences.csv")) == len(found.by_case)
    found.save(tmp_path / "out")
    other = compare({name: evaluations[name] for name in "xy"}, QUICK)
    with pytest.raises(UsageError, match="of another comparison"):
        other.save(tmp_path / "out")
    other.save(tmp_path / "out", overwrite=True)


def test_runs_are_named_by_what_tells_them_apart(tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").touch()
    assert names_of([Path("runs/a"), Path("runs/b"), tmp_path / "m.safetensors"]) == ("a", "b", "m")
    assert names_of([Path("x/run"), Path("y/run")]) == ("x-run", "y-run")
    with pytest.raises(UsageError, match=r"given runs/\.\./runs/a twice"):
        names_of([Path("runs/a"), Path("runs/../runs/a")])
    with pytest.raises(UsageError, match="needs two runs or more"):
        names_of([Path("a")])


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([]) == []
    found = holm([0.02, math.nan, 0.01])
    assert found[::2] == pytest.approx([0.02, 0.02])
    assert math.isnan(found[1])


def test_signed_ranks_by_hand() -> None:
    # Of six gains without ties 1 of 2^6 sign patterns is as extreme, on either side.
    assert signed_rank_p(np.array([1.0, 2, 3, 4, 5, 6])) == pytest.approx(2 / 64)
    assert signed_rank_p(np.array([1.0, 2, 3, 4, 5, 6, 0, 1e-15])) == pytest.approx(2 / 64)
    assert signed_rank_p(np.zeros(4)) == 1.0
    assert math.isnan(signed_rank_p(np.zeros(0)))


def test_the_interval_is_that_of_the_mean_and_repeats() -> None:
    values = np.random.default_rng(1).normal(1.0, 2.0, size=100)
    low, high = bootstrap_interval(values, CompareOptions())
    assert (low, high) == bootstrap_interval(values, CompareOptions())
    half = 1.96 * values.std(ddof=1) / 10
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.08)
    assert bootstrap_interval(values, CompareOptions(seed=1)) != (low, high)
    assert all(map(math.isnan, bootstrap_interval(values[:4], CompareOptions())))
