"""Flags that would go unheard are refused by name, and verify prepares a source as ingest would."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from json_documents import checked

from multiseg.cli.app import run
from multiseg.store.formats.nifti import write_nifti

LOOK = ("--pattern", "{case}/{modality}.nii.gz", "--label", "{case}/lesion.nii.gz", "--spacing", "5")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["verify", "{folder}", *LOOK, "--as", "bids"], "--as bids and --pattern both say where files are"),
        (["verify", "{folder}", *LOOK, "--memory", "1.2.3GB"], "--memory '1.2.3GB' is not a size. Write it like 8GB"),
        (
            ["verify", "{store}", "--as", "bids", "--n4", "--workers", "1"],
            "is a store; --as, --n4 can only be used with",
        ),
        (["verify", "{store}", "--spacing", "1", "--label", "x"], "is a store; --label, --spacing can only be"),
        (["view", "{store}", "--case", "alder/A001", "--split", "test"], "names one case; leave out --database"),
        (["view", "{store}", "--case", "alder/A001", "--database", "birch"], "names one case; leave out --database"),
        (["verify", "{folder}", *LOOK, "--register", "elastic"], "unknown register 'elastic': choose one of"),
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


@pytest.mark.slow
def test_a_store_is_verified_by_some_workers(store_url: str) -> None:
    assert run(["verify", store_url, "--workers", "2", "--memory", ".5GB", "--json"]) == 0


@pytest.mark.slow
def test_a_source_is_verified_with_the_steps_that_it_is_to_be_ingested_with(
    hospitals: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(hospitals / "alder" / "A001", tmp_path / "alder" / "A001")
    assert run(["verify", str(tmp_path / "alder"), *LOOK, "--register", "rigid", "--json"]) == 0
    assert "REGISTERED" in {finding["code"] for finding in checked(capsys.readouterr().out, "verify")["findings"]}


@pytest.mark.slow
def test_info_names_every_structure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"structure-{number}" for number in range(1, 10)]
    image = np.zeros((12, 12, 12), dtype=np.float32)
    image[2:10, 2:10, 2:10] = np.random.default_rng(0).uniform(50, 100, (8, 8, 8))
    codes = np.zeros(image.shape, dtype=np.uint8)
    codes[3:6, 3:6, 4] = np.arange(1, 10).reshape(3, 3)
    affine = np.diag([10.0, 10.0, 10.0, 1.0])
    write_nifti(tmp_path / "db" / "p1_T1.nii.gz", image, affine)
    write_nifti(tmp_path / "db" / "p1_seg.nii.gz", codes, affine)
    said = ",".join(f"{at}={'tissue:' if at > 2 else ''}{name}" for at, name in enumerate(names, start=1))
    layout = ["--pattern", "{case}_{modality}.nii.gz", "--label", "seg={case}_seg.nii.gz", "--labels", f"seg:{said}"]
    url = str(tmp_path / "s.zarr")
    assert run(["ingest", str(tmp_path / "db"), "--store", url, "--spacing", "10", *layout]) in (0, 4)
    capsys.readouterr()
    assert run(["info", url]) == 0
    shown = "".join(capsys.readouterr().out.split())
    assert [name for name in names if name not in shown] == []
    assert run(["info", url, "--json"]) == 0
    (database,) = checked(capsys.readouterr().out, "info")["databases"]
    assert database["annotations"]["seg"]["lesion_ml_a_case"] == 2.0  # two voxels of 1 ml; the tissues are none
    assert database["annotations"]["seg"]["ml_a_case"] == 9.0
