"""The page of a run: what its folder holds, complete in one file."""

import json
import re
import shutil
from html import unescape
from pathlib import Path

import pandas as pd
import pytest
from browser_checks import needs_browser, serious_faults, severe_messages
from json_documents import checked

from benchmarks.browser import chromium
from multiseg.cli.app import run
from multiseg.errors import UsageError
from multiseg.pages.page import POLICY
from multiseg.reports.picked_cases import pick_cases
from multiseg.reports.run_page import check_runs
from multiseg.reports.run_record import EvaluationRecord, read_run

TINY = ["--database", "alder", "--database", "dogwood", "--steps", "2", "--patch", "16", "--batch-size", "2"]
SLICE = """
const figure = document.activeElement.closest("figure");
return figure && { number: figure.querySelector("output").textContent, picture: figure.querySelector("img").src };
"""
"""The slice of the slider that has the focus."""
LOADED = "return performance.getEntriesByType('resource').map((one) => new URL(one.name).protocol)"
REFUSED = """
const refused = new Promise((done) => addEventListener("securitypolicyviolation", (one) => done(one.blockedURI)));
new Image().src = "http://127.0.0.1:9/x";
return refused;
"""
"""The address that the page's policy did not let it load."""
QUIET = ["--workers", "0", "--augment", "none", "--device", "cpu"]


