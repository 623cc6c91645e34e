"""What a store does with thousands of cases, in the same words as with three."""

from hypothesis import given, settings
from hypothesis import strategies as st

from multiseg.store.ingest.duplicates import NEAREST_TO_TRAINING, Row, reconciled

People = set[tuple[str, str]]


def simply_joined(rows: list[Row], same: list[list[Row]]) -> list[People]:
    """Who is one person, by joining whoever shares a scan until nothing changes."""
    people = [{person} for person in dict.fromkeys(row.person for row in rows)]
    for group in same:
        wanted = {row.person for row in group}
        joined = [some for some in people if some & wanted]
        at = people.index(joined[0])
        people = [some for some in people if some not in joined]
        people.insert(at, set().union(*joined))
    return people


def simple_answer(rows: list[Row], same: list[list[Row]]) -> tuple[list[tuple[str, str, str]], dict[str, str]]:
    """Code, database and case of every finding, and the new splits, row by row and person by person."""
    found = [("DUPLICATE_SCAN", row.database, row.case) for group in same for row in group[1:]]
    moved = {}
    for people in simply_joined(rows, same):
        own = [row for row in rows if row.person in people]
        fixed = [row for row in own if row.is_given]
        leader = fixed[0] if fixed else min(own, key=lambda row: NEAREST_TO_TRAINING.index(row.split))
        for row in own:
            if row.split != leader.split:
                found.append(("SUBJECT_IN_TWO_SPLITS" if row.is_given else "SPLIT_CHANGED", row.database, row.case))
                if not row.is_given:
                    moved[f"{row.database}/{row.case}"] = leader.split
    return found, moved


@st.composite
def stores(draw) -> tuple[list[Row], list[list[Row]]]:
    """Cases of two databases, some of one person, some with a given split, and groups that share a scan."""
    rows = [
        Row(
            database, row, f"c{row}", f"p{draw(st.integers(0, 5))}", draw(st.sampled_from(NEAREST_TO_TRAINING)),
            draw(st.booleans()),
        )
        for database in ("A", "B")
        for row in range(draw(st.integers(1, 6)))
    ]  # fmt: skip
    chosen = draw(st.lists(st.sets(st.integers(0, len(rows) - 1), min_size=2, max_size=4), max_size=4))
    return rows, [[rows[at] for at in sorted(some)] for some in chosen if len(rows) > 1 and len(some) > 1]


@settings(max_examples=200, deadline=None)
@given(stores().filter(lambda store: len(store[0]) > 3))
def test_people_and_splits_are_those_of_the_simple_search(store: tuple[list[Row], list[list[Row]]]) -> None:
    rows, same = store
    findings, moves = reconciled(rows, same, [], ["A", "B"])
    found = [(finding.code, finding.database, finding.case) for finding in findings]
    assert (found, {f"{row.database}/{row.case}": split for row, split in moves}) == simple_answer(rows, same)
