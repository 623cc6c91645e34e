import math
import os
from dataclasses import replace

import pytest
import torch
from torch._dynamo.exc import BackendCompilerFailed

from multiseg.errors import TrainingError, UsageError
from multiseg.labels import LabelSpace
from multiseg.loaders.augment import PRESETS, AugmentOptions
from multiseg.loaders.batches import PatchStream, StreamOptions
from multiseg.loaders.draw import DrawOptions
from multiseg.modalities import ModalityAxis
from multiseg.models.builders import multi_unet
from multiseg.store.reader import open_store
from multiseg.training.checkpoint import TrainState, load_state, save_state
from multiseg.training.events import StepDone, Validated, Validation
from multiseg.training.fit import FitOptions, Hooks, fit
from multiseg.training.numerics import precision
from multiseg.training.optimisers import SCHEDULES

AXIS = ModalityAxis(("PD", "FLAIR", "T1", "T2"))
OPTIONS = FitOptions(num_steps=8, validate_every=3, max_bad_steps=3)


def fresh():
    torch.manual_seed(5)
    network = multi_unet(len(AXIS), 1, widths=(4, 8), dropout=0.3)
    optimiser = torch.optim.Adam(network.parameters())
    return TrainState(network, optimiser, torch.amp.GradScaler("cpu", enabled=False))


@pytest.fixture(scope="module")
def stream(store_url):
    draw = DrawOptions(patch=(8, 8, 8))
    options = StreamOptions(draw, batch_size=2, workers=0, batches_per_epoch=3)
    return PatchStream(open_store(store_url), AXIS, LabelSpace(), options, databases=["alder", "dogwood"])


class Spoilt:
    """A stream in which some batches hold NaN."""

    def __init__(self, stream, bad):
        self.stream, self.bad = stream, bad

    def batches(self, start, stop):
        for number, batch in zip(range(start, stop), self.stream.batches(start, stop), strict=True):
            images = torch.full_like(batch.images, torch.nan) if number in self.bad else batch.images
            yield replace(batch, images=images)


def validation(score, **more):
    return Validation(score, {"alder": score}, **more)


class Recorder:
    """Hooks that keep what happens, and stop or validate as told."""

    def __init__(self, stop_after=None, scores=()):
        self.events, self.saves, self.stop_after = [], [], stop_after
        self.scores = iter(scores)

    def hooks(self, **others):
        return Hooks(
            **{
                "on_event": self.events.append,
                "validate": lambda: validation(next(self.scores, 0.5)),
                "save": self.saves.append,
                "should_stop": lambda: bool(self.steps) and self.steps[-1].step == self.stop_after,
            }
            | others
        )

    @property
    def steps(self):
        return [event for event in self.events if isinstance(event, StepDone)]

    @property
    def validated(self):
        return [event for event in self.events if isinstance(event, Validated)]


def moments(state):
    return [value for entry in state.optimiser.state.values() for value in entry.values()]


def assert_same_state(a, b):
    assert a.step == b.step
    assert a.history == b.history
    for name, tensor in a.network.state_dict().items():
        assert torch.equal(tensor, b.network.state_dict()[name]), name
    assert len(moments(a)) == len(moments(b)) > 0
    assert all(torch.equal(x, y) for x, y in zip(moments(a), moments(b), strict=True))


@pytest.fixture(scope="module")
def undisturbed(stream):
    """The state after a training that nobody stopped, and what happened in it. Only for reading."""
    state, whole = fresh(), Recorder()
    assert fit(state, stream, OPTIONS, whole.hooks())
    return state, whole


@pytest.mark.slow
@pytest.mark.parametrize("stop_after", [1, 3, 4, 8])
def test_a_resumed_training_is_the_same_bit_for_bit(stream, undisturbed, tmp_path, stop_after):
    straight, whole = undisturbed
    state, first = fresh(), Recorder(stop_after)
    assert not fit(state, stream, OPTIONS, first.hooks(save=lambda is_best: save_state(tmp_path / "resume.pt", state)))
    assert state.step == stop_after
    torch.manual_seed(999)  # another process would start with other generators
    resumed, second = fresh(), Recorder()
    load_state(tmp_path / "resume.pt", resumed)
    assert fit(resumed, stream, OPTIONS, second.hooks())

    assert_same_state(resumed, straight)
    assert [event.loss for event in first.steps + second.steps] == [event.loss for event in whole.steps]
    assert [event.step for event in first.validated + second.validated] == [3, 6, 8]


