"""Tables from rows: which rows count where, and how they are shown."""

import math

import pandas as pd
import pytest

from multiseg.experiments.comparisons import Table, common_cases, compared, means
from multiseg.experiments.drop import changes, full_sets


def rows(*told: tuple[str, int, str, str, str, float]) -> pd.DataFrame:
    frame = pd.DataFrame(told, columns=["arm", "seed", "database", "case", "modalities", "dice"])
    return frame.assign(num_modalities=frame["modalities"].str.count(r"\+") + 1)


DROP = rows(
    ("x", 0, "a", "1", "T1+T2", 0.8),
    ("x", 0, "a", "1", "T1", 0.5),
    ("x", 0, "a", "1", "T2", 0.7),
    ("x", 0, "a", "2", "T1", 0.6),  # has one sequence only, so nothing can be missing
    ("x", 1, "a", "1", "T1+T2", 0.9),
    ("x", 1, "a", "1", "T1", 0.1),
    ("y", 0, "a", "1", "T1+T2", 0.3),
)


def test_changes_are_against_all_sequences_of_the_same_case_model_and_seed() -> None:
    found = changes(DROP)
    assert list(found["change"]) == pytest.approx([-0.3, -0.1, -0.8])
    assert list(found["seed"]) == [0, 0, 1]
    assert list(full_sets(DROP)["dice"]) == [0.8, 0.6, 0.9, 0.3]


def test_means_are_over_cases_then_databases() -> None:
    told = rows(
        ("x", 0, "a", "1", "T1", 0.2), ("x", 0, "a", "2", "T1", 0.4), ("x", 0, "b", "1", "T1", 0.9),
        ("x", 1, "a", "1", "T1", 0.4), ("x", 1, "a", "2", "T1", 0.6), ("x", 1, "b", "1", "T1", 0.7),
    )  # fmt: skip
    (row,) = means(told, "dice", ["a", "b", "c"]).to_dict("records")
    assert (row["a"], row["b"], row["mean"]) == pytest.approx((0.4, 0.8, 0.6))
    assert math.isnan(row["c"])
    assert row["seeds"] == "0.600 to 0.600"


def test_pairs_with_an_arm_that_failed_are_left_out() -> None:
    assert compared(DROP, "dice", [("x", "gone")]).empty
    (row,) = compared(full_sets(DROP), "dice", [("x", "y")]).to_dict("records")
    assert (row["arms"], row["cases"]) == ("x - y", 1)
    assert row["difference"] == pytest.approx(0.5), "over the seeds that both have"
    assert row["single seeds"] == "+0.500"  # y has only the first seed


def test_cases_that_all_arms_share() -> None:
    assert set(common_cases(DROP)["case"]) == {"1"}


def test_markdown() -> None:
    table = Table("A title", pd.DataFrame({"arm": ["x"], "a": [0.12345], "b": [math.nan], "n": [3]}), "A note.")
    assert (
        table.to_markdown()
        == "### A title\n\n| arm | a | b | n |\n|---|---|---|---|\n| x | 0.123 | - | 3 |\n\nA note.\n"
    )
