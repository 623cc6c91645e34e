"""Verbs: train-brain and brain-mask; and what info says of a model that carries a brain network."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from json_documents import checked

from multiseg.cli.app import run
from multiseg.evaluation.brain_finding import LEARNT
from multiseg.labels import LabelSpace
from multiseg.modalities import ModalityAxis
from multiseg.models.brain_network import BRAIN_FILE, NEWEST_RECIPE
from multiseg.models.builders import build
from multiseg.models.saved import BEST, ModelInfo, save_model
from multiseg.training import brain_training
from multiseg.training.brain_training import BrainOptions, TrainedBrain, train_brain

INFO = ModelInfo(
    builder="multi_unet", numbers={"widths": [2, 4], "dropout": 0.0}, axis=ModalityAxis("T1"), space=LabelSpace(),
    spacing_mm=(5.0, 5.0, 5.0), patch=(8, 8, 8), trained_on={"T1": ("alder",)}, databases={},
)  # fmt: skip


def make_run(folder: Path) -> Path:
    folder.mkdir()
    save_model(folder / BEST, build("multi_unet", 1, 1, **INFO.numbers), INFO)
    return folder


@pytest.mark.slow
def test_a_run_carries_what_train_brain_makes(
    store_url: str,
    hospitals: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def train_small(store: str, out: Path, options: BrainOptions, *others: Any) -> TrainedBrain:
        small = replace(options, batch_size=1, widths=(2, 4), num_checks=1)
        return train_brain(store, out, small, *others)

    monkeypatch.setattr(brain_training, "train_brain", train_small)
    folder = make_run(tmp_path / "run")
    assert run(["info", str(folder / BEST), "--json"]) == 0
    assert checked(capsys.readouterr().out, "info")["brain_network"] is None
    words = ["train-brain", store_url, "--into", str(folder), "--steps", "1", "--database", "alder"]
    assert run([*words, "--json"]) == 0
    told = checked(capsys.readouterr().out, "train-brain")
    assert told["path"] == str(folder / BRAIN_FILE)
    assert all(name.startswith("alder/") for name in told["cases"])
    assert 0 <= told["dice"] <= 1
    assert run(words) == 2  # it is there already
    assert run(["info", str(folder / BEST)]) == 0
    assert "brains (alder)" in " ".join(capsys.readouterr().out.split())
    # After one step the network may find anything: no brain is an error of the scan, and else there is a mask.
    scan = hospitals / "alder" / "A001" / "T1.nii.gz"
    code = run(["brain-mask", str(folder), str(scan), "-o", str(tmp_path / "mask.nii.gz")])
    assert (code, (tmp_path / "mask.nii.gz").exists()) in ((0, True), (3, False))


def test_a_folder_without_a_model_is_an_error(
    store_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train-brain", store_url, "--into", str(tmp_path)]) == 3
    assert "has no model.safetensors" in capsys.readouterr().err
    (tmp_path / "brain.txt").write_text("")
    assert run(["train-brain", store_url, "--into", str(tmp_path / "brain.txt")]) == 2
    assert ".safetensors" in capsys.readouterr().err


def test_a_run_that_is_not_there_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train-brain", "brain.zarr", "--into", str(tmp_path / "nope")]) == 2
    assert f"there is no run at {tmp_path / 'nope'}." in capsys.readouterr().err


@pytest.mark.parametrize(("dice", "is_enough"), [(LEARNT[NEWEST_RECIPE] - 0.001, False), (LEARNT[NEWEST_RECIPE], True)])
def test_too_few_steps_are_said(
    dice: float, is_enough: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = TrainedBrain(tmp_path / "b.safetensors", (), {}, dice, True)
    monkeypatch.setattr("multiseg.training.brain_training.train_brain", lambda *arguments: trained)
    assert run(["train-brain", "brain.zarr", "--into", str(tmp_path / "b.safetensors"), "--steps", "50"]) == 0
    said = capsys.readouterr()
    assert ("Train it for more steps: --steps 1200 --overwrite." in said.err) != is_enough
    assert f"Dice {dice:.3f}" in said.out
