"""Verb evaluate --compare: several runs on the same cases."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from json_documents import checked

from multiseg.cli import run_comparison
from multiseg.cli.app import run
from multiseg.labels import LabelSpace
from multiseg.modalities import ModalityAxis
from multiseg.models.builders import multi_unet
from multiseg.models.saved import ModelInfo, save_model

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, store_url: str) -> Path:
    """Run folders `first`, of FLAIR and T1, and `second`, of FLAIR alone, with models that know nothing."""
    folder = tmp_path_factory.mktemp("runs")
    for seed, (name, known) in enumerate({"first": ("FLAIR", "T1"), "second": ("FLAIR",)}.items()):
        torch.manual_seed(seed)
        axis = ModalityAxis(known)
        info = ModelInfo(
            builder="multi_unet", numbers={"widths": [4, 8], "dropout": 0.0, "norm": "instance"}, axis=axis,
            space=LabelSpace(), spacing_mm=(5.0, 5.0, 5.0), patch=(16, 16, 16),
            trained_on=dict.fromkeys(known, ("alder",)), databases={},
        )  # fmt: skip
        save_model(folder / name / "model.safetensors", multi_unet(len(axis), 1, widths=(4, 8), dropout=0.0), info)
        (folder / name / "run.toml").write_text(f'store = "{store_url}"\n')
    return folder


FLAGS = ["--compare", "--split", "all", "--database", "dogwood", "--overlap", "0", "--device", "cpu"]


@pytest.mark.slow
def test_two_runs_are_compared_and_what_one_lacks_is_named(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", str(runs / "first"), str(runs / "second"), *FLAGS]
    assert run([*command, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    lines = [line for line in printed.out.splitlines() if not line.startswith("Written to")]
    assert max(map(len, lines)) <= 80
    text = " ".join(printed.out.split())
    assert "Dice of lesion: second minus first" in text
    assert "first: worst database dogwood lesion, Dice" in text
    assert "second minus first: worst subset dogwood lesion FLAIR, difference" in text
    assert (
        "left out, since second has no such row: dogwood lesion FLAIR+T1 (4 cases), dogwood lesion T1 (4 cases)."
        in (" ".join(printed.err.split()))
    )
    record = json.loads((tmp_path / "comparison.json").read_text())
    by_case = pd.read_csv(tmp_path / "differences.csv").query("metric == 'dice'").set_index("case")
    values = [pd.read_csv(tmp_path / name / "cases.csv").query("modalities == 'FLAIR'").set_index("case")["dice"]
              for name in ("first", "second")]  # fmt: skip
    pd.testing.assert_series_equal(by_case["difference"], values[1] - values[0], check_names=False)
    assert record["databases"][0]["difference"] == pytest.approx(by_case["difference"].mean())


@pytest.mark.slow
def test_an_interrupted_comparison_resumes_and_is_one_document(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", str(runs / "first"), str(runs / "second"), *FLAGS, "--out", str(tmp_path)]
    evaluate = run_comparison.evaluate

    def interrupted(path: Path, *more: object) -> object:
        if path.name == "second":
            raise KeyboardInterrupt
        return evaluate(path, *more)

    with monkeypatch.context() as patched:
        patched.setattr(run_comparison, "evaluate", interrupted)
        assert run(arguments) == 130
    progress = tmp_path / "first" / "progress.jsonl"
    head, *lines = progress.read_text().splitlines()
    marked = [json.loads(line) for line in lines]
    for one in marked:
        for row in one["rows"]:
            row["dice"] = 0.125
    progress.write_text("\n".join([head, *map(json.dumps, marked)]) + "\n")
    capsys.readouterr()
    assert run([*arguments, "--json"]) == 0
    record = json.loads((tmp_path / "comparison.json").read_text())
    assert checked(capsys.readouterr().out, "evaluate")["databases"] == record["databases"] != []
    assert not progress.exists()
    assert set(pd.read_csv(tmp_path / "differences.csv").query("metric == 'dice'")["baseline_value"]) == {0.125}
    # With another rule nothing of it is used again, and nothing is written over it.
    assert run([*arguments, "--lesion-rule", "brats-gli"]) == 2


def test_what_cannot_be_compared_is_refused(
    runs: Path, tmp_path: Path, store_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = str(runs / "first"), str(runs / "second")
    assert run(["evaluate", first, second]) == 2
    assert "--fuse lesion-over-tissue or --ensemble mean, or compare them: --compare" in capsys.readouterr().err
    assert run(["evaluate", first, "--compare"]) == 2
    assert "--compare needs two runs or more" in capsys.readouterr().err
    assert run(["evaluate", first, second, "--compare", "--fuse", "lesion-over-tissue"]) == 2
    assert "--fuse and --compare exclude each other" in capsys.readouterr().err
    assert run(["evaluate", first, second, "--folds", "--split", "val"]) == 2
    assert "--folds tests every case of the store once: leave out --split" in capsys.readouterr().err
    shutil.copytree(runs / "first", tmp_path / "other")
    (tmp_path / "other" / "run.toml").write_text('store = "elsewhere.zarr"\n')
    assert run(["evaluate", first, str(tmp_path / "other"), "--compare"]) == 2
    assert "Name the one to compare on: --store" in capsys.readouterr().err
    for flags, message in (
        (["--lesion-rule", "brats"], "there is no lesion rule 'brats'"),
        (["--empty", "zero"], "there is no rule for empty masks 'zero'"),
        (["--tolerance", "-1"], "tolerance"),
    ):
        assert run(["evaluate", first, *flags]) == 2
        assert message in " ".join(capsys.readouterr().err.split())
