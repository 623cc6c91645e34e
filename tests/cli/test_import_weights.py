"""`multiseg import-weights`: published weights become a model of ours, or a sentence that says why not."""

import math
from pathlib import Path

import pytest
import torch
from json_documents import checked
from torch import Tensor

from multiseg.cli.app import run
from multiseg.errors import ResourceError
from multiseg.models import imported
from multiseg.models.brain_network import BRAIN_FILE
from multiseg.models.builders import multi_unet
from multiseg.models.saved import load_model, read_info

CHANNELS = "PD,FLAIR,SWI,T1,T1c,T2"
UNITS = {"first": "conv.unit0", "second": "conv.unit1", "keep": "1", "reduce": "2"}
PARTS = {"conv": "conv", "activation": "adn.A", "norm": "adn.N"}


def released(norm: str = "instance", num_logits: int = 1) -> tuple[torch.nn.Module, dict[str, Tensor]]:
    """A small network of six channels with weights of its own, and its tensors under their published names."""
    torch.manual_seed(5)
    network = multi_unet(6, num_logits, widths=(8, 12, 16), norm=norm).eval()
    state = {}
    for name, tensor in network.state_dict().items():
        side, number, unit, *rest = name.split(".")
        part, kind = ["conv", *rest][-2:]
        head = f"conv_{int(number) + 1}" if side == "encoder" else f"up_stage_{int(number) + 1}"
        if kind in ("running_mean", "running_var"):
            tensor += torch.rand(tensor.shape)
        state[f"{head}.{UNITS[unit]}.{PARTS[part]}.{kind}"] = tensor
    return network, state


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.save(released()[1], tmp_path / "x.pth")
    return tmp_path / "x.pth"


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_a_published_file_becomes_a_model_that_answers_alike(
    norm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network, state = released(norm)
    torch.save({"epoch": 599, "model_state_dict": {f"module.{n}": t for n, t in state.items()}}, tmp_path / "x.pth")
    out = tmp_path / "models" / "published"
    command = ["import-weights", str(tmp_path / "x.pth"), "--channels", CHANNELS, "--out", str(out), "--patch", "32"]
    assert (
        run([*command, "--untrained", "SWI", "--trained-on", "BRATS", "--trained-on", "WMH", "--licence", "MIT"]) == 0
    )
    said = " ".join(capsys.readouterr().out.split())
    assert f"{norm} norm. Channels: PD, FLAIR, SWI (untrained: never used), T1, T1c, T2. Background: shifted" in said

    model = load_model(out)
    images, present = torch.randn(1, 6, 16, 8, 8), torch.tensor([[True, True, False, True, True, False]])
    with torch.inference_mode():
        expected = network(images, present)
        assert expected.abs().max() > 0.05
        torch.testing.assert_close(model(images, present), expected, atol=1e-5, rtol=0)
    info = model.info
    assert (tuple(info.axis), info.spacing_mm, info.patch) == (tuple(CHANNELS.split(",")), (1.0,) * 3, (32,) * 3)
    assert info.trained_on["T1"] == ("BRATS", "WMH")
    assert info.usable(("SWI", "T2")) == ("T2",)
    assert info.numbers == {"widths": [8, 12, 16], "dropout": 0.2, "norm": norm}
    assert (info.background, info.licence) == ("shifted", "MIT")
    assert info.databases["WMH"]["imported"]["file"] == "x.pth"


def test_what_it_says_as_json(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    flags = ["--channels", "pd,flair,swi,t1w,t1ce,t2", "--out", str(out), "--background", "zero"]
    assert run(["import-weights", str(weights), *flags, "--spacing", "1,1,3", "--patch", "16", "--json"]) == 0
    said = checked(capsys.readouterr().out, "import-weights")
    assert said["path"] == str(out / "model.safetensors")
    assert said["axis"] == CHANNELS.split(",")
    assert (said["background"], said["spacing_mm"], said["trained_on"]["SWI"]) == (
        "zero",
        [1.0, 1.0, 3.0],
        ["imported"],
    )
    assert read_info(out / "model.safetensors").background == "zero"


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--channels", "FLAIR,T1,T1c,T2"], 3, "has 6 input channels, but 4 are named (FLAIR, T1, T1c, T2)"),
        (["--channels", "PD,FLAIR,SWI,T1,T1ce,t1c"], 3, "name T1c twice"),
        (["--channels", "PD,FLAIR,SWI,T1,T1c,lesion"], 3, "the channel 'lesion' is not a known sequence"),
        (["--channels", "DP,FLAIR,SWI,T1,T1c,T2"], 3, "DP is how the release spells PD"),
        (["--channels", ""], 3, "needs one or more distinct names"),
        (["--channels", CHANNELS, "--untrained", "ADC"], 3, "no channel for ADC"),
        (["--channels", CHANNELS, "--untrained", CHANNELS], 3, "the model could not use any sequence"),
        (["--channels", CHANNELS, "--patch", "30"], 2, "give multiples of 4, at least 8"),
        (["--channels", CHANNELS, "--patch", "4"], 2, "give multiples of 4, at least 8"),
        (["--channels", CHANNELS, "--spacing", "-1"], 2, "voxel sizes must be above 0"),
        (["--channels", CHANNELS, "--background", "black"], 2, "background is 'black': give one of zero, shifted"),
    ],
)
def test_what_is_refused_leaves_nothing(
    flags: list[str], code: int, message: str, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["import-weights", str(weights), "--out", str(tmp_path / "out"), "--patch", "16", *flags]) == code
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def change(name: str, value: object) -> dict[str, object]:
    return {**released()[1], name: value}


@pytest.mark.parametrize(
    ("held", "message"),
    [
        (b"no torch file", "does not hold weights alone"),
        (
            {n: t for n, t in released()[1].items() if n != "conv_2.conv.unit1.adn.A.weight"},
            "missing: conv_2.conv.unit1",
        ),
        (change("conv_2.conv.unit1.conv.gain", torch.ones(1)), "weight standardisation"),
        (change("conv_2.conv.unit1.adn.A.weight", torch.tensor([math.nan])), "values that are not finite"),
        (released(num_logits=3)[1], "has 3 logits"),
    ],
)
def test_a_file_that_does_not_fit_leaves_nothing(
    held: object, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if isinstance(held, bytes):
        (tmp_path / "x.pth").write_bytes(held)
    else:
        torch.save(held, tmp_path / "x.pth")
    flags = ["--channels", CHANNELS, "--patch", "16", "--out", str(tmp_path / "out")]
    assert run(["import-weights", str(tmp_path / "x.pth"), *flags]) == 3
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def full_disk(*others: object) -> None:
    raise ResourceError("the disk is full.")


def test_a_model_is_replaced_only_when_asked(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["import-weights", str(weights), "--channels", CHANNELS, "--patch", "16", "--out", str(tmp_path / "out")]
    assert run(command) == 0
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert run([*command, "--untrained", "PD"]) == 2
    assert "already holds a model (model.safetensors)" in " ".join(capsys.readouterr().err.split())
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before
    (tmp_path / "out" / BRAIN_FILE).write_bytes(b"the brain network of the model before")
    with monkeypatch.context() as patch:
        patch.setattr(imported, "save_model", full_disk)
        assert run([*command, "--untrained", "PD", "--overwrite"]) != 0
    assert (tmp_path / "out" / BRAIN_FILE).exists()  # of the model that is still there
    assert run([*command, "--untrained", "PD", "--overwrite"]) == 0
    assert not (tmp_path / "out" / BRAIN_FILE).exists()
    assert load_model(tmp_path / "out").info.trained_on["PD"] == ()
