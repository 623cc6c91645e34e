"""Labels that no database has, lesions that the labels leave out, and sides that a mirror exchanges."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from multiseg.cli.app import run
from multiseg.errors import LabelError, UsageError
from multiseg.evaluation.evaluation_result import EvaluateOptions
from multiseg.evaluation.model_evaluation import evaluate
from multiseg.labels import IGNORE, LabelSchema, LabelSpace, SpaceLabel
from multiseg.loaders.augment import preset
from multiseg.loaders.batches import StreamOptions
from multiseg.loaders.draw import DrawOptions
from multiseg.models.saved import model_path, read_info
from multiseg.store.structures import check_named
from multiseg.training.fit import FitOptions
from multiseg.training.run import train
from multiseg.training.run_folder import ModelOptions, TrainOptions
from multiseg.training.start import StartOptions

GLIOMA = LabelSchema.parse("1=necrosis,2=oedema,4=enhancing", "lesion")
TISSUE = LabelSchema.parse("1=CSF,2=grey matter", "tissue")


def options_of(store_url: str, *labels: str, **changes: object) -> TrainOptions:
    return TrainOptions(
        store=store_url, labels=labels, device="cpu", model=ModelOptions(widths=(4, 8), dropout=0.0),
        stream=StreamOptions(DrawOptions(patch=(8, 8, 8)), batch_size=1, workers=0),
        fit=FitOptions(num_steps=1, validate_every=1, validation_cases=1), **changes,
    )  # fmt: skip


def test_every_label_has_to_be_somebodys(store_url: str, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"no case in .* is annotated for oedma, tissue:CFS\..*Structures there: "
    ) as caught:
        train(options_of(store_url, "oedma", "tissue:CFS", "tissue:CSF"), tmp_path / "run")
    assert "Did you mean 'tissue:CSF' by 'tissue:CFS'?" in str(caught.value)
    assert not (tmp_path / "run" / "resume.pt").exists()


@pytest.mark.parametrize(
    ("name", "meant"),
    [("Oedema", "oedema"), ("oedma", "oedema"), ("CSF", "tissue:CSF"), ("tissue:oedema", "oedema"), ("xyz", "")],
)
def test_what_was_perhaps_meant(name: str, meant: str) -> None:
    structures = [*GLIOMA.structures, *TISSUE.structures]
    with pytest.raises(
        UsageError, match=f"no case in the store is annotated for {name}. Structures there: necrosis, "
    ) as error:
        check_named(LabelSpace.of([name]), structures, "the store")
    hint = re.search(r"Did you mean '(.*)' by", str(error.value))
    assert (hint[1] if hint else "") == meant


def test_a_known_name_of_another_database_is_enough() -> None:
    check_named(LabelSpace.of(["oedema", "tissue:CSF"]), [*GLIOMA.structures, *TISSUE.structures], "the store")
    check_named(LabelSpace.of(["lesion"]), GLIOMA.structures, "the store")


def test_lesions_that_are_left_out_are_named() -> None:
    space = LabelSpace.of(["oedema"])
    assert space.unlisted([GLIOMA, TISSUE]) == ("necrosis", "enhancing")
    assert LabelSpace.of(["oedema", "lesion"]).unlisted([GLIOMA]) == ()
    assert LabelSpace.of(["tissue:CSF"]).unlisted([GLIOMA, TISSUE]) == ()
    mixed = LabelSchema.parse("1=tissue:CSF,2=infarct", "lesion")
    assert LabelSpace.of(["tissue:CSF"]).unlisted([mixed, GLIOMA]) == ("infarct",)


@pytest.mark.parametrize(("rest", "other"), [("", 0), ("background", 0), ("ignore", IGNORE)])
def test_what_becomes_of_lesions_that_are_left_out(rest: str, other: int) -> None:
    view = LabelSpace.of(["oedema"], rest).view({"seg": GLIOMA}, [True])
    target = view.target(np.arange(4, dtype=np.uint8).reshape(1, 4, 1, 1))
    assert target.ravel().tolist() == [0, other, 1, other]
    assert view.annotated.tolist() == [True]


def test_what_is_ignored_lies_over_tissue_and_under_listed_lesions() -> None:
    schemas = {"other": LabelSchema.parse("1=infarct", "lesion"), "tissue": TISSUE, "seg": GLIOMA}
    space = LabelSpace.of(["oedema", "tissue:CSF"], "ignore")
    codes = np.array([[1, 1, 1, 0], [1, 1, 0, 1], [0, 2, 2, 0]], dtype=np.uint8)
    target = space.view(schemas, [True] * 3).target(codes.reshape(3, 4, 1, 1))
    assert target.ravel().tolist() == [IGNORE, 1, 1, 2]


def test_an_unknown_rest_is_refused() -> None:
    with pytest.raises(LabelError, match="unknown rest 'forget': choose one of background, ignore"):
        LabelSpace.of(["oedema"], "forget")


@pytest.fixture(scope="module")
def glioma_store(hospitals: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three patients whose lesions are of two kinds, each in about half of the voxels."""
    import nibabel as nib

    folder = tmp_path_factory.mktemp("glioma")
    for case in sorted((hospitals / "alder").glob("A00?"))[:3]:
        (folder / "in" / case.name).mkdir(parents=True)
        label = nib.load(case / "lesion.nii.gz")
        codes = np.asarray(label.dataobj).astype(np.uint8)
        codes[codes.shape[0] // 2 :] *= 2
        codes[::2] *= np.where(codes[::2] == 1, 2, 1).astype(np.uint8)
        nib.save(nib.Nifti1Image(codes, label.affine), folder / "in" / case.name / "seg.nii.gz")
        for name in ("FLAIR", "T1"):
            (file,) = case.glob(f"{name}.nii.gz")
            (folder / "in" / case.name / file.name).symlink_to(file)
    url = str(folder / "brain.zarr")
    labels = [
        "--label",
        "{case}/seg.nii.gz",
        "--labels",
        "1=oedema,2=enhancing",
        "--split",
        "train=0.67,val=0.33,test=0",
    ]
    pattern = ["--pattern", "{case}/{modality}.nii.gz", "--spacing", "5", "--workers", "1"]
    assert run(["ingest", str(folder / "in"), "--store", url, *labels, *pattern]) == 0
    return url


@pytest.mark.slow
def test_a_training_that_leaves_lesions_out_is_refused_until_it_says_what_they_are(
    glioma_store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(
        UsageError, match=r"labels oedema leave out lesion structures that the data have \(in: enhancing\)"
    ):
        train(options_of(glioma_store, "oedema"), tmp_path / "no")
    train(options_of(glioma_store, "oedema", rest="ignore"), tmp_path / "run")
    info = read_info(model_path(tmp_path / "run"))
    assert info.space == LabelSpace((SpaceLabel("oedema", "lesion"),), "ignore")
    result = evaluate(tmp_path / "run", glioma_store, EvaluateOptions(split="", subsets="full"))
    assert result.unlisted == {"in": "enhancing: lesions that the model does not list, ignored"}
    child = replace(options_of(glioma_store, "oedema"), start=StartOptions(str(tmp_path / "run")))
    train(child, tmp_path / "child")
    assert read_info(model_path(tmp_path / "child")).space.rest == "ignore"
    flags = ["--steps", "1", "--patch", "8", "--device", "cpu", "--workers", "0"]
    capsys.readouterr()
    assert run(["train", glioma_store, "--labels", "oedema", "--out", str(tmp_path / "c"), *flags]) == 2
    assert "--rest ignore" in capsys.readouterr().err
    assert run(["train", glioma_store, "--labels", "oedema, enhancing", "--print-config"]) == 0
    assert '"oedema",\n    "enhancing",' in capsys.readouterr().out


@pytest.mark.slow
def test_mirrors_are_refused_for_a_side_without_its_counterpart(store_url: str, tmp_path: Path) -> None:
    options = replace(options_of(store_url, "left lesion"), augment=preset("standard"))
    with pytest.raises(UsageError, match="do not have the other side of left lesion"):
        train(options, tmp_path / "run")
