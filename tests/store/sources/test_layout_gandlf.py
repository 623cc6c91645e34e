"""GaNDLF's tables of cases."""

from collections.abc import Callable
from pathlib import Path

import pytest
from looking import look

from multiseg.errors import SourceError, UsageError

HEADER = "SubjectID,Channel_0,Channel_1,Label,Age"


def write(head, folder: Path, names: tuple[str, str] = ("t1", "flair"), header: str = HEADER) -> Path:
    lines = [header]
    for at in (1, 2):
        files = [head.save(folder / "scans" / f"p{at}_{name}.nii.gz") for name in names]
        label = head.save(folder / "scans" / f"p{at}_seg.nii.gz", head.codes(1))
        # One row with paths from the table on, one with absolute ones.
        shown = [str(file) if at == 1 else str(file.relative_to(folder)) for file in (*files, label)]
        lines.append(",".join([f"p{at}", *shown, str(40 + at)]))
    (folder / "train.csv").write_text("\n".join(lines) + "\n")
    return folder / "train.csv"


@pytest.mark.parametrize("header", [HEADER, "Subject_ID,Modality_A,Image_B,Segmentation,Age", HEADER.lower()])
def test_headers(head, tmp_path: Path, header: str) -> None:
    found = look(write(head, tmp_path, header=header))
    assert (found.layout, found.others, found.codes()) == ("gandlf", (), [])
    assert found.modalities == {"p1": ("FLAIR", "T1"), "p2": ("FLAIR", "T1")}
    assert found.annotations == {"p1": ["lesion"], "p2": ["lesion"]}
    assert [case.participant[header.split(",")[-1]] for case in found.files.cases] == [41, 42]


@pytest.mark.slow
def test_in_the_store(head, tmp_path: Path, ingested: Callable) -> None:
    done = ingested(write(head, tmp_path))
    assert done.code == 0
    assert "(gandlf)" in done.said
    assert "could also be" not in done.said
    database = done.store["train"]
    assert database.modalities == ("FLAIR", "T1")
    assert [case.name for case in database.cases] == ["p1", "p2"]
    assert all((case.foreground_count == 8).all() for case in database.cases)
    assert [case.participant["Age"] for case in database.cases] == [41, 42]
    assert done.codes() == []


@pytest.mark.slow
def test_as_gandlf_and_named(head, tmp_path: Path, ingested: Callable) -> None:
    done = ingested(write(head, tmp_path), "--as", "gandlf", "--database", "site", "--labels", "1=infarct")
    assert done.store["site"].schemas["lesion"].names == ("infarct",)


def test_a_table_that_is_none(tmp_path: Path, ingested: Callable) -> None:
    (tmp_path / "x.csv").write_text("id,file\n1,a.nii\n")
    assert "has no table of GaNDLF" in ingested(tmp_path / "x.csv", "--as", "gandlf").said
    assert ingested(tmp_path / "x.csv").code == 2  # read as a manifest of ours


@pytest.mark.parametrize("names", [("scan", "flair"), ("t1_flair", "flair")])
def test_channels_that_names_do_not_tell(head, tmp_path: Path, names) -> None:
    table = write(head, tmp_path, names)
    with pytest.raises(UsageError, match=r"--modality Channel_0=NAME\.") as asked:
        look(table)
    assert "Channel_1=" not in str(asked.value)
    assert set(look(table, modalities={"Channel_0": "T2"}).modalities.values()) == {("FLAIR", "T2")}
    assert set(look(table, modalities={"Channel_0": "skip"}).modalities.values()) == {("FLAIR",)}


def test_rows_that_disagree_on_a_channel(head, tmp_path: Path) -> None:
    table = write(head, tmp_path)
    text = table.read_text().splitlines()
    cells = text[2].split(",")
    cells[1], cells[2] = cells[2], cells[1]
    table.write_text("\n".join([*text[:2], ",".join(cells)]) + "\n")
    with pytest.raises(UsageError, match="--modality Channel_0=NAME --modality Channel_1=NAME"):
        look(table)


def test_an_empty_cell_is_a_sequence_that_is_not_there(head, tmp_path: Path) -> None:
    table = write(head, tmp_path)
    text = table.read_text().replace("scans/p2_t1.nii.gz", "")
    table.write_text(text)
    found = look(table)
    assert found.errors == []
    assert found.codes("warning") == ["MISSING_SEQUENCE"]
    assert found.modalities["p2"] == ("FLAIR",)


@pytest.mark.slow
def test_a_file_that_is_not_there(head, tmp_path: Path, ingested: Callable) -> None:
    table = write(head, tmp_path)
    (tmp_path / "scans" / "p2_t1.nii.gz").unlink()
    done = ingested(table)
    assert (done.code, done.codes("error")) == (4, ["MISSING_FILE"])


def test_one_subject_twice(head, tmp_path: Path) -> None:
    table = write(head, tmp_path)
    table.write_text(table.read_text().replace("p2,", "p1,"))
    found = look(table)
    assert (found.cases, {code for code, _ in found.errors}) == ({}, {"DUPLICATE_CASE"})


def test_two_label_columns(head, tmp_path: Path) -> None:
    table = write(head, tmp_path, header="SubjectID,Channel_0,Channel_1,Label,Mask")
    with pytest.raises(UsageError, match="has the label columns Label, Mask"):
        look(table)


def test_tables_in_a_folder(head, tmp_path: Path) -> None:
    table = write(head, tmp_path)
    assert list(look(tmp_path, "gandlf").cases) == ["p1", "p2"]
    (tmp_path / "val.csv").write_text(table.read_text())
    with pytest.raises(SourceError, match=r"train\.csv, val\.csv"):
        look(tmp_path, "gandlf")
