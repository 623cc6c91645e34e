"""Stages of a two_branch network: which part learns, from what, and how a run of several resumes."""

import os
import re
import signal
import tomllib
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from multiseg.cli.app import run
from multiseg.cli.train import ShownProgress
from multiseg.errors import UsageError
from multiseg.evaluation.evaluation_result import EvaluateOptions
from multiseg.evaluation.model_evaluation import evaluate
from multiseg.loaders.augment import AugmentOptions
from multiseg.loaders.batches import StreamOptions
from multiseg.loaders.draw import DrawOptions
from multiseg.models.saved import load_model, load_weights, model_path, read_info
from multiseg.training.checkpoint import TrainState
from multiseg.training.events import Event, StepDone
from multiseg.training.fit import FitOptions
from multiseg.training.joint_loss import VERSION
from multiseg.training.meta import MetaOptions
from multiseg.training.resume import _loss_changed
from multiseg.training.run import TrainResult, train
from multiseg.training.run_data import RunData, read_data, write_data
from multiseg.training.run_folder import ModelOptions, TrainOptions
from multiseg.training.staged_run import StagedRun, train_stages
from multiseg.training.stages import STAGES, check_stage
from multiseg.training.start import StartOptions

SOFT = {"stage": "joint", "meta": MetaOptions(pseudo_labels="x")}
NAMES = ("pretrain_tissue", "pretrain_lesion", "joint")
TISSUES = ("CSF", "grey matter", "white matter")


def options_of(url: str, stage: str = "", steps: int = 1) -> TrainOptions:
    return TrainOptions(
        store=url,
        databases=("alder",) if stage == "pretrain_tissue" else ("alder", "birch"),
        labels="tissues+lesion",
        stage=stage,
        model=ModelOptions("two_branch", (5, 5), 0.0, "instance_affine"),
        stream=StreamOptions(DrawOptions((8, 8, 8), drop="none"), batch_size=2, workers=0),
        fit=FitOptions(num_steps=steps, validate_every=100, validation_cases=0),
        device="cpu",
    )


def staged(url: str, names: tuple[str, ...] = NAMES, steps: int = 1) -> StagedRun:
    return StagedRun(options_of(url), tuple(options_of(url, name, steps) for name in names))


