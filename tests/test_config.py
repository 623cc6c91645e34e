"""The augmentation of a run: presets, numbers above them, flags above both."""

import tomllib
from dataclasses import replace

import pytest

from multiseg.cli.app import run
from multiseg.config import defaults, merged, to_options
from multiseg.errors import UsageError
from multiseg.loaders import augment

PRESETS = {name: replace(preset, seed=0) for name, preset in augment.PRESETS.items()}
"""With the seed of a run that says none."""


def options_of(capsys, *arguments):
    """What --print-config says, as options."""
    assert run(["train", "brain.zarr", "--device", "cpu", "--print-config", *map(str, arguments)]) == 0
    return to_options(tomllib.loads(capsys.readouterr().out))


@pytest.fixture
def run_file(tmp_path):
    def write(text):
        (tmp_path / "run.toml").write_text(text)
        return tmp_path / "run.toml"

    return write


def test_the_default_on_a_cpu_is_none_and_on_a_card_standard():
    chosen = [to_options(merged(defaults(cuda), {"store": "brain.zarr"})).augment for cuda in (False, True)]
    assert chosen == [PRESETS["none"], PRESETS["standard"]]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_by_flag(name, capsys):
    assert options_of(capsys, "--augment", name).augment == PRESETS[name]


def test_numbers_of_the_run_file_lie_above_its_preset(run_file, capsys):
    file = run_file(
        '[augment]\npreset = "standard"\nrotation_degrees = 10\nscaling = [0.9, 1.1]\nflip_axes = ["i", "j"]'
    )
    expected = replace(PRESETS["standard"], rotation_degrees=10.0, scaling=(0.9, 1.1), flip_axes=("i", "j"))
    assert options_of(capsys, "--run", file).augment == expected
    file = run_file('[augment]\npreset = "standard"\nrotation_degrees = [5, 0, 10]')
    assert options_of(capsys, "--run", file).augment.rotation_degrees == (5.0, 0.0, 10.0)


def test_what_print_config_prints_is_read_back(run_file, capsys):
    said = options_of(capsys, "--augment", "standard", "--seed", 3)
    assert (said.augment.seed, said.stream.draw.seed) == (3, 3)
    run(["train", "brain.zarr", "--print-config", "--augment", "standard", "--seed", "3", "--device", "cpu"])
    file = run_file(capsys.readouterr().out)
    assert options_of(capsys, "--run", file) == said


def test_the_flag_takes_the_place_of_the_whole_table(run_file, capsys):
    file = run_file('[augment]\npreset = "standard"\nnoise_probability = 0.9')
    assert options_of(capsys, "--run", file, "--augment", "published").augment == PRESETS["published"]


def test_a_transform_may_be_switched_on_and_off(run_file, capsys):
    file = run_file("[augment]\nelastic_probability = 0.2\nelastic_voxels = 3")
    assert options_of(capsys, "--run", file).augment == replace(
        PRESETS["none"], elastic_probability=0.2, elastic_voxels=3.0
    )
    file = run_file('[augment]\npreset = "standard"\naffine_probability = 0\nrotation_degrees = 5')
    assert options_of(capsys, "--run", file).augment.affine_probability == 0


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"rotation_degrees": 15}, r"sets rotation_degrees, but affine_probability is 0 in the preset 'none'"),
        (
            {"preset": "standard", "elastic_voxels": 3},
            "sets elastic_voxels, but elastic_probability is 0 .* 'standard'",
        ),
        ({"preset": "all"}, r"augment\.preset is 'all': give one of none, published, standard"),
        ({"preset": ["none"]}, "give one of none, published, standard"),
        ({"rotation": 15}, r"unknown settings \['rotation'\] in \[augment\]"),
        ({"noise_probability": 2}, r"noise_probability is 2\.0: give a number between 0 and 1"),
        ({"gamma_probability": 1, "gamma": [2.0]}, r"augment\.gamma"),
        ({"noise_probability": "often"}, r"augment\.noise_probability"),
    ],
)
def test_what_cannot_be_meant(table, message):
    with pytest.raises(UsageError, match=message):
        to_options({"store": "brain.zarr", "augment": table})


def test_settings_without_a_seed_or_a_stream_have_their_defaults():
    assert to_options({"store": "brain.zarr"}).stream.draw.seed == 0
    assert to_options({"store": "brain.zarr", "seed": 7}).stream.draw.seed == 7
