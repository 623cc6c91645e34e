"""A BIDS derivative: names, sidecars and description. bids-validator 3.0.2 finds no error in what these lists say."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from json_documents import checked

from multiseg.cli.app import run
from multiseg.labels import LabelSpace, SpaceLabel
from multiseg.modalities import ModalityAxis
from multiseg.models.builders import multi_unet
from multiseg.models.saved import ModelInfo, save_model
from multiseg.store.sources.recognise import find_source
from multiseg.store.sources.source_types import SourceOptions

SEVERAL = LabelSpace((SpaceLabel("grey matter", "tissue"), SpaceLabel("lesion", "lesion")))
SCANS = (
    "sub-01/anat/sub-01_FLAIR.nii.gz",
    "sub-01/anat/sub-01_T1w.nii.gz",
    "sub-02/ses-1/anat/sub-02_ses-1_acq-iso_run-2_FLAIR.nii.gz",
    "sub-02/ses-2/anat/sub-02_ses-2_T1w.nii.gz",
)


def save(folder: Path, space: LabelSpace) -> str:
    torch.manual_seed(0)
    info = ModelInfo(
        builder="multi_unet", numbers={"widths": [4, 8], "dropout": 0.0, "norm": "instance"},
        axis=ModalityAxis(("FLAIR", "T1")), space=space, spacing_mm=(5.0, 5.0, 5.0), patch=(16, 16, 16),
        trained_on={"FLAIR": ("a",), "T1": ("a",)}, databases={},
    )  # fmt: skip
    network = multi_unet(2, len(space.labels) + (len(space.labels) > 1), widths=(4, 8), dropout=0.0)
    save_model(folder / "model.safetensors", network, info)
    return str(folder / "model.safetensors")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("model"), LabelSpace())


@pytest.fixture
def study(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in SCANS:
        voxels = np.pad(rng.uniform(400, 600, (10, 10, 10)), 2).astype(np.float32)
        (tmp_path / "study" / name).parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(voxels, np.diag([5.0, 5, 5, 1])), tmp_path / "study" / name)
    description = {"Name": "study", "BIDSVersion": "1.10.0"}
    (tmp_path / "study" / "dataset_description.json").write_text(json.dumps(description))
    return tmp_path / "study"


def files_in(folder: Path) -> set[str]:
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return {name for name in names if not name.startswith(".multiseg/")}


def read(path: Path) -> dict[str, object]:
    return json.loads(path.read_text())


@pytest.mark.slow
def test_a_derivative_of_one_structure(model: str, study: Path) -> None:
    out = study / "derivatives" / "multiseg"
    assert run(["bids", str(study), str(out), "participant", "--model", model, "--probabilities"]) == 0
    stems = [
        "sub-01/anat/sub-01_space-orig",
        "sub-02/ses-1/anat/sub-02_ses-1_acq-iso_run-2_space-orig",
        "sub-02/ses-2/anat/sub-02_ses-2_space-orig",
    ]
    ends = [f"_label-lesion_{suffix}.{end}" for suffix in ("mask", "probseg") for end in ("nii.gz", "json")]
    top = {"dataset_description.json", ".bidsignore", "cases.csv", "lesions.csv"}
    assert files_in(out) == {f"{stem}{end}" for stem in stems for end in ends} | top
    raw = "bids:raw:sub-01/anat/sub-01_"
    assert read(out / f"{stems[0]}_label-lesion_mask.json") == {
        "Type": "Lesion",
        "SpatialReference": f"{raw}FLAIR.nii.gz",
        "Sources": [f"{raw}FLAIR.nii.gz", f"{raw}T1w.nii.gz"],
        "Manual": False,
        "Description": "lesion, segmented by a model.",
    }
    probability = read(out / f"{stems[0]}_label-lesion_probseg.json")
    assert probability.keys() == {"SpatialReference", "Sources", "Description"}
    about = read(out / "dataset_description.json")
    assert (about["DatasetType"], about["DatasetLinks"]) == ("derivative", {"raw": "../.."})
    (tool,) = about["GeneratedBy"]
    assert tool["Name"] == "multiseg"
    assert about.keys() == {
        *("Name", "BIDSVersion", "DatasetType", "GeneratedBy", "DatasetLinks", "SourceDatasets"),
    }
    assert set(np.unique(nib.load(out / f"{stems[0]}_label-lesion_mask.nii.gz").dataobj)) <= {0, 1}


def test_a_derivative_of_several_structures(study: Path, tmp_path: Path) -> None:
    out, model = tmp_path / "out", save(tmp_path, SEVERAL)
    flags = ["--bids", "--probabilities"]
    shutil.rmtree(study / "sub-02")
    assert run(["predict", model, str(study), "-o", str(out), *flags]) == 0
    stem = "sub-01/anat/sub-01_space-orig"
    ends = ["dseg.nii.gz", "dseg.json", "dseg.tsv"]
    ends += [f"label-{name}_probseg.{end}" for name in ("greymatter", "lesion") for end in ("nii.gz", "json")]
    top = {"dataset_description.json", ".bidsignore", "cases.csv", "lesions.csv"}
    assert files_in(out) == {f"{stem}_{end}" for end in ends} | top
    head, *rows = [line.split("\t") for line in (out / f"{stem}_dseg.tsv").read_text().splitlines()]
    assert head[:2] == ["index", "name"]
    assert [row[:2] for row in rows] == [["0", "background"], ["1", "grey matter"], ["2", "lesion"]]
    assert "Type" not in read(out / f"{stem}_dseg.json")
    assert read(out / "dataset_description.json")["DatasetLinks"] == {"raw": "../study"}


@pytest.mark.slow
def test_the_command_line_of_a_bids_app(
    model: str, study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["bids", str(study), str(out), "participant", "--model", model, "--participant-label"]
    assert run([*command, "03"]) == 2
    assert "there is no participant 03. There are 01, 02" in " ".join(capsys.readouterr().err.split())
    assert run([*command, "sub-02"]) == 0
    assert {name[:6] for name in files_in(out) if name.endswith(".nii.gz")} == {"sub-02"}
    capsys.readouterr()
    assert run([*command, "01", "02", "--json"]) == 0
    assert len(checked(capsys.readouterr().out, "bids")["cases"]) == 3
    assert len([name for name in files_in(out) if name.endswith(".nii.gz")]) == 3
    assert len((out / "cases.csv").read_text().splitlines()) == 4
    assert run([*command[:3], "group", *command[4:], "01"]) == 2
    assert run([*command[:-1], "01"]) == 2
    assert "01 is not understood" in " ".join(capsys.readouterr().err.split())


def test_names_that_would_be_one_in_bids_are_refused(
    model: str, study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for case in ("A-1", "A1"):
        (tmp_path / "plain" / case).mkdir(parents=True)
        shutil.copy(study / SCANS[0], tmp_path / "plain" / case / "FLAIR.nii.gz")
    assert run(["predict", model, str(tmp_path / "plain"), "-o", str(tmp_path / "out"), "--bids"]) == 2
    assert "A-1 and A1 would both be sub-a1_space-orig in BIDS" in " ".join(capsys.readouterr().err.split())


def test_predictions_are_not_taken_for_annotations(model: str, study: Path) -> None:
    """`ingest` of the dataset later: a model must not learn from its own answers as if a person had drawn them."""
    out = study / "derivatives" / "multiseg"
    assert run(["bids", str(study), str(out), "participant", "--model", model, "--participant-label", "01"]) == 0
    found = find_source(study, SourceOptions(allow_unlabelled=True))
    assert [dict(case.labels) for case in found.cases] == [{}, {}, {}]
    assert any("multiseg predicted" in finding.message for finding in found.findings)
