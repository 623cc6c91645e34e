"""Files of another program, in native space, are scored in the same tables as a model's answers."""

from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
from json_documents import checked

from multiseg.cli.app import run
from multiseg.errors import LabelError, UsageError
from multiseg.evaluation.evaluation_result import EvaluateOptions
from multiseg.evaluation.file_evaluation import PredictionFiles, evaluate_files
from multiseg.store.native import native_label
from multiseg.store.reader import open_store

LABELS = "1=tissue:CSF,2=tissue:grey matter,3=tissue:white matter,7=lesion"
EVERY = EvaluateOptions(split="", databases=("alder",))


@pytest.fixture(scope="module")
def answers(store_url: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The annotations of all cases of alder in their native space, as a program would write them."""
    folder = tmp_path_factory.mktemp("answers")
    database = open_store(store_url)["alder"]
    for case in database.cases:
        lesion, tissue = (native_label(database, case, name) for name in ("lesion", "tissue"))
        native, _ = database.native(case)
        codes = np.where(lesion == 1, 7, tissue).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(codes, native.affine), folder / f"{case.name}.nii.gz")
    return folder


def files_in(folder: Path, labels: str = LABELS) -> PredictionFiles:
    return PredictionFiles(str(folder / "{case}.nii.gz"), labels, "tool")


def test_the_annotations_themselves_agree(store_url: str, answers: Path) -> None:
    result = evaluate_files(files_in(answers), open_store(store_url), EVERY)
    assert set(result.summary["label"]) == {"CSF", "grey matter", "white matter", "lesion"}
    assert set(result.summary["modalities"]) == {"tool"}
    assert set(result.summary["learnt"]) == {"not known"}
    assert len(result.cases) == 4 * len(open_store(store_url)["alder"].cases)
    # There and back over coarser voxels: what is lost is lost at borders.
    assert result.summary.set_index("label")["dice"].min() > 0.85
    assert not result.skipped
    counts = result.cases.set_index("label")["num_lesions"]
    assert counts["lesion"].min() >= 1
    assert counts[["CSF", "grey matter", "white matter"]].isna().all()
    assert result.summary.set_index("label")["lesion_f1"]["lesion"] > 0.9


@pytest.mark.slow
def test_a_wrong_file_is_found_out(store_url: str, answers: Path, tmp_path: Path) -> None:
    database = open_store(store_url)["alder"]
    first, second, third, fourth = (case.name for case in database.cases)
    for name in (first, second, third):
        (tmp_path / f"{name}.nii.gz").write_bytes((answers / f"{name}.nii.gz").read_bytes())
    image = nibabel.load(answers / f"{second}.nii.gz")
    far = image.affine.copy()
    far[0, 3] += 90
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), far), tmp_path / f"{second}.nii.gz")
    (tmp_path / f"{third}.nii.gz").write_bytes((answers / f"{third}.nii.gz").read_bytes()[:500])
    result = evaluate_files(files_in(tmp_path), open_store(store_url), EVERY)
    assert set(result.cases["case"]) == {first}
    assert "of the brain. Is it the file of another scan?" in result.skipped[f"alder/{second}"]
    assert "cannot be read" in result.skipped[f"alder/{third}"]
    assert result.skipped[f"alder/{fourth}"] == "there is no file of its prediction"
    without_lesion = files_in(answers, LABELS.removesuffix(",7=lesion"))
    with pytest.raises(LabelError, match=r"unknown codes: 7"):
        evaluate_files(without_lesion, open_store(store_url), EVERY)


@pytest.mark.slow
def test_assumed_lesions(store_url: str, tmp_path: Path, answers: Path) -> None:
    """A program that marks no lesion is then not blamed for the tissue that it finds there."""
    database = open_store(store_url)["alder"]
    for case in database.cases:
        image = nibabel.load(answers / f"{case.name}.nii.gz")
        codes = np.where(np.asarray(image.dataobj) == 7, 3, image.dataobj)
        nibabel.save(nibabel.Nifti1Image(codes, image.affine), tmp_path / f"{case.name}.nii.gz")
    options = [EvaluateOptions("", ("alder",), lesion_assumed=chosen) for chosen in (False, True)]
    plain, assumed = (evaluate_files(files_in(tmp_path), open_store(store_url), chosen) for chosen in options)
    dice = [result.summary.set_index("label")["dice"] for result in (plain, assumed)]
    assert dice[0]["lesion"] == 0
    assert dice[1]["lesion"] == 1
    assert dice[1]["white matter"] > dice[0]["white matter"]
    # Without lesions among the structures their voxels are not looked at.
    tissues = LABELS.replace(",7=lesion", ",7=ignore")
    looked_at = evaluate_files(
        files_in(tmp_path, tissues), open_store(store_url), EvaluateOptions("", ("alder",), lesion_assumed=True)
    )
    assert looked_at.summary.set_index("label")["dice"]["white matter"] >= dice[0]["white matter"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("out.nii.gz", "names one file for all cases"),
        ("{kase}.nii.gz", "unknown field 'kase'"),
        ("{case", "is invalid"),
    ],
)
def test_patterns_that_name_no_case(pattern: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        PredictionFiles(pattern, LABELS, "tool")


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_the_command(
    store_url: str, answers: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["evaluate", "--predictions", f"{answers}/{{case}}.nii.gz", "--labels", LABELS, "--name", "tool"]
    assert run(arguments) == 2
    assert "--predictions needs --store, too" in capfd.readouterr().err
    arguments += ["--store", store_url, "--split", "all", "--database", "alder"]
    assert run([*arguments, "--json"]) == 0
    result = checked(capfd.readouterr().out, "evaluate")
    assert Path(result["folder"]).name == "evaluation-all-brain-alder-tool"
    assert len(pd.read_csv(Path(result["folder"]) / "cases.csv")) == len(open_store(store_url)["alder"].cases) * 4
    assert run(["evaluate", str(tmp_path), *arguments[1:]]) == 2
    assert run(["evaluate"]) == 2
    assert run(["evaluate", "--labels", "1=lesion"]) == 2
    assert run(["evaluate", "a", "b"]) == 2
    assert "say how they answer together, --fuse lesion-over-tissue" in capfd.readouterr().err


def test_doubts_about_a_file_are_told(store_url: str, answers: Path, tmp_path: Path) -> None:
    """Codes that all mean background: the program's numbers were misread."""
    labels = "1=tissue:CSF,2=background,3=background,7=background"
    for path in answers.glob("*.nii.gz"):
        image = nibabel.load(path)
        nibabel.save(
            nibabel.Nifti1Image(np.where(np.asarray(image.dataobj) == 1, 2, image.dataobj), image.affine),
            tmp_path / path.name,
        )
    result = evaluate_files(files_in(tmp_path, labels), open_store(store_url), EVERY)
    assert all("all of these codes mean background" in text for text in result.doubts.values())
    assert len(result.doubts) == len(open_store(store_url)["alder"].cases)
    arguments = [
        "evaluate",
        "--predictions",
        "{case}.nii.gz",
        "--labels",
        LABELS,
        "--name",
        "tool",
        "--store",
        store_url,
    ]
    assert run([*arguments, "--fuse", "lesion-over-tissue"]) == 2
    assert run([*arguments, "--subsets", "full"]) == 2
