import math

import numpy as np
import pandas as pd
import pytest

from multiseg.errors import UsageError
from multiseg.evaluation.comparison import summary_of
from multiseg.evaluation.lesions import no_lesion_metrics
from multiseg.evaluation.metrics import case_metrics
from multiseg.evaluation.own_metrics import identity_of, named_metrics, own_means, own_values
from multiseg.evaluation.reliability import no_confidence


def volume(predicted, truth, spacing_mm):
    return predicted.sum() * math.prod(spacing_mm)


def share(predicted, truth, spacing_mm):
    return predicted.sum() / truth.sum() if truth.any() else math.nan


MASK = np.zeros((4, 4, 4), dtype=bool)


def box(num):
    mask = MASK.copy()
    mask.flat[:num] = True
    return mask


def test_a_metric_sees_masks_and_the_size_of_a_voxel():
    found = own_values(named_metrics([volume, share]), box(3), box(6), (1.0, 2.0, 3.0))
    assert found == {"volume": 18.0, "share": 0.5}


def test_a_metric_cannot_change_what_the_next_one_sees():
    def spoils(predicted, truth, spacing_mm):
        predicted[:] = True
        return 0.0

    predicted = box(3)
    found = own_values({"spoils": spoils, "volume": volume}, predicted, box(1), (1.0, 1.0, 1.0))
    assert found["volume"] == 3.0
    assert predicted.sum() == 3


def test_the_mean_is_over_the_cases_that_define_it():
    rows = {"share": [0.5, math.nan, 1.0], "none": [math.nan] * 3}
    found = own_means(["share", "none"], rows)
    assert (found["share"], found["num_share"], found["num_none"]) == (0.75, 2, 0)
    assert math.isnan(found["none"])


def test_the_summary_has_the_mean_by_label_and_subset():
    size = (1.0, 1.0, 1.0)
    rows = [
        {"database": "d", "case": str(num), "learnt": "", "label": label, "modalities": "T1", "num_modalities": 1,
         **vars(case_metrics(box(num), box(2), size)), **no_lesion_metrics(), **no_confidence(), "share": value}
        for num, label, value in ((1, "a", 0.5), (2, "a", 1.0), (3, "b", math.nan))
    ]  # fmt: skip
    found = summary_of(pd.DataFrame(rows), ["share"]).set_index("label")
    assert found.loc["a", "share"] == 0.75
    assert found["num_share"].to_dict() == {"a": 2, "b": 0}


@pytest.mark.parametrize("given", [volume, [volume], {"volume": volume}, (f"{__name__}:volume",), f"{__name__}:volume"])
def test_metrics_are_given_one_or_many_as_functions_or_names(given):
    assert list(named_metrics(given)) == ["volume"]


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ([lambda p, t, s: 0.0], "cannot use the column '<lambda>': give it a name"),
        ({"dice": volume}, "column 'dice'"),
        ({"case": volume}, "column 'case'"),
        ({"learnt": volume}, "column 'learnt'"),
        ({"num_missed": volume}, "column 'num_missed'"),
        ({"lesion_f1": volume}, "column 'lesion_f1'"),
        ({"expected_dice": volume}, "column 'expected_dice'"),
        ({"dice_sd": volume}, "column 'dice_sd'"),
        ({"dice_pooled": volume}, "column 'dice_pooled'"),
        ({"detected_over_1000_mm3": volume}, "column 'detected_over_1000_mm3'"),
        ([volume, volume], "column 'volume'"),
        ([lambda p, t: 0.0], r"does not take \(predicted, truth, spacing_mm\)"),
        (["mine_nowhere:metric"], r"PYTHONPATH=\. multiseg"),
    ],
)
def test_metrics_that_cannot_have_a_column(metrics, said):
    with pytest.raises(UsageError, match=said):
        named_metrics(metrics)


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        (lambda p, t, s: 1 / 0, "the metric mine failed: ZeroDivisionError"),
        (lambda p, t, s: "good", "the metric mine failed: ValueError: could not convert"),
        (lambda p, t, s: None, "the metric mine failed: TypeError"),
        (lambda p, t, s: math.inf, "the metric mine is inf, which cannot be averaged"),
        (lambda p, t, s: p, "the metric mine failed: TypeError"),
    ],
)
def test_an_answer_that_is_no_number_is_refused(metric, said):
    with pytest.raises(UsageError, match=said):
        own_values({"mine": metric}, box(1), box(1), (1.0, 1.0, 1.0))


def test_kept_rows_are_those_of_the_same_file():
    assert identity_of({"a": volume}) == identity_of({"a": volume})
    assert identity_of({"a": volume}) != identity_of({"b": volume})
    assert identity_of({"a": volume}) != identity_of({"a": share})
    assert identity_of({"a": lambda p, t, s: 1.0}) != identity_of({"a": lambda p, t, s: 2.0})
    assert identity_of({"a": len}) != identity_of({"a": len})  # nothing says what it was then
