"""A patient is prepared as the model's training data were; and a model file never runs a program."""

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from multiseg.errors import CheckpointError, UsageError
from multiseg.evaluation import overlay as drawing
from multiseg.evaluation.case_panel import CasePanel
from multiseg.evaluation.overlay import save_overlay
from multiseg.evaluation.prediction import Prediction, predict
from multiseg.evaluation.prediction_inputs import PredictOptions
from multiseg.evaluation.preparation import brain_rule, recipe_for
from multiseg.labels import LabelSpace
from multiseg.modalities import ModalityAxis
from multiseg.models.saved import Model, ModelInfo
from multiseg.store.preparation import space
from multiseg.store.preparation.recipe import PERCENTILES, Recipe
from multiseg.store.preparation.registration import RegistrationError

SHAPE = (20, 20, 20)
RISING = tuple(float(at) for at in range(len(PERCENTILES)))


class Bright(nn.Module):
    """Says lesion where the image is above 0."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor, present: Tensor) -> Tensor:
        return torch.where(images[:, :1] > 0, 9.0, -9.0)


def info(**recipes: Recipe) -> ModelInfo:
    return ModelInfo(
        builder="multi_unet", numbers={}, axis=ModalityAxis(("T1",)), space=LabelSpace(), spacing_mm=(4.0, 4.0, 4.0),
        patch=(16, 16, 16), trained_on={"T1": tuple(recipes)},
        databases={name: {"recipe": recipe.to_json()} for name, recipe in recipes.items()},
    )  # fmt: skip


def answered(folder: Path, model: ModelInfo, **options: object) -> Prediction:
    """A cube of brain, one half brighter, in air that is not 0."""
    image = np.full(SHAPE, 5.0, dtype=np.float32)
    image[4:16, 4:16, 4:16] = 100
    image[10:16, 4:16, 4:16] = 200
    image += np.random.default_rng(0).uniform(0, 1, SHAPE).astype(np.float32)
    nib.save(nib.Nifti1Image(image, np.diag([4.0, 4.0, 4.0, 1.0])), folder / "T1.nii.gz")
    return predict(
        Model(Bright(), model),
        {"T1": folder / "T1.nii.gz"},
        folder / "out.nii.gz",
        PredictOptions(**options),
        overwrite=True,
    )


def codes(result: Prediction) -> set[str]:
    return {doubt.code for doubt in result.doubts}


def test_the_steps_of_the_training_data_are_taken() -> None:
    theirs = Recipe((9.0,) * 3, "T2", "otsu", "array", "histogram", register="rigid", n4=True, landmarks={"T1": RISING})
    recipe, doubts = recipe_for(info(ms=theirs), "", "T1", "world")
    assert recipe == Recipe(
        (4.0,) * 3, "T1", "otsu", "world", "histogram", register="rigid", n4=True, landmarks={"T1": RISING}
    )
    assert doubts == ()
    recipe, (doubt,) = recipe_for(info(), "", "T1", "refuse")
    assert recipe == Recipe((4.0,) * 3, "T1")
    assert (doubt.code, "all voxels that are not 0 were taken as brain" in doubt.message) == ("NO_RECIPE", True)


def test_databases_that_were_not_prepared_alike_are_told() -> None:
    plain, scaled = Recipe(), Recipe(normalise="histogram", n4=True, landmarks={"T1": RISING})
    recipe, (doubt,) = recipe_for(info(ms=plain, wmh=scaled), "", "T1", "refuse")
    assert (recipe.normalise, recipe.n4, recipe.landmarks) == ("zscore", True, {})
    assert doubt.code == "MIXED_RECIPES"
    assert "(ms: zscore; wmh: histogram, N4)" in doubt.message
    higher = Recipe(normalise="histogram", n4=True, landmarks={"T1": tuple(2 * at for at in RISING), "T2": RISING})
    recipe, doubts = recipe_for(info(ms=scaled, wmh=higher), "", "T1", "refuse")
    assert doubts == ()
    assert recipe.landmarks == {"T1": tuple(1.5 * at for at in RISING), "T2": RISING}


def test_what_is_told_of_a_database_is_its_own() -> None:
    """Also beside one that came without a recipe."""
    model = info(ms=Recipe(), wmh=Recipe(normalise="histogram", landmarks={"T1": RISING}))
    model = replace(model, databases={"old": {}, **model.databases})
    _, (doubt,) = recipe_for(model, "", "T1", "refuse")
    assert "(ms: zscore; wmh: histogram)" in doubt.message


def test_a_command_in_a_model_is_never_run(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    evil = Recipe(brain_mask=f"command touch {trace} {{image}} {{mask}}")
    with pytest.raises(UsageError, match=r"trained with given brain masks \(command touch .*--brain-mask FILE"):
        answered(tmp_path, info(ms=evil))
    answered(tmp_path, info(ms=evil, wmh=Recipe()))
    answered(tmp_path, info(ms=evil), brain_mask="otsu")
    assert not trace.exists()
    with pytest.raises(UsageError, match=r"trained with given brain masks \(file\)"):
        answered(tmp_path, info(ms=Recipe(brain_mask="file")))


def test_the_user_says_where_the_brain_is(tmp_path: Path) -> None:
    """By a word, a file or a program; Otsu's threshold leaves the air out, which non-zero voxels do not."""
    mask = np.zeros(SHAPE, dtype=np.uint8)
    mask[4:16, 4:16, 4:16] = 1
    nib.save(nib.Nifti1Image(mask, np.diag([4.0, 4.0, 4.0, 1.0])), tmp_path / "mask.nii.gz")
    half = 6 * 12 * 12 * 0.064
    copy = f"command cp {tmp_path / 'mask.nii.gz'} {{mask}} --no-target-directory --suffix={{image}}"
    for said in (tmp_path / "mask.nii.gz", str(tmp_path / "mask.nii.gz"), copy):
        result = answered(tmp_path, info(ms=Recipe()), brain_mask=said)
        assert result.volumes_ml["lesion"] == pytest.approx(half)
        assert "NO_BACKGROUND" not in codes(result)
    whole = answered(tmp_path, info(ms=Recipe()))
    assert whole.volumes_ml["lesion"] > 1.5 * half
    assert "NO_BACKGROUND" in codes(whole)
    assert answered(tmp_path, info(ms=Recipe(brain_mask="otsu"))).volumes_ml["lesion"] == pytest.approx(half, rel=0.2)
    assert brain_rule("nonzero") == ("nonzero", None)
    assert brain_rule("") == brain_rule(None) == ("", None)


