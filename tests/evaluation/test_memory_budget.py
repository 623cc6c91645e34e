"""--memory: how many windows go through a network together, and the smallest budget that works."""

import tracemalloc
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from multiseg.errors import UsageError
from multiseg.evaluation import memory_budget, model_evaluation
from multiseg.evaluation.case_answers import AnswerOptions, Shown, mean_by_slab
from multiseg.evaluation.comparison import Truth
from multiseg.evaluation.evaluation_result import EvaluateOptions
from multiseg.evaluation.inference import whole
from multiseg.evaluation.lesions import RULES, find_lesions
from multiseg.evaluation.memory_budget import check_further, check_prepared, fitted, memory_bytes, window_bytes
from multiseg.evaluation.metrics import case_metrics
from multiseg.evaluation.prediction import predict
from multiseg.evaluation.prediction_inputs import PredictOptions
from multiseg.evaluation.reliability import Confidence, confidence_row
from multiseg.evaluation.result_folder import key_of
from multiseg.evaluation.stored_answers import (
    METRIC_BYTES,
    SURFACE_BYTES,
    SURFACE_VOXEL_BYTES,
    CaseAnswer,
    LoadedCase,
    answer_to,
    answers,
    surface_bytes,
)
from multiseg.evaluation.voting import Voters
from multiseg.labels import IGNORE, LabelSpace
from multiseg.modalities import ModalityAxis
from multiseg.models.saved import Model, ModelInfo
from multiseg.store.formats.nifti import write_nifti
from multiseg.store.reader import Case

AXIS = ModalityAxis(("FLAIR",))
MB = 1_000_000


class Wide(nn.Module):
    """Keeps its input, four maps of its size, and their sum: 24 bytes a voxel."""

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.zeros(1))
        self.batches: list[int] = []

    def forward(self, images: Tensor, present: Tensor) -> Tensor:
        self.batches.append(len(images))
        maps = images.expand(-1, 4, -1, -1, -1) + self.level
        return maps.sum(dim=1, keepdim=True)


def model_of(patch: int = 16) -> Model:
    info = ModelInfo(
        builder="wide", numbers={}, axis=AXIS, space=LabelSpace(), spacing_mm=(5.0, 5.0, 5.0), patch=(patch,) * 3,
        trained_on={"FLAIR": ("a",)}, databases={},
    )  # fmt: skip
    return Model(Wide(), info).eval()


SHOWN = Shown(np.ones((1, 40, 20, 20), np.float16), np.array([True]), AXIS)


def test_a_window_takes_what_its_largest_layer_keeps() -> None:
    voxels = 16**3
    # Four maps and their sum, twice for the library's copies, and the window itself.
    assert window_bytes(model_of(), 1) == 2 * (4 + 1) * 4 * voxels + 4 * voxels


def test_fewer_windows_go_through_together_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_budget, "resident_bytes", lambda: 100 * MB)
    model = model_of()
    one = window_bytes(model, 1)
    smallest = 100 * MB + memory_budget._sums_bytes(model, (40, 20, 20)) + 40 * 20 * 20 + 7 * MB
    options = AnswerOptions(memory=smallest + 3 * one + one // 2)
    found = fitted([model], SHOWN, options, other_bytes=7 * MB)
    assert found == replace(options, windows_at_once=3)
    assert fitted([model], SHOWN, replace(options, memory=10**12), 0).windows_at_once == 128
    assert fitted([model], SHOWN, replace(options, memory=0), 0) == replace(options, memory=0)
    with pytest.raises(UsageError, match=r"--memory 0\.\dGB is too little for this case: the smallest that works is 0"):
        fitted([model], SHOWN, replace(options, memory=smallest + one - 1), other_bytes=7 * MB)
    network = model.network
    assert isinstance(network, Wide)
    network.batches.clear()
    few = whole(mean_by_slab([model], SHOWN, found), (40, 20, 20))
    assert max(network.batches) == 3
    np.testing.assert_array_equal(few, whole(mean_by_slab([model], SHOWN, AnswerOptions()), (40, 20, 20)))


def test_mirror_images_and_further_models_need_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_budget, "resident_bytes", lambda: 0)
    one = window_bytes(model_of(), 1)
    sums = memory_budget._sums_bytes(model_of(), (40, 20, 20))
    options = AnswerOptions(memory=sums + 40 * 20 * 20 + one)
    assert fitted([model_of()], SHOWN, options, 0).windows_at_once == 1
    for models, changed in (([model_of(), model_of()], options), ([model_of()], replace(options, tta=True))):
        with pytest.raises(UsageError, match="too little"):
            fitted(models, SHOWN, changed, 0)
        more = replace(changed, memory=changed.memory + sums)
        assert fitted(models, SHOWN, more, 0).windows_at_once == 1


