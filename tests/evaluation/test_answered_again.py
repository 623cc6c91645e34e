"""How a model answered in an evaluation: what its summary says, and the readers that answer again, or print it."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from multiseg.cli.app import run
from multiseg.cli.view import Chosen, PlaceFlags, _evaluated
from multiseg.errors import UsageError
from multiseg.evaluation import cross_validation
from multiseg.evaluation.cross_validation import FoldRun
from multiseg.evaluation.evaluation_result import EvaluateOptions, Evaluation, options_to_repeat
from multiseg.export.model_card import results_in
from multiseg.labels import LabelSpace
from multiseg.modalities import ModalityAxis
from multiseg.models.builders import build
from multiseg.models.saved import BEST, ModelInfo, save_model
from multiseg.reports import picked_cases as picking
from multiseg.reports.run_page import _held_out
from multiseg.reports.run_record import read_run
from multiseg.store.folds import Fold
from multiseg.viewer.evaluated_cases import EvaluatedCases
from multiseg.viewer.page_server import Page

HOW: list[dict[str, Any]] = [
    {},
    {"branch": "anatomy"},
    {"adapt": True},
    {"branch": "lesion", "tta": True},
    {"adapt": True, "adapt_to": "half"},
    {"lesion_assumed": True},
]
NEWER = {"tta": True, "mirrors": 8}
NOT_KNOWN = "the model answered with mirrors = 8, which this version of multiseg does not know"
PARTS = ("FLAIR", "T1")
NUMBERS = {"widths": [2, 4], "dropout": 0.0, "anatomy_channels": [1], "lesion_logits": [2], "anchor": [16, 16, 16]}
ROW = {
    "database": "dogwood", "case": "D001", "label": "lesion", "modalities": "FLAIR", "num_modalities": 1, "learnt": "",
    "dice": 0.5, "sensitivity": 0.5, "precision": 0.5, "hd95_mm": 1.0, "num_with_lesion": 1, "num_lesion_free": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a model of two branches for the shared store."""
    folder = tmp_path_factory.mktemp("answered") / "run"
    (folder / "evaluation-test").mkdir(parents=True)
    space = LabelSpace.of(["tissue:CSF", "lesion"])
    info = ModelInfo(
        "two_branch", NUMBERS, ModalityAxis(PARTS), space, (5.0, 5.0, 5.0), (16, 16, 16),
        dict.fromkeys(PARTS, ("dogwood",)), {"dogwood": {}},
    )  # fmt: skip
    torch.manual_seed(1)
    save_model(folder / BEST, build("two_branch", 2, space.num_logits, **NUMBERS), info)
    (folder / "run.toml").write_text("")
    for name in ("cases.csv", "summary.csv"):
        pd.DataFrame([ROW]).to_csv(folder / "evaluation-test" / name, index=False)
    return folder


def say(run: Path, answered: object, store_url: str, **more: object) -> str:
    """Write the summary of the run's evaluation; returns the digest of the model."""
    digest = hashlib.sha256((run / BEST).read_bytes()).hexdigest()
    content = {"store": store_url, "model": digest, "answered": answered, "summary": [ROW], "empty_mask_policy": ""}
    content |= more
    (run / "evaluation-test" / "summary.json").write_text(json.dumps(content))
    return digest


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[EvaluateOptions]:
    """The options with which models are asked; they do not answer."""
    found: list[EvaluateOptions] = []

    def answered(model: object, store: object, case: Any, options: EvaluateOptions) -> tuple[None, None, np.ndarray]:
        found.append(options)
        return None, None, np.zeros(case.extent, np.uint8)

    monkeypatch.setattr("multiseg.evaluation.stored_answers.answered", answered)
    monkeypatch.setattr(picking, "_volume", lambda *args: found.append(args[4]))
    return found


@pytest.mark.parametrize("how", HOW)
def test_what_a_summary_says_is_what_readers_answer_with(
    how: dict[str, Any], run_folder: Path, store_url: str, asked: list[EvaluateOptions]
) -> None:
    options = EvaluateOptions(overlap=0.25, **how)
    assert options.answered == how
    say(run_folder, options.answered, store_url, overlap=0.25)
    picking.picked_cases([read_run(run_folder)], "cpu")
    viewed(run_folder).answer("dogwood/D001")
    assert asked == [options, options]
    assert [one.answered for one in asked] == [how, how]


def viewed(run: Path) -> EvaluatedCases:
    found = _evaluated(run, Chosen(), PlaceFlags())
    assert isinstance(found, EvaluatedCases)
    return found