@pytest.mark.slow
def test_a_stop_right_before_a_validation_does_not_lose_it(stream):
    state, first = fresh(), Recorder(stop_after=3)
    assert not fit(state, stream, OPTIONS, first.hooks())
    assert first.validated == []
    assert first.saves == [False]
    again = Recorder(stop_after=4)
    assert not fit(state, stream, OPTIONS, again.hooks())
    assert [event.step for event in again.validated] == [3]
    assert [event.step for event in again.steps] == [4]


@pytest.mark.slow
def test_a_stop_within_a_validation_is_made_up_for(stream):
    state, first = fresh(), Recorder()
    assert not fit(state, stream, OPTIONS, first.hooks(validate=lambda: None))
    assert (state.step, state.history, first.saves) == (3, [], [False])
    again = Recorder()
    assert fit(state, stream, OPTIONS, again.hooks())
    assert [event.step for event in again.validated] == [3, 6, 8]


@pytest.mark.slow
def test_a_stop_is_saved_even_if_it_comes_at_an_awkward_moment(stream):
    """However often the loop asks, no answer may end it without a save."""
    for patience in range(1, 8):
        asked, recorder = [], Recorder()
        state = fresh()

        def should_stop(asked=asked, patience=patience):
            asked.append(True)
            return len(asked) >= patience

        assert not fit(state, stream, replace(OPTIONS, validate_every=100), recorder.hooks(should_stop=should_stop))
        assert recorder.saves, f"stopped at step {state.step} without a save"


@pytest.mark.slow
def test_a_finished_training_stays_as_it_is(stream):
    state, first = fresh(), Recorder()
    assert fit(state, stream, OPTIONS, first.hooks())
    again = Recorder()
    assert fit(state, stream, OPTIONS, again.hooks())
    assert (again.events, again.saves) == ([], [])


@pytest.mark.slow
def test_the_best_is_the_best_by_validation(stream):
    recorder = Recorder(scores=[0.4, 0.7, 0.6])
    state = fresh()
    fit(state, stream, OPTIONS, recorder.hooks())
    assert [event.is_best for event in recorder.validated] == [True, True, False]
    assert recorder.saves == [True, True, False]
    assert state.best == 0.7
    assert [entry["score"] for entry in state.history] == [0.4, 0.7, 0.6]


@pytest.mark.slow
def test_an_equal_score_is_no_better(stream):
    recorder = Recorder(scores=[0.5, 0.5, 0.5])
    fit(fresh(), stream, OPTIONS, recorder.hooks())
    assert recorder.saves == [True, False, False]


@pytest.mark.slow
def test_an_undefined_score_is_never_the_best(stream):
    recorder = Recorder(scores=[math.nan, 0.2, math.nan])
    state = fresh()
    fit(state, stream, OPTIONS, recorder.hooks())
    assert recorder.saves == [False, True, False]
    assert state.best == 0.2


@pytest.mark.slow
def test_false_alarms_are_told_beside_the_score(stream):
    recorder, state = Recorder(), fresh()
    found = Validation(0.25, {"a": 0.5, "b": math.nan}, num_false_alarms=1, num_absent=3)
    fit(state, stream, OPTIONS, recorder.hooks(validate=lambda: found))
    event = recorder.validated[0]
    assert (event.score, event.num_false_alarms, event.num_absent) == (0.25, 1, 3)
    assert (state.best, state.history[0]["score"], state.history[0]["false_alarms"]) == (0.25, 0.25, 1)
    assert event.parts["a"] == 0.5
    assert math.isnan(event.parts["b"])


@pytest.mark.slow
def test_what_is_saved_was_logged_before(stream):
    """A log is cut off at the saved step on resuming; an event that is not yet in it then would stay missing."""
    order = []
    hooks = Recorder().hooks(
        on_event=lambda event: order.append(type(event).__name__), save=lambda is_best: order.append("save")
    )
    fit(fresh(), stream, OPTIONS, hooks)
    assert order == [*["StepDone"] * 3, "Validated", "save"] * 2 + [*["StepDone"] * 2, "Validated", "save"]


