"""The verb finetune, as typed."""

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from json_documents import checked

from multiseg.cli.app import run
from multiseg.labels import LabelSpace
from multiseg.modalities import ModalityAxis
from multiseg.models.builders import build
from multiseg.models.saved import ModelInfo, read_info, save_model

NUMBERS = {"widths": [8, 8, 16], "dropout": 0.0}
TRIFLE = ("--database", "cedar", "--steps", "2", "--batch-size", "2", "--workers", "0", "--device", "cpu")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model of FLAIR, T1, T2 that has learnt nothing."""
    info = ModelInfo(
        builder="multi_unet",
        numbers=NUMBERS,
        axis=ModalityAxis(("FLAIR", "T1", "T2")),
        space=LabelSpace(),
        spacing_mm=(5.0, 5.0, 5.0),
        patch=(16, 16, 16),
        trained_on={"FLAIR": ("ms",), "T1": ("ms",), "T2": ()},
        databases={"ms": {"pathology": "multiple sclerosis", "num_cases": 3}},
    )
    torch.manual_seed(0)
    path = tmp_path / "model.safetensors"
    save_model(path, build(info.builder, 3, 1, **NUMBERS), info)
    return path


@pytest.mark.slow
def test_channels_are_said_and_written(
    model: Path, store_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert run(["finetune", str(model), store_url, "--out", str(out), *TRIFLE, "--cases", "1", "--json"]) == 0
    told = capsys.readouterr()
    said = checked(told.out, "finetune")
    last = read_info(out / "last.safetensors").ancestry[-1]
    assert (said["assigned"], said["grown"], said["step"]) == (last["assigned"], last["grown"], 2)
    assert sorted(said["assigned"]) == ["ADC", "DWI"]
    assert "T2" in said["assigned"].values(), "the channel that nobody trained goes first"
    for new, old in said["assigned"].items():
        assert f"{new} takes the channel of {old}" in told.err
    assert last["databases"] == {"cedar": 1}


@pytest.mark.slow
def test_growing_and_assigning(model: Path, store_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--assign", "dwi=t1", "--grow", "--head-first", "1"]
    assert run(["finetune", str(model), store_url, "--out", str(tmp_path / "run"), *TRIFLE, *more]) == 0
    info = read_info(tmp_path / "run" / "last.safetensors")
    assert tuple(info.axis) == ("FLAIR", "DWI", "T2", "ADC")
    said = " ".join(capsys.readouterr().err.split())
    assert "DWI takes the channel of T1; ADC gets a new channel; FLAIR, T2 as before" in said


@pytest.mark.slow
def test_the_same_command_goes_on_and_another_is_refused(
    model: Path, store_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["finetune", str(model), store_url, "--out", str(tmp_path / "run"), *TRIFLE]
    assert run(command) == 0
    before = (tmp_path / "run" / "last.safetensors").read_bytes()
    assert run(command) == 0
    assert (tmp_path / "run" / "last.safetensors").read_bytes() == before
    assert run([*command, "--progressive"]) == 2
    assert "start.method was 'finetune', now 'progressive'" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--assign", "DWI"], "--assign 'DWI' is invalid: write SWI=PD"),
        (["--assign", "DWI=T1", "--assign", "DWI=T2"], "--assign 'DWI=T2' is invalid"),
        (["--assign", "SWI=T1"], "SWI cannot be assigned to the channel of T1: no training case has it"),
    ],
)
def test_what_cannot_be_assigned(
    model: Path, store_url: str, tmp_path: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["finetune", str(model), store_url, "--out", str(tmp_path / "run"), *TRIFLE, *more]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_the_settings_printed_are_those_that_would_be_used(
    model: Path, store_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["finetune", str(model), store_url, "--print-config", "--progressive"]) == 0
    settings = tomllib.loads(capsys.readouterr().out)
    assert settings["model"]["widths"] == NUMBERS["widths"]
    assert settings["stream"]["draw"]["patch"] == [16, 16, 16], "the model's own"
    assert (settings["start"]["method"], Path(settings["start"]["model"])) == ("progressive", model)


def test_what_is_drawn_can_be_said(model: Path, store_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = ("--patch", "24", "--cache", "1GiB", "--drop", "none", "--augment", "published")
    assert run(["finetune", str(model), store_url, "--print-config", *said]) == 0
    settings = tomllib.loads(capsys.readouterr().out)
    assert (settings["stream"]["draw"]["patch"], settings["stream"]["cache"]) == ([24, 24, 24], "1GiB")
    assert (settings["stream"]["draw"]["drop"], settings["augment"]["preset"]) == ("none", "published")


def test_on_a_card_a_step_goes_in_the_parts_of_the_models_network(
    model: Path, store_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    info = replace(read_info(model), builder="lf_unet")
    save_model(model, build(info.builder, 3, 1, **NUMBERS), info)
    assert run(["finetune", str(model), store_url, "--print-config", "--device", "cuda"]) == 0
    settings = tomllib.loads(capsys.readouterr().out)
    assert (settings["stream"]["batch_size"], settings["fit"]["accumulate"]) == (1, 10)


def test_no_model_no_fine_tuning(store_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["finetune", str(tmp_path / "gone"), store_url, "--out", str(tmp_path / "run")]) == 3
    assert "there is no model at" in capsys.readouterr().err


def test_a_run_file_is_heard(model: Path, store_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.toml"
    assert run(["finetune", str(model), store_url, "--print-config", "--progressive", "--head-first", "5"]) == 0
    file.write_text(capsys.readouterr().out, encoding="utf-8")
    assert run(["finetune", str(model), store_url, "--print-config", "--run", str(file)]) == 0
    assert tomllib.loads(capsys.readouterr().out) == tomllib.loads(file.read_text(encoding="utf-8"))
    for verb in (["finetune", str(model), store_url], ["train"]):
        assert run([*verb, "--print-config", "--run", str(file)]) == 0
        assert tomllib.loads(capsys.readouterr().out)["start"]["head_steps"] == 5


def test_another_network_than_the_models_is_refused(
    model: Path, store_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.toml"
    for text, name in (('[model]\nbuilder = "hemis"', "model"), ('labels = ["oedema"]', "labels")):
        file.write_text(text, encoding="utf-8")
        assert run(["finetune", str(model), store_url, "--out", str(tmp_path / "o"), "--run", str(file)]) == 2
        assert f"Leave {name} out." in " ".join(capsys.readouterr().err.split())
    file.write_text(f'[start]\nmodel = "{model}"', encoding="utf-8")
    assert run(["train", store_url, "--run", str(file), "--out", str(tmp_path / "o"), "--model", "hemis"]) == 2


@pytest.mark.slow
def test_train_tells_the_channels_too(
    model: Path, store_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.toml"
    file.write_text(f'[start]\nmodel = "{model}"', encoding="utf-8")
    assert run(["train", store_url, "--run", str(file), "--out", str(tmp_path / "o"), *TRIFLE, "--json"]) == 0
    printed = capsys.readouterr()
    assert checked(printed.out, "train")["step"] == 2
    assert "takes the channel of T2" in " ".join(printed.err.split())
