"""train --fold: a run learns from no person of its fold, whatever the splits of the store are."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from multiseg.cli.app import run as multiseg
from multiseg.errors import UsageError
from multiseg.loaders.batches import StreamOptions
from multiseg.loaders.draw import DrawOptions
from multiseg.models.learnt_scans import TRAIN, VAL, how_learnt
from multiseg.models.saved import read_learnt
from multiseg.store.folds import Fold, take_fold
from multiseg.store.reader import open_store
from multiseg.training.fit import FitOptions
from multiseg.training.run import train
from multiseg.training.run_folder import ModelOptions, TrainOptions
from multiseg.training.start import StartOptions


def options_for(url: str, **changes: object) -> TrainOptions:
    options = TrainOptions(
        store=url,
        device="cpu",
        fold="1/2",
        fold_seed=7,
        model=ModelOptions(widths=(8, 16), dropout=0.0),
        stream=StreamOptions(DrawOptions(patch=(16, 16, 16)), batch_size=2, workers=0),
        fit=FitOptions(num_steps=1, validate_every=1, validation_cases=1),
    )
    return replace(options, **changes)


@pytest.fixture(scope="module")
def fold_run(store_url: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of fold 1/2 with seed 7, of one step."""
    out = tmp_path_factory.mktemp("fold") / "run"
    train(options_for(store_url), out)
    return out


@pytest.mark.slow
def test_a_run_learns_from_nobody_of_its_fold(fold_run: Path, store_url: str) -> None:
    store = open_store(store_url)
    take_fold(store, Fold(1, 2, 7))
    learnt = read_learnt(fold_run / "model.safetensors")
    uses = {case: how_learnt(learnt, case.content.values()) for case in store.cases}
    assert {case.split for case, use in uses.items() if use == TRAIN} == {"train"}
    assert {case.split for case, use in uses.items() if use == VAL} == {"val"}
    assert {use for case, use in uses.items() if case.split == "test"} == {""}
    data = json.loads((fold_run / "data.json").read_text())["cases"]
    assert {name for name, entry in data.items() if entry["split"] == "train"} == {
        f"{case.database}/{case.name}" for case in store.cases if case.split == "train"
    }
    notes = [line for line in (fold_run / "log.jsonl").read_text().splitlines() if '"FOLD"' in line]
    assert len(notes) == 1
    assert "fold 1/2 (seed 7) leaves 8 cases out; of the others 4 are for training and 4 for validation" in notes[0]
    own = {case.name: case.split for case in open_store(store_url).cases}
    assert any(own[case.name] == "test" for case, use in uses.items() if use == TRAIN), "the store's splits say nothing"


@pytest.mark.slow
def test_a_fold_run_resumes_on_its_own_fold_alone(fold_run: Path, store_url: str) -> None:
    longer = FitOptions(num_steps=2, validate_every=1, validation_cases=1)
    for changes, message in (({"fold": "0/2"}, "fold was '1/2', now '0/2'"), ({"fold_seed": 8}, "fold_seed was 7")):
        with pytest.raises(UsageError, match=message):
            train(options_for(store_url, fit=longer, **changes), fold_run)
    with pytest.raises(UsageError, match="fold was '1/2', now ''"):
        train(options_for(store_url, fit=longer, fold="", fold_seed=0), fold_run)
    assert train(options_for(store_url, fit=longer), fold_run).step == 2


@pytest.mark.slow
def test_a_fine_tuning_on_another_fold_says_what_its_parent_has_seen(
    fold_run: Path, store_url: str, tmp_path: Path
) -> None:
    start = StartOptions(model=str(fold_run))
    for fold, expected in (("1/2", 0), ("0/2", 8)):
        out = tmp_path / fold.replace("/", "-")
        train(options_for(store_url, fold=fold, start=start), out)
        notes = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines() if '"LEARNT' in line]
        of_test = [note["message"] for note in notes if "test cases" in note["message"]]
        assert (f"{expected} of the 8 test cases" in " ".join(of_test)) == bool(expected), notes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fold": "2/2"}, "there is no fold 2/2"),
        ({"fold": "2"}, "the fold is '2'"),
        ({"fold": "", "fold_seed": 3}, "fold_seed is 3, but there is no fold"),
    ],
)
def test_settings_without_a_fold_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        options_for("brain.zarr", **changes)


def test_a_fold_is_printed_among_the_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert multiseg(["train", "brain.zarr", "--fold", "0/5", "--fold-seed", "3", "--print-config"]) == 0
    printed = capsys.readouterr().out
    assert 'fold = "0/5"\nfold_seed = 3\n' in printed
    (tmp_path / "run.toml").write_text(printed)
    assert multiseg(["train", "--run", str(tmp_path / "run.toml"), "--fold", "4/5", "--print-config"]) == 0
    assert 'fold = "4/5"\nfold_seed = 3\n' in capsys.readouterr().out
    assert multiseg(["train", "brain.zarr", "--fold", "5/5", "--print-config"]) == 2
    assert "there is no fold 5/5" in capsys.readouterr().err


def test_a_stage_has_the_fold_of_its_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stages = '[[stage]]\nname = "pretrain_tissue"\n[[stage]]\nname = "joint"\n'
    head = 'store = "brain.zarr"\nfold = "0/5"\n[model]\nbuilder = "two_branch"\n'
    (tmp_path / "run.toml").write_text(head + stages)
    assert multiseg(["train", "--run", str(tmp_path / "run.toml"), "--print-config", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [stage["fold"] for stage in (printed, *printed["stage"])] == ["0/5"] * 3
    (tmp_path / "run.toml").write_text(head + stages + 'fold = "1/5"\n')
    assert multiseg(["train", "--run", str(tmp_path / "run.toml"), "--print-config"]) == 2
    assert "the stage joint sets fold" in capsys.readouterr().err
