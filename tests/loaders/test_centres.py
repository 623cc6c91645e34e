from dataclasses import replace

import numpy as np
import pytest

from multiseg.labels import LabelSpace, SpaceLabel
from multiseg.loaders.centres import load_centres
from multiseg.store.reader import Database, open_store

MIXED = LabelSpace((SpaceLabel("grey matter", "tissue"), SpaceLabel("lesion", "lesion"), SpaceLabel("CSF", "tissue")))


@pytest.fixture
def alder(store_url):
    return open_store(store_url)["alder"]


def shown(database, case, space):
    """The whole target of a case."""
    codes = database.codes(case, (0, 0, 0), case.extent)
    return database.label_view(case, space).target(codes)


def points_of(centres, case, label):
    start, stop = centres.of_label(case, label)
    return centres.points[start:stop]


def as_rows(points):
    return sorted(map(tuple, points.tolist()))


def test_the_points_of_a_label_are_those_that_the_store_sampled_of_its_structures(alder):
    centres = load_centres(alder, alder.cases, MIXED, range(3))
    stored_at = {0: (1, 1), 1: (0, 0), 2: (1, 0)}  # of alder's annotations and structures
    for number, case in enumerate(alder.cases):
        sampled = alder.foreground(case)
        for label, place in stored_at.items():
            expected = sampled[place][sampled[place][:, 0] >= 0]
            assert len(expected) == min(256, case.foreground_count[place])
            assert as_rows(points_of(centres, number, label)) == as_rows(expected)
        start, stop = centres.of_case(number)
        assert stop - start == sum(len(points_of(centres, number, label)) for label in range(3))


@pytest.mark.slow
def test_points_lie_where_the_target_shows_their_label(alder):
    centres = load_centres(alder, alder.cases, LabelSpace(), [0])
    for number, case in enumerate(alder.cases):
        target, points = shown(alder, case, LabelSpace()), points_of(centres, number, 0)
        assert len(points) > 0
        assert np.all(target[tuple(points.T)] == 1)


@pytest.mark.slow
def test_merged_structures_become_one_label(store_url):
    birch = open_store(store_url)["birch"]
    centres = load_centres(birch, birch.cases, LabelSpace(), [0])
    for number, case in enumerate(birch.cases):
        assert len(points_of(centres, number, 0)) == case.foreground_count.sum()


@pytest.mark.slow
def test_only_the_labels_asked_for_and_the_cases_annotated_have_points(alder):
    cases = [alder.cases[0], replace(alder.cases[1], annotated=np.array([False, True])), alder.cases[2]]
    centres = load_centres(alder, cases, MIXED, [1])
    sizes = [[len(points_of(centres, case, label)) for label in range(3)] for case in range(3)]
    assert sizes == [[0, 30, 0], [0, 0, 0], [0, 16, 0]]
    assert [(label, at.tolist()) for label, at in centres.holders()] == [(1, [0, 2])]


@pytest.mark.slow
def test_nothing_is_read_of_what_a_case_has_not(alder, monkeypatch):
    asked = []

    def noted(self, rows, annotation, structures):
        asked.append((list(rows), annotation, list(structures)))
        return whole(self, rows, annotation, structures)

    whole = Database.foreground_points
    monkeypatch.setattr(Database, "foreground_points", noted)
    cases = list(alder.cases)
    cases[1] = replace(cases[1], foreground_count=np.array([[0, 0, 0], [5, 5, 5]]))
    centres = load_centres(alder, cases, LabelSpace(), [0])
    assert asked == [([alder.cases[n].row for n in (0, 2, 3)], 0, [0])]
    assert len(points_of(centres, 1, 0)) == 0
    assert len(points_of(centres, 3, 0)) == 31


@pytest.mark.slow
def test_a_second_rater_adds_no_points(alder):
    one = load_centres(alder, alder.cases, LabelSpace(), [0])
    alder.schemas = {"lesion": alder.schemas["lesion"], "rater2": alder.schemas["lesion"]}
    assert len(load_centres(alder, alder.cases, LabelSpace(), [0]).points) == len(one.points)


@pytest.mark.slow
def test_too_many_points_are_thinned_alike_and_spread(alder):
    whole = load_centres(alder, alder.cases, MIXED, range(3))
    thin = load_centres(alder, alder.cases, MIXED, range(3), most=12 * 20)
    for case in range(4):
        assert [len(points_of(thin, case, label)) for label in range(3)] == [20, min(20, [30, 42, 16, 31][case]), 20]
        for label in range(3):
            held, left = as_rows(points_of(whole, case, label)), as_rows(points_of(thin, case, label))
            assert set(left) <= set(held)
            gaps = np.diff([held.index(point) for point in left])
            assert gaps.max() <= np.ceil(len(held) / len(left))
    fewest = load_centres(alder, alder.cases, MIXED, range(3), most=1)
    assert len(fewest.points) == 12


@pytest.mark.slow
def test_blocks_of_cases_join_to_the_same(alder, monkeypatch):
    at_once = load_centres(alder, alder.cases, MIXED, range(3))
    monkeypatch.setattr("multiseg.loaders.centres._BLOCK", 1)
    one_by_one = load_centres(alder, alder.cases, MIXED, range(3))
    assert np.array_equal(at_once.bounds, one_by_one.bounds)
    assert np.array_equal(at_once.points, one_by_one.points)


@pytest.mark.slow
def test_no_label_asked_for_gives_no_points(alder):
    centres = load_centres(alder, alder.cases, MIXED, [])
    assert centres.points.shape == (0, 3)
    assert centres.of_case(3) == (0, 0)
    assert centres.holders() == ()


def test_a_structure_that_no_case_has_yet_has_no_points(alder):
    """An annotation has got a second structure since the cases were counted."""
    cases = [replace(case, foreground_count=case.foreground_count[:, :1]) for case in alder.cases]
    centres = load_centres(alder, cases, MIXED, [0, 2])
    assert all(len(points_of(centres, case, 0)) == 0 < len(points_of(centres, case, 2)) for case in range(len(cases)))
