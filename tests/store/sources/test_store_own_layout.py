import importlib
import sys

import pytest

from multiseg.cli.app import run
from multiseg.errors import SourceError, UsageError
from multiseg.store.reader import open_store
from multiseg.store.sources.recognise import find_source
from multiseg.store.sources.source_types import SourceOptions

MINE = """
from pathlib import Path
from multiseg import CaseFiles, DatabaseFiles, LabelSchema

def flair(root, options):
    cases = tuple(
        CaseFiles(label.name[:4], {"FLAIR": root / "images" / f"{label.name[:4]}_FLAIR.nii.gz"}, {"wmh": label})
        for label in sorted((root / "labels").glob("*.nii.gz")))
    schema = LabelSchema.parse("1=" + options.codes.get("wmh", "spot"), "lesion")
    return DatabaseFiles("mine", "lesions", cases, {"wmh": schema})

def twice(root, options):
    found = flair(root, options)
    return DatabaseFiles("mine", "lesions", found.cases * 2, found.schemas)

def empty(root, options):
    return DatabaseFiles("mine", "lesions", (), {})

def listed(root, options):
    return list(flair(root, options).cases)

def fails(root, options):
    return [][1]

def one(root):
    return None
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "mine_sources.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("mine_sources")
    del sys.modules["mine_sources"]


def test_a_function_finds_the_cases_of_a_folder(hospitals, mine):
    found = find_source(hospitals / "dogwood", name="mine_sources:flair")
    assert (found.name, found.pathology) == ("mine", "lesions")
    assert [files.case for files in found.cases] == ["D001", "D002", "D003", "D004"]
    assert found == mine.flair(hospitals / "dogwood", SourceOptions())


def test_what_the_user_says_reaches_it_and_wins(hospitals, mine):
    options = SourceOptions(name="other", pathology="wmh", codes={"wmh": "speck"})
    found = find_source(hospitals / "dogwood", options, "mine_sources:flair")
    assert (found.name, found.pathology, found.schemas["wmh"].names) == ("other", "wmh", ("speck",))
    assert (
        find_source(hospitals / "dogwood", SourceOptions(layout="mine_sources:flair", licence="CC0")).licence == "CC0"
    )


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("mine_sources:twice", SourceError, "two cases 'D001'"),
        ("mine_sources:empty", SourceError, "found no case in"),
        ("mine_sources:listed", UsageError, "returned a list: return multiseg.DatabaseFiles"),
        ("mine_sources:fails", UsageError, r"failed: IndexError: .*mine_sources.py, line"),
        ("mine_sources:one", UsageError, r"does not take \(root, options\)"),
        ("nowhere_sources:one", UsageError, r"PYTHONPATH=\. multiseg"),
        ("os:listdir", UsageError, "in Python's standard library"),
    ],
)
def test_a_source_that_does_not_fit(hospitals, mine, name, error, said):
    with pytest.raises(error, match=said):
        find_source(hospitals / "dogwood", name=name)


@pytest.mark.slow
def test_the_command_line_ingests_by_it(hospitals, mine, tmp_path, capsys):
    url = str(tmp_path / "own.zarr")
    said = ["ingest", str(hospitals / "dogwood"), "--as", "mine_sources:flair", "--store", url, "--spacing", "8"]
    assert run(said) == 0
    assert [case.name for case in open_store(url)["mine"].cases] == ["D001", "D002", "D003", "D004"]
    assert "your own layout (mine_sources:flair): by your choice" in capsys.readouterr().err.replace("\n", " ")