@pytest.mark.parametrize(
    ("how", "shown"),
    [({}, ""), ({"branch": "anatomy", "adapt": True}, " (branch anatomy, adapt)"), (NEWER, " (tta, mirrors 8)")],
)
def test_the_model_card_says_how_the_model_answered(
    how: dict[str, Any], shown: str, run_folder: Path, store_url: str
) -> None:
    digest = say(run_folder, how, store_url)
    assert [table["title"] for table in results_in(run_folder, digest).tables] == [f"evaluation-test{shown}"]


def test_nothing_is_drawn_in_another_way_than_it_was_measured(
    run_folder: Path, store_url: str, asked: list[EvaluateOptions]
) -> None:
    """A newer multiseg made the evaluation: report and view show it, but do not answer."""
    say(run_folder, NEWER, store_url)
    section = picking.picked_cases([read_run(run_folder)], "cpu")
    assert not section.parts
    assert section.note.startswith(f"The cases are not drawn: in the evaluation {NOT_KNOWN}")
    cases = viewed(run_folder)
    assert [line.dice for line in cases.listed] == [0.5]
    answer = Page(cases).answer("/api/answer", {"case": "dogwood/D001"})
    assert answer.status == 400
    assert NOT_KNOWN in answer.body.decode()
    assert "Update multiseg, or evaluate again" in answer.body.decode()
    assert not asked


def test_a_report_shows_on_a_terminal_how_far_it_is(
    run_folder: Path,
    store_url: str,
    asked: list[EvaluateOptions],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TERM", "xterm")
    say(run_folder, {}, store_url)
    command = ["report", str(run_folder), "--device", "cpu", "--json", "-o", str(tmp_path / "page.html")]
    assert run(command) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["page"] == command[-1]
    assert "1/1" in shown.err.rpartition("report ")[2]
    assert len(asked) == 1


@pytest.mark.parametrize(
    "about",
    [
        {"answered": ["tta"]},
        {"answered": {"branch": 3}},
        {"answered": {"adapt": "yes"}},
        {"overlap": "half"},
        {"overlap": 1},
    ],
)
def test_what_is_not_of_its_type_is_not_guessed(about: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=r"answered with .* does not know"):
        options_to_repeat(about)


def test_an_older_evaluation_is_repeated_with_the_usual_overlap() -> None:
    assert options_to_repeat({}) == EvaluateOptions()


def test_a_model_card_does_not_guess_either(run_folder: Path, store_url: str) -> None:
    digest = say(run_folder, ["tta"], store_url)
    with pytest.raises(UsageError, match=r"answered with answered = \['tta'\], which this version .* does not know"):
        results_in(run_folder, digest)


@pytest.mark.parametrize(
    ("how", "models"), [({"ensemble": "mean"}, 2), ({"folds": 3, "tta": True}, 3), ({"tta": True}, 2)]
)
def test_what_several_models_answered_is_not_one_models_own(
    how: dict[str, object], models: int, run_folder: Path, store_url: str, asked: list[EvaluateOptions],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Those of an ensemble or of folds; an older evaluation only lists their digests."""
    monkeypatch.setattr(picking, "load_model", lambda *args: pytest.fail("a model is loaded for nothing"))
    digest = say(run_folder, how, store_url)
    say(run_folder, how, store_url, models=[digest, *["0" * 64] * (models - 1)])
    record = read_run(run_folder)
    assert _held_out(record) == "not evaluated"
    assert "several models answered" in picking.picked_cases([record], "cpu").note
    cases = viewed(run_folder)
    assert cases.title.endswith(" (of several models)")
    answer = Page(cases).answer("/api/answer", {"case": "dogwood/D001"})
    assert answer.status == 400
    assert "several models answered" in answer.body.decode()
    assert not asked
    say(run_folder, {}, store_url, models=[digest])
    assert _held_out(read_run(run_folder)).startswith("0.5")


def test_folds_keep_how_their_models_answered() -> None:
    rows = pd.DataFrame([ROW])
    one = Evaluation(rows, rows, (), "test", {}, {}, answered={"tta": True}, overlap=0.25)
    runs = [FoldRun(Path(str(index)), Fold(index, 2), "a.zarr") for index in range(2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cross_validation, "summary_of", lambda *args: rows)
        whole = cross_validation._joined([one, one], runs)
    assert whole.answered == {"tta": True, "folds": 2}
    assert whole.overlap == 0.25
