"""A two_branch model that is adapted to a case: what changes, when it is undone, and that the model itself stays."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from multiseg.cli.app import run
from multiseg.errors import DataError, ModalityError, UsageError
from multiseg.evaluation import adaptation
from multiseg.evaluation.adaptation import AdaptOptions, adapted, adapting_parameters, lesion_of, shrunk
from multiseg.evaluation.decision import majority
from multiseg.evaluation.evaluation_result import EvaluateOptions
from multiseg.evaluation.inference import predict_volume
from multiseg.evaluation.model_evaluation import evaluate
from multiseg.evaluation.prediction import predict
from multiseg.evaluation.prediction_inputs import PredictOptions
from multiseg.evaluation.tables import read_table
from multiseg.evaluation.voting import Voters
from multiseg.labels import LabelSpace
from multiseg.modalities import ModalityAxis
from multiseg.models.builders import build
from multiseg.models.saved import Model, ModelInfo, load_model, save_model
from multiseg.store.catalogue import select
from multiseg.store.formats.nifti import write_nifti
from multiseg.store.preparation.recipe import Recipe
from multiseg.store.reader import open_store
from multiseg.store.structures import hide

PATCH = (8, 8, 8)
SPACE = LabelSpace.of(["tissue:GM", "tissue:WM", "lesion"])
PRESENT = np.array([True, True])


def model_of(anchor: tuple[int, ...] = (), builder: str = "two_branch", seed: int = 0) -> Model:
    torch.manual_seed(seed)
    numbers = {"widths": [2, 4], "dropout": 0.0, "norm": "instance_affine"}
    if builder == "two_branch":
        numbers |= {"anatomy_channels": [1], "lesion_logits": [3], "anchor": list(anchor)}
    info = ModelInfo(
        builder,
        numbers,
        ModalityAxis(("FLAIR", "T1")),
        SPACE,
        (2.0, 2.0, 2.0),
        PATCH,
        {"FLAIR": ("a",), "T1": ("a",)},
        {},
    )
    network = build(builder, 2, SPACE.num_logits, **numbers)
    if anchor:
        generator = torch.Generator().manual_seed(1)
        target = torch.randint(3, anchor, generator=generator, dtype=torch.uint8)
        network.put_anchor(torch.randn(1, *anchor, generator=generator), target, torch.tensor([True, True]))
    return Model(network, info).eval()


def case_of(seed: int) -> tuple[np.ndarray, np.ndarray]:
    images = np.random.default_rng(seed).normal(size=(2, 10, 9, 8)).astype(np.float32)
    lesion = np.zeros(images.shape[1:], dtype=bool)
    lesion[2:6, 3:7, 2:5] = True
    return images, lesion


def answer(model: Model, images: np.ndarray) -> np.ndarray:
    return predict_volume(model, images, PRESENT, PATCH)


OPTIONS = AdaptOptions(rate=1e-3, num_steps=3)


def weights(model: Model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_only_norms_and_the_last_block_of_the_anatomy_branch_change() -> None:
    model, (images, lesion) = model_of(), case_of(0)
    before = weights(model)
    result = adapted(model, images, PRESENT, lesion, OPTIONS)
    assert result.num_steps == 3
    assert result.after < result.before
    assert str(result) == f"adapted in 3 steps, loss {result.before:.4f} to {result.after:.4f}, without an anchor"
    after = weights(result.model)
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert changed
    allowed = {id(parameter) for parameter in adapting_parameters(result.model.network)}
    names = {name for name, p in result.model.named_parameters() if id(p) in allowed}
    assert changed <= names
    assert all(name.startswith("network.anatomy.") and ".reduce.bias" not in name for name in names)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())


def test_a_b_and_a_again_bit_for_bit() -> None:
    model, (images, lesion), (others, other_lesion) = model_of((8, 8, 8)), case_of(0), case_of(1)

    def adapted_answer(case: np.ndarray, where: np.ndarray) -> np.ndarray:
        return answer(adapted(model, case, PRESENT, where, OPTIONS).model, case)

    plain = answer(model, images)
    first, second, third = (
        adapted_answer(images, lesion),
        adapted_answer(others, other_lesion),
        adapted_answer(images, lesion),
    )
    np.testing.assert_array_equal(first, third)
    assert not np.array_equal(first, plain)
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(answer(model, images), plain)


def test_a_step_that_raises_the_loss_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (images, lesion) = model_of(), case_of(0)
    real = adaptation._loss_and_gradients
    losses = iter([1.0, 0.5, 0.5])
    monkeypatch.setattr(adaptation, "_loss_and_gradients", lambda *both: (real(*both), next(losses))[1])
    stopped = adapted(model, images, PRESENT, lesion, AdaptOptions(num_steps=20, rate=1e-3))
    assert (stopped.num_steps, stopped.before, stopped.after) == (1, 1.0, 0.5)
    monkeypatch.undo()
    once = adapted(model, images, PRESENT, lesion, AdaptOptions(num_steps=1, rate=1e-3))
    assert all(torch.equal(tensor, weights(once.model)[name]) for name, tensor in weights(stopped.model).items())

    rising = iter([1.0, 1.1])
    monkeypatch.setattr(adaptation, "_loss_and_gradients", lambda *both: (real(*both), next(rising))[1])
    undone = adapted(model, images, PRESENT, lesion, OPTIONS)
    assert undone.model is model
    assert "the first step did not lower the loss of 1.0000" in str(undone)


def test_the_loss_by_hand_and_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six constants at once, or one after the other, have the same loss and the same result."""
    model, (images, lesion) = model_of((8, 8, 8)), case_of(0)
    together = adapted(model, images, PRESENT, lesion, OPTIONS)
    monkeypatch.setattr(adaptation, "VOXELS_AT_ONCE", 0)
    apart = adapted(model, images, PRESENT, lesion, OPTIONS)
    assert together.before == pytest.approx(apart.before, abs=1e-5)
    np.testing.assert_allclose(answer(together.model, images), answer(apart.model, images), atol=1e-4)
    without = adapted(model_of(), images, PRESENT, lesion, OPTIONS)
    assert together.has_anchor
    assert not without.has_anchor
    assert together.before > without.before  # by the Dice of the anchor