@pytest.mark.slow
def test_a_step_on_nan_changes_nothing_and_names_the_case(stream):
    one, same = fresh(), fresh()
    fit(one, stream, replace(OPTIONS, num_steps=2, schedule="constant"), Hooks())
    before = [tensor.clone() for tensor in moments(one)]
    weights = {name: tensor.clone() for name, tensor in one.network.state_dict().items()}
    recorder = Recorder()
    fit(one, Spoilt(stream, {2}), replace(OPTIONS, num_steps=3), recorder.hooks())
    (event,) = recorder.steps
    (batch,) = stream.batches(2, 3)
    named = [f"{database}/{case}" for database, case in zip(batch.database, batch.case, strict=True)]
    assert event.skipped == ", ".join(dict.fromkeys(named))
    assert math.isnan(event.loss)
    assert all(torch.equal(a, b) for a, b in zip(moments(one), before, strict=True))
    assert all(torch.equal(tensor, weights[name]) for name, tensor in one.network.state_dict().items())
    assert (one.step, one.bad_steps) == (3, 1)

    fit(same, Spoilt(stream, {1, 3}), replace(OPTIONS, num_steps=5), recorder.hooks())
    assert same.bad_steps == 0, "a good step between them starts the count anew"
    assert all(tensor.isfinite().all() for tensor in same.network.state_dict().values())


@pytest.mark.slow
def test_too_many_bad_steps_in_a_row_end_the_training(stream):
    state, recorder = fresh(), Recorder()
    with pytest.raises(TrainingError, match=r"3 steps in a row .* (alder/A|dogwood/D)"):
        fit(state, Spoilt(stream, {1, 2, 3, 4}), OPTIONS, recorder.hooks())
    assert state.step == 4
    assert [bool(event.skipped) for event in recorder.steps] == [False, True, True, True]


@pytest.mark.slow
def test_an_infinite_gradient_is_a_bad_step_too(stream):
    state, recorder = fresh(), Recorder()
    first = next(state.network.parameters())
    first.register_hook(lambda gradient: gradient * torch.inf)
    before = first.detach().clone()
    fit(state, stream, replace(OPTIONS, num_steps=1), recorder.hooks())
    assert recorder.steps[0].skipped
    assert math.isfinite(recorder.steps[0].loss)
    assert torch.equal(first, before)


@pytest.mark.slow
def test_overflows_by_which_the_scale_is_found_are_not_bad_steps(stream):
    """With fp16 gradients are scaled up until they overflow: that is no fault of the data."""
    state, recorder = fresh(), Recorder()
    state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, enabled=True)
    first = next(state.network.parameters())
    first.register_hook(lambda gradient: gradient * torch.inf if state.scaler.get_scale() > 2**6 else gradient)
    before = first.detach().clone()
    fit(state, stream, replace(OPTIONS, max_bad_steps=2), recorder.hooks())
    assert [event.skipped for event in recorder.steps] == [""] * 8
    assert state.scaler.get_scale() == 2**6
    assert not torch.equal(first, before)


@pytest.mark.slow
def test_gradients_are_clipped_to_the_norm(stream):
    norms = []
    for clip_norm in (0.0, 1e-3):
        state, recorder = fresh(), Recorder()
        fit(state, stream, replace(OPTIONS, num_steps=1, clip_norm=clip_norm), recorder.hooks())
        norms.append(math.sqrt(sum(float(p.grad.square().sum()) for p in state.network.parameters())))
        assert recorder.steps[0].gradient_norm > 0.01
    assert norms[0] == pytest.approx(recorder.steps[0].gradient_norm, rel=1e-4)
    assert norms[1] == pytest.approx(1e-3, rel=1e-2)


def test_schedules_by_hand():
    assert [SCHEDULES["cosine"](done) for done in (0.0, 0.5, 1.0)] == pytest.approx([1, 0.5, 0])
    assert SCHEDULES["cosine"](1 / 3) == pytest.approx(0.75)
    assert [SCHEDULES["published"](done) for done in (0.0, 0.2499, 0.25, 0.9)] == [1.0, 1.0, 0.1, 0.1]
    assert [SCHEDULES["constant"](done) for done in (0.0, 1.0)] == [1.0, 1.0]


@pytest.mark.slow
def test_the_learning_rate_follows_the_schedule(stream):
    recorder = Recorder()
    options = replace(OPTIONS, schedule="published", learning_rate=0.01)
    state = fresh()
    fit(state, stream, options, recorder.hooks())
    assert [event.learning_rate for event in recorder.steps] == pytest.approx([0.01] * 2 + [0.001] * 6)
    assert state.optimiser.param_groups[0]["lr"] == pytest.approx(0.001)


@pytest.mark.slow
def test_events_say_how_fast_and_how_long_they_waited(stream):
    recorder = Recorder()
    fit(fresh(), stream, OPTIONS, recorder.hooks())
    for event in recorder.steps:
        assert event.patches_per_second > 0
        assert 0 <= event.waiting <= 1
        assert set(event.scalars) == {"dice_loss", "cross_entropy"}


