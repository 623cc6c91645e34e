from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from multiseg.loaders.cache import CaseCache, with_places
from multiseg.loaders.patches import CaseSource, DatabaseSource, Sources
from multiseg.store.array_layout import ArrayLayout

LAYOUT = ArrayLayout("a/image", (2, 9, 9, 9), (2, 4, 4, 4), (2, 8, 8, 8), "float16", "none")


def sources_of(edges):
    """Cases of one database with two channels: 5 bytes a voxel."""
    cases = [CaseSource(f"a/{n}", 0, n, (edge, 1, 1), 0, "image:0/0/0/0") for n, edge in enumerate(edges)]
    return Sources("somewhere", [DatabaseSource(LAYOUT, LAYOUT, (0, 1))], cases, [[]], (4, 4, 4), 2)


def places(edges, chances, budget):
    sources, taken = with_places(sources_of(edges), chances, budget)
    return [case.cached_at for case in sources.cases], taken


def test_the_likeliest_cases_have_places():
    assert places([10, 10, 10], [0.2, 0.5, 0.3], 128) == ([-1, 0, 64], 128)
    assert places([10, 10, 10], [0.2, 0.5, 0.3], 127) == ([-1, 0, -1], 64)
    assert places([10, 10, 10], [0.2, 0.5, 0.3], 0) == ([-1, -1, -1], 0)


def test_what_does_not_fit_leaves_its_room_to_smaller_ones():
    assert places([10, 100, 20], [0.2, 0.5, 0.3], 200) == ([128, -1, 0], 192)


@given(st.lists(st.tuples(st.integers(1, 50), st.floats(0, 1)), min_size=1, max_size=20), st.integers(0, 3000))
def test_places_never_overlap_and_keep_to_the_budget(cases, budget):
    edges, chances = zip(*cases, strict=True)
    found, taken = places(edges, chances, budget)
    assert taken <= budget
    spans = sorted((at, at + 5 * edge) for at, edge in zip(found, edges, strict=True) if at >= 0)
    assert all(start % 64 == 0 and stop <= taken for start, stop in spans)
    assert all(stop <= start for (_, stop), (start, _) in pairwise(spans))


def test_a_case_is_due_once_and_held_when_decoded():
    sources, taken = with_places(sources_of([10, 10]), [0.6, 0.4], 64)
    cache = CaseCache(sources, taken)
    assert cache.memory.num_bytes == 64
    assert not cache.is_due(1), "it has no place"
    assert [cache.is_due(0), cache.is_due(0), cache.holds(0)] == [True, False, False]
    cache.is_given_up(0)
    assert [cache.is_due(0), cache.holds(0)] == [True, False]
    cache.is_decoded(0)
    assert [cache.is_due(0), cache.holds(0), cache.holds(1)] == [False, True, False]


def test_no_budget_no_memory():
    sources, taken = with_places(sources_of([10]), [1.0], 0)
    assert CaseCache(sources, taken).memory is None