@pytest.fixture(scope="module")
def runs(store_url: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs, of which `joint` is evaluated."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "small.toml").write_text("[model]\nwidths = [4, 5]\n")
    assert (
        run(["train", store_url, "--out", str(folder / "joint"), "--run", str(folder / "small.toml"), *TINY, *QUIET])
        == 0
    )
    evaluate = ["evaluate", str(folder / "joint"), "--split", "all", "--subsets", "full", "--overlap", "0"]
    evaluate += [*TINY[:4], "--out", str(folder / "joint" / "evaluation-all")]
    assert run([*evaluate, "--device", "cpu"]) == 0
    assert run(["report", str(folder / "joint"), "--device", "cpu"]) == 0
    return folder


@pytest.fixture(scope="module")
def page(runs: Path) -> str:
    return (runs / "joint" / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_it_shows_how_the_model_learnt_what_it_reaches_and_how_it_was_made(runs: Path, page: str) -> None:
    text = unescape(page)
    assert re.findall(r"<h2[^>]*>(.*?)</h2>", text) == [
        "In short", "Training", "What it learnt from", "Evaluation", "Worst, median and best case", "What to look at",
        "How it was made",
    ]  # fmt: skip
    assert "multi_unet segments lesion from any set of" in text
    for command in ("train", "evaluate"):
        assert f'<td class="long">multiseg {command} ' in text
    settings = (runs / "joint" / "run.toml").read_text()
    assert settings in text
    assert "evaluation-all, cases that it was TRAINED ON" in text
    dice = pd.read_csv(runs / "joint" / "evaluation-all" / "summary.csv").query("learnt == 'train'")["dice"].iloc[0]
    assert f">{dice:.2f}</td>" in text
    assert "use in training train: " in text
    cases = pd.read_csv(runs / "joint" / "evaluation-all" / "cases.csv")
    held_out = cases[cases["learnt"].isna()]  # of one subset each: all sequences
    said = f"{held_out['dice'].mean():.3f}, mean of {len(held_out)} cases with the most sequences that were evaluated"
    assert re.search(rf">held-out Dice</td><td[^>]*>{said}<", text)
    assert "evaluation-all: can the probabilities be believed?" in text


@pytest.mark.slow
def test_it_needs_no_other_file_and_runs_no_other_script(page: str) -> None:
    assert f'content="{POLICY}"' in unescape(page)
    # All addresses are pictures in the page, or its own sections. Names of XML namespaces are never fetched.
    addresses = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert all(address.startswith(("data:image/webp;base64,", "#")) for address in addresses), addresses[:5]
    assert not re.findall(r"url\((?!#)", page)
    assert len(page) < 15_000_000
    slices = json.loads(re.findall(r'<script type="application/json">(.*?)</script>', page)[0])
    assert 1 < len(slices) == int(re.findall(r'max="(\d+)"', page)[0])


@pytest.mark.slow
def test_a_report_replaces_its_own_page_and_no_other(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    command = ["report", str(runs / "joint"), "--no-cases", "--device", "cpu", "-o", str(out)]
    out.write_text("<p>mine</p>")
    assert run(command) == 2
    assert out.read_text() == "<p>mine</p>"
    assert run([*command, "--overwrite"]) == 0
    assert run(command) == 0


@pytest.mark.slow
def test_an_older_evaluation_and_a_lost_store_are_said(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(runs / "joint", other)
    summary = other / "evaluation-all" / "summary.json"
    content = json.loads(summary.read_text()) | {"model": "0" * 64, "store": str(tmp_path / "gone.zarr")}
    summary.write_text(json.dumps(content))
    out = tmp_path / "page.html"
    assert run(["report", str(other), str(runs / "joint"), "--device", "cpu", "--json", "-o", str(out)]) == 0
    printed = checked(capsys.readouterr().out, "report")
    assert printed == {
        "page": str(out), "bytes": out.stat().st_size, "runs": [str(other), str(runs / "joint")],
    }  # fmt: skip
    text = unescape(out.read_text())
    assert text.count("OLDER_MODEL") == 1
    assert "The cases are not drawn, since the store" in text
    assert "Side by side: mean Dice" in text
    assert "<th>other" in text.replace('<th class="number">', "<th>")


@pytest.mark.slow
@needs_browser
def test_in_a_browser_keys_alone_move_it_and_it_reaches_nobody_and_has_no_serious_fault(runs: Path) -> None:
    with chromium() as browser:
        browser.resize(1280, 800)
        browser.go((runs / "joint" / "report.html").as_uri())
        for _ in range(30):
            browser.press("Tab")
            if (before := browser.run(SLICE)) is not None:
                break
        browser.press("ArrowUp")
        after = browser.run(SLICE)
        assert int(after["number"]) == int(before["number"]) + 1
        assert after["picture"] != before["picture"]
        assert set(browser.run(LOADED)) <= {"data:"}
        assert serious_faults(browser) == []
        assert severe_messages(browser) == []
        assert browser.run(REFUSED) == "http://127.0.0.1:9/x"


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", str(tmp_path)]) == 2
    assert "is not the folder of a run" in capsys.readouterr().err
    with pytest.raises(UsageError, match="several runs are named a"):
        check_runs([tmp_path / "a", tmp_path / "b" / "a"])


@pytest.mark.slow
def test_a_run_without_an_evaluation_says_how_to_make_one(runs: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    shutil.copytree(runs / "joint", plain, ignore=shutil.ignore_patterns("evaluation-*", "report.html"))
    log = plain / "log.jsonl"
    log.write_text(log.read_text() + '{"event": "StepDo')  # by a process that was killed
    assert run(["report", str(plain), "--device", "cpu"]) == 0
    text = (plain / "report.html").read_text()
    assert f"<pre>multiseg evaluate {plain}</pre>" in text
    assert "figure class" not in text
    assert read_run(plain).steps[-1]["step"] == 2


def evaluation(dice: dict[str, list[float]], learnt: str = "") -> EvaluationRecord:
    rows = [
        {"database": "a", "case": case, "learnt": learnt, "dice": value, "num_modalities": number}
        for case, values in dice.items()
        for number, value in enumerate(values, start=1)
    ]
    table = pd.DataFrame(rows)
    return EvaluationRecord(Path("evaluation-test"), table, table, {}, True)


def test_worst_median_and_best_are_by_the_largest_set_of_sequences() -> None:
    found = pick_cases(evaluation({"x": [0.0, 0.9], "y": [0.8, 0.1], "z": [0.5, 0.5], "w": [0.5, 0.7]}))
    assert found == {"worst": ("a/y", 0.1), "median": ("a/z", 0.5), "best": ("a/x", 0.9)}
    assert pick_cases(evaluation({"x": [0.3]})) == {"worst": ("a/x", 0.3)}
    assert pick_cases(evaluation({"x": [float("nan")]})) == {}
    assert pick_cases(evaluation({"x": [0.2]}, "train")) == {"worst": ("a/x", 0.2)}
