import shutil
from collections import Counter
from dataclasses import replace
from functools import cache
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from multiseg.errors import DataError, UsageError
from multiseg.labels import LabelSpace, SpaceLabel
from multiseg.loaders.batches import PatchStream, StreamOptions
from multiseg.loaders.chance import Chance
from multiseg.loaders.draw import DrawOptions, DrawPlan, chosen, corner_range
from multiseg.loaders.modality_drop import DROPS, kept, limits
from multiseg.modalities import ModalityAxis
from multiseg.store.catalogue import select
from multiseg.store.reader import Database, open_store

TISSUES = (SpaceLabel("CSF", "tissue"), SpaceLabel("white matter", "tissue"))
MIXED = LabelSpace((TISSUES[0], SpaceLabel("lesion", "lesion"), TISSUES[1]))
VOXEL = (1, 1, 1)  # a window of one voxel has its corner where it is centred


@pytest.fixture(scope="module")
def store(store_url):
    return open_store(store_url)


def plan_of(store, cases=None, space=None, **options):
    cases = cases or {name: store[name].cases for name in store}
    return DrawPlan(store, cases, space or LabelSpace(), DrawOptions(**{"patch": (12, 12, 12)} | options))


def fits(observed, expected=None):
    return chisquare(observed, expected).pvalue > 0.01


SUBSETS = [s for size in range(1, 5) for s in combinations(range(4), size)]
LAWS = {
    "uniform": {4: 1 / 4, 3: 1 / 16, 2: 1 / 24, 1: 1 / 16},
    "subsets": dict.fromkeys(range(1, 5), 1 / 15),
    "bernoulli": {4: 0.7**4, 3: 0.7**3 * 0.3, 2: 0.7**2 * 0.3**2, 1: 0.7 * 0.3**3},  # of 1 - 0.3^4
}
"""How likely each single set of so many of four sequences stays."""


def law_of(law, kept_of_each_draw, modalities=range(4)):
    """Observed and expected counts of every subset of four sequences."""
    counts = Counter(kept_of_each_draw)
    subsets = [tuple(modalities[at] for at in subset) for subset in SUBSETS]
    assert set(counts) <= set(subsets), "a drop left nothing, or something foreign"
    chances = np.array([LAWS[law][len(s)] for s in subsets])
    return [counts[s] for s in subsets], counts.total() * chances / chances.sum()


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS)
def test_a_drop_follows_its_law(law):
    given = limits(law, 4, 0.3)
    assert fits(*law_of(law, [kept(4, given, Chance(n)) for n in range(4800)]))


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS)
def test_draws_follow_the_law_too(store, law):
    plan = plan_of(store, {"alder": store["alder"].cases[:1]}, drop=law, drop_probability=0.3)
    modalities = store["alder"].cases[0].modalities
    assert fits(*law_of(law, [plan.draw(3, index).kept for index in range(2400)], modalities))


def test_the_published_law_by_its_numbers():
    expected = {4: 0.25, 3: 0.0625, 2: 0.0417, 1: 0.0625}
    assert {size: pytest.approx(chance, abs=1e-4) for size, chance in LAWS["uniform"].items()} == expected


def test_the_weights_of_the_laws_by_hand():
    assert DROPS["uniform"](4, 0.5) == [1, 1, 1, 1]
    assert DROPS["subsets"](4, 0.5) == [1, 4, 6, 4]
    assert np.divide(DROPS["bernoulli"](2, 0.5), 2**53) == pytest.approx([1 / 3, 2 / 3])
    assert np.divide(DROPS["bernoulli"](3, 0.2), 2**53) == pytest.approx(np.array([64, 48, 12]) / 124)


@pytest.mark.parametrize("law", DROPS)
def test_a_single_sequence_is_never_dropped(law):
    assert {kept(1, limits(law, 1, 0.99), Chance(n)) for n in range(50)} == {(0,)}


def test_a_probability_of_0_keeps_all_and_one_of_nearly_1_leaves_one():
    assert {kept(3, limits("bernoulli", 3, 0.0), Chance(n)) for n in range(50)} == {(0, 1, 2)}
    left = Counter(kept(3, limits("bernoulli", 3, 1 - 1e-9), Chance(n)) for n in range(600))
    assert fits([left[0,], left[1,], left[2,]])


@pytest.mark.parametrize("law", DROPS)
def test_a_drop_leaves_enough_chance_for_what_comes_after(law):
    """Of 512 bits: nine sequences after a draw of a database, a centre and a window."""
    chances = [Chance(n) for n in range(600)]
    for chance in chances:
        assert chance.happens(2.0)
        for _ in range(6):
            chance.below(300)
        kept(9, limits(law, 9, 0.5), chance)
    assert fits(list(Counter(chance.below(10) for chance in chances).values()))


