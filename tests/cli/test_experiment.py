"""The verb `experiment`, on the tiny scale."""

from pathlib import Path

import pytest
from json_documents import checked

from multiseg.cli.app import run


def test_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["experiment", "--list", "--json"]) == 0
    listed = checked(capsys.readouterr().out, "experiment")
    assert {one["name"] for one in listed} == {
        "joint", "unseen-combinations", "leave-one-out", "drop", "plus", "finetune", "federated", "ace", "ace-tumour",
        "hetero", "two-branch",
    }  # fmt: skip
    assert run(["experiment", "--list"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a name and a folder"),
        (["joint"], "give a name and a folder"),
        (["table3", "--out", "{out}"], "there is no experiment 'table3'"),
        (["joint", "--out", "{out}", "--scale", "huge"], "there is no scale 'huge'; there are tiny, small, anatomy"),
        (["unseen-combinations", "--out", "{out}", "--store", "x.zarr"], "leave out --store"),
        (["ace", "--out", "{out}"], "ace needs a store with tissues of one database and lesions of another: --store"),
        (["hetero", "--out", "{out}"], "hetero needs a store with tissues of one database and lesions of another"),
        (
            ["joint", "--out", "{out}", "--store", "x.zarr", "--lesions", "wmh"],
            "for ace, hetero, two-branch with --store, not joint",
        ),
    ],
)
def test_what_cannot_be_meant(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["experiment", *(one.replace("{out}", str(tmp_path)) for one in arguments)]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_synthetic_hospitals_from_nothing_to_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--scale", "tiny", "--seeds", "1", "--steps", "1", "--device", "cpu"]
    command = ["experiment", "unseen-combinations", "--out", str(tmp_path), *small]
    assert run(command) == 0
    text = capsys.readouterr().out
    for column in ("fir T1", "fir T1+T2", "fir FLAIR+T1+T2", "gorse T1"):
        assert column in text
    assert text == (tmp_path / "unseen-combinations" / "table.md").read_text() + "\n"
    assert not (tmp_path / "hospitals-tiny").exists()
    elm = next(line for line in text.splitlines() if line.startswith("| elm only"))
    assert [cell.strip() == "-" for cell in elm.split("|")[2:6]] == [False, True, True, False]

    assert run([*command, "--json"]) == 0  # the table that is there
    (told,) = checked(capsys.readouterr().out, "experiment")
    assert told["failures"] == {}
    assert told["table"] + "\n" == text
