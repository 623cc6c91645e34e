import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multiseg.errors import FederationError
from multiseg.federation.aggregate import aggregated, refused
from multiseg.federation.plan import AggregateOptions
from multiseg.labels import LabelSpace
from multiseg.modalities import ModalityAxis
from multiseg.models.network_parts import Part, difference, joined, moved, parts, trained_parts
from multiseg.models.saved import ModelInfo

TRUNK, T1, PD = (
    Part("trunk", "trunk", None, 0, 0, "", (2,)),
    Part("stem[T1]", "stem", 1, 0, 1, "T1", (1, 1)),
    Part("stem[PD]", "stem", 1, 1, 1, "PD", (1, 1)),
)
PARTS = (TRUNK, T1, PD)
MEAN = AggregateOptions()


def update(trunk, t1=None, pd=None):
    given_parts = {"trunk": torch.tensor(trunk)}
    if t1 is not None:
        given_parts["stem[T1]"] = torch.tensor([[t1]])
    if pd is not None:
        given_parts["stem[PD]"] = torch.tensor([[pd]])
    return given_parts


def equal(sites):
    return {site: {"": 1.0} for site in sites}


UPDATES = {
    "alder": update([1.0, 0.0], t1=4.0, pd=8.0),
    "birch": update([3.0, 2.0], t1=1.0),
    "dogwood": update([-1.0, 6.0], t1=1.0),
}


def test_a_part_is_averaged_over_the_sites_that_sent_it():
    weights = {"alder": {"": 2.0}, "birch": {"": 1.0, "T1": 6.0}, "dogwood": {"": 1.0, "T1": 0.0}}
    mean = aggregated(UPDATES, weights, PARTS, MEAN)
    assert mean.update["trunk"].tolist() == [(2 * 1 + 3 - 1) / 4, (2 + 6) / 4]
    assert mean.update["stem[T1]"].item() == (2 * 4 + 6 * 1) / 8
    assert mean.update["stem[PD]"].item() == 8.0
    assert mean.contributors == {
        "trunk": ("alder", "birch", "dogwood"),
        "stem[T1]": ("alder", "birch"),
        "stem[PD]": ("alder",),
    }
    assert mean.scaled == ()


def test_what_nobody_sent_or_weighs_is_left_out():
    updates = {site: update([1.0, 1.0], t1=1.0) for site in ("alder", "birch")}
    mean = aggregated(updates, {site: {"": 1.0, "T1": 0.0} for site in updates}, PARTS, MEAN)
    assert set(mean.update) == set(mean.contributors) == {"trunk"}


@pytest.mark.parametrize("strategy", ["fedavg", "trimmed_mean", "median"])
@pytest.mark.parametrize("unit", ["parts", "tensors"])
def test_the_order_of_arrival_has_no_effect(unit, strategy):
    options = AggregateOptions(strategy, unit=unit, trim=0.3, max_update_norm=3.0)
    generator = torch.Generator().manual_seed(3)
    updates = {
        site: {part.name: torch.randn(part.shape, generator=generator) * 10**at for part in PARTS[: 3 - at % 2]}
        for at, site in enumerate(["a", "b", "c", "d", "e"])
    }
    weights = {site: {"": 1.0 / (at + 3)} for at, site in enumerate(updates)}
    expected = aggregated(updates, weights, PARTS, options)
    for order in itertools.islice(itertools.permutations(updates), 1, 30):
        shuffled = {site: dict(reversed(updates[site].items())) for site in order}
        found = aggregated(shuffled, weights, PARTS, options)
        assert found.contributors == expected.contributors
        assert all(torch.equal(found.update[name], tensor) for name, tensor in expected.update.items())


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.floats(-1e3, 1e3, width=32), st.floats(0.01, 100)), min_size=1, max_size=6))
def test_a_mean_lies_between_and_equal_updates_are_their_mean(rows):
    updates = {f"site{at}": update([value, 7.25]) for at, (value, _) in enumerate(rows)}
    weights = {f"site{at}": {"": weight} for at, (_, weight) in enumerate(rows)}
    mean = aggregated(updates, weights, PARTS, MEAN).update["trunk"]
    values = [value for value, _ in rows]
    slack = 1e-4
    assert min(values) - slack <= mean[0] <= max(values) + slack
    assert mean[1] == 7.25
    expected = np.average(values, weights=[weight for _, weight in rows])
    assert mean[0].item() == pytest.approx(expected, rel=1e-5, abs=1e-4)


