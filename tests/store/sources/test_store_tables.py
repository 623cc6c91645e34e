"""Tables of patients: no value slips into another column, and no text passes for a number."""

from collections.abc import Callable
from pathlib import Path

import pytest

from multiseg.errors import DataError, SourceError
from multiseg.store.catalogue import select
from multiseg.store.ingest.split_file import read_split_file
from multiseg.store.sources.manifest import find_manifest
from multiseg.store.sources.participants import read_participants, with_numbers
from multiseg.store.sources.recognise import find_source
from multiseg.store.sources.source_types import SourceOptions
from multiseg.store.sources.text_tables import read_table


def table(folder: Path, text: str | bytes, name: str = "p.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("case,age,sex\ncase1,60,5,M\n", r"line 2 has 4 cells \(case1 \| 60 \| 5 \| M\), but the header has 3"),
        ("case,age,sex\nP1,6,M\nP2,60\n", r"line 3 has 2 cells \(P2 \| 60\)"),
        ("case,age,sex\nP1,60,5,\n", r"line 2 has 4 cells"),  # an empty end may hide a shift
        ('case,notes,age\nP1,"two\nlines",6\n\nP2,5\n', r"line 5 has 2 cells"),  # lines are those of the file
        ("case;age\nP1;60;5\n", r"line 2 has 3 cells"),
        ("a,b\n" + "P1\n" * 5, r"line 2 .* line 4 has 1 cells \(P1\); and 2 more lines"),
        ("case,age,age\nP1,60,61\n", "line 1: two columns are called age"),
        ("case,age, age\nP1,60,61\n", "two columns are called age"),
        (",case,age\n0,P1,60\n", "line 1: column 1 has values but no name"),
        ("case,,age\nP1,x,60\n", "column 2 has values but no name"),
        ("case;age,sex\nP1;60,M\n", "the header has commas and semicolons"),
        ('case,age\n"P1,60\nP2,61\n', "line 3: unexpected end of data"),
        (b"c\0a\0s\0e\0,\0a\0\n\0", "contains zero bytes"),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, text: str | bytes, says: str) -> None:
    with pytest.raises(SourceError, match=says):
        read_table(table(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("case,age\nP1,60\n\n,\n  \nP2,61\n", "p.csv"),
        ("case , age,\nP1, 60,\nP2 ,61,\n", "p.csv"),
        ("case;age\r\nP1;60\r\nP2;61\r\n", "p.csv"),
        ("case\tage\nP1\t60\nP2\t61", "p.csv"),
        ("case,age\nP1,60\nP2,61", "p.tsv"),
        ("\ufeffcase,age\nP1,60\nP2,61\n", "p.csv"),
        ("case\tage\nP1\t60\nP2\t61\n".encode("utf-16"), "p.csv"),
        ('"case","age"\n"P1","60"\n"P2","61"\n', "p.csv"),
    ],
)
def test_tables_that_are_read(tmp_path: Path, text: str | bytes, name: str) -> None:
    assert read_table(table(tmp_path, text, name)) == [{"case": "P1", "age": "60"}, {"case": "P2", "age": "61"}]


def test_quotes_hold_separators(tmp_path: Path) -> None:
    text = 'case,"notes; free",age\nP1,"a, b\nc",60\n'
    assert read_table(table(tmp_path, text)) == [{"case": "P1", "notes; free": "a, b\nc", "age": "60"}]


def test_every_table_is_read_so(tmp_path: Path) -> None:
    """A manifest, a split file and a GaNDLF table refuse a ragged row, too."""
    with pytest.raises(SourceError, match="line 2 has 4 cells"):
        find_manifest(table(tmp_path, "database,case,T1\na,P1,x.nii,y.nii\n", "m.csv"))
    with pytest.raises(SourceError, match="line 3 has 1 cells"):
        read_split_file(str(table(tmp_path, "case,split\nP1,train\nP2\n", "s.csv")))


def numbers(*values: str) -> tuple[list[str | float], list[str]]:
    """A column as it is taken, NaN as None, and what is said of it."""
    rows, findings = with_numbers({f"P{n}": {"age": value} for n, value in enumerate(values)}, "p.csv", "db")
    taken = [row["age"] for row in rows.values()]
    return [None if value != value else value for value in taken], [finding.message for finding in findings]


@pytest.mark.parametrize("odd", ["89+", ">89", "89 +", "045Y", "45,5", "none", "inf", "1_0", "adult"])
def test_a_text_among_numbers_makes_no_column_of_texts(odd: str) -> None:
    taken, said = numbers("60", odd, "7.5", "", "N/A")
    assert taken == [60.0, None, 7.5, None, None]
    (message,) = said
    assert f"the column 'age' has numbers, but also {odd!r} of 'P1'" in message
    assert "stored as unknown (NaN)" in message


@pytest.mark.parametrize("missing", ["", "n/a", "N/A", "NA", "nan", "unknown", "-", "?"])
def test_what_is_not_known_says_nothing_of_a_column(missing: str) -> None:
    assert numbers("60", missing) == ([60.0, None], [])


