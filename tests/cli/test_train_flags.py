"""Flags of `multiseg train` that name a setting of the run file."""

import tomllib

import pytest

from multiseg.cli.app import run


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


@pytest.mark.parametrize(
    ("flags", "message"),
    [(("--drop", "all"), "'all' is none of uniform"), (("--model", "resnet"), "no network 'resnet'")],
)
def test_unknown_names_are_refused(
    flags: tuple[str, str], message: str, store_url: str, tmp_path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", store_url, "--device", "cpu", "--out", str(tmp_path / "run"), *flags]) == 2
    assert message in capsys.readouterr().err
