"""The preparation beside an exported model says what the code does."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from multiseg.evaluation.decision import decide
from multiseg.evaluation.temperature import at_temperature
from multiseg.export.preparation_record import preparation_record
from multiseg.labels import LabelSpace
from multiseg.modalities import ModalityAxis
from multiseg.models.calibration_record import Calibration, Temperatures
from multiseg.models.saved import ModelInfo
from multiseg.store.preparation.normalisation import standardise
from multiseg.store.preparation.recipe import PERCENTILES, Recipe

SPACE = LabelSpace.of(["lesion", "tissue:CSF", "tissue:GM"])
INFO = ModelInfo(
    builder="multi_unet",
    numbers={},
    axis=ModalityAxis(("FLAIR", "T1", "SWI")),
    space=SPACE,
    spacing_mm=(1.0, 1.0, 3.0),
    patch=(32, 32, 16),
    trained_on={"FLAIR": ("ms",), "T1": ("ms",), "SWI": ()},
    databases={"ms": {"recipe": Recipe().to_json()}},
)


def record_of(recipe: Recipe, **changes: Any) -> dict[str, Any]:
    made = preparation_record(replace(INFO, databases={"ms": {"recipe": recipe.to_json()}}, **changes), 16)
    assert json.loads(json.dumps(made)) == made
    return made


def test_what_it_says_of_a_plain_model() -> None:
    record = record_of(Recipe())
    assert record["sequences"] == ["FLAIR", "T1", "SWI"]
    assert record["never_present"] == ["SWI"]
    assert (record["spacing_mm"], record["patch"]) == ([1.0, 1.0, 3.0], [32, 32, 16])
    assert (record["size_multiple_of"], record["least_size"]) == (16, 32)
    assert record["absent_channel"] == {"images": 0.0, "present": False}
    assert [(label["code"], label["name"], label["kind"]) for label in record["labels"]] == [
        (0, "background", ""), (1, "lesion", "lesion"), (2, "CSF", "tissue"), (3, "GM", "tissue"),
    ]  # fmt: skip
    assert record["activation"].startswith("softmax")
    assert record_of(Recipe(), space=LabelSpace())["activation"].startswith("sigmoid")
    assert record["brain"]["rule"] == "nonzero"
    assert record["intensity"]["normalise"] == "zscore"
    assert record["intensity"]["outside_brain"] == "0"
    assert record_of(Recipe(), background="shifted")["intensity"]["outside_brain"].endswith("within +-60000")


def test_it_names_the_temperatures_and_says_what_they_do() -> None:
    assert record_of(Recipe())["calibration"] is None
    stored = Calibration(
        {1: Temperatures(1.5, 1.5), 2: Temperatures(2.0, 2.0)}, {"lesion": 0.4}, 0.5, {"ms": 3}, "val", "k"
    )
    record = record_of(Recipe(), calibration=stored)["calibration"]
    assert (record["temperatures"], record["look_below"]) == (
        {"1": {"outside": 1.5, "inside": 1.5}, "2": {"outside": 2.0, "inside": 2.0}},
        {"lesion": 0.4},
    )
    # What it says, by hand: p^(1/T) of the lesion and of 1 - P; given no lesion, of tissues and background.
    p, power = np.array([0.3, 0.2, 0.1]), 1 / 2.0
    lesion = 0.3**power / (0.3**power + 0.7**power)
    rest = np.array([0.2, 0.1, 0.4]) ** power
    expected = [lesion, *((1 - lesion) * rest / rest.sum())[:2]]
    assert at_temperature(p[:, None], SPACE, Temperatures(2.0, 2.0))[:, 0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("rule", ["file", "command hd-bet -i {image} -o {mask}"])
def test_a_mask_that_was_given_has_to_be_given_again(rule: str) -> None:
    """A command of the training site is not passed on."""
    record = record_of(Recipe(brain_mask=rule))
    assert record["brain"]["rule"] == "file"
    assert "hd-bet" not in json.dumps(record)


def test_landmarks_are_told_as_the_code_uses_them() -> None:
    scale = tuple(float(10 * n) for n in range(len(PERCENTILES)))
    record = record_of(Recipe(normalise="histogram", landmarks={"FLAIR": scale}, n4=True, register="rigid"))
    told = record["intensity"]
    assert told["bias_field"].startswith("N4")
    assert record["registration"].startswith("rigid")
    values = np.linspace(0, 500, 1001)
    expected = standardise(values, list(np.percentile(values, PERCENTILES)), list(scale))
    inside = (values > 10) & (values < 490)
    by_record = np.interp(values, np.percentile(values, told["percentiles"]), told["landmarks"]["FLAIR"])
    np.testing.assert_allclose(by_record[inside], expected[inside], rtol=1e-4, atol=1e-3)


def test_the_decision_that_it_tells_is_the_one_of_the_code() -> None:
    """The three sentences, followed word by word, on random probabilities."""
    kinds = {label["code"]: label["kind"] for label in record_of(Recipe())["labels"] if label["kind"]}
    p = np.random.default_rng(0).dirichlet([0.7, 0.7, 0.5, 0.5], size=200).T.astype(np.float32)
    codes = []
    for background, *structures in p.T:
        by_code = dict(zip(kinds, structures, strict=True))
        lesions = {code: value for code, value in by_code.items() if kinds[code] == "lesion"}
        tissues = {code: value for code, value in by_code.items() if kinds[code] == "tissue"}
        lesion, tissue = max(lesions, key=lesions.__getitem__), max(tissues, key=tissues.__getitem__)
        if lesions[lesion] >= 1 - sum(lesions.values()):
            codes.append(lesion)
        else:
            codes.append(tissue if tissues[tissue] >= background else 0)
    decided = decide(p[1:].reshape(3, 200, 1, 1), SPACE, np.ones((200, 1, 1), dtype=bool))
    np.testing.assert_array_equal(decided.ravel(), codes)