def test_no_drop_keeps_all(store):
    plan = plan_of(store, drop="none")
    assert all(draw.kept == draw.case.modalities for draw in (plan.draw(0, index) for index in range(50)))


def names_of(cases, **options):
    return [case.name for case in chosen(cases, DrawOptions(**options))]


def test_a_few_cases_are_chosen_by_the_seed_and_their_names_alone(store):
    cases = [replace(case, name=f"{case.name}{n}") for case in store["alder"].cases for n in range(10)]
    ten = names_of(cases, num_cases=10)
    five = names_of(cases, num_cases=5)
    assert (len(ten), len(five)) == (10, 5)
    assert set(five) < set(ten)
    assert names_of(cases[::-1], num_cases=10) == ten[::-1]
    assert set(names_of(cases[5:], num_cases=40)) == {case.name for case in cases[5:]}
    assert ten != names_of(cases, num_cases=10, seed=1)
    assert names_of(cases) == [case.name for case in cases]


@pytest.mark.slow
def test_every_case_is_as_likely_to_be_chosen(store):
    cases = [replace(store["alder"].cases[0], name=f"A{n}") for n in range(6)]
    counts = Counter(name for seed in range(300) for name in names_of(cases, num_cases=2, seed=seed))
    assert fits([counts[case.name] for case in cases])


def test_the_stream_has_the_chosen_cases_only(store):
    axis = ModalityAxis(("FLAIR", "T1"))
    options = StreamOptions(DrawOptions((8, 8, 8), num_cases=1, seed=4), workers=0)
    plan = PatchStream(store, axis, LabelSpace(), options).plan
    training = {
        name: [c for c in select(store, [name], split="train") if set(c.modalities) & set(axis)] for name in store
    }
    assert {name: [case.name for case in some] for name, some in plan.cases.items()} == {
        name: names_of(some, num_cases=1, seed=4) for name, some in training.items() if some
    }
    assert max(map(len, training.values())) > 1


def test_a_draw_says_which_case_and_channels_it_means_in_numbers_too(store):
    plan = plan_of(store, {"alder": store["alder"].cases, "cedar": (), "dogwood": store["dogwood"].cases[2:]})
    for draw in (plan.draw(0, index) for index in range(60)):
        assert plan.numbered[draw.number] is draw.case
        assert draw.kept == tuple(draw.case.modalities[channel] for channel in draw.channels)
        assert list(draw.channels) == sorted(draw.channels)


@pytest.mark.slow
@settings(deadline=None, max_examples=20)  # every example reads the store
@given(st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1))
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


@pytest.mark.slow
def test_databases_are_equally_likely_whatever_their_sizes(store):
    plan = plan_of(store, {"alder": store["alder"].cases, "birch": store["birch"].cases[:1], "cedar": ()})
    counts = Counter(plan.draw(0, index).case.database for index in range(2000))
    assert set(counts) == {"alder", "birch"}
    assert fits(list(counts.values()))
    assert len({plan.draw(0, index).case.name for index in range(200)}) == len(store["alder"].cases) + 1


def test_each_takes_the_databases_in_turn(store):
    plan = plan_of(store, databases="each")
    names = [plan.draw(0, index).case.database for index in range(40)]
    assert set(Counter(names).values()) == {10}
    assert all(set(names[at : at + 4]) == set(store) for at in range(0, 40, 4))


@pytest.mark.slow
def test_databases_are_drawn_by_their_weights(store):
    weights = {"dogwood": 0.5, "alder": 3.0, "cedar": 0.0, "birch": 1.5}
    plan = plan_of(store, weights=weights)
    counts = Counter(plan.draw(0, index).case.database for index in range(2500))
    assert set(counts) == {"alder", "birch", "dogwood"}
    assert fits([counts[name] for name in counts], [500 * weights[name] for name in counts])


@pytest.mark.slow
@pytest.mark.parametrize("size", [1e-320, 1e308])
def test_weights_of_any_size_count_beside_each_other(store, size):
    plan = plan_of(store, weights=dict.fromkeys(store, size))
    counts = Counter(plan.draw(0, index).case.database for index in range(1000))
    assert fits([counts[name] for name in store])


@pytest.mark.slow
def test_neighbouring_draws_are_independent(store):
    plan = plan_of(store)
    pairs = Counter((plan.draw(0, n).case.name, plan.draw(0, n + 1).case.name) for n in range(0, 3072, 2))
    names = [case.name for case in plan.numbered]
    assert fits([pairs[pair] for pair in product(names, names)])