def test_nothing_to_adapt_to() -> None:
    model, (images, lesion) = model_of(), case_of(0)
    no_lesion = adapted(model, images, PRESENT, np.zeros_like(lesion))
    assert (no_lesion.model, str(no_lesion)) == (model, "not adapted: there is no lesion")
    no_t1 = adapted(model, images, np.array([True, False]), lesion)
    assert (no_t1.model, str(no_t1)) == (model, "not adapted: no sequence of the anatomy branch is given")
    with pytest.raises(UsageError, match="only a two_branch model can be adapted, but this is a multi_unet"):
        adapted(model_of(builder="multi_unet"), images, PRESENT, lesion)


def test_the_anchor_travels_in_the_model_file(tmp_path: Path) -> None:
    model = model_of((8, 8, 8))
    save_model(tmp_path / "m.safetensors", model.network, model.info)
    read = load_model(tmp_path / "m.safetensors").network.anchor
    assert torch.equal(read.images, model.network.anchor.images)
    assert read.present.tolist() == [[False, True]]
    assert read.images[0, 0].eq(0).all()


def test_the_lesion_branch_finds_the_lesion() -> None:
    model, (images, _) = model_of(), case_of(0)
    with torch.no_grad():
        model.network.lesion.head.bias.copy_(torch.tensor([-100.0, 100.0]))
    assert lesion_of(model, images, PRESENT, 0.5).all()


