"""What evaluate prints: headings that say which number it is, and databases without a case to evaluate."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from multiseg.cli import console
from multiseg.cli.app import run
from multiseg.cli.evaluate import CaseFlags, _name_untested
from multiseg.cli.evaluation_tables import _means, _print_rows, _trust
from multiseg.evaluation.lesions import SIZES
from multiseg.labels import LabelSpace
from multiseg.modalities import ModalityAxis
from multiseg.models.builders import build
from multiseg.models.saved import ModelInfo, save_model


def test_no_heading_stands_in_both_tables() -> None:
    first, second = ({title.strip() for title in columns} for columns in (_means([]), _trust()))
    assert first & second == set()
    assert {"lesion Dice", "lesion HD95 mm", "pooled Dice", "pooled sens.", "pooled prec."} <= second


def test_the_lesion_table_fits_into_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr(console, "output", lambda: Console(file=file, width=80))
    names = ["dice_pooled", "sensitivity_pooled", "precision_pooled", "surface_dice", "volume_difference_percent"]
    names += ["lesion_f1", "lesion_dice", "lesion_hd95_mm", "num_lesions_false"]
    names += [f"num_{what}_{size}" for what in ("found", "lesions") for size in SIZES]
    row = {"database": "hyperintensities", "modalities": "FLAIR+T1", **dict.fromkeys(names, 0.5)}
    _print_rows("Held-out cases", ["database", "modalities"], [row], _trust())
    shown = file.getvalue().splitlines()
    assert max(map(len, shown)) <= 80
    words = set(file.getvalue().split())
    assert {word for title in _trust() for word in title.split()} <= words


def test_a_database_without_a_held_out_case_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    splits = {"alder": ["train", "test"], "birch": ["train", "train", "val"], "of others": ["train"], "empty": []}
    databases = {name: SimpleNamespace(cases=[SimpleNamespace(split=one) for one in s]) for name, s in splits.items()}
    store: Any = SimpleNamespace(databases=databases)
    numbers, known = {"widths": [2, 4], "dropout": 0.0}, ("alder", "birch", "elsewhere", "empty")
    info = ModelInfo(
        "multi_unet", numbers, ModalityAxis("FLAIR"), LabelSpace(), (5.0, 5.0, 5.0), (8, 8, 8), {"FLAIR": ("alder",)},
        {name: {"pathology": "ms"} for name in known},
    )  # fmt: skip
    save_model(tmp_path / "m.safetensors", build("multi_unet", 1, 1, **numbers), info)

    def named(split: str, *only: str) -> list[str]:
        _name_untested([tmp_path / "m.safetensors"], CaseFlags("brain.zarr", split, list(only)), store)
        return [line.partition(" Ingest")[0] for line in capsys.readouterr().err.splitlines()]

    text = "birch: not evaluated, since no case of it is in the split test (2 in train, 1 in val)."
    assert named("test") == named("test", "birch") == [text]
    assert named("test", "alder") == named("train") == named("all") == []


@pytest.mark.parametrize(("flags", "is_said"), [([], True), (["--folds"], False)])
def test_evaluate_ends_with_these_databases(
    flags: list[str], is_said: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[Any] = []
    done: list[str] = []
    result = SimpleNamespace(save=lambda *arguments: done.append("saved"), to_json=dict, learnt={})
    monkeypatch.setattr("multiseg.evaluation.model_evaluation.evaluate", lambda *arguments: result)
    monkeypatch.setattr("multiseg.evaluation.cross_validation.evaluate_folds", lambda *arguments: result)
    monkeypatch.setattr("multiseg.cli.command_note.note_command", lambda *arguments, **options: None)
    monkeypatch.setattr("multiseg.cli.evaluate._warn_of_removed", lambda *arguments: None)
    monkeypatch.setattr("multiseg.cli.evaluate._name_untested", lambda runs, cases, store: said.append(runs))
    monkeypatch.setattr("multiseg.store.reader.open_store", done.append)
    assert run(["evaluate", str(tmp_path), "--store", "brain.zarr", "--json", *flags]) == 0
    assert done == ["saved", "brain.zarr"]  # opened again, so that what was removed in the meantime is told
    assert said == ([[tmp_path]] if is_said else [])