def test_a_recipe_that_is_none_is_the_models_fault() -> None:
    model = info(ms=Recipe())
    model.databases["ms"]["recipe"] = {"spacing_mm": [1, 1]}
    with pytest.raises(CheckpointError, match="cannot read a preparation recipe in the model"):
        recipe_for(model, "", "T1", "refuse")


def save_ball(path: Path, shift_mm: float = 0.0, scale: float = 1.0) -> Path:
    """A ball of brain off the middle; the header puts it `shift_mm` too far to the right."""
    at = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"))
    brain = np.linalg.norm(at - np.reshape((8, 11, 10), (3, 1, 1, 1)), axis=0) < 6
    image = np.where(brain, np.random.default_rng(1).uniform(1, 2, SHAPE), 0) * scale
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[0, 3] = shift_mm
    nib.save(nib.Nifti1Image(image.astype(np.float32), affine), path)
    return path


@pytest.mark.parametrize("recipe", [Recipe(normalise="histogram", landmarks={"T1": RISING}), Recipe(normalise="none")])
def test_a_reference_that_the_model_never_learnt_only_lends_its_grid(recipe: Recipe, tmp_path: Path) -> None:
    """It has no landmarks, and its raw values need not fit float16."""
    images = {"T1": save_ball(tmp_path / "t1.nii"), "PD": save_ball(tmp_path / "pd.nii", 8.0, scale=1e6)}
    model = Model(Bright(), info(ms=recipe))
    result = predict(model, images, tmp_path / "out.nii", PredictOptions(reference="PD", headers_disagree="world"))
    assert (result.reference, result.used, result.left_out) == ("PD", ("T1",), ("PD",))
    assert result.prepared.modalities == ("T1",)
    answer = nib.load(tmp_path / "out.nii")
    np.testing.assert_array_equal(answer.affine, nib.load(images["PD"]).affine)
    # T1 lies two voxels to the left of PD, through the headers; what is brighter than its mean is said to be lesion.
    brain = np.asarray(nib.load(images["T1"]).dataobj)[2:] > 0
    found = np.asarray(answer.dataobj)[:-2] == 1
    assert brain.sum() / 3 < found.sum() == (found & brain).sum()


def test_sequences_are_registered_where_a_person_asks_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: object) -> None:
        raise RegistrationError("a test")

    monkeypatch.setattr(space, "register_rigid", fail)
    images = {"T1": save_ball(tmp_path / "t1.nii"), "PD": save_ball(tmp_path / "pd.nii")}
    model = Model(Bright(), info(ms=Recipe()))
    asked = {}
    for register in ("", "rigid"):
        options = PredictOptions(reference="PD", register=register)
        asked[register] = predict(model, images, tmp_path / f"out{register}.nii", options)
    codes = {register: [doubt.code for doubt in result.doubts] for register, result in asked.items()}
    assert "NOT_REGISTERED" not in codes[""]
    assert "NOT_REGISTERED" in codes["rigid"]
    with pytest.raises(UsageError, match="unknown register 'affine'"):
        predict(model, images, tmp_path / "o.nii", PredictOptions(register="affine"))