def test_votes_and_ties() -> None:
    votes = [np.array([[[0, 1, 3, 2]]], np.uint8), np.array([[[0, 2, 1, 2]]], np.uint8)]
    assert majority(votes, SPACE).tolist() == [[[0, 1, 3, 2]]]  # lesions first, then the first tissue
    votes.append(np.array([[[1, 2, 1, 0]]], np.uint8))
    assert majority(votes, SPACE).tolist() == [[[0, 2, 1, 2]]]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A model, a second one, two scans and a mask of a lesion."""
    generator = np.random.default_rng(0)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    made = {"model": tmp_path / "m.safetensors", "second": tmp_path / "n.safetensors"}
    for seed, path in enumerate(made.values()):
        save_model(path, model_of(seed=seed).network, model_of().info)
    brain = np.zeros((12, 12, 12), np.float32)
    brain[2:10, 2:10, 2:10] = 1
    for name in ("FLAIR", "T1"):
        made[name] = tmp_path / f"{name}.nii.gz"
        write_nifti(made[name], brain * generator.uniform(50, 100, brain.shape).astype(np.float32), affine)
    made["mask"] = tmp_path / "mask.nii.gz"
    lesion = np.zeros(brain.shape, np.uint8)
    lesion[4:7, 4:7, 4:7] = 1
    write_nifti(made["mask"], lesion, affine)
    return made


def voxels(path: Path) -> np.ndarray:
    import nibabel

    return np.asarray(nibabel.load(path).dataobj)


def test_a_prediction_with_a_given_mask_leaves_the_model_file_as_it_is(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans = {name: files[name] for name in ("FLAIR", "T1")}
    digest = hashlib.sha256(files["model"].read_bytes()).hexdigest()
    predict(files["model"], scans, tmp_path / "plain.nii.gz")
    seen = []
    real = adaptation.adapted
    monkeypatch.setattr(
        "multiseg.evaluation.native_answer.adapted",
        lambda model, images, present, lesion, options: (
            seen.append(int(lesion.sum())),
            real(model, images, present, lesion, options),
        )[1],
    )
    result = predict(
        files["model"], scans, tmp_path / "on.nii.gz", PredictOptions(adapt=True, lesion_mask=files["mask"])
    )
    assert seen == [27]
    assert len(result.adaptations) == 1
    predict(files["model"], scans, tmp_path / "off.nii.gz", PredictOptions(adapt=False))
    np.testing.assert_array_equal(voxels(tmp_path / "off.nii.gz"), voxels(tmp_path / "plain.nii.gz"))
    assert hashlib.sha256(files["model"].read_bytes()).hexdigest() == digest
    both = PredictOptions(adapt=True, lesion_mask=files["mask"], others=(files["second"],), together="vote")
    votes = predict(files["model"], scans, tmp_path / "e.nii.gz", both)
    assert len(votes.adaptations) == 12


def test_what_cannot_be_predicted(files: dict[str, Path], tmp_path: Path) -> None:
    scans, out = {"FLAIR": files["FLAIR"]}, tmp_path / "o.nii.gz"
    with pytest.raises(UsageError, match="a lesion mask is used only by the adaptation"):
        predict(files["model"], scans, out, PredictOptions(lesion_mask=files["mask"]))
    with pytest.raises(UsageError, match="an ensemble of one model has nothing to put together"):
        predict(files["model"], scans, out, PredictOptions(together="vote"))
    result = predict(files["model"], scans, out)
    assert [doubt.code for doubt in result.doubts if doubt.code == "NO_ANATOMY_SEQUENCE"]


def with_info(files: dict[str, Path], info: ModelInfo) -> list[Path]:
    """The second model, as if it had been trained on other data."""
    save_model(files["second"], model_of(seed=1).network, info)
    return [files["second"]]


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"normalise": "none"}, "normalise is 'zscore' for model 1 and 'none' for model 2"),
        ({"n4": True}, "n4 is False for model 1 and True for model 2"),
        ({"register": "rigid"}, "register is '' for model 1 and 'rigid' for model 2"),
        ({"brain_mask": "otsu"}, "brain_mask is 'nonzero' for model 1 and 'otsu' for model 2"),
    ],
)
def test_models_that_need_different_images_do_not_vote(
    files: dict[str, Path], tmp_path: Path, setting: dict[str, object], says: str
) -> None:
    other = Recipe(spacing_mm=(2.0, 2.0, 2.0), **setting)  # type: ignore[arg-type]
    ensemble = with_info(files, replace(model_of().info, databases={"b": {"recipe": other.to_json()}}))
    with pytest.raises(UsageError, match=says):
        predict(
            files["model"],
            {"T1": files["T1"]},
            tmp_path / "o.nii.gz",
            PredictOptions(others=tuple(ensemble), together="vote"),
        )


def test_only_sequences_that_every_model_learnt_from_are_shown(files: dict[str, Path], tmp_path: Path) -> None:
    scans, out = {name: files[name] for name in ("FLAIR", "T1")}, tmp_path / "o.nii.gz"
    ensemble = with_info(files, replace(model_of().info, trained_on={"FLAIR": ("a",), "T1": ()}))
    result = predict(files["model"], scans, out, PredictOptions(others=tuple(ensemble), together="vote"))
    assert (result.used, result.left_out) == (("FLAIR",), ("T1",))
    assert [doubt.code for doubt in result.doubts].count("NO_ANATOMY_SEQUENCE") == 1
    save_model(files["model"], model_of().network, replace(model_of().info, trained_on={"T1": ("a",), "FLAIR": ()}))
    with pytest.raises(ModalityError, match=r"in common \(model 1: T1; model 2: FLAIR\)"):
        predict(files["model"], scans, tmp_path / "p.nii.gz", PredictOptions(others=tuple(ensemble), together="vote"))


def test_a_voter_that_sees_no_anatomy_is_named_although_the_first_has_no_branches(
    files: dict[str, Path], tmp_path: Path
) -> None:
    plain = model_of(builder="multi_unet")
    save_model(files["model"], plain.network, plain.info)
    scans = {"FLAIR": files["FLAIR"]}
    result = predict(
        files["model"], scans, tmp_path / "o.nii.gz", PredictOptions(others=(files["second"],), together="vote")
    )
    assert [doubt.code for doubt in result.doubts if doubt.code == "NO_ANATOMY_SEQUENCE"]


def saved_for_a_store(path: Path) -> Model:
    """A model with random weights for the voxels of the shared store."""
    space = LabelSpace.of(["tissue:CSF", "tissue:grey matter", "tissue:white matter", "lesion"])
    numbers = {"widths": [2, 4], "dropout": 0.0, "anatomy_channels": [1], "lesion_logits": [4], "anchor": [16, 16, 16]}
    info = replace(
        model_of().info, numbers=numbers, space=space, spacing_mm=(5.0, 5.0, 5.0), patch=(16, 16, 16)
    )  # fmt: skip
    torch.manual_seed(4)
    network = build("two_branch", 2, space.num_logits, **numbers)
    save_model(path, network, info)
    return load_model(path)


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_an_evaluation_adapts_to_each_case_and_subset(
    store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The answer is that of the model adapted by hand; without T1 that of the model as it is; the file stays."""
    model = saved_for_a_store(tmp_path / "m.safetensors")
    digest = hashlib.sha256((tmp_path / "m.safetensors").read_bytes()).hexdigest()
    strong, seen = AdaptOptions(rate=0.05, num_steps=2), []

    def noted(one: Model, images: np.ndarray, present: np.ndarray, lesion: np.ndarray) -> adaptation.Adaptation:
        seen.append((present.tolist(), adaptation.adapted(one, images, present, lesion, strong)))
        np.testing.assert_array_equal(lesion, lesion_of(model, images, present, 0.0))
        return seen[-1][1]

    monkeypatch.setattr("multiseg.evaluation.stored_answers.adapted", noted)
    options = EvaluateOptions("test", "alder", "FLAIR,FLAIR+T1", overlap=0.0, zones=True)
    plain = evaluate(tmp_path / "m.safetensors", store_url, options).cases
    assert not seen
    table = evaluate(tmp_path / "m.safetensors", store_url, replace(options, adapt=True)).cases
    by_subset = {tuple(present): result for present, result in seen}
    assert by_subset[True, False].why_not == "no sequence of the anatomy branch is given"
    assert by_subset[True, True].num_steps
    by_hand = evaluate(by_subset[True, True].model, store_url, options).cases
    columns = ["dice", "predicted_ml", "dice_under_lesion", "dice_near_lesion", "dice_elsewhere"]

    def numbers(cases: pd.DataFrame, subset: str) -> np.ndarray:
        return cases.loc[cases["modalities"] == subset, columns].to_numpy(float)

    np.testing.assert_array_equal(numbers(table, "FLAIR"), numbers(plain, "FLAIR"))
    np.testing.assert_array_equal(numbers(table, "FLAIR+T1"), numbers(by_hand, "FLAIR+T1"))
    assert not np.array_equal(numbers(table, "FLAIR+T1"), numbers(plain, "FLAIR+T1"), equal_nan=True)
    monkeypatch.undo()
    command = ["evaluate", str(tmp_path / "m.safetensors"), "--store", store_url, "--database", "alder"]
    adapting = ["--adapt", "on", "--adapt-to", "true", "--branch", "anatomy"]
    assert run([*command, "--subsets", "FLAIR+T1", "--overlap", "0", *adapting]) == 0
    cases = read_table(tmp_path / "evaluation-test-brain-alder-adapted-to-true-anatomy" / "cases.csv")
    assert set(cases["label"]) == {"CSF", "grey matter", "white matter"}
    assert hashlib.sha256((tmp_path / "m.safetensors").read_bytes()).hexdigest() == digest


