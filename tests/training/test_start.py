"""A training that starts from a model: which channel each sequence takes, and what becomes of the weights."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from multiseg.errors import CheckpointError, DataError, UsageError
from multiseg.labels import LabelSpace, SpaceLabel
from multiseg.loaders.batches import StreamOptions
from multiseg.loaders.draw import DrawOptions, chosen
from multiseg.modalities import ModalityAxis
from multiseg.models.builders import build
from multiseg.models.saved import ModelInfo, load_model, read_info, save_model
from multiseg.store.catalogue import select
from multiseg.store.reader import open_store
from multiseg.training.fit import FitOptions
from multiseg.training.run import train
from multiseg.training.run_folder import ModelOptions, TrainOptions
from multiseg.training.start import Parent, StartOptions, arrange_channels, parent_of, take_weights

NUMBERS = {"widths": [8, 8, 16], "dropout": 0.0}
SPACING_MM = (5.0, 5.0, 5.0)


def info_of(builder: str = "multi_unet", names: tuple[str, ...] = ("PD", "FLAIR", "T1", "T1c", "T2")) -> ModelInfo:
    """A model of five sequences: T2 was seen in most training cases, PD in fewest, T1c in none."""
    return ModelInfo(
        builder=builder,
        numbers=NUMBERS,
        axis=ModalityAxis(names),
        space=LabelSpace(),
        spacing_mm=SPACING_MM,
        patch=(16, 16, 16),
        trained_on={"PD": ("ms",), "FLAIR": ("ms", "wmh"), "T1": ("ms", "wmh"), "T1c": (), "T2": ("ms", "wmh", "tbi")},
        databases={name: {"pathology": name, "num_cases": n} for name, n in (("ms", 10), ("wmh", 20), ("tbi", 40))},
    )


def saved(path: Path, info: ModelInfo, seed: int = 0) -> Parent:
    torch.manual_seed(seed)
    save_model(path, build(info.builder, len(info.axis), info.space.num_logits, **info.numbers), info)
    parent = parent_of(StartOptions(str(path)))
    assert parent is not None
    return parent


def options_for(url: str, model: Path, start: StartOptions | None = None, steps: int = 2) -> TrainOptions:
    return TrainOptions(
        store=url,
        databases=("cedar",),
        start=start or StartOptions(str(model)),
        model=ModelOptions("lf_unet", (32, 64), 0.5),  # unheard: the network is that of the model
        stream=StreamOptions(DrawOptions((16, 16, 16)), batch_size=2, workers=0),
        fit=FitOptions(num_steps=steps, validate_every=10, validation_cases=1),
    )


def test_a_new_sequence_takes_the_unused_channel_that_fewest_cases_had() -> None:
    channels = arrange_channels(info_of(), ["FLAIR", "SWI", "DWI", "ADC"], StartOptions("m"))
    assert channels.assigned == {"SWI": "T1c", "DWI": "PD", "ADC": "T1"}
    assert tuple(channels.axis) == ("DWI", "FLAIR", "ADC", "SWI", "T2")
    assert channels.grown == ()


def test_where_no_channel_is_free_the_axis_grows_at_its_end() -> None:
    channels = arrange_channels(info_of(names=("FLAIR", "T1")), ["T1", "FLAIR", "DWI", "ADC"], StartOptions("m"))
    assert (tuple(channels.axis), channels.assigned) == (("FLAIR", "T1", "DWI", "ADC"), {})
    assert channels.grown == ("DWI", "ADC")


def test_a_channel_that_nothing_was_trained_on_goes_first() -> None:
    """Also where the numbers of cases are unknown, as of an imported model."""
    info = info_of()
    unknown = {name: {**about, "num_cases": 0} for name, about in info.databases.items()}
    channels = arrange_channels(replace(info, databases=unknown), ["FLAIR", "DWI"], StartOptions("m"))
    assert channels.assigned == {"DWI": "T1c"}


def test_more_sequences_than_the_network_has_room_for() -> None:
    new = ["FLAIR", "A", "B", "C", "D"]
    with pytest.raises(
        UsageError, match=r"can have 8 sequences, but there are 9: PD, .* D\. Assign A, B, C, D to channels"
    ):
        arrange_channels(info_of(), new, StartOptions("m", grow=True))
    assert len(arrange_channels(info_of("hemis"), new, StartOptions("m", grow=True)).axis) == 9


def test_assignments_and_growing_as_asked_for() -> None:
    start = StartOptions("m", assign={"SWI": "PD"}, grow=True)
    channels = arrange_channels(info_of(), ["FLAIR", "SWI", "DWI"], start)
    assert (channels.assigned, channels.grown) == ({"SWI": "PD"}, ("DWI",))
    assert tuple(channels.axis) == ("SWI", "FLAIR", "T1", "T1c", "T2", "DWI")


@pytest.mark.parametrize(
    ("assign", "said"),
    [
        ({"SWI": "FLAIR"}, "SWI cannot take the channel of FLAIR: the new data has FLAIR, too"),
        ({"SWI": "DWI"}, "SWI cannot take the channel of DWI: the model has PD, FLAIR"),
        ({"FLAIR": "PD"}, "FLAIR cannot be assigned to the channel of PD: the model has a channel for it"),
        ({"ADC": "PD"}, "ADC cannot be assigned to the channel of PD: no training case has it"),
        ({"SWI": "PD", "T2star": "PD"}, "two sequences are assigned to one channel: SWI=PD, T2star=PD"),
    ],
)
def test_assignments_that_cannot_be(assign: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        arrange_channels(info_of(), ["FLAIR", "SWI", "T2star"], StartOptions("m", assign=assign))


@pytest.mark.parametrize("builder", ["multi_unet", "lf_unet", "maf_unet", "hemis", "multi_unet_plus"])
def test_a_network_that_grew_is_the_old_one_while_the_new_sequences_are_absent(builder: str, tmp_path: Path) -> None:
    parent = saved(tmp_path / "m.safetensors", info_of(builder, ("FLAIR", "T1")))
    old = load_model(parent.file)
    grown = build(builder, 4, 1, **NUMBERS).eval()
    take_weights(grown, parent, "finetune")
    images, present = (
        torch.randn(2, 4, 16, 16, 16),
        torch.tensor([[True, True, False, False], [False, True, False, False]]),
    )
    with torch.no_grad():
        expected = old(images[:, :2], present[:, :2])
        torch.testing.assert_close(grown(images, present), expected, rtol=1e-4, atol=1e-5)
        present[0, 2] = True
        assert not torch.allclose(grown(images, present)[0], expected[0], atol=1e-3)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    parent = saved(tmp_path / "m.safetensors", info_of())
    with pytest.raises(CheckpointError, match=r"do not fit its network at 'encoder.0.first.conv.weight'"):
        take_weights(build("multi_unet", 4, 1, **NUMBERS), parent, "finetune")
    saved(tmp_path / "maf.safetensors", info_of("maf_unet"))
    with pytest.raises(UsageError, match=r"a progressive column is built on a multi_unet, but .* is a maf_unet"):
        parent_of(StartOptions(str(tmp_path / "maf.safetensors"), method="progressive"))
    saved(tmp_path / "i.safetensors", replace(info_of(), background="shifted"))
    with pytest.raises(
        UsageError, match=r"trained with shifted values outside the brain.*: finetune it without --progressive"
    ):
        parent_of(StartOptions(str(tmp_path / "i.safetensors"), method="progressive"))
    with pytest.raises(UsageError, match="names no model to start from"):
        parent_of(StartOptions(grow=True))
    with pytest.raises(UsageError, match=r"start.method is 'distil': give one of finetune, progressive"):
        parent_of(StartOptions("m", method="distil"))


@pytest.mark.slow
def test_fine_tuning_records_what_was_done(store_url: str, tmp_path: Path) -> None:
    parent = saved(tmp_path / "m.safetensors", info_of())
    told: list[ModelInfo] = []
    train(options_for(store_url, parent.file), tmp_path / "run", on_start=told.append)
    info = read_info(tmp_path / "run" / "last.safetensors")
    assert told[0].ancestry == info.ancestry
    assert (info.builder, info.numbers["widths"], info.patch) == ("multi_unet", [8, 8, 16], (16, 16, 16))
    assert tuple(info.axis) == ("ADC", "FLAIR", "T1", "DWI", "T2")
    assert info.trained_on["ADC"] == ("cedar",)
    assert info.trained_on["FLAIR"] == ("ms", "wmh", "cedar")
    assert info.trained_on["T2"] == ("ms", "wmh", "tbi")
    assert set(info.databases) == {"ms", "wmh", "tbi", "cedar"}
    (step,) = info.ancestry
    assert step["model"] == parent.sha256
    assert (step["assigned"], step["grown"], step["method"]) == ({"DWI": "T1c", "ADC": "PD"}, [], "finetune")


@pytest.mark.slow
def test_fine_tuning_starts_from_the_weights_and_goes_on_from_them(store_url: str, tmp_path: Path) -> None:
    parent = saved(tmp_path / "m.safetensors", info_of())
    options = options_for(store_url, parent.file)
    options = replace(options, fit=replace(options.fit, learning_rate=1e-6))
    train(options, tmp_path / "run")
    before, after = load_file(parent.file), load_file(tmp_path / "run" / "last.safetensors")
    assert before.keys() == after.keys()
    moved = [float((after[name] - before[name]).abs().max()) for name in before]
    assert 0 < max(moved) < 1e-4, "two steps of Adam move a weight by 2e-6 or so"


@pytest.mark.slow
def test_progressive_columns_leave_the_model_as_it_was(store_url: str, tmp_path: Path) -> None:
    parent = saved(tmp_path / "m.safetensors", info_of())
    start = StartOptions(str(parent.file), method="progressive", grow=True)
    result = train(options_for(store_url, parent.file, start), tmp_path / "run")
    before, after = load_file(parent.file), load_file(tmp_path / "run" / "last.safetensors")
    for name, tensor in before.items():
        assert torch.equal(after[f"first.{name}"], tensor), name
    model = load_model(tmp_path / "run")
    assert result.finished
    assert (model.info.builder, model.info.numbers["first_modalities"]) == ("progressive", 5)
    assert tuple(model.info.axis)[5:] == ("DWI", "ADC")
    # The new column was never shown T1 or T2, whatever the frozen one knows of them.
    assert set(model.info.usable(tuple(model.info.axis))) == {"FLAIR", "DWI", "ADC"}
    images, present = torch.randn(1, 7, 16, 16, 16), torch.ones(1, 7, dtype=torch.bool)
    assert model(images, present).shape == (1, 1, 16, 16, 16)

    again = train(options_for(store_url, tmp_path / "run"), tmp_path / "further")
    further = load_model(tmp_path / "further")
    assert again.finished
    assert (further.info.builder, len(further.info.ancestry)) == ("progressive", 2)
    assert torch.equal(
        further.state_dict()["network.first.encoder.0.first.conv.weight"], before["encoder.0.first.conv.weight"]
    )


@pytest.mark.slow
def test_only_the_chosen_cases_say_which_sequences_are_new(store_url: str, tmp_path: Path) -> None:
    cases = {case.name: case for case in select(open_store(store_url), ["cedar"], split="train")}
    assert {"FLAIR" in case.modalities for case in cases.values()} == {True, False}
    parent = saved(tmp_path / "m.safetensors", replace(info_of(names=("T1", "T2")), trained_on={"T1": (), "T2": ()}))
    options = options_for(store_url, parent.file, steps=1)
    draws = {}  # one for each number of sequences
    for seed in range(8):
        draw = replace(options.stream.draw, num_cases=1, seed=seed)
        (only,) = chosen(list(cases.values()), draw)
        draws[len(only.modalities)] = draw, only
    assert draws.keys() == {2, 3}
    for num, (draw, only) in draws.items():
        train(replace(options, stream=replace(options.stream, draw=draw)), tmp_path / f"run{num}")
        info = read_info(tmp_path / f"run{num}" / "last.safetensors")
        assert set(info.usable(tuple(info.axis))) == set(only.modalities)
        assert len(info.axis) == num, "no channel is given to a sequence that no chosen case has"


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_model_that_is_started_from_is_never_written_over(store_url: str, tmp_path: Path, overwrite: bool) -> None:
    parent = saved(tmp_path / "run" / "model.safetensors", info_of())
    before = parent.file.read_bytes()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    for out in (tmp_path / "run", tmp_path / "link"):
        with pytest.raises(UsageError, match="holds the model that the run starts from and would overwrite"):
            train(options_for(store_url, tmp_path / "run"), out, overwrite)
    assert parent.file.read_bytes() == before


@pytest.mark.slow
def test_a_parent_may_lie_elsewhere_by_now(store_url: str, tmp_path: Path) -> None:
    parent = saved(tmp_path / "m.safetensors", info_of())
    train(options_for(store_url, parent.file, steps=2), tmp_path / "run")
    moved = parent.file.rename(tmp_path / "moved.safetensors")
    assert train(options_for(store_url, moved, steps=2), tmp_path / "run").finished


def test_progressive_columns_need_a_model(store_url: str, tmp_path: Path) -> None:
    options = replace(options_for(store_url, tmp_path), start=StartOptions(), model=ModelOptions("progressive"))
    with pytest.raises(UsageError, match="is built on a trained one: multiseg finetune --progressive"):
        train(options, tmp_path / "run")


@pytest.mark.slow
def test_a_run_that_was_started_from_another_model_is_not_gone_on_with(store_url: str, tmp_path: Path) -> None:
    parent = saved(tmp_path / "m.safetensors", info_of())
    train(options_for(store_url, parent.file), tmp_path / "run")
    saved(parent.file, info_of(), seed=1)
    with pytest.raises(UsageError, match=r"the model that .* was started from has changed"):
        train(options_for(store_url, parent.file), tmp_path / "run")


@pytest.mark.slow
def test_voxel_size_and_labels_have_to_be_those_of_the_model(store_url: str, tmp_path: Path) -> None:
    parent = saved(tmp_path / "m.safetensors", replace(info_of(), spacing_mm=(1.0, 1.0, 1.0)))
    with pytest.raises(DataError, match=r"trained on voxels of \[1.0, 1.0, 1.0\] mm"):
        train(options_for(store_url, parent.file), tmp_path / "run")
    oedema = LabelSpace((SpaceLabel("oedema", "lesion"),))
    parent = saved(tmp_path / "o.safetensors", replace(info_of(), space=oedema))
    with pytest.raises(DataError, match="no train case that is annotated for oedema"):
        train(options_for(store_url, parent.file), tmp_path / "run")