def test_what_comes_after_the_windows_does_not_add_to_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_budget, "resident_bytes", lambda: 0)
    model = model_of()
    windows = memory_budget._sums_bytes(model, (40, 20, 20)) + 40 * 20 * 20 + window_bytes(model, 1)
    options = AnswerOptions(memory=windows)
    assert fitted([model], SHOWN, options, 0, later_bytes=windows).windows_at_once == 1
    with pytest.raises(UsageError, match=r"the smallest that works is 0\.3GB"):
        fitted([model], SHOWN, options, 0, later_bytes=300 * MB)


LESION = np.zeros((40, 20, 20), dtype=bool)
LESION[4:30, 4:16, 4:16] = True
TRUTH = Truth(LESION.astype(np.uint8), np.array([True]), np.zeros(LESION.shape, np.uint8))
LOADED = LoadedCase(object.__new__(Case), ("FLAIR",), {"FLAIR": SHOWN.images[0]}, SHOWN.images, TRUTH, None)


def test_a_stored_case_is_answered_under_the_budget_of_its_larger_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_budget, "resident_bytes", lambda: 0)
    model = model_of()
    voxels, window = 40 * 20 * 20, window_bytes(model, 1)
    # The probabilities, the labels and where an image is seen, beside the sums and one window.
    first = memory_budget._sums_bytes(model, (40, 20, 20)) + window + (4 + 1 + 1) * voxels
    assert first > (4 + METRIC_BYTES) * voxels
    plain = answer_to(Voters((model,)), LOADED, ("FLAIR",), EvaluateOptions())
    bounded = answer_to(Voters((model,)), LOADED, ("FLAIR",), EvaluateOptions(memory=str(first)))
    np.testing.assert_array_equal(plain.probabilities, bounded.probabilities)
    np.testing.assert_array_equal(plain.predicted, bounded.predicted)
    with pytest.raises(UsageError, match="is too little for this case"):
        answer_to(Voters((model,)), LOADED, ("FLAIR",), EvaluateOptions(memory=str(first - 1)))


