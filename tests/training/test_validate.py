"""How the best model is chosen: by lesions that are found, and against lesions that are not there."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from torch import Tensor, nn

from multiseg.labels import LabelSpace
from multiseg.modalities import ModalityAxis
from multiseg.models.saved import ModelInfo
from multiseg.store.reader import Case, open_store
from multiseg.training.event_log import EventLog
from multiseg.training.events import Validated
from multiseg.training.validate import Judged, database_score, mean_dice, score_of, validate

CLEAN, ALARM = Judged(math.nan), Judged(math.nan, is_false_alarm=True)


def found(*dices: float) -> list[Judged]:
    return [Judged(float(dice)) for dice in dices]


def test_a_false_alarm_counts_as_a_dice_of_zero() -> None:
    assert database_score([*found(0.6, 0.8), CLEAN, CLEAN]) == pytest.approx(0.7)
    assert database_score([*found(0.6, 0.8), ALARM, CLEAN]) == pytest.approx(1.4 / 3)
    assert database_score([*found(0.6, 0.8), ALARM, ALARM]) == pytest.approx(0.35)


def test_a_model_that_answers_nothing_is_never_the_best_where_there_are_lesions() -> None:
    """With a score of 1 for every clean case it would win here, 4 / 5 against 3.6 / 5."""
    nothing, some = [*found(0), CLEAN, CLEAN, CLEAN, CLEAN], [*found(0.6), ALARM, CLEAN, CLEAN, CLEAN]
    assert database_score(nothing) == 0
    assert database_score(some) == pytest.approx(0.3)
    assert score_of([found(0), [CLEAN]]) < score_of([found(0.2), [ALARM]])


def test_cases_without_lesion_alone_have_a_score_too() -> None:
    assert [database_score(some) for some in ([CLEAN], [CLEAN, ALARM], [ALARM])] == [1, 0.5, 0]
    assert score_of([[CLEAN, ALARM], [CLEAN]]) == pytest.approx(0.75)
    assert math.isnan(database_score([]))
    assert math.isnan(score_of([]))


def test_databases_count_alike_and_one_without_lesions_by_its_false_alarms() -> None:
    assert score_of([found(0.2), found(0.6, 0.6, 0.6)]) == pytest.approx(0.4)
    assert score_of([found(0.2), found(0.6), [CLEAN, CLEAN]]) == pytest.approx(0.4)
    assert score_of([found(0.2), found(0.6), [ALARM, CLEAN]]) == pytest.approx(0.8 / 2.5)
    assert score_of([found(0.2), found(0.6), [ALARM]]) == pytest.approx(0.8 / 3)


class Threshold(nn.Module):
    """Says lesion where the first channel is above a value."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, images: Tensor, present: Tensor) -> Tensor:
        return 50 * (images[:, :1] - self.value)


INFO = ModelInfo(
    builder="multi_unet", numbers={}, axis=ModalityAxis(("FLAIR",)), space=LabelSpace(), spacing_mm=(5.0, 5.0, 5.0),
    patch=(16, 16, 16), trained_on={"FLAIR": ("alder",)}, databases={},
)  # fmt: skip


@pytest.fixture
def half_healthy(store_url: str, tmp_path: Path) -> tuple[str, Sequence[Case]]:
    """A copy of a database of which every second case has no lesion any more."""
    import shutil

    shutil.copytree(store_url, tmp_path / "brain.zarr")
    store = open_store(str(tmp_path / "brain.zarr"))
    label = zarr.open_group(tmp_path / "brain.zarr", mode="r+")["alder"]["label"]
    for case in store["alder"].cases[::2]:
        # Zarr would take files of zeros away, which the store says that the cases have.
        label.with_config({"write_empty_chunks": True})[case.row] = np.zeros(label.shape[1:], dtype=np.uint8)
    return store.url, store["alder"].cases


@pytest.mark.slow
def test_validation_counts_false_alarms(half_healthy: tuple[str, Sequence[Case]]) -> None:
    url, cases = half_healthy
    store = open_store(url)
    everywhere, nowhere = (validate(Threshold(value), INFO, store, cases) for value in (-9.0, 9.0))
    assert everywhere is not None
    assert nowhere is not None
    assert (everywhere.num_false_alarms, everywhere.num_absent) == (2, 4 - 2)
    assert everywhere.score == pytest.approx(everywhere.dice["alder"] / 2)
    assert 0 < everywhere.dice["alder"] < 1
    assert (nowhere.score, nowhere.dice, nowhere.num_false_alarms) == (0, {"alder": 0}, 0)
    healthy = validate(Threshold(9.0), INFO, store, cases[::2])
    assert healthy is not None
    assert (healthy.score, healthy.num_absent) == (1, 2)
    assert math.isnan(healthy.dice["alder"])


def test_false_alarms_are_logged(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with EventLog(tmp_path, 0) as logs:
        logs.write(Validated(7, 0.25, {"alder": 0.5}, True, num_false_alarms=3, num_absent=4))
    (line,) = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    assert (line["num_false_alarms"], line["num_absent"]) == (3, 4)
    held = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [one.value for one in held.Scalars("validation/false_alarms")] == [3]


@pytest.mark.slow
def test_six_tissues_do_not_outvote_a_lesion() -> None:
    """A mean over the structures would be 0.66 here, for a model that never finds the lesion."""
    tissues = [Judged(0.77, structure=f"t{number}", kind="tissue") for number in range(6)]
    missed, small = (Judged(value, structure="lesion", kind="lesion") for value in (0.0, 0.3))
    assert database_score([*tissues, missed]) == pytest.approx(0.385)
    worse = [replace(one, dice=0.7) for one in tissues]
    assert score_of([[*worse, small]]) > score_of([[*tissues, missed]])
    assert mean_dice([*tissues, missed]) == pytest.approx(0.385)
    assert database_score(tissues) == pytest.approx(0.77)
    # A kind of which no case has a structure counts by its false alarms, like a database without any.
    clean = Judged(math.nan, structure="lesion", kind="lesion")
    assert database_score([*tissues, clean]) == pytest.approx(0.77)
    assert database_score([*tissues, replace(clean, is_false_alarm=True)]) == pytest.approx(0.385)