def holds_lesion(store, draw, patch):
    codes = store[draw.case.database].codes(draw.case, draw.corner, patch)
    return bool(codes[list(store[draw.case.database].schemas).index("lesion")].any())


def test_centred_windows_hold_a_voxel_of_a_structure_of_the_space(store):
    patch = (6, 6, 6)  # alder's tissue is everywhere, its lesions are not
    centred = plan_of(store, {"alder": store["alder"].cases}, patch=patch, lesion_share=1.0)
    free = plan_of(store, {"alder": store["alder"].cases}, patch=patch, lesion_share=0.0)
    assert all(holds_lesion(store, centred.draw(0, n), patch) for n in range(60))
    assert not all(holds_lesion(store, free.draw(0, n), patch) for n in range(60))


def drawn_voxels(plan, num):
    """Case and voxel of windows of one voxel."""
    draws = [plan.draw(0, index) for index in range(num)]
    return [(draw.case, draw.corner) for draw in draws]


def label_at(store, case, voxel, space=MIXED):
    """The label that the target shows at a voxel."""
    return int(whole_target(store, case.database, case.name, space)[voxel])


@cache
def whole_target(store, database, name, space):
    case = store[database][name]
    return store[database].label_view(case, space).target(store[database].codes(case, (0, 0, 0), case.extent))


def without(case, annotation):
    """A case in which nothing was found of an annotation."""
    count = case.foreground_count.copy()
    count[annotation] = 0
    return replace(case, foreground_count=count)


@pytest.mark.slow
def test_the_share_of_centred_windows_is_as_given(store):
    cases = {"cedar": store["cedar"].cases[:1]}
    plan = plan_of(store, cases, patch=VOXEL, lesion_share=0.3)
    centred = sum(label_at(store, *drawn) > 0 for drawn in drawn_voxels(plan, 2000))
    elsewhere = 218 / np.prod(store["cedar"].cases[0].extent)  # what hits the lesion by chance
    expected = 2000 * (0.3 + 0.7 * elsewhere)
    assert fits([centred, 2000 - centred], [expected, 2000 - expected])


@pytest.mark.slow
def test_voxel_draws_the_case_first_and_every_sampled_voxel_alike(store):
    birch = store["birch"].cases
    cases = {"birch": [without(birch[0], 0), *birch[1:]]}
    plan = plan_of(store, cases, patch=VOXEL, lesion_share=1.0)
    drawn = drawn_voxels(plan, 3000)
    counts = Counter(case.name for case, _ in drawn)
    assert fits([counts[case.name] for case in birch])
    # The case without voxels gives windows anywhere.
    assert not all(label_at(store, case, voxel) for case, voxel in drawn if case.name == "B001")
    for case in birch[1:]:
        sampled = store["birch"].foreground(case).reshape(-1, 3)
        counts = Counter(voxel for other, voxel in drawn if other.name == case.name)
        assert fits([counts[tuple(point)] for point in sampled[sampled[:, 0] >= 0].tolist()])
        assert counts.total() == sum(counts[tuple(p)] for p in sampled.tolist())


@pytest.mark.slow
def test_label_balances_databases_labels_and_cases(store, monkeypatch):
    space = LabelSpace(tuple(SpaceLabel(name, "lesion") for name in ("necrosis", "oedema", "lesion")))
    birch, cedar = store["birch"].cases, store["cedar"].cases
    whole = Database.foreground_points

    def no_necrosis_in_two(self, rows, annotation, structures):
        points = whole(self, rows, annotation, structures)
        if self.name == "birch":
            points[np.isin(rows, [birch[0].row, birch[1].row]), structures.index(0)] = -1
        return points

    monkeypatch.setattr(Database, "foreground_points", no_necrosis_in_two)
    plan = plan_of(store, {"birch": birch, "cedar": cedar}, space, patch=VOXEL, lesion_share=1.0, centre="label")
    counts = Counter((case.name, label_at(store, case, voxel, space)) for case, voxel in drawn_voxels(plan, 2400))
    # Half of each database. In birch a third of each label: necrosis only in two cases, the others in all four.
    expected = {(case.name, 3): 2400 / 2 / 4 for case in cedar}
    expected |= {(case.name, 1): 2400 / 6 / 2 for case in birch[2:]}
    expected |= {(case.name, label): 2400 / 6 / 4 for case in birch for label in (2, 3)}
    assert set(counts) == set(expected)
    assert fits([counts[key] for key in expected], list(expected.values()))


