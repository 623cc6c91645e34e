"""What sequences look like: histograms, their distance, and the margin beyond which a name is doubted."""

import numpy as np
import pytest

from multiseg.errors import DataError
from multiseg.models.contrasts import BINS, Contrasts, contrasts_of, distance, histogram, suspect


def one_bin(number: int, rest: float = 0.0, other: int = 0) -> np.ndarray:
    values = np.zeros(BINS)
    values[number] = 1 - rest
    values[other] += rest
    return values


def test_a_histogram_has_the_scores_of_what_is_not_0() -> None:
    image = np.zeros((4, 4, 4), np.float16)
    image[:2] = 3
    image[2:3] = -3
    # 32 voxels of 3 and 16 of -3: mean 1, standard deviation sqrt(8), scores 0.707 and -1.414 in bins of 1/8.
    expected = one_bin(37, 1 / 3, 20)
    assert histogram(image) == pytest.approx(expected)
    assert histogram(image * 2) == pytest.approx(expected)


def test_an_image_without_contrast_has_no_histogram() -> None:
    assert histogram(np.ones((2, 2, 2), np.float16)) is None
    assert histogram(np.zeros((2, 2, 2), np.float16)) is None


def test_scores_beyond_the_limit_are_kept_at_the_ends() -> None:
    image = np.full((10, 10, 10), 1, np.float16)
    image[0, 0, 0] = 100
    counts = histogram(image)
    assert counts is not None
    assert (counts[-1], counts.sum()) == (0.001, pytest.approx(1))


def test_the_distance_is_half_of_all_differences() -> None:
    assert distance(one_bin(3), one_bin(3)) == 0
    assert distance(one_bin(3), one_bin(4)) == 1
    assert distance(one_bin(3), one_bin(3, 0.25, 9)) == pytest.approx(0.25)


KNOWN = Contrasts({"T1": {"ms": one_bin(10), "wmh": one_bin(20)}, "T2": {"ms": one_bin(40)}}, margin=0.2)


def test_a_scan_nearer_to_another_sequence_is_suspect() -> None:
    assert suspect(KNOWN, "T2", one_bin(40)) is None
    found = suspect(KNOWN, "T2", one_bin(20, 0.125, 63))
    assert found is not None
    assert (found.name, found.like, found.database) == ("T2", "T1", "wmh")
    assert (found.distance, found.own_distance) == (0.125, 1)


def test_within_the_margin_nobody_is_warned() -> None:
    between = one_bin(40, 0.41, 20)  # 0.41 from T2, 0.59 from T1
    assert suspect(KNOWN, "T1", between) is None  # nearer to T2 by 0.18
    assert suspect(KNOWN, "T1", between, margin=0.17) is not None


def test_a_sequence_that_the_model_does_not_know_is_not_judged() -> None:
    assert suspect(KNOWN, "FLAIR", one_bin(40)) is None
    assert suspect(Contrasts({"T1": {"ms": one_bin(10)}}, 0.0), "T1", one_bin(40)) is None


def test_the_margin_is_set_on_scans_that_the_means_do_not_contain() -> None:
    # Without itself, the odd T1 is nearer to T2: with a mean that contains it, it would not be.
    scans = [("ms", f"p{n}", "T1", one_bin(10)) for n in range(3)] + [("ms", "odd", "T1", one_bin(40))]
    scans += [("ms", f"p{n}", "T2", one_bin(40, 0.5, 30)) for n in range(4)]
    made = contrasts_of(scans)
    assert made.means["T1"]["ms"] == pytest.approx(one_bin(10, 0.25, 40))
    # Own minus other distance: 1/3 - 1 of three T1, 1 - 1/2 of the odd one, 0 - 2/3 of three T2, 0 - 3/4 of the last.
    # Of these eight, 0.95 is 65% of the way from the second largest, -2/3, to the largest, 1/2.
    assert made.margin == pytest.approx(-2 / 3 + 0.65 * (1 / 2 + 2 / 3))


def test_a_margin_is_never_below_0() -> None:
    scans = [("ms", f"p{n}", name, one_bin(at)) for n in range(3) for name, at in (("T1", 10), ("T2", 40))]
    assert contrasts_of(scans).margin == 0
    assert contrasts_of([]).means == {}


def test_contrasts_return_from_json() -> None:
    again = Contrasts.from_json(KNOWN.to_json())
    assert again.margin == KNOWN.margin
    assert again.means["T1"]["wmh"] == pytest.approx(one_bin(20))
    with pytest.raises(DataError, match="64 bins"):
        Contrasts.from_json({"margin": 0, "means": {"T1": {"ms": [1.0, 0.0]}}})