@pytest.mark.slow
def test_the_published_objective_trains(stream):
    recorder = Recorder()
    fit(fresh(), stream, replace(OPTIONS, objective="dice"), recorder.hooks())
    assert all(0 <= event.loss <= 1 for event in recorder.steps)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"clip_norm": -1.0}, "clip_norm is -1.0 and save_minutes 5.0: give 0 or more"),
        ({"save_minutes": float("nan")}, "save_minutes nan: give 0 or more"),
        (
            {"objective": "no_such_objective"},
            r"fit.objective is 'no_such_objective': give one of dice\+bce, batch_dice\+bce, dice",
        ),
        ({"schedule": "step"}, "fit.schedule is 'step': give one of cosine, published, constant"),
        ({"amp": "half"}, "amp is 'half': give one of auto, off, bf16, fp16"),
        ({"num_steps": 0}, "num_steps is 0"),
        ({"validate_every": 0}, "validate_every is 0"),
        ({"max_bad_steps": 0}, "max_bad_steps is 0"),
        ({"learning_rate": 0.0}, r"learning_rate is 0\.0"),
        ({"accumulate": 0}, "accumulate is 0"),
        ({"ema": 1.0}, r"ema is 1\.0: .* below 1"),
    ],
)
def test_options_that_cannot_be_meant(stream, changes, said):
    with pytest.raises(UsageError, match=said):
        fit(fresh(), stream, replace(OPTIONS, **changes), Hooks())


def test_precision(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert {precision(name, cpu) for name in ("auto", "off", "fp16")} == {torch.float32}
    assert precision("bf16", cpu) == torch.bfloat16
    assert precision("bf16", cuda) == torch.bfloat16
    assert precision("fp16", cuda) == torch.float16
    assert precision("off", cuda) == torch.float32
    for has_it, expected in ((True, torch.bfloat16), (False, torch.float16)):
        # Cards without bf16 still emulate it, slowly.
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True, has=has_it: (
            including_emulation or has
        ))  # fmt: skip
        assert precision("auto", cuda) == expected


AUGMENTED = replace(PRESETS["standard"], affine_probability=0.5, noise_probability=0.5, elastic_probability=0.5)


@pytest.mark.slow
@pytest.mark.parametrize("stop_after", [1, 4])
def test_a_resumed_training_with_augmentation_is_the_same_bit_for_bit(stream, tmp_path, stop_after):
    straight, whole, plain = fresh(), Recorder(), Recorder()
    assert fit(straight, stream, OPTIONS, whole.hooks(), AUGMENTED)
    fit(fresh(), stream, OPTIONS, plain.hooks())
    assert [event.loss for event in whole.steps] != [event.loss for event in plain.steps]

    state, first = fresh(), Recorder(stop_after)
    fit(state, stream, OPTIONS, first.hooks(save=lambda is_best: save_state(tmp_path / "resume.pt", state)), AUGMENTED)
    torch.manual_seed(999)
    resumed, second = fresh(), Recorder()
    load_state(tmp_path / "resume.pt", resumed)
    assert fit(resumed, stream, OPTIONS, second.hooks(), AUGMENTED)
    assert_same_state(resumed, straight)
    assert [event.loss for event in first.steps + second.steps] == [event.loss for event in whole.steps]


@pytest.mark.slow
def test_augmentation_leaves_dropout_its_random_numbers(stream):
    """Noise of no strength is drawn, and the losses are those of no augmentation, dropout and all."""
    plain, noisy = Recorder(), Recorder()
    options = replace(OPTIONS, num_steps=2, validate_every=2)
    fit(fresh(), stream, options, plain.hooks())
    nothing = AugmentOptions(noise_probability=1.0, noise_std=(0.0, 0.0))
    fit(fresh(), stream, options, noisy.hooks(), nothing)
    assert [event.loss for event in noisy.steps] == [event.loss for event in plain.steps]


class Counted:
    """A stream that remembers which batches it was asked for."""

    def __init__(self, stream):
        self.stream, self.asked = stream, []

    def batches(self, start, stop):
        self.asked.append((start, stop))
        yield from self.stream.batches(start, stop)