def test_tensors_as_the_unit_average_like_those_who_know_of_no_parts():
    axis = ModalityAxis(("PD", "FLAIR", "T1"))
    info = ModelInfo("multi_unet", {"widths": (4, 8)}, axis, LabelSpace(), (1.0, 1.0, 1.0), (8, 8, 8), {}, {})
    found = parts(info)
    generator = torch.Generator().manual_seed(4)
    old = {part.tensor: torch.zeros(4, 3, 3, 3, 3) for part in found if part.group} | {
        part.tensor: torch.randn(part.shape, generator=generator) for part in found if not part.group
    }
    had = {"alder": ("PD", "T1"), "birch": ("T1",), "dogwood": ("T1",)}
    cases = {"alder": 10.0, "birch": 30.0, "dogwood": 20.0}
    whole, updates = {}, {}
    for site, modalities in had.items():
        own = trained_parts(found, {"", *modalities})
        change = {part.name: torch.randn(part.shape, generator=generator) for part in own}
        whole[site] = moved(change, old, found)
        updates[site] = difference(whole[site], old, own)
    # The exposure to a sequence is of no account here.
    weights = {site: {"": weight, "T1": 1.0, "PD": 5.0} for site, weight in cases.items()}
    mean = aggregated(updates, weights, found, replace(MEAN, unit="tensors"))
    new = moved(mean.update, old, found)
    for name in old:
        stock = sum(whole[site][name].double() * weight for site, weight in cases.items()) / 60
        torch.testing.assert_close(new[name].double(), stock, atol=1e-5, rtol=0)
    # By parts, the only holder of PD is followed all the way.
    by_part = moved(aggregated(updates, weights, found, MEAN).update, old, found)
    torch.testing.assert_close(
        by_part["encoder.0.first.conv.weight"][:, 0], whole["alder"]["encoder.0.first.conv.weight"][:, 0]
    )
    assert "encoder.0.first.conv.weight[FLAIR]" not in mean.update
    assert joined(mean.update, old, found).keys() == old.keys()


def robust(strategy, values, **more):
    updates = {f"site{at}": update([value, 0.0], t1=value) for at, value in enumerate(values)}
    weights = {site: {"": float(at)} for at, site in enumerate(updates)}
    return aggregated(updates, weights, PARTS, AggregateOptions(strategy, **more)).update["stem[T1]"].item()


@pytest.mark.parametrize(
    ("values", "expected"), [([5.0], 5.0), ([1.0, 2.0], 1.5), ([9.0, 1.0, 2.0], 2.0), ([9.0, 1e6, 1.0, 2.0], 5.5)]
)
def test_median(values, expected):
    assert robust("median", values) == expected


@pytest.mark.parametrize(
    ("trim", "values", "expected"),
    [
        (0.2, [1.0, 2.0, 1e6, 3.0, -1e6], 2.0),
        (0.2, [1.0, 2.0, 6.0], 3.0),  # a fifth of three sites is none
        (0.4, [1.0, 2.0, 1e6], 2.0),
        (0.49, [1.0, 2.0], 1.5),
        (0.0, [1.0, 2.0, 9.0], 4.0),
    ],
)
def test_trimmed_mean(trim, values, expected):
    assert robust("trimmed_mean", values, trim=trim) == expected