@pytest.mark.slow
def test_an_evaluation_adapts_to_the_lesion_that_is_chosen(
    store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved_for_a_store(tmp_path / "m.safetensors")
    seen: list[np.ndarray] = []

    def noted(one: Model, images: np.ndarray, present: np.ndarray, lesion: np.ndarray) -> adaptation.Adaptation:
        seen.append(lesion)
        return adaptation.Adaptation(one)

    monkeypatch.setattr("multiseg.evaluation.stored_answers.adapted", noted)
    store = open_store(store_url)
    (case, *_) = select(store, ["alder"], split="test")
    _, codes = store["alder"].whole(case)
    truth = store["alder"].label_view(case, LabelSpace()).target(codes) == 1
    options = EvaluateOptions("test", "alder", "full", overlap=0.0, adapt=True)
    keys = set()
    for name in ("found", "half", "quarter", "true"):
        result = evaluate(tmp_path / "m.safetensors", store_url, replace(options, adapt_to=name))
        keys.add(result.key)
        assert result.answered.get("adapt_to", "found") == name
    found, half, quarter, true = seen[:: len(seen) // 4]
    assert half.sum() == pytest.approx(found.sum() / 2, abs=1)
    assert quarter.sum() == pytest.approx(found.sum() / 4, abs=1)
    assert (quarter <= half).all()
    assert (half <= found).all()
    np.testing.assert_array_equal(true, truth)
    assert len(keys) == 4
    assert set(store["alder"].schemas) == {"lesion", "tissue"}
    hide(store, ["alder/lesion"])
    with pytest.raises(DataError, match="nobody looked for lesions"):
        evaluate(tmp_path / "m.safetensors", store, replace(options, adapt_to="true"))


def test_a_part_of_a_lesion_is_its_voxels_nearest_to_one_of_them() -> None:
    lesion = np.zeros((6, 6, 6), bool)
    lesion[0:2], lesion[5, 5, 5] = True, True
    half = shrunk(lesion, 0.5, (1.0, 1.0, 4.0))
    assert half.sum() == round(0.5 * lesion.sum())
    assert (half <= lesion).all()
    np.testing.assert_array_equal(half, shrunk(lesion.copy(), 0.5, (1.0, 1.0, 4.0)))
    # Voxels are 4 mm long on the last axis, so that the part has few of its planes.
    assert half.any(axis=(0, 1)).sum() < half.any(axis=(0, 2)).sum()
    one = np.zeros((3, 3, 3), bool)
    assert not shrunk(one, 0.5, (1.0, 1.0, 1.0)).any()
    one[1, 1, 1] = True
    np.testing.assert_array_equal(shrunk(one, 0.25, (1.0, 1.0, 1.0)), one)


def test_the_lesion_to_adapt_to_is_one_of_a_few_and_needs_an_adaptation() -> None:
    with pytest.raises(UsageError, match="--adapt-to is 'most': give one of found, half, quarter, true"):
        EvaluateOptions(adapt=True, adapt_to="most")
    with pytest.raises(UsageError, match="--adapt-to half is for an adaptation: add --adapt on"):
        EvaluateOptions(adapt_to="half")


def test_a_branch_is_what_a_prediction_answers(files: dict[str, Path], tmp_path: Path) -> None:
    scans = {name: files[name] for name in ("FLAIR", "T1")}
    result = predict(files["model"], scans, tmp_path / "a.nii.gz", PredictOptions(branch="anatomy", adapt=True))
    assert set(result.volumes_ml) == {"GM", "WM"}
    network = model_of().network
    save_model(files["model"], network, replace(model_of().info, parts=("anatomy",)))
    with pytest.raises(UsageError, match="only anatomy has learnt so far"):
        predict(files["model"], scans, tmp_path / "b.nii.gz")
    # The lesion would be found by weights as they were drawn.
    with pytest.raises(UsageError, match=r"the lesion branch has not learnt yet.*--lesion-mask"):
        predict(files["model"], scans, tmp_path / "b.nii.gz", PredictOptions(branch="anatomy", adapt=True))
    save_model(files["model"], network, replace(model_of().info, parts=("lesion",)))
    with pytest.raises(UsageError, match="the anatomy branch, which is adapted, has not learnt yet"):
        predict(files["model"], scans, tmp_path / "b.nii.gz", PredictOptions(branch="lesion", adapt=True))


def test_a_branch_answers_only_to_what_it_sees(files: dict[str, Path], tmp_path: Path) -> None:
    flair = {"FLAIR": files["FLAIR"]}
    with pytest.raises(ModalityError, match=r"the anatomy branch sees T1 alone, but was given FLAIR\. Give T1"):
        predict(files["model"], flair, tmp_path / "a.nii.gz", PredictOptions(branch="anatomy"))
    result = predict(files["model"], flair, tmp_path / "b.nii.gz", PredictOptions(branch="lesion"))
    assert "NO_ANATOMY_SEQUENCE" not in [doubt.code for doubt in result.doubts]


@pytest.mark.slow
def test_an_evaluation_of_a_branch_says_so_and_leaves_out_what_it_does_not_see(store_url: str, tmp_path: Path) -> None:
    saved_for_a_store(tmp_path / "m.safetensors")
    options = EvaluateOptions("test", "alder", "FLAIR,FLAIR+T1", overlap=0.0, branch="anatomy")
    found = evaluate(tmp_path / "m.safetensors", store_url, options)
    assert set(found.cases["modalities"]) == {"FLAIR+T1"}
    assert found.to_json()["answered"] == {"branch": "anatomy"}
    # Models that were loaded for a branch keep it.
    loaded = replace(Voters((load_model(tmp_path / "m.safetensors"),)), branch="anatomy")
    again = evaluate(loaded, store_url, replace(options, branch=""))
    assert again.answered == {"branch": "anatomy"}
    pd.testing.assert_frame_equal(again.cases, found.cases)
    with pytest.raises(UsageError, match="loaded for the branch anatomy, not for lesion"):
        evaluate(loaded, store_url, replace(options, branch="lesion"))
    with pytest.raises(DataError, match="no complete subset of FLAIR that what answers sees"):
        evaluate(loaded, store_url, replace(options, subsets="FLAIR"))
