"""Flags that would go unheard are refused by name, and verify prepares a source as ingest would."""

import json
import shutil
from pathlib import Path

import pytest

from multiseg.cli.app import run

LOOK = ("--pattern", "{case}/{modality}.nii.gz", "--label", "{case}/lesion.nii.gz", "--spacing", "5")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["verify", "{folder}", *LOOK, "--as", "bids"], "--as bids looks for files its own way, and --pattern says"),
        (["verify", "{folder}", *LOOK, "--memory", "1.2.3GB"], "--memory '1.2.3GB' is no size such as 8GB"),
        (["verify", "{store}", "--as", "bids", "--n4", "--workers", "1"], "already: --as, --n4 would say how to read"),
        (["verify", "{store}", "--spacing", "1", "--label", "x"], "already: --label, --spacing would say"),
        (["view", "{store}", "--case", "alder/A001", "--split", "test"], "names one case; leave out --database"),
        (["view", "{store}", "--case", "alder/A001", "--database", "birch"], "names one case; leave out --database"),
        (["verify", "{folder}", *LOOK, "--register", "elastic"], "register 'elastic' is none of"),
    ],
)
def test_flags_that_would_go_unheard(
    arguments: list[str],
    message: str,
    hospitals: Path,
    store_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    filled = [one.replace("{folder}", str(hospitals / "alder")).replace("{store}", store_url) for one in arguments]
    assert run(filled) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_store_is_verified_by_some_workers(store_url: str) -> None:
    assert run(["verify", store_url, "--workers", "2", "--memory", ".5GB", "--json"]) == 0


def test_a_source_is_verified_with_the_steps_that_it_is_to_be_ingested_with(
    hospitals: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for case in ("A001", "A002"):
        shutil.copytree(hospitals / "alder" / case, tmp_path / "alder" / case)
    assert run(["verify", str(tmp_path / "alder"), *LOOK, "--register", "rigid", "--json"]) == 0
    assert "REGISTERED" in {finding["code"] for finding in json.loads(capsys.readouterr().out)["findings"]}
