from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from multiseg.errors import DataError, UsageError
from multiseg.labels import LabelSpace
from multiseg.loaders.draw import DrawOptions, DrawPlan, uniform_drop
from multiseg.store.reader import open_store


@pytest.fixture(scope="module")
def store(store_url):
    return open_store(store_url)


def plan_of(store, cases=None, **options):
    cases = cases or {name: store[name].cases for name in store}
    return DrawPlan(store, cases, LabelSpace(), DrawOptions(**{"patch": (12, 12, 12)} | options))


def law_of(kept_of_each_draw, modalities):
    """Observed counts of every subset, and those that Xu et al. 2024 (2.1) give for four sequences."""
    counts = Counter(tuple(sorted(kept)) for kept in kept_of_each_draw)
    subsets = [tuple(sorted(s)) for size in range(1, 5) for s in combinations(modalities, size)]
    chance = {1: 1 / 16, 2: 1 / 24, 3: 1 / 16, 4: 1 / 4}
    assert set(counts) <= set(subsets), "a drop left nothing, or something foreign"
    return [counts[s] for s in subsets], [len(kept_of_each_draw) * chance[len(s)] for s in subsets]


def test_uniform_drop_follows_the_published_law():
    rng = np.random.default_rng(0)
    names = ("PD", "FLAIR", "T1", "T2")
    observed, expected = law_of([uniform_drop(names, rng) for _ in range(9600)], names)
    assert chisquare(observed, expected).pvalue > 0.01


def test_draws_follow_the_published_law_too(store):
    plan = plan_of(store, {"alder": store["alder"].cases[:1]})
    case = store["alder"].cases[0]
    observed, expected = law_of([plan.draw(3, index).kept for index in range(4800)], case.modalities)
    assert chisquare(observed, expected).pvalue > 0.01


def test_a_single_sequence_is_never_dropped():
    rng = np.random.default_rng(1)
    assert {uniform_drop(("T1",), rng) for _ in range(50)} == {("T1",)}


def test_no_drop_keeps_all(store):
    plan = plan_of(store, drop="none")
    assert all(draw.kept == draw.case.modalities for draw in (plan.draw(0, index) for index in range(50)))


@given(st.integers(0, 2**31), st.integers(0, 2**31), st.integers(0, 2**31))
def test_a_draw_is_a_function_of_seed_epoch_and_index_alone(store, seed, epoch, index):
    first, other = plan_of(store, seed=seed), plan_of(store, seed=seed)
    other.draw(epoch + 1, index)  # what was drawn before must not matter
    a, b = first.draw(epoch, index), other.draw(epoch, index)
    assert (a.case.name, a.corner, a.kept) == (b.case.name, b.corner, b.kept)


def test_seed_epoch_and_index_each_change_the_draws(store):
    def drawn(seed, epoch, start):
        plan = plan_of(store, seed=seed)
        return [(d.case.name, d.corner, d.kept) for d in (plan.draw(epoch, start + n) for n in range(20))]

    assert len({str(drawn(*key)) for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 20)]}) == 4


def test_databases_are_equally_likely_whatever_their_sizes(store):
    plan = plan_of(store, {"alder": store["alder"].cases, "birch": store["birch"].cases[:1], "cedar": ()})
    counts = Counter(plan.draw(0, index).case.database for index in range(4000))
    assert set(counts) == {"alder", "birch"}
    assert chisquare(list(counts.values())).pvalue > 0.01
    assert len({plan.draw(0, index).case.name for index in range(200)}) == len(store["alder"].cases) + 1


def test_each_takes_the_databases_in_turn(store):
    plan = plan_of(store, databases="each")
    names = [plan.draw(0, index).case.database for index in range(40)]
    assert set(Counter(names).values()) == {10}
    assert all(set(names[at : at + 4]) == set(store) for at in range(0, 40, 4))


def holds_lesion(store, draw, patch):
    codes = store[draw.case.database].codes(draw.case, draw.corner, patch)
    return bool(codes[list(store[draw.case.database].schemas).index("lesion")].any())


def test_centred_windows_hold_a_voxel_of_a_structure_of_the_space(store):
    patch = (6, 6, 6)  # alder's tissue is everywhere, its lesions are not
    centred = plan_of(store, {"alder": store["alder"].cases}, patch=patch, lesion_share=1.0)
    free = plan_of(store, {"alder": store["alder"].cases}, patch=patch, lesion_share=0.0)
    assert all(holds_lesion(store, centred.draw(0, n), patch) for n in range(60))
    assert not all(holds_lesion(store, free.draw(0, n), patch) for n in range(60))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_windows_lie_inside_the_case(store, share):
    plan = plan_of(store, lesion_share=share, patch=(12, 20, 7))
    for index in range(200):
        draw = plan.draw(1, index)
        ends = np.add(draw.corner, (12, 20, 7))
        assert np.all(np.array(draw.corner) >= 0)
        assert np.all(ends <= draw.case.extent)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_case_smaller_than_the_window_lies_in_its_middle(store, share):
    plan = plan_of(store, lesion_share=share, patch=(64, 64, 8))
    for index in range(20):
        draw = plan.draw(0, index)
        for corner, extent in zip(draw.corner[:2], draw.case.extent[:2], strict=True):
            before, after = -corner, corner + 64 - extent
            assert before > 0
            assert abs(before - after) <= 1
        assert 0 <= draw.corner[2] <= draw.case.extent[2] - 8


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"drop": "all"}, "'all' is none of uniform, none"),
        ({"databases": "big"}, "'big' is none of drawn, each"),
        ({"patch": (8, 0, 8)}, r"patches of \[8, 0, 8\] voxels"),
        ({"lesion_share": 1.5}, "lesion_share of 1.5"),
        ({"seed": -3}, "seed -3"),
    ],
)
def test_options_that_cannot_be_meant(store, options, said):
    with pytest.raises(UsageError, match=said):
        plan_of(store, **options)


def test_no_case_to_draw_from(store):
    with pytest.raises(DataError, match="no case to draw"):
        plan_of(store, {"alder": ()})