def test_label_in_a_database_without_any_draws_anywhere(store):
    cases = {"cedar": [without(case, 0) for case in store["cedar"].cases]}
    plan = plan_of(store, cases, patch=VOXEL, lesion_share=1.0, centre="label")
    drawn = drawn_voxels(plan, 400)
    assert {case.name for case, _ in drawn} == {"C001", "C002", "C003", "C004"}
    assert sum(label_at(store, *voxel) > 0 for voxel in drawn) < 40


@pytest.mark.slow
def test_dilated_offsets_are_uniform_in_the_ball_around_lesions(store, monkeypatch):
    whole = Database.foreground_points

    def first_point(self, rows, annotation, structures):
        points = np.full_like(whole(self, rows, annotation, structures), -1)
        points[:, :, 0] = voxel
        return points

    case, voxel = store["alder"].cases[0], (10, 11, 12)  # far enough from every border
    # In a space of more labels, so that a centre on a tissue would show.
    monkeypatch.setattr(Database, "foreground_points", first_point)
    options = {"patch": VOXEL, "lesion_share": 1.0, "centre": "dilated", "dilation": 3}
    plan = plan_of(store, {"alder": [case]}, MIXED, **options)
    counts = Counter(tuple(np.subtract(corner, voxel).tolist()) for _, corner in drawn_voxels(plan, 123 * 15))
    inside = [offset for offset in product(range(-3, 4), repeat=3) if np.linalg.norm(offset) <= 3]
    assert len(inside) == 123
    assert set(counts) == set(inside)
    assert fits([counts[offset] for offset in inside])


def test_dilated_by_nothing_is_on_lesions_only(store):
    options = {"patch": VOXEL, "lesion_share": 1.0, "centre": "dilated", "dilation": 0}
    plan = plan_of(store, {"alder": store["alder"].cases}, MIXED, **options)
    assert {label_at(store, *drawn) for drawn in drawn_voxels(plan, 200)} == {2}


@pytest.mark.slow
def test_drawing_touches_no_file(store_url, store, tmp_path):
    url = shutil.copytree(store_url, tmp_path / "copy.zarr")
    laws = [{"centre": centre, "overhang": 3} for centre in ("voxel", "label", "dilated")]
    gone = open_store(str(url))
    plans = [plan_of(gone, space=MIXED, **law) for law in laws]
    shutil.rmtree(url)
    for law, plan in zip(laws, plans, strict=True):
        there = plan_of(store, space=MIXED, **law)
        for a, b in ((plan.draw(2, n), there.draw(2, n)) for n in range(60)):
            assert (a.case.name, a.corner, a.kept) == (b.case.name, b.corner, b.kept)


def test_where_no_window_is_centred_no_voxels_are_read(store, monkeypatch):
    def refused(*args):
        raise AssertionError("voxels were read")

    monkeypatch.setattr(Database, "foreground_points", refused)
    plan_of(store, lesion_share=0.0)
    with pytest.raises(AssertionError, match="were read"):
        plan_of(store, lesion_share=0.1)