def ball_and_shifted(shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Two solid masks that nearly fill a grid."""
    masks = np.zeros((2, *shape), bool)
    masks[0, 1:-4, 1:-4, 1:-4] = masks[1, 4:-1, 4:-1, 4:-1] = True
    return masks[0], masks[1]


def speckled_and_solid(shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A prediction of scattered voxels, and a solid truth."""
    truth = np.zeros(shape, bool)
    truth[4:10, 4:10, 4:10] = True
    return np.random.default_rng(1).random(shape) < 0.6, truth


@pytest.mark.parametrize("masks_of", [ball_and_shifted, speckled_and_solid])
@pytest.mark.parametrize("rule", ["ours", "brats-gli"])
def test_surfaces_and_lesions_stay_within_their_estimate(
    masks_of: Callable[[tuple[int, int, int]], tuple[np.ndarray, np.ndarray]], rule: str
) -> None:
    shape, one_mm = (40, 40, 40), (1.0, 1.0, 1.0)
    predicted, truth = masks_of(shape)
    find_lesions(truth[:6, :6, :6], truth[:6, :6, :6], one_mm, RULES[rule])  # imports what it needs
    surfaces = peak_of(lambda: case_metrics(predicted, truth, one_mm))
    found = peak_of(lambda: find_lesions(predicted, truth, one_mm, RULES[rule]))
    codes, annotated = truth.astype(np.uint8), np.array([True])
    estimate = surface_bytes(predicted.astype(np.uint8), Truth(codes, annotated, np.zeros_like(codes)), 1)
    assert max(surfaces, found) < estimate < 6 * max(surfaces, found)


def test_only_structures_that_are_compared_have_surfaces() -> None:
    predicted, target = np.zeros((2, 12, 12, 12), np.uint8)
    predicted[0], target[4:6, 4:6, 4:6] = 1, 2
    target[8:] = IGNORE
    truth = Truth(target, np.array([False, True]), np.zeros_like(target))
    assert surface_bytes(predicted, truth, 1) == SURFACE_BYTES * 4**3 + SURFACE_VOXEL_BYTES * 2**3
    assert surface_bytes(predicted, truth, 2) == SURFACE_BYTES * 6**3 + SURFACE_VOXEL_BYTES * 2**3
    both = Truth(target, np.array([True, True]), np.zeros_like(target))
    assert surface_bytes(predicted, both, 1) == SURFACE_BYTES * 2 * 12**2 + SURFACE_VOXEL_BYTES * 12**2
    predicted[8:] = 2  # nobody looks there
    assert surface_bytes(predicted, truth, 1) == SURFACE_BYTES * 4**3 + SURFACE_VOXEL_BYTES * 2**3


def test_surfaces_need_memory_only_where_they_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture of the same case is drawn."""
    monkeypatch.setattr("multiseg.evaluation.memory_budget.resident_bytes", lambda: 0)
    monkeypatch.setattr("multiseg.evaluation.stored_answers.SURFACE_BYTES", 10**6)
    options = EvaluateOptions("test", subsets="full", memory="1GB")
    assert answer_to(Voters((model_of(),)), LOADED, ("FLAIR",), options).predicted.shape == LESION.shape
    with pytest.raises(UsageError, match="too little for the surfaces of this case"):
        next(answers(Voters((model_of(),)), LOADED, options))


@pytest.mark.slow
def test_the_metrics_stay_within_their_estimates() -> None:
    shape = (64, 64, 64)
    truth, predicted = ball_and_shifted(shape)
    volume, everywhere = np.full((1, *shape), 0.7, np.float32), np.ones(shape, bool)
    confidence = Confidence(volume, volume, everywhere)
    row = peak_of(lambda: confidence_row(confidence, 0, (predicted, truth, everywhere), 0.5))
    assert row / truth.size < METRIC_BYTES - 7, "six masks and the labels are there already"


def peak_of(call: Callable[[], object]) -> int:
    """The bytes that a call has at once at most."""
    tracemalloc.start()
    call()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def test_an_answer_leaves_before_the_next_one_is_worked_out(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[int] = []
    made: list[weakref.ref[CaseAnswer]] = []

    def answer(name: str) -> CaseAnswer:
        alive.append(sum(one() is not None for one in made))
        volume = np.zeros((1, 2, 2, 2), np.float32)
        found = CaseAnswer((name,), volume, volume, volume[0] > 0, volume[0].astype(np.uint8), TRUTH)
        made.append(weakref.ref(found))
        return found

    def rows_of(model: Voters, loaded: LoadedCase, answer: CaseAnswer, *more: object) -> list[dict[str, object]]:
        return [{"subset": answer.subset}]

    monkeypatch.setattr(model_evaluation, "answers", lambda *given: (answer(name) for name in ("FLAIR", "T1", "T2")))
    monkeypatch.setattr(model_evaluation, "_rows_of_answer", rows_of)
    rows, predicted = model_evaluation._rows(Voters((model_of(),)), LOADED, EvaluateOptions(), {})
    assert [row["subset"] for row in rows] == [("FLAIR",), ("T1",), ("T2",)]
    assert predicted is not None, "LOADED has FLAIR alone"
    assert alive == [0, 0, 0]


def test_the_preparation_may_not_take_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_budget, "peak_bytes", lambda: 3200 * MB)
    check_prepared(0, 3300 * MB)
    check_prepared(0, 0)
    check_prepared(3200 * MB, 1000 * MB)  # an earlier case took it
    with pytest.raises(UsageError, match=r"--memory 3GB is too little to prepare this case: .* works is 3\.2GB"):
        check_prepared(0, 3000 * MB)


def test_the_surfaces_must_fit_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_budget, "resident_bytes", lambda: 900 * MB)
    check_further(1000 * MB, "the surfaces", 100 * MB)
    check_further(0, "the surfaces", 10**12)
    with pytest.raises(UsageError, match=r"--memory 1GB is too little for the surfaces .* that works is 1\.1GB"):
        check_further(1000 * MB, "the surfaces", 101 * MB)


@pytest.mark.parametrize("text", ["much", "0", "-4GB"])
def test_a_budget_that_is_no_size_is_refused_before_the_work(text: str) -> None:
    for options in (PredictOptions, EvaluateOptions):
        with pytest.raises(UsageError, match="--memory"):
            options(memory=text)


def test_a_budget_is_no_part_of_what_an_evaluation_is() -> None:
    assert key_of(EvaluateOptions(memory="4GB")) == key_of(EvaluateOptions())
    assert key_of(EvaluateOptions(tta=True)) != key_of(EvaluateOptions())
    assert memory_bytes("4GB") == 4_000_000_000


@pytest.mark.slow  # reads and writes images, and imports what that needs
def test_a_patient_under_a_budget(tmp_path: Path) -> None:
    scan = tmp_path / "FLAIR.nii.gz"
    write_nifti(scan, np.random.default_rng(1).uniform(1, 2, (12, 9, 10)).astype(np.float32), np.diag([5, 5, 5, 1.0]))
    plain = predict(model_of(), {"FLAIR": scan}, tmp_path / "plain.nii.gz").answer
    bounded = predict(model_of(), {"FLAIR": scan}, tmp_path / "b.nii.gz", PredictOptions(memory="40GB")).answer
    np.testing.assert_array_equal(plain.probabilities, bounded.probabilities)
    with pytest.raises(UsageError, match=r"--memory 0\.1GB is too little .*this case: the smallest that works is"):
        predict(model_of(), {"FLAIR": scan}, tmp_path / "c.nii.gz", PredictOptions(memory="100MB"))
    assert not (tmp_path / "c.nii.gz").exists()