@pytest.fixture(scope="module")
def folder(store_url: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three stages, two steps each."""
    out = tmp_path_factory.mktemp("staged")
    assert train_stages(staged(store_url, steps=2), out).finished
    return out


def changed(before: Path, after: Path) -> set[str]:
    """The parts of the network whose weights differ."""
    old, new = load_weights(model_path(before)), load_weights(model_path(after))
    return {name.split(".")[0] for name, tensor in old.items() if not torch.equal(tensor, new[name][slices(tensor)])}


def slices(tensor: torch.Tensor) -> tuple[slice, ...]:
    return tuple(slice(n) for n in tensor.shape)


@pytest.mark.slow
def test_every_stage_changes_only_what_learns(folder: Path) -> None:
    tissue, lesion, joint = (folder / f"{number}-{name}" for number, name in enumerate(NAMES, start=1))
    assert changed(tissue, lesion) == {"lesion"}
    assert changed(lesion, joint) == {"anatomy", "attention", "head"}


@pytest.mark.slow
def test_the_model_of_the_last_stage_is_that_of_the_run(folder: Path) -> None:
    model = load_model(folder)
    assert model.info.space.names == (*TISSUES, "lesion")
    assert model.info.numbers["anatomy_channels"] == [model.info.axis.names.index("T1")]
    assert model.info.numbers["lesion_logits"] == [4]
    assert changed(folder, folder / "3-joint") == set()
    kept = [read_data(stage) for stage in sorted(folder.glob("?-*"))]
    assert [data.joint_loss for data in kept if data] == [0, 0, VERSION]
    assert [step["databases"] for step in model.info.ancestry] == [{"alder": 2, "birch": 2}] * 2
    assert tomllib.loads((folder / "run.toml").read_text())["store"]


@pytest.mark.slow
def test_the_anatomy_branch_learns_from_its_sequences_alone(folder: Path) -> None:
    info = load_model(folder / "1-pretrain_tissue").info
    assert (tuple(info.axis), info.trained_on) == (("T1",), {"T1": ("alder",)})


@pytest.mark.slow
def test_a_run_that_stopped_in_its_second_stage_is_completed_as_if_it_had_not(
    store_url: str, folder: Path, tmp_path: Path
) -> None:
    whole, calls = staged(store_url, steps=2), []

    def stopping(options: TrainOptions, out: Path) -> TrainResult:
        calls.append(out.name)
        if options.stage == "pretrain_lesion":
            short = replace(options, fit=replace(options.fit, num_steps=1))
            return replace(train(short, out), finished=False)
        return train(options, out)

    constant = tuple(replace(stage, fit=replace(stage.fit, schedule="constant")) for stage in whole.stages)
    whole = replace(whole, stages=constant)
    assert not train_stages(whole, tmp_path / "run", train_one=stopping).finished
    assert calls == ["1-pretrain_tissue", "2-pretrain_lesion"]
    assert not (tmp_path / "run" / "last.safetensors").exists()
    assert train_stages(whole, tmp_path / "run").finished
    assert train_stages(whole, tmp_path / "other").finished
    assert changed(tmp_path / "run", tmp_path / "other") == set()


@pytest.mark.slow
def test_ctrl_c_in_a_stage_ends_the_run_saved_and_the_same_command_completes_it(
    store_url: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, file, real, steps = tmp_path / "run", tmp_path / "two.toml", ShownProgress.event, []

    def event(self: ShownProgress, event: Event) -> None:
        real(self, event)
        if isinstance(event, StepDone):
            steps.append(event.step)
            if len(steps) == 3:  # the first one of the second stage
                os.kill(os.getpid(), signal.SIGINT)

    file.write_text(staged(store_url, steps=2).to_toml())
    command = ["train", "--run", str(file), "--out", str(out), "--device", "cpu"]
    monkeypatch.setattr(ShownProgress, "event", event)
    assert run(command) == 130
    assert steps == [1, 2, 1]
    assert "Stopped after step 1, saved." in capsys.readouterr().err
    assert read_info(out / "2-pretrain_lesion" / "last.safetensors").step == 1
    assert not (out / "3-joint").exists()
    assert not (out / "model.safetensors").exists()
    assert run([*command, "--resume"]) == 0
    assert steps == [1, 2, 1, 2, 1, 2]
    assert changed(out, folder) == set()


@pytest.mark.slow
def test_what_a_stage_has_not_taught_does_not_answer(store_url: str, folder: Path, tmp_path: Path) -> None:
    tissue, lesion, joint = (folder / f"{number}-{name}" for number, name in enumerate(NAMES, start=1))
    assert [read_info(model_path(one)).parts for one in (tissue, lesion, joint)] == [
        ("anatomy",), ("anatomy", "lesion"), (),
    ]  # fmt: skip
    options = EvaluateOptions("test", "alder", "T1", 0.0)
    with pytest.raises(UsageError, match=r"only anatomy, lesion has learnt so far"):
        evaluate(lesion, store_url, options)
    with pytest.raises(UsageError, match=r"only anatomy has learnt .* needs lesion, too"):
        evaluate(tissue, store_url, replace(options, branch="pasted"))
    anatomy = evaluate(lesion, store_url, replace(options, branch="anatomy", zones=True))
    assert set(anatomy.cases["label"]) == set(TISSUES)
    pasted = evaluate(lesion, store_url, replace(options, branch="pasted"))
    assert set(pasted.cases["label"]) == {*TISSUES, "lesion"}
    assert anatomy.key != evaluate(lesion, store_url, replace(options, branch="lesion", zones=False)).key != pasted.key
    assert run(["export", str(lesion), "--onnx", str(tmp_path / "m.onnx")]) == 2


@pytest.mark.slow
def test_other_stages_in_a_folder_are_refused(store_url: str, folder: Path) -> None:
    with pytest.raises(UsageError, match="a run of the stages pretrain_tissue, pretrain_lesion, joint, but now"):
        train_stages(staged(store_url, ("pretrain_lesion", "joint")), folder)
    with pytest.raises(UsageError, match="run with other settings"):
        train(options_of(store_url), folder)


def test_a_stage_joint_whose_losses_have_changed_says_so_when_it_resumes(tmp_path: Path) -> None:
    network = torch.nn.Linear(1, 1)
    state = TrainState(network, torch.optim.Adam(network.parameters()), torch.amp.GradScaler("cpu"), step=3)
    now, options = RunData({}, VERSION), options_of("x.zarr", "joint", steps=4)
    write_data(tmp_path, now)
    assert read_data(tmp_path) == now
    assert _loss_changed(now, now, state, options) == ()
    write_data(tmp_path, RunData({}))  # as by a version that did not write it
    (note,) = _loss_changed(read_data(tmp_path), now, state, options)
    assert (note.step, note.code) == (3, "LOSS_CHANGED")
    assert _loss_changed(RunData({}), RunData({}), state, options) == ()
    assert _loss_changed(RunData({}), now, replace(state, step=4), options) == ()  # nothing is left to train


def test_a_network_without_stages() -> None:
    with pytest.raises(UsageError, match="a multi_unet network has no stages"):
        replace(staged("x.zarr"), whole=TrainOptions("x.zarr"))


def test_every_stage_is_named_once() -> None:
    with pytest.raises(UsageError, match="stages are joint, joint: name each of them once"):
        staged("x.zarr", ("joint", "joint"))


RUN_FILE = """
labels = ["lesion", "tissue:CSF"]
[model]
builder = "two_branch"
[fit]
num_steps = 7
[[stage]]
name = "pretrain_tissue"
databases = ["alder"]
[stage.fit]
num_steps = 3
[[stage]]
name = "joint"
[stage.stream.draw]
drop = "none"
"""


def printed(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[int, str, str]:
    (tmp_path / "two.toml").write_text(text)
    code = run(["train", "x.zarr", "--device", "cpu", "--run", str(tmp_path / "two.toml"), "--print-config", *flags])
    return code, *capsys.readouterr()


def test_the_printed_run_file_has_the_stages_and_prints_the_same_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text, _ = printed(RUN_FILE, tmp_path, capsys)
    assert code == 0
    assert tomllib.loads(text)["stage"] == [
        {"name": "pretrain_tissue", "databases": ["alder"], "fit": {"num_steps": 3}},
        {"name": "joint", "stream": {"draw": {"drop": "none"}}},
    ]
    assert printed(text, tmp_path, capsys)[1] == text
    stages = tomllib.loads(printed(text, tmp_path, capsys, "--steps", "5")[1])["stage"]
    assert [stage.get("fit") for stage in stages] == [None, None]


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('name = "joint"', 'name = "fuse"', "no stage 'fuse': give one of pretrain_tissue, pretrain_lesion, "),
        ('name = "joint"', "databases = []", "every stage is a table with a name"),
        ('name = "joint"', 'name = "joint"\nlabels = "lesion"', "the stage joint sets labels, but all stages"),
        ('name = "joint"', 'name = "joint"\nstepps = 3', r"unknown settings \['stepps'\] in \[stage.joint\]"),
        ('drop = "none"', 'drops = "none"', r"unknown settings \['drops'\] in \[stage.joint.stream.draw\]"),
        ('"two_branch"', '"unet_sum"', "a unet_sum network has no stages: set model.builder to two_branch"),
    ],
)
def test_invalid_stages(
    before: str, after: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, error = printed(RUN_FILE.replace(before, after), tmp_path, capsys)
    assert code == 2
    assert re.search(message, " ".join(error.split()))


def test_the_run_file_of_the_guide_is_complete(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    (text,) = [block for block in re.findall(r"```toml\n(.*?)```", guide, re.DOTALL) if "[[stage]]" in block]
    listed = text.replace("tissues+lesion", "lesion").replace('"lesion"]', '"lesion", "tissue:CSF"]')
    code, printed_text, _ = printed(listed, tmp_path, capsys)
    assert code == 0
    assert [stage["name"] for stage in tomllib.loads(printed_text)["stage"]] == list(STAGES)
    for name in STAGES:
        assert f"| `{name}` |" in guide


def test_every_setting_of_meta_learning_is_in_the_guide() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    _, _, below = guide.partition("| setting in `[meta]` | default | meaning |\n|---|---|---|\n")
    rows = [line.split("|")[1:3] for line in below[: below.index("\n\n")].splitlines()]
    said = {name.strip(" `"): tomllib.loads(f"it = {default}")["it"] for name, default in rows}
    assert said == {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(MetaOptions()).items()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stage": "cotrain"}, "name the databases without lesions"),
        ({"stage": "cotrain", "databases": ("alder",), "fit": FitOptions(compile=True)}, "no second derivative"),
        ({"stage": "cotrain", "databases": ("a",), "augment": AugmentOptions(own="a:b")}, "cannot move the lesions"),
        ({"stage": "pseudo_label"}, "trains nothing"),
        ({"stage": "pretrain_lesion", "meta": MetaOptions(pseudo_labels="x")}, "is for the stage joint"),
        (
            {"stage": "joint", "meta": MetaOptions(adapt_to="found")},
            "which has no effect on the stage joint: set it in",
        ),
        ({"meta": MetaOptions(adapt_to="found")}, "which has no effect on a training without stages"),
        ({"stage": "cotrain", "fit": FitOptions(class_weights="inverse-root")}, "class_weights .* has no effect"),
        (
            {**SOFT, "fit": FitOptions(class_weights="inverse-root")},
            "class_weights .* has no effect on the stage joint",
        ),
        ({**SOFT, "fit": FitOptions(consistency=0.5)}, "consistency is 0.5, which has no effect on the stage joint"),
        ({"stage": "pretrain_lesion", "start": StartOptions("m", head_steps=3)}, "head_steps is 3, but in the stage"),
    ],
)
def test_options_that_do_not_fit_their_stage(changes: dict, message: str) -> None:
    options = replace(options_of("x.zarr"), databases=())
    with pytest.raises(UsageError, match=message):
        check_stage(replace(options, **changes), 1)


def test_cotrain_runs_in_one_process() -> None:
    with pytest.raises(UsageError, match="runs in one process, but there are 2"):
        check_stage(replace(options_of("x.zarr", "cotrain")), 2)


def test_the_first_and_the_last_stage_train() -> None:
    with pytest.raises(UsageError, match="the stages are pretrain_tissue, pseudo_label: the first and the last must"):
        staged("x.zarr", ("pretrain_tissue", "pseudo_label"))


WITH_SOFT = ("pretrain_tissue", "pseudo_label", "joint")


def nothing(options: TrainOptions, out: Path) -> TrainResult:
    raise AssertionError(f"{out} ran")


def with_joint(run: StagedRun, **changes: object) -> StagedRun:
    return replace(run, stages=(*run.stages[:-1], replace(run.stages[-1], **changes)))


def test_a_run_of_stages_takes_no_pseudo_labels_of_others() -> None:
    with pytest.raises(UsageError, match=r"writes its own pseudo-labels: leave meta\.pseudo_labels out"):
        with_joint(staged("x.zarr", WITH_SOFT), meta=MetaOptions(pseudo_labels="x"))


def test_all_stages_are_checked_before_the_first_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = with_joint(staged("x.zarr", WITH_SOFT), augment=AugmentOptions(flip_probability=0.5))
    with pytest.raises(UsageError, match="flip_probability moves patches"):
        train_stages(run, tmp_path, train_one=nothing)
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="the stage pseudo_label runs in one process, but there are 2"):
        train_stages(staged("x.zarr", WITH_SOFT), tmp_path, train_one=nothing)


def test_the_cases_of_the_stage_joint_are_checked_before_the_first_stage(store_url: str, tmp_path: Path) -> None:
    run = staged(store_url, WITH_SOFT)
    few = replace(run.stages[1], databases=("birch",))
    with pytest.raises(UsageError, match=r"2 of 4 cases have no pseudo-labels in .*2-pseudo_label \(alder/"):
        train_stages(replace(run, stages=(run.stages[0], few, run.stages[2])), tmp_path, train_one=nothing)


@pytest.mark.slow
def test_an_old_final_model_does_not_outlive_its_run(store_url: str, tmp_path: Path) -> None:
    run, (best, last) = staged(store_url), (tmp_path / "model.safetensors", tmp_path / "last.safetensors")

    def trained(finished: bool) -> Callable[[TrainOptions, Path], TrainResult]:
        def one(options: TrainOptions, out: Path) -> TrainResult:
            out.mkdir(exist_ok=True)
            (out / "last.safetensors").write_bytes(b"new")
            return TrainResult(out, 1, finished, 0.0)

        return one

    train_stages(run, tmp_path, train_one=trained(True))
    best.write_bytes(b"old")
    train_stages(run, tmp_path, train_one=trained(True))
    assert (best.exists(), last.read_bytes()) == (False, b"new")
    best.write_bytes(b"old")
    assert not train_stages(run, tmp_path, True, trained(False)).finished
    assert not best.exists()
    assert not last.exists()