def test_the_overlay_shows_what_the_model_saw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a header is not believed, the picture does not believe it either."""
    drawn: list[CasePanel] = []
    monkeypatch.setattr(drawing, "save_montage", lambda path, panels, *more: drawn.extend(panels))
    images = {"PD": save_ball(tmp_path / "pd.nii"), "T1": save_ball(tmp_path / "t1.nii", 12.0)}
    model = Model(Bright(), info(ms=Recipe()))
    result = predict(model, images, tmp_path / "out.nii", PredictOptions(headers_disagree="array"))
    save_overlay(tmp_path / "overlay.png", result)
    (panel,) = drawn
    assert list(panel.images) == ["T1"]
    np.testing.assert_array_equal(panel.images["T1"] != 0, np.asarray(nib.load(images["PD"]).dataobj) != 0)


def save_brain(path: Path, mm: float = 4.0, outside: float = 0.0, dtype: type = np.float32) -> Path:
    """An ellipsoid of 1.5 l; `outside` is added everywhere, and a whole-number type scales by itself."""
    shape = (48, 56, 46)
    at = np.moveaxis(np.indices(shape), 0, -1) - (np.array(shape) - 1) / 2
    brain = np.linalg.norm(at / np.array([17, 21, 16]), axis=-1) < 1
    image = np.where(brain, np.random.default_rng(1).normal(300, 60, shape), 0) / 7 + outside
    stored = nib.Nifti1Image(image.astype(np.float32), np.diag([mm, mm, mm, 1.0]))
    stored.set_data_dtype(dtype)
    nib.save(stored, path)
    return path


@pytest.mark.parametrize("background", ["zero", "shifted"])
def test_a_conversion_of_the_background_changes_no_answer(background: str, tmp_path: Path) -> None:
    """Saved as int16, 0 comes back as another number; or the file counts from -1024 or 32768."""
    model = Model(Bright(), replace(info(ms=Recipe()), background=background))
    plain = predict(model, {"T1": save_brain(tmp_path / "plain.nii")}, tmp_path / "out.nii")
    assert plain.prepared.brain_ml == pytest.approx(1530, rel=0.01)
    assert 500 < plain.volumes_ml["lesion"] < 1000
    for name, (outside, dtype) in {
        "a": (0.0, np.int16),
        "b": (-1024.0, np.float32),
        "c": (32768.0, np.float32),
    }.items():
        scan = save_brain(tmp_path / f"{name}.nii", outside=outside, dtype=dtype)
        result = predict(model, {"T1": scan}, tmp_path / f"{name}_out.nii")
        assert result.volumes_ml["lesion"] == pytest.approx(plain.volumes_ml["lesion"], rel=2e-3)
        assert codes(result) - {"BACKGROUND"} == codes(plain)
        assert ("BACKGROUND" in codes(result)) == (float(nib.load(scan).get_fdata()[0, 0, 0]) != 0)


def test_what_is_no_brain_is_doubted(tmp_path: Path) -> None:
    model = Model(Bright(), info(ms=Recipe()))
    good = predict(model, {"T1": save_brain(tmp_path / "a.nii")}, tmp_path / "a_out.nii")
    assert codes(good) == set()
    lost = predict(model, {"T1": save_brain(tmp_path / "b.nii", mm=1.0)}, tmp_path / "b_out.nii")
    assert codes(lost) == {"VOXEL_SIZE"}
    large = predict(model, {"T1": save_brain(tmp_path / "c.nii", mm=5.0)}, tmp_path / "c_out.nii")
    assert codes(large) == {"BRAIN_SIZE"}
    (doubt,) = large.doubts
    assert "T1: the brain has 3 l" in doubt.message


def test_a_prediction_tells_how_far_it_is(tmp_path: Path) -> None:
    told: list[tuple[int, int, str]] = []
    images = {"T1": save_ball(tmp_path / "t1.nii")}
    model = Model(Bright(), replace(info(ms=Recipe()), patch=(8, 8, 8)))
    predict(model, images, tmp_path / "out.nii", on_step=lambda *step: told.append(step))
    done = [step[0] for step in told]
    assert len(done) > 1
    assert done == sorted(done)
    assert {step[1:] for step in told} == {(done[-1], "planes")}