@pytest.mark.slow
def test_accumulated_batches_are_one_larger_batch(stream, few_state):
    """For a loss that averages over samples: two batches of two are a batch of four, and half as many steps."""
    options = replace(OPTIONS, objective="dice", num_steps=3, validate_every=3)
    large = StreamOptions(DrawOptions(patch=(8, 8, 8)), batch_size=4, workers=0, batches_per_epoch=3)
    four = PatchStream(stream.plan.store, AXIS, LabelSpace(), large, databases=["alder", "dogwood"])
    two = StreamOptions(DrawOptions(patch=(8, 8, 8)), batch_size=2, workers=0, batches_per_epoch=6)
    twos = PatchStream(stream.plan.store, AXIS, LabelSpace(), two, databases=["alder", "dogwood"])
    whole, parts = Recorder(), Recorder()
    a, b = few_state(dropout=0.0), few_state(dropout=0.0)
    fit(a, four, options, whole.hooks())
    counted = Counted(twos)
    fit(b, counted, replace(options, accumulate=2), parts.hooks())
    assert counted.asked == [(0, 6)]
    assert [event.step for event in parts.steps] == [1, 2, 3]
    for name in ("loss", "gradient_norm", "learning_rate"):
        mine, theirs = ([getattr(event, name) for event in recorder.steps] for recorder in (parts, whole))
        assert mine == pytest.approx(theirs, rel=1e-4), name
    for event in parts.steps:
        assert event.scalars["dice_loss"] == pytest.approx(event.loss)
        assert 0 <= event.waiting <= 1


@pytest.mark.slow
def test_a_bad_batch_spoils_its_whole_step(stream):
    recorder, state = Recorder(), fresh()
    fit(state, Spoilt(stream, {1}), replace(OPTIONS, num_steps=2, accumulate=2), recorder.hooks())
    assert [bool(event.skipped) for event in recorder.steps] == [True, False]
    first, second = stream.batches(0, 2)
    named = [f"{d}/{c}" for batch in (first, second) for d, c in zip(batch.database, batch.case, strict=True)]
    assert recorder.steps[0].skipped == ", ".join(dict.fromkeys(named))


@pytest.mark.slow
def test_the_average_is_of_the_weights_after_each_good_step(stream):
    state, weights = fresh(), []
    options = replace(OPTIONS, num_steps=3, ema=0.5, validate_every=10)
    first = next(state.network.parameters())
    start = first.detach().clone()
    hooks = Recorder().hooks(on_event=lambda event: weights.append(first.detach().clone()))
    fit(state, Spoilt(stream, {1}), options, hooks)
    expected = start
    for at, decay in ((0, 1 / 10), (2, 3 / 12)):  # step 1 was skipped and changed nothing
        expected = decay * expected + (1 - decay) * weights[at]
    torch.testing.assert_close(next(state.average.parameters()), expected)
    assert state.model is state.average


@pytest.mark.slow
def test_without_an_average_the_model_is_the_network(stream):
    state = fresh()
    fit(state, stream, replace(OPTIONS, num_steps=1), Hooks())
    assert state.average is None
    assert state.model is state.network


@pytest.mark.slow
def test_only_the_head_learns_at_first(stream):
    state, seen = fresh(), []
    state.head_steps = 2
    frozen = state.network.encoder[1].first.conv.weight.requires_grad_(False)  # by itself, and it stays so
    head, body = state.network.head.weight, next(state.network.parameters())

    def look(event):
        if isinstance(event, StepDone):
            seen.append((head.detach().clone(), body.detach().clone(), body.grad is None))

    before = head.detach().clone(), body.detach().clone(), frozen.detach().clone()
    fit(state, stream, replace(OPTIONS, num_steps=4), Recorder().hooks(on_event=look))
    assert [torch.equal(one[1], before[1]) for one in seen] == [True, True, False, False]
    assert [one[2] for one in seen] == [True, True, False, False]
    assert all(not torch.equal(a[0], b[0]) for a, b in zip([before, *seen], seen, strict=False))
    assert torch.equal(frozen, before[2])
    assert not frozen.requires_grad
    assert body.requires_grad


@pytest.mark.slow
def test_a_stop_while_only_the_head_learns_leaves_nothing_frozen(stream):
    state = fresh()
    state.head_steps = 5
    assert not fit(state, stream, OPTIONS, Recorder(stop_after=2).hooks())
    assert all(parameter.requires_grad for parameter in state.network.parameters())


@pytest.mark.slow
def test_a_network_without_a_head_cannot_begin_with_it(stream):
    network = torch.nn.Conv3d(len(AXIS), 1, 1)
    state = TrainState(network, torch.optim.Adam(network.parameters()), torch.amp.GradScaler("cpu", enabled=False))
    state.head_steps = 1
    with pytest.raises(UsageError, match="Conv3d has no head to learn first"):
        fit(state, stream, OPTIONS, Hooks())


