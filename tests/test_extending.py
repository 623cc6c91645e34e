"""The guide to one's own parts: each of its examples runs, by the command line and from Python, to the same model."""

import re
import shlex
import sys
from contextlib import chdir
from dataclasses import fields
from pathlib import Path

import pandas as pd
import pytest
import torch
from commands import Command

from multiseg.cli.app import run
from multiseg.models.saved import load_weights, read_info
from multiseg.store.reader import open_store
from multiseg.training.trackers import TrackOptions

GUIDE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, flags=re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, hospitals: Path, store_url: str) -> Path:
    """Where the guide's commands and its Python were run once."""
    folder = tmp_path_factory.mktemp("extending")
    (folder / "hospitals").symlink_to(hospitals)
    (folder / "tour.zarr").symlink_to(store_url)
    module = [block for block in blocks("python") if block.startswith("# mine.py")]
    (script,) = [block for block in blocks("python") if not block.startswith("# mine.py")]
    (commands,), (run_file, _) = blocks("bash"), blocks("toml")
    (folder / "mine.py").write_text("\n\n".join(module), encoding="utf-8")
    (folder / "run.toml").write_text(run_file, encoding="utf-8")
    (folder / "script.py").write_text(script, encoding="utf-8")
    path, *lines = commands.splitlines()
    assert path == "export PYTHONPATH=."
    with pytest.MonkeyPatch.context() as patch, chdir(folder):
        patch.syspath_prepend(folder)
        for line in lines:
            name, *arguments = shlex.split(line)
            assert name == "multiseg"
            assert run(arguments) == 0, line
            sys.modules.pop("mine", None)  # every command is a process of its own
        script = Command([], folder / "script.txt", script=folder / "script.py")
    assert script.wait() == 0, (folder / "script.txt").read_text(encoding="utf-8")
    return folder


@pytest.mark.slow
def test_a_run_file_and_arguments_train_the_same_model(folder: Path) -> None:
    by_file, by_python = (folder / "runs" / name / "model.safetensors" for name in ("mine", "python"))
    assert read_info(by_file).builder == read_info(by_python).builder == "mine:Small"
    assert read_info(by_file).numbers == read_info(by_python).numbers == {"width": 6}
    one, other = load_weights(by_file), load_weights(by_python)
    assert one["first.weight"].shape[0] == 6
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert '"focal"' in (folder / "runs" / "mine" / "log.jsonl").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_metric_has_its_column_its_mean_and_its_count(folder: Path) -> None:
    cases = pd.read_csv(folder / "runs" / "mine" / "evaluation-test" / "cases.csv")
    summary = pd.read_csv(folder / "runs" / "mine" / "evaluation-test" / "summary.csv")
    volumes = (cases["predicted_ml"] - cases["truth_ml"]).abs()
    assert cases["volume_error_ml"].tolist() == pytest.approx(volumes.tolist())
    assert summary["volume_error_ml"].tolist() == pytest.approx(cases.groupby("database")["volume_error_ml"].mean())
    assert summary["num_volume_error_ml"].tolist() == [1] * len(summary)


@pytest.mark.slow
def test_what_was_trained_predicts(folder: Path) -> None:
    assert (folder / "lesions.nii.gz").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("store", ["own.zarr", "python.zarr"])
def test_the_source_brings_its_cases(folder: Path, store: str) -> None:
    cases = open_store(str(folder / store))["flair_only"].cases
    assert [case.name for case in cases] == ["D001", "D002", "D003", "D004"]
    assert {case.modalities for case in cases} == {("FLAIR",)}


def test_every_setting_of_the_trackers_is_in_the_guide() -> None:
    _, _, below = GUIDE.partition("| setting in `[track]` | default | meaning |")
    named = re.findall(r"^\| `(\w+)` \|", below[: below.index("\n\n")], flags=re.MULTILINE)
    assert named == [one.name for one in fields(TrackOptions)]