def test_a_share_of_the_sites_is_not_lost_to_rounding():
    values = [1e6] * 29 + [0.0] * 71
    assert 0.29 * 100 < 29
    assert robust("trimmed_mean", values, trim=0.29) == 0.0


def test_whole_tensors_count_a_missing_part_as_nothing_in_a_median():
    options = AggregateOptions("median", unit="tensors")
    mean = aggregated(UPDATES, equal(UPDATES), PARTS, options)
    assert mean.update["stem[PD]"].item() == 0.0
    assert mean.update["stem[T1]"].item() == 1.0
    assert mean.contributors["stem[PD]"] == ("alder",)


@pytest.mark.parametrize("strategy", ["fedavg", "median"])
def test_a_long_update_is_scaled_down_whole(strategy):
    updates = {"alder": update([3.0, 0.0], t1=4.0), "birch": update([0.5, 0.0], t1=0.0)}
    mean = aggregated(updates, equal(updates), PARTS, AggregateOptions(strategy, max_update_norm=1.0))
    assert mean.scaled == ("alder",)
    torch.testing.assert_close(mean.update["trunk"], torch.tensor([(0.6 + 0.5) / 2, 0.0]))
    torch.testing.assert_close(mean.update["stem[T1]"], torch.tensor([[0.8 / 2]]))
    exact = aggregated(updates, equal(updates), PARTS, AggregateOptions(max_update_norm=5.0))
    assert exact.scaled == ()


def test_half_precision_is_summed_in_full():
    updates = {f"site{at:03}": update([1.0 / 3, 0.0]) for at in range(100)}
    halves = {site: {name: tensor.half() for name, tensor in sent.items()} for site, sent in updates.items()}
    mean = aggregated(halves, equal(updates), PARTS, MEAN).update["trunk"]
    assert mean.dtype == torch.float32
    assert mean[0] == torch.tensor(1.0 / 3).half().float()


@pytest.mark.parametrize("weights", [{}, {"T1": 1.0}, {"": -1.0}, {"": float("nan")}, {"": 1.0, "T1": float("inf")}])
def test_a_site_without_a_weight_is_refused(weights):
    with pytest.raises(FederationError, match=r"birch has the weights .*: give each site weights of 0 or more"):
        aggregated(UPDATES, equal(UPDATES) | {"birch": weights}, PARTS, MEAN)


def test_what_is_no_part_is_refused():
    with pytest.raises(FederationError, match=r"birch sent 'stem\[T9\]', which is not a part"):
        aggregated(UPDATES | {"birch": {"stem[T9]": torch.zeros(1)}}, equal(UPDATES), PARTS, MEAN)


SHAPES = {part.name: part.shape for part in PARTS}
TWO = torch.tensor([1.0, 2.0])


@pytest.mark.parametrize(
    ("sent", "masked", "reason"),
    [
        ({"trunk": TWO}, False, ""),
        ({"trunk": TWO.half()}, False, ""),
        ({}, False, ""),
        ({"branch": TWO}, False, "it holds 'branch', which is not a part that this site trains"),
        ({"trunk": TWO[:1]}, False, "'trunk' is of shape (1,), but the part is (2,)"),
        ({"trunk": TWO / 0 - TWO}, False, "'trunk' holds 2 values of 2 that are not finite"),
        ({"trunk": TWO * float("nan")}, False, "'trunk' holds 2 values of 2 that are not finite"),
        ({"trunk": TWO.int()}, False, "'trunk' holds torch.int32, but floating point is expected"),
        ({"trunk": TWO.long()}, False, "'trunk' holds torch.int64, but floating point is expected"),
        ({"trunk": TWO.int()}, True, ""),
        ({"trunk": TWO}, True, "'trunk' holds torch.float32, but torch.int32 is expected"),
        ({"trunk": TWO.long()}, True, "'trunk' holds torch.int64, but torch.int32 is expected"),
    ],
)
def test_refused(sent, masked, reason):
    assert refused(sent, SHAPES, masked=masked) == reason