@given(st.integers(1, 300), st.integers(1, 200), st.integers(0, 150))
def test_how_far_a_window_may_reach_over_a_border(extent, size, overhang):
    low, high = corner_range(extent, size, overhang)
    before, after = -low, high + size - extent  # how far the first and the last window reach over
    assert low <= high
    if extent >= size:
        assert before == after == min(overhang, size // 2)
    else:
        assert max(low, high) <= 0
        assert min(low, high) + size >= extent, "the case lies wholly inside"
        assert before + after <= size - extent + 2 * overhang
    if overhang >= size // 2 and extent >= size:
        for voxel in (0, extent - 1):  # a voxel at the border may be in the middle
            assert low <= voxel - size // 2 <= high
    if overhang == 0 and extent < size:
        assert low == high == -((size - extent + 1) // 2)


@pytest.mark.slow
@settings(deadline=None)
@given(st.integers(0, 40), st.sampled_from([0.0, 1.0]), st.tuples(*[st.integers(1, 48)] * 3), st.integers(0, 2**63 - 1))
def test_corners_keep_to_their_range(store, overhang, share, patch, index):
    draw = plan_of(store, {"alder": store["alder"].cases}, patch=patch, lesion_share=share, overhang=overhang).draw(
        0, index
    )
    for corner, extent, size in zip(draw.corner, draw.case.extent, patch, strict=True):
        low, high = corner_range(extent, size, overhang)
        assert low <= corner <= high


@pytest.mark.slow
def test_windows_anywhere_are_uniform_over_their_range(store):
    plan = plan_of(store, {"alder": store["alder"].cases[:1]}, patch=(18, 64, 20), lesion_share=0.0, overhang=2)
    corners = np.array([plan.draw(0, index).corner for index in range(4500)])
    for axis, places in enumerate([range(-2, 7), range(-18, -13), range(-2, 7)]):  # in 22, 32 and 24 voxels
        counts = Counter(corners[:, axis].tolist())
        assert set(counts) == set(places)
        assert fits([counts[place] for place in places])


def test_with_enough_overhang_every_centre_is_in_the_middle(store):
    cases = {"cedar": store["cedar"].cases}
    free = plan_of(store, cases, patch=(20, 20, 20), lesion_share=1.0, overhang=99)
    bound = plan_of(store, cases, patch=(20, 20, 20), lesion_share=1.0)
    middles = [(d.case, tuple(np.add(d.corner, 10).tolist())) for d in (free.draw(0, n) for n in range(100))]
    assert all(label_at(store, *middle) for middle in middles)
    assert any(free.draw(0, n).corner != bound.draw(0, n).corner for n in range(100))


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
        ({"drop": "all"}, "draw.drop is 'all': give one of uniform, none, bernoulli, subsets"),
        ({"num_cases": -1}, "num_cases is -1: give 0"),
        ({"drop": "bernoulli", "drop_probability": 1.0}, r"drop_probability is 1\.0: .* below 1"),
        ({"drop_probability": float("nan")}, "drop_probability is nan"),
        ({"centre": "edge"}, "draw.centre is 'edge': give one of voxel, label, dilated"),
        ({"overhang": -2}, "overhang is -2"),
        ({"dilation": 65}, "dilation is 65: give 0 to 64"),
        ({"seed": 2**63}, "draw.seed is 9223372036854775808"),
        ({"weights": {"elder": 1.0, "alder": 2.0}}, r"alder, birch, cedar, dogwood: \['elder'\] are unknown"),
        ({"weights": {"alder": 2.0, "birch": 1.0}}, r"\['cedar', 'dogwood'\] have no weight"),
        ({"weights": {"alder": 2.0, "birch": 1.0, "cedar": 1.0, "dogwood": -0.5}}, "dogwood = -0.5: give finite"),
        ({"weights": {"alder": 2.0, "birch": 1.0, "cedar": 1.0, "dogwood": float("nan")}}, "dogwood = nan: give"),
        ({"weights": {"alder": 2.0, "birch": 1.0, "cedar": 1.0, "dogwood": float("inf")}}, "dogwood = inf: give"),
        (
            {"weights": dict.fromkeys(("alder", "birch", "cedar", "dogwood"), 0.0)},
            "the weights of alder, birch, cedar, dogwood are all 0",
        ),
        ({"weights": {"alder": 2.0}, "databases": "each"}, "alder = 2.* not 'each'"),
        ({"databases": "big"}, "draw.databases is 'big': give one of drawn, each"),
        ({"patch": (8, 0, 8)}, r"draw.patch is \[8, 0, 8\]"),
        ({"lesion_share": 1.5}, "lesion_share is 1.5"),
        ({"seed": -3}, "draw.seed is -3"),
    ],
)
def test_options_that_cannot_be_meant(store, options, said):
    with pytest.raises(UsageError, match=said):
        plan_of(store, **options)


def test_no_case_to_draw_from(store):
    with pytest.raises(DataError, match="no case to draw"):
        plan_of(store, {"alder": ()})


def test_dilated_needs_a_lesion(store):
    with pytest.raises(UsageError, match="none of the labels CSF, white matter is a lesion"):
        plan_of(store, space=LabelSpace(TISSUES), centre="dilated")


def test_a_database_without_cases_may_go_without_weight(store):
    plan = plan_of(store, {"alder": store["alder"].cases, "birch": ()}, weights={"alder": 1.0})
    assert plan.draw(0, 0).case.database == "alder"


def test_the_chance_of_a_case_is_its_databases_divided_by_its_cases(store):
    cases = {"alder": store["alder"].cases, "birch": store["birch"].cases[:1]}
    num = len(cases["alder"])
    assert plan_of(store, cases, databases="each").chances == (*[1 / num] * num, 1)
    chances = plan_of(store, cases, weights={"alder": 3.0, "birch": 1.0}).chances
    assert [chance / chances[-1] for chance in chances] == pytest.approx([*[3 / num] * num, 1])


def test_options_may_be_at_the_end_of_their_range(store):
    cases = {"alder": store["alder"].cases}
    plan = plan_of(store, cases, dilation=64, drop="bernoulli", drop_probability=0.0, seed=2**63 - 1)
    draw = plan.draw(0, 0)
    assert draw.kept == draw.case.modalities
