"""Verb evaluate --folds: every person is tested once, by the run that has not learnt from any of their scans."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

from multiseg.cli.app import run
from multiseg.errors import DataError, UsageError
from multiseg.evaluation.cross_validation import checked_fold_runs, evaluate_folds
from multiseg.evaluation.evaluation_result import EvaluateOptions
from multiseg.labels import LabelSpace
from multiseg.modalities import ModalityAxis
from multiseg.models.builders import multi_unet
from multiseg.models.learnt_scans import LearntScans
from multiseg.models.saved import ModelInfo, save_model
from multiseg.store.catalogue import select
from multiseg.store.folds import Fold, take_fold
from multiseg.store.reader import Store, open_store


def save_run(folder: Path, store: Store, fold: Fold, learnt: LearntScans) -> Path:
    """A run folder with a model that knows nothing, and learnt from these scans."""
    axis = ModalityAxis(("FLAIR", "T1"))
    info = ModelInfo(
        builder="multi_unet", numbers={"widths": [4, 8], "dropout": 0.0, "norm": "instance"}, axis=axis,
        space=LabelSpace(), spacing_mm=(5.0, 5.0, 5.0), patch=(16, 16, 16),
        trained_on=dict.fromkeys(axis, ("alder",)), databases={},
    )  # fmt: skip
    torch.manual_seed(fold.index)
    network = multi_unet(len(axis), 1, widths=(4, 8), dropout=0.0)
    save_model(folder / "model.safetensors", network, info, learnt)
    text = f'store = "{store.url}"\nfold = "{fold}"\nfold_seed = {fold.seed}\n'
    (folder / "run.toml").write_text(text)
    return folder


def scans_outside(store: Store, fold: Fold) -> LearntScans:
    """What a run that left out this fold has learnt from."""
    take_fold(store, fold)
    train, val = (select(store, split=split) for split in ("train", "val"))
    return LearntScans.of(*([digest for case in part for digest in case.content.values()] for part in (train, val)))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, store_url: str) -> Path:
    """Run folders `fold-0` and `fold-1`."""
    folder, store = tmp_path_factory.mktemp("folds"), open_store(store_url)
    for index in range(2):
        fold = Fold(index, 2, seed=4)
        save_run(folder / f"fold-{index}", store, fold, scans_outside(store, fold))
    return folder


OPTIONS = EvaluateOptions(subsets="full", overlap=0.0)


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_every_case_is_tested_once_by_the_run_that_left_it_out(
    runs: Path, store_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    databases = ["cedar", "dogwood"]  # of the first, a case has nothing that the model knows
    flags = ["--folds", "--subsets", "full", "--overlap", "0", "--device", "cpu"]
    flags += [part for name in databases for part in ("--database", name)]
    assert run(["evaluate", str(runs / "fold-1"), str(runs / "fold-0"), *flags, "--out", str(tmp_path)]) == 0
    assert "Held-out cases, mean by subset" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "cases.csv")
    store = open_store(store_url)
    skipped = json.loads((tmp_path / "summary.json").read_text())["skipped"]
    tested = sorted([*(table["database"] + "/" + table["case"]), *skipped])
    assert tested == [f"{case.database}/{case.name}" for case in select(store, databases)]
    assert table["learnt"].isna().all()
    for index in range(2):
        take_fold(store, Fold(index, 2, seed=4))
        left_out = {f"{case.database}/{case.name}" for case in select(store, databases, split="test")}
        rows = table[table["fold"] == index]
        assert set(rows["database"] + "/" + rows["case"]) == left_out - set(skipped)
        part = pd.read_csv(tmp_path / f"fold-{index}" / "cases.csv")
        assert part["dice"].tolist() == rows["dice"].tolist()
    summary = pd.read_csv(tmp_path / "summary.csv").set_index("database")
    assert summary.loc["dogwood", "num_cases"] == 4
    assert summary.loc["dogwood", "dice"] == pytest.approx(table.query("database == 'dogwood'")["dice"].mean())
    assert not list(tmp_path.rglob("progress.jsonl"))


@pytest.mark.slow  # the store of the session
def test_a_fold_that_a_run_has_learnt_from_is_refused(runs: Path, store_url: str, tmp_path: Path) -> None:
    store, fold = open_store(store_url), Fold(1, 2, seed=4)
    whole = scans_outside(store, fold) | LearntScans.of(store["alder"].cases[0].content.values())
    learnt = whole if store["alder"].cases[0].split == "test" else whole | scans_outside(store, Fold(0, 2, seed=4))
    other = save_run(tmp_path / "other", store, fold, learnt)
    with pytest.raises(DataError, match="other has learnt from people of its fold 1/2"):
        evaluate_folds([runs / "fold-0", other], options=OPTIONS)
    stranger = save_run(tmp_path / "stranger", store, fold, LearntScans.of(["0" * 64]))
    with pytest.raises(DataError, match="stranger has learnt from no case of"):
        evaluate_folds([runs / "fold-0", stranger], options=OPTIONS)


def written(folder: Path, name: str, text: str) -> Path:
    (folder / name).mkdir()
    (folder / name / "run.toml").write_text(text)
    return folder / name


def test_runs_that_are_not_one_cross_validation_are_refused(tmp_path: Path) -> None:
    store = 'store = "a.zarr"\n'
    zero, two = (written(tmp_path, f"of{index}", f'{store}fold = "{index}/3"\nfold_seed = 4\n') for index in (0, 2))
    with pytest.raises(UsageError, match=r"no run of the fold 1/3.*multiseg train a.zarr --fold 1/3 --fold-seed 4"):
        checked_fold_runs([two, zero])
    for number, (text, message) in enumerate((
        (f'{store}fold = "1/2"\nfold_seed = 4\n', "different numbers of folds"),
        (f'{store}fold = "1/3"\n', "different seeds of folds"),
        ('store = "b.zarr"\nfold = "1/3"\nfold_seed = 4\n', "different stores"),
        (f'{store}fold = "0/3"\nfold_seed = 4\n', "a fold is given twice"),
        (f'{store}fold = ""\n', "was trained on the splits of its store"),
    )):  # fmt: skip
        with pytest.raises(UsageError, match=message):
            checked_fold_runs([zero, written(tmp_path, f"wrong{number}", text), two])
    with pytest.raises(UsageError, match=r"has no run\.toml"):
        checked_fold_runs([tmp_path / "nowhere"])
    with pytest.raises(UsageError, match="name the run folders"):
        checked_fold_runs([])
    moved = written(tmp_path, "moved", 'store = "b.zarr"\nfold = "1/3"\nfold_seed = 4\n')
    assert [one.fold.index for one in checked_fold_runs([two, moved, zero], "c.zarr")] == [0, 1, 2]


@pytest.mark.parametrize("flags", [["--compare"], ["--fuse", "lesion-over-tissue"], ["--split", "val"]])
def test_flags_that_do_not_fit_folds_are_refused(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["evaluate", str(tmp_path), "--folds", *flags]) == 2
    assert "--folds" in capsys.readouterr().err


@pytest.mark.slow
def test_an_interrupted_cross_validation_resumes(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [shutil.copytree(runs / name, tmp_path / name) for name in ("fold-0", "fold-1")]
    shown: list[str] = []

    def stops(done: int, total: int, case: str) -> None:
        shown.append(case)
        if len(shown) == 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_folds(folders, options=OPTIONS, folder=tmp_path / "out", on_case=stops)
    kept = [len(path.read_text().splitlines()) - 1 for path in sorted((tmp_path / "out").rglob("progress.jsonl"))]
    assert sum(kept) == 10
    assert kept[1] > 0
    result = evaluate_folds(folders, options=OPTIONS, folder=tmp_path / "out")
    assert len(result.cases) + len(result.skipped) == 16