def test_columns_of_text() -> None:
    assert numbers("60", "89+")[0] == [60.0, None]  # as many texts as numbers, but all look like one
    assert numbers("3", "A") == (["3", "A"], [])
    assert numbers("0", "1+", "2+", "3+")[0] == ["0", "1+", "2+", "3+"]
    assert numbers("M", "F", "n/a") == (["M", "F", "n/a"], [])
    taken, (message,) = numbers("045Y", "060Y")
    assert taken == ["045Y", "060Y"]
    assert "stays text, since its values are not plain numbers: '045Y' of 'P0'" in message


def test_rows_without_a_name(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="without a case in its first column 'case'"):
        read_participants(table(tmp_path, "case,age\n,60\n"), "db")


def write_cases(head, folder: Path, *cases: str) -> Path:
    for case in cases:
        head.save(folder / case / "T1.nii.gz")
        head.save(folder / case / "lesion.nii.gz", head.codes(1))
    return folder


def test_a_ragged_table_stops_an_ingest(head, tmp_path: Path, ingested: Callable) -> None:
    folder = write_cases(head, tmp_path / "ms", "case1", "case2")
    table(folder, "case,age,sex\ncase1,60,5,M\ncase2,61,F\n")
    done = ingested(folder, "--participants", "p.csv")
    assert done.code == 3
    assert "line 2 has 4 cells (case1 | 60 | 5 | M), but the header has 3: case, age, sex" in done.said
    assert not done.url.exists()


@pytest.mark.slow
def test_an_age_of_89_plus_is_not_known_and_said(head, tmp_path: Path, ingested: Callable) -> None:
    folder = write_cases(head, tmp_path / "ms", "case1", "case2", "case3")
    table(folder, "case,age\ncase1,60\ncase2,89+\ncase3,70\n")
    done = ingested(folder, "--participants", "p.csv")
    assert (done.code, done.codes("warning")) == (0, ["NOT_A_NUMBER"])
    older = select(done.store, participants={"age": lambda years: years > 65})
    assert [case.name for case in older] == ["case3"]


@pytest.mark.slow
def test_numbers_in_a_column_of_text_are_said(head, tmp_path: Path, ingested: Callable) -> None:
    """The store keeps a column as its first table made it."""
    folder = write_cases(head, tmp_path / "ms", "case1", "case2")
    table(folder, "case,age\ncase1,old\ncase2,young\n")
    done = ingested(folder, "--participants", "p.csv")
    with pytest.raises(DataError, match="the column 'age' fails on the text 'old' of ms/case1"):
        select(done.store, participants={"age": lambda years: years > 65})
    table(folder, "case,age\ncase1,60\ncase2,70\n")
    again = ingested(folder, "--participants", "p.csv", "--store", str(done.url))
    assert again.codes("warning") == ["NUMBER_AS_TEXT"]
    with pytest.raises(DataError, match="the wanted value is 70, but the column 'age' holds texts: '60' of ms/case1"):
        select(done.store, participants={"age": 70})


@pytest.mark.slow
def test_a_column_of_numbers_in_one_database_and_text_in_another(head, tmp_path: Path, ingested: Callable) -> None:
    for name, ages in (("a", "case1,60\ncase2,70\n"), ("b", "case1,old\ncase2,young\n")):
        table(write_cases(head, tmp_path / name, "case1", "case2"), "case,age\n" + ages)
    done = ingested(tmp_path / "a", "--participants", "p.csv")
    store = ingested(tmp_path / "b", "--participants", "p.csv", "--store", str(done.url)) and done.store
    with pytest.raises(DataError, match=r"numbers in database 'a' \(60.0 of 'case1'\) and texts in 'b' \('old'"):
        select(store, participants={"age": lambda years: years == 70})
    assert [c.name for c in select(store, ["a"], participants={"age": 70})] == ["case2"]
    with pytest.raises(
        DataError, match=r"the wanted value is '70', but the column 'age' holds numbers: 60\.0 of a/case1"
    ):
        select(store, ["a"], participants={"age": "70"})


@pytest.mark.parametrize(
    ("rows", "code", "says", "ages"),
    [
        ("sub-01\t60\t5\nsub-02\t70\n", "PARTICIPANTS", "line 2 has 3 cells (sub-01 | 60 | 5)", [None, None]),
        ("sub-01\t60\nsub-02\t89+\nsub-03\tn/a\n", "NOT_A_NUMBER", "'89+' of 'sub-02'", [60.0, None]),
    ],
)
def test_participants_of_bids(head, tmp_path: Path, rows: str, code: str, says: str, ages: list[float | None]) -> None:
    for subject in ("sub-01", "sub-02"):
        head.save(tmp_path / "ds" / subject / "anat" / f"{subject}_T1w.nii.gz")
    table(tmp_path / "ds", "participant_id\tage\n" + rows, "participants.tsv")
    files = find_source(tmp_path / "ds", SourceOptions(allow_unlabelled=True))
    (message,) = [finding.message for finding in files.findings if finding.code == code and says in finding.message]
    assert "not used" in message or "stored as unknown" in message
    taken = [case.participant.get("age") for case in files.cases]
    assert [None if age is None or age != age else age for age in taken] == ages


def test_a_gandlf_table_with_a_ragged_row(tmp_path: Path) -> None:
    table(tmp_path, "SubjectID,Channel_0,Label\nP1,a_t1.nii,l.nii\nP2,b_t1.nii\n", "train.csv")
    with pytest.raises(SourceError, match=r"train\.csv: line 3 has 2 cells"):
        find_source(tmp_path, name="gandlf")