EVERYTHING = replace(OPTIONS, accumulate=2, ema=0.8, amp="bf16", channels_last=True, deterministic=True)


def head_first():
    state = fresh()
    state.head_steps = 4
    return state


@pytest.fixture(scope="module")
def undisturbed_with_everything_on(stream):
    state, whole = head_first(), Recorder()
    assert fit(state, stream, EVERYTHING, whole.hooks(), AUGMENTED)
    return state, whole


@pytest.mark.slow
@pytest.mark.parametrize("stop_after", [1, 3, 4, 6])
def test_with_everything_on_a_resumed_training_is_the_same_bit_for_bit(
    stream, undisturbed_with_everything_on, tmp_path, stop_after
):
    """Averages, accumulation, dropout, augmentation, bf16, and only the head for the first four steps."""
    straight, whole = undisturbed_with_everything_on
    state, first = head_first(), Recorder(stop_after)
    save = first.hooks(save=lambda is_best: save_state(tmp_path / "resume.pt", state))
    assert not fit(state, stream, EVERYTHING, save, AUGMENTED)
    torch.manual_seed(999)
    resumed, second, counted = head_first(), Recorder(), Counted(stream)
    load_state(tmp_path / "resume.pt", resumed)
    assert fit(resumed, counted, EVERYTHING, second.hooks(), AUGMENTED)

    assert counted.asked == [(2 * stop_after, 16)]
    assert_same_state(resumed, straight)
    for name, tensor in straight.average.state_dict().items():
        assert torch.equal(tensor, resumed.average.state_dict()[name]), name
        assert tensor.dtype == torch.float32
    assert any(
        not torch.equal(tensor, straight.network.state_dict()[name])
        for name, tensor in straight.average.state_dict().items()
    )
    assert [event.loss for event in first.steps + second.steps] == [event.loss for event in whole.steps]


@pytest.mark.slow
def test_bf16_on_a_cpu_is_used_where_it_is_asked_for(stream):
    losses = {}
    for amp in ("off", "auto", "fp16", "bf16"):
        recorder = Recorder()
        fit(fresh(), stream, replace(OPTIONS, num_steps=1, amp=amp), recorder.hooks())
        losses[amp] = recorder.steps[0].loss
    assert losses["off"] == losses["auto"] == losses["fp16"]
    assert losses["bf16"] != losses["off"]
    assert losses["bf16"] == pytest.approx(losses["off"], rel=0.02)


@pytest.mark.slow
def test_channels_last_lays_weights_and_images_out_and_learns_alike(stream, few_state):
    plain, other = Recorder(), Recorder()
    options = replace(OPTIONS, num_steps=2, validate_every=2)
    fit(few_state(), stream, options, plain.hooks())
    state, seen = few_state(), []
    state.network.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    fit(state, stream, replace(options, channels_last=True), other.hooks())
    weight = state.network.encoder[0].second.conv.weight
    assert weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert not weight.is_contiguous()
    assert all(images.is_contiguous(memory_format=torch.channels_last_3d) for images in seen)
    assert [event.loss for event in other.steps] == pytest.approx([event.loss for event in plain.steps], rel=1e-3)


@pytest.mark.slow
def test_deterministic_mode_holds_while_training_and_no_longer(stream, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    seen = []

    def look(event):
        cudnn = torch.backends.cudnn
        seen.append((torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark))
        seen.append(os.environ.get("CUBLAS_WORKSPACE_CONFIG"))

    fit(fresh(), stream, replace(OPTIONS, num_steps=1, deterministic=True), Recorder().hooks(on_event=look))
    assert seen[:2] == [(True, True, False), ":4096:8"]
    seen.clear()
    look(None)
    assert seen == [(False, False, True), None]


@pytest.mark.slow
def test_a_network_that_cannot_be_compiled_is_a_clear_error(stream, monkeypatch):
    def refuse(module):
        raise BackendCompilerFailed(lambda: None, RuntimeError("no compiler here"), None)

    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: self.register_forward_pre_hook(
        lambda module, given: refuse(module)
    ))  # fmt: skip
    with pytest.raises(TrainingError, match=r"(?s)cannot compile the network: .*no compiler here"):
        fit(fresh(), stream, replace(OPTIONS, compile=True), Hooks())
