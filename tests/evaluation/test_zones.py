"""Dice of tissues under a lesion, near it and elsewhere."""

import math

import numpy as np
import pytest
from scipy import ndimage

from multiseg.errors import UsageError
from multiseg.evaluation.zones import COLUMNS, Zones, further_columns, zone_masks, zone_values, zones_of
from multiseg.labels import LabelSchema, LabelSpace
from multiseg.store.preparation.grids import Grid
from multiseg.store.reader import Case, Database

UNDER, NEAR, ELSEWHERE = COLUMNS


def test_near_is_ten_millimetres_whatever_the_voxels() -> None:
    lesion = np.zeros((9, 1, 30), dtype=bool)
    lesion[4, 0, 10] = True
    masks = zone_masks(lesion, (5.0, 1.0, 1.0))
    assert np.flatnonzero(masks[NEAR][:, 0, 10]).tolist() == [2, 3, 5, 6]
    assert np.flatnonzero(masks[NEAR][4, 0]).tolist() == [*range(10), *range(11, 21)]
    assert sum(mask.astype(int) for mask in masks.values()).tolist() == np.ones(lesion.shape, dtype=int).tolist()


@pytest.mark.parametrize("spacing_mm", [(5.0, 1.0, 3.0), (2.0, 4.0, 0.9)])
def test_the_zones_of_a_small_lesion_are_those_of_the_whole_grid(spacing_mm: tuple[float, float, float]) -> None:
    lesion = np.zeros((12, 40, 30), dtype=bool)
    lesion[5:8, 12:30, 12:15] = np.random.default_rng(0).random((3, 18, 3)) > 0.6
    distance_mm = np.asarray(ndimage.distance_transform_edt(~lesion, sampling=spacing_mm))
    masks = zone_masks(lesion, spacing_mm)
    np.testing.assert_array_equal(masks[NEAR], ~lesion & (distance_mm <= 10))
    assert masks[ELSEWHERE].any()


def test_without_a_lesion_all_is_elsewhere() -> None:
    masks = zone_masks(np.zeros((2, 2, 2), dtype=bool), (1.0, 1.0, 1.0))
    assert [int(masks[column].sum()) for column in COLUMNS] == [0, 0, 8]


def row(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.uint8).reshape(-1, 1, 1)


def test_the_dice_of_each_zone_by_hand() -> None:
    lesion = row(1, 1, 0, 0, 0, 0) > 0
    zones = Zones(zone_masks(lesion, (6.0, 1.0, 1.0)), row(1, 1, 1, 2, 2, 1), ("CSF", "WM"))
    predicted = row(1, 0, 1, 1, 0, 1) == 1
    # Under: one of two found. 6 mm away is near, 12 mm is not. Elsewhere: one found, and one too many.
    assert zones.dice(predicted, "CSF") == pytest.approx({UNDER: 2 / 3, NEAR: 1.0, ELSEWHERE: 2 / 3})
    assert zones.dice(predicted, "lesion") == pytest.approx(dict.fromkeys(COLUMNS, math.nan), nan_ok=True)
    ignored = Zones(zones.masks, row(1, 255, 1, 2, 2, 1), zones.names)
    assert ignored.dice(row(1, 1, 1, 1, 0, 1) == 1, "CSF")[UNDER] == 1


def one_case(annotated: list[bool]) -> tuple[Database, Case]:
    """A database of one case, as far as zones ask it."""
    database = Database.__new__(Database)
    database.schemas = {
        "tissue": LabelSchema.parse("1=CSF,2=WM", "tissue"), "lesion": LabelSchema.parse("1=tumour", "lesion"),
    }  # fmt: skip
    has = np.array(annotated)
    counts = np.zeros((2, 2), dtype=np.int64)
    texts = {"subject": "", "session": "", "site": "", "split": "test"}
    return database, Case("one", "P1", 0, "glioma", **texts, modalities=("T1",), annotated=has,
                          foreground_count=counts, grid=Grid(np.eye(4), (4, 1, 1)))  # fmt: skip


CODES = np.stack([row(1, 1, 2, 2), row(0, 1, 1, 0)])


def test_the_tissue_is_read_under_the_lesion() -> None:
    space = LabelSpace.of(["lesion", "tissue:CSF", "tissue:WM"])
    zones = zones_of(*one_case([True, True]), CODES, space)
    assert zones.tissue.ravel().tolist() == [1, 1, 2, 2]
    assert zones.masks[UNDER].ravel().tolist() == [False, True, True, False]
    answer = row(2, 2, 3, 3)
    assert zone_values(zones, answer, "WM", space)[UNDER] == 1
    assert zone_values(zones, row(2, 1, 1, 3), "WM", space)[UNDER] == 0
    assert math.isnan(zone_values(zones, answer, "lesion", space)[UNDER])


def test_a_case_that_nobody_looked_at_for_lesions_has_no_zones() -> None:
    zones = zones_of(*one_case([True, False]), CODES, LabelSpace.of(["tissue:CSF"]))
    assert all(math.isnan(value) for value in zones.dice(CODES[0] == 1, "CSF").values())
    with pytest.raises(UsageError, match="segments only lesion"):
        zones_of(*one_case([True, False]), CODES, LabelSpace())
    assert zone_values(None, CODES[0], "CSF", LabelSpace()) == {}
    assert further_columns(False, ["own"]) == ("own",)
    assert further_columns(True, ["own"]) == (*COLUMNS, "own")
