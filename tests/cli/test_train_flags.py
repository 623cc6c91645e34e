"""Flags of `multiseg train` that name a setting of the run file."""

import tomllib
from pathlib import Path

import pytest
from json_documents import checked

from multiseg.cli.app import interruption_message, run


def settings(capsys: pytest.CaptureFixture[str], *flags: str) -> dict:
    assert run(["train", "brain.zarr", "--print-config", *flags]) == 0
    return tomllib.loads(capsys.readouterr().out)


def test_flags_set_what_they_name(capsys: pytest.CaptureFixture[str]) -> None:
    said = settings(capsys, "--model", "maf_unet", "--drop", "subsets", "--cases", "20")
    assert said["model"]["builder"] == "maf_unet"
    assert said["stream"]["draw"]["drop"] == "subsets"
    assert said["stream"]["draw"]["num_cases"] == 20


def test_without_them_it_is_as_published(capsys: pytest.CaptureFixture[str]) -> None:
    said = settings(capsys)
    assert said["model"]["builder"] == "multi_unet"
    assert (said["stream"]["draw"]["drop"], said["stream"]["draw"]["num_cases"]) == ("uniform", 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [(("--drop", "all"), "draw.drop is 'all': give one of uniform"), (("--model", "resnet"), "no network 'resnet'")],
)
def test_unknown_names_are_refused(
    flags: tuple[str, str], message: str, store_url: str, tmp_path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", store_url, "--device", "cpu", "--out", str(tmp_path / "run"), *flags]) == 2
    assert message in capsys.readouterr().err


def test_the_seed_is_that_of_a_printed_file_too(
    store_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", store_url, "--print-config"]) == 0
    (tmp_path / "run.toml").write_text(capsys.readouterr().out, encoding="utf-8")
    assert run(["train", "--run", str(tmp_path / "run.toml"), "--seed", "7", "--print-config", "--json"]) == 0
    settings = checked(capsys.readouterr().out, "train")
    assert (settings["seed"], settings["stream"]["draw"]["seed"], settings["augment"]["seed"]) == (7, 7, 7)


@pytest.mark.slow
@pytest.mark.parametrize("rate", ["-1", "nan", "0"])
def test_a_learning_rate_that_cannot_be(
    rate: str, store_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", store_url, "--out", str(tmp_path / "r"), "--learning-rate", rate, "--device", "cpu"]) == 2
    assert "give a number above 0" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "r").exists()


def test_an_interruption_says_which_command_goes_on() -> None:
    assert "to resume, run the same command again" in interruption_message(["train", "x.zarr"])
    assert "run the same command without --overwrite again" in interruption_message(["train", "x.zarr", "--overwrite"])
