"""Which network a run has, and its numbers, when only some of them are said."""

import tomllib
from pathlib import Path

import pytest

from multiseg.cli.app import run
from multiseg.config import defaults, merged, to_options
from multiseg.models.builders import NETWORKS, PLUS_WIDTHS, PUBLISHED_WIDTHS, build
from multiseg.training.run_folder import ModelOptions

SMALL = (8, 16, 32, 64)


def model_of(capsys, tmp_path, text, device="cpu"):
    """The [model] that --print-config says for a run file."""
    file = tmp_path / "run.toml"
    file.write_text(text)
    assert run(["train", "brain.zarr", "--run", str(file), "--device", device, "--print-config"]) == 0
    return tomllib.loads(capsys.readouterr().out)["model"]


def test_a_network_by_name_has_its_own_numbers(capsys, tmp_path):
    plus = '[model]\nbuilder = "multi_unet_plus"\n'
    expected = {
        "builder": "multi_unet_plus",
        "widths": list(SMALL),
        "dropout": 0.0,
        "norm": "instance_affine",
        "numbers": {},
    }
    assert model_of(capsys, tmp_path, plus) == expected
    assert model_of(capsys, tmp_path, plus, "cuda") == expected | {"widths": list(PLUS_WIDTHS)}
    assert model_of(capsys, tmp_path, plus + 'norm = "group"\ndropout = 0.3') == expected | {
        "norm": "group",
        "dropout": 0.3,
    }


def test_without_a_name_it_is_the_published_network_in_the_size_of_the_machine(capsys, tmp_path):
    expected = {"builder": "multi_unet", "widths": list(SMALL), "dropout": 0.1, "norm": "instance", "numbers": {}}
    assert model_of(capsys, tmp_path, "") == expected
    assert model_of(capsys, tmp_path, "", "cuda") == expected | {"widths": list(PUBLISHED_WIDTHS), "dropout": 0.2}


@pytest.mark.parametrize("cuda", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_can_be_built_from_the_defaults(name, cuda):
    said = {"store": "brain.zarr", "model": {"builder": name}}
    model = to_options(merged(defaults(cuda, said), said)).model
    assert isinstance(model, ModelOptions)
    network = build(model.builder, 6, 2, widths=model.widths, dropout=model.dropout, norm=model.norm)
    assert network.multiple == 2 ** (len(model.widths) - 1)


def test_a_step_on_a_card_takes_ten_patches_through_every_network_and_no_more_than_20_gib():
    """By what docs/models.md counts for six sequences."""
    text = (Path(__file__).parents[1] / "docs" / "models.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    kept = {row[0]: float(row[5]) for row in rows if len(row) == 6 and row[1] == "6"}
    for name in (builder for builder in NETWORKS if builder != "progressive"):
        said = {"store": "x.zarr", "model": {"builder": name}}
        settings = to_options(merged(defaults(True, said), said))
        assert settings.stream.batch_size * settings.fit.accumulate == 10, name
        assert settings.stream.batch_size * kept[name] < 20, name


@pytest.mark.parametrize("said", [{"stream": {"batch_size": 4}}, {"fit": {"accumulate": 3}}])
def test_who_says_how_many_patches_says_both(said):
    named = {"store": "x.zarr", "model": {"builder": "lf_unet"}} | said
    settings = to_options(merged(defaults(True, named), named))
    expected = (said.get("stream", {}).get("batch_size", 10), said.get("fit", {}).get("accumulate", 1))
    assert (settings.stream.batch_size, settings.fit.accumulate) == expected
