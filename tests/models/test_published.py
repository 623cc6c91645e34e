"""The released networks of Xu et al. 2024 and FedUniBrain: their tensors' names and shapes, and what they answer."""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own idiom)
from torch import Tensor

from multiseg.errors import CheckpointError
from multiseg.models.builders import multi_unet
from multiseg.models.published import PublishedSize, load_published, our_name, read_published, size_of, their_name

HERE = Path(__file__).parent
FIRST = "conv_1.conv.unit0.conv.weight"


def drawn(name: str, shape: list[int]) -> Tensor:
    """A tensor of the seeded rule by which the expected logits were made with the released code."""
    values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if len(shape) == 5:
        values = values * math.sqrt(2 / math.prod(shape[1:]))
    elif name.endswith("adn.A.weight"):
        values = 0.25 + 0.05 * values
    else:
        values = 0.1 * values
    return torch.from_numpy(values.astype(np.float32))


def with_batch_norm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same with the entries of FedUniBrain's batch norm, beside each activation's slope."""
    grown = dict(state)
    for slope in [name for name in state if name.endswith("adn.A.weight")]:
        unit = slope.removesuffix(".adn.A.weight")
        shape = list(state[f"{unit}.conv.bias"].shape)
        numbers = {name: drawn(f"{unit}.adn.N.{name}", shape) for name in ("weight", "bias", "running_mean")}
        numbers["weight"] = 1 + numbers["weight"]
        numbers["running_var"] = 0.5 + drawn(f"{unit}.adn.N.running_var", shape).abs() * 10
        grown |= {f"{unit}.adn.N.{name}": tensor for name, tensor in numbers.items()}
        grown[f"{unit}.adn.N.num_batches_tracked"] = torch.tensor(58)
    return grown


def reference_unit(state: dict[str, Tensor], unit: str, x: Tensor, stride: int = 1) -> Tensor:
    x = F.conv3d(x, state[f"{unit}.conv.weight"], state[f"{unit}.conv.bias"], stride, padding=1)
    norm = {name.removeprefix(f"{unit}.adn.N."): state[name] for name in state if name.startswith(f"{unit}.adn.N.")}
    if norm:
        x = F.batch_norm(x, norm["running_mean"], norm["running_var"], norm["weight"], norm["bias"], eps=1e-5)
    else:
        x = F.instance_norm(x, eps=1e-5)
    return F.prelu(x, state[f"{unit}.adn.A.weight"])


def reference_forward(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """The published network written out once more, from its own names and torch's functions alone."""
    features = []
    for number, stride in enumerate((2, 2, 2, 2, 1), start=1):
        out = reference_unit(state, f"conv_{number}.conv.unit0", x, stride)
        out = reference_unit(state, f"conv_{number}.conv.unit1", out)
        shortcut = x if stride == 1 else F.avg_pool3d(x, 3, stride=2, padding=1, count_include_pad=True)
        widened = torch.zeros_like(out)
        widened[:, : x.shape[1]] = shortcut
        x = out + widened
        features.append(x)
    for number in (1, 2, 3, 4):
        x = F.interpolate(torch.cat([x, features[4 - number]], dim=1), scale_factor=2, mode="nearest")
        x = reference_unit(state, f"up_stage_{number}.1", x)
        if number < 4:
            x = reference_unit(state, f"up_stage_{number}.2", x)
    return F.conv3d(x, state["up_stage_4.2.conv.weight"], state["up_stage_4.2.conv.bias"], padding=1)


@pytest.fixture(scope="module")
def released() -> dict[str, Tensor]:
    shapes = json.loads((HERE / "published_tensors.json").read_text(encoding="utf-8"))
    return {name: drawn(name, shape) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.from_numpy(np.random.default_rng(1234).standard_normal((1, 6, 32, 48, 32)).astype(np.float32))


def answered(state: dict[str, Tensor], images: Tensor) -> Tensor:
    size = size_of(state)
    network = multi_unet(size.num_channels, size.num_logits, size.widths, norm=size.norm)
    load_published(network, state)
    with torch.inference_mode():
        logits: Tensor = network.eval()(images, torch.ones(images.shape[:2], dtype=torch.bool))
    return logits


def test_the_answer_is_that_of_the_released_network(released: dict[str, Tensor], images: Tensor) -> None:
    """`published_logits.npy`: every fourth voxel of its output, with weights and input of the seeded rule."""
    logits = answered(released, images)
    expected = np.load(HERE / "published_logits.npy")
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(logits[0, 0, ::4, ::4, ::4].numpy(), expected, atol=1e-5)
    with torch.inference_mode():
        written_out = reference_forward(released, images)
    np.testing.assert_allclose(written_out[0, 0, ::4, ::4, ::4].numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(logits.numpy(), written_out.numpy(), atol=1e-5)


@pytest.mark.slow
def test_the_answer_is_that_of_the_network_with_batch_norm(released: dict[str, Tensor], images: Tensor) -> None:
    state = with_batch_norm(released)
    logits = answered(state, images)
    with torch.inference_mode():
        expected = reference_forward(state, images)
    assert len(state) == 138
    assert sum(tensor.numel() for tensor in state.values()) == 8_904_354 + 2 * 1712 + 17
    assert expected.abs().max() > 0.5
    np.testing.assert_allclose(logits.numpy(), expected.numpy(), atol=1e-5)


def test_every_tensor_of_ours_has_its_published_name(released: dict[str, Tensor]) -> None:
    for state, norm in ((released, "instance"), (with_batch_norm(released), "batch")):
        own = set(multi_unet(6, 1, norm=norm).state_dict())
        names = {our_name(name).replace("decoder.3.reduce.conv.", "decoder.3.reduce.") for name in state}
        assert len(names) == len(state) == (53 if norm == "instance" else 138)
        assert names == own


def test_the_size_is_read_off_the_shapes(released: dict[str, Tensor]) -> None:
    widths = (16, 32, 64, 128, 256)
    assert size_of(released) == PublishedSize(6, 1, widths, "instance")
    assert size_of(with_batch_norm(released)) == PublishedSize(6, 1, widths, "batch")
    small = multi_unet(3, 2, widths=(4, 8, 12))
    theirs = published_names(small.state_dict())
    assert size_of(theirs) == PublishedSize(3, 2, (4, 8, 12), "instance")
    load_published(multi_unet(3, 2, widths=(4, 8, 12)), theirs)


def published_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our names turned back, by hand."""
    units = {"first": "unit0", "second": "unit1", "keep": "1", "reduce": "2"}
    parts = {"conv": "conv", "activation": "adn.A", "norm": "adn.N"}
    found = {}
    for name, tensor in state.items():
        side, number, unit, *rest = name.split(".")
        rest = ["conv", *rest] if len(rest) == 1 else rest
        head = f"conv_{int(number) + 1}.conv" if side == "encoder" else f"up_stage_{int(number) + 1}"
        found[f"{head}.{units[unit]}.{parts[rest[0]]}.{rest[1]}"] = tensor
    return found


def test_a_state_dict_that_does_not_fit_is_refused(released: dict[str, Tensor]) -> None:
    network = multi_unet(6, 1)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    without = {name: tensor for name, tensor in released.items() if name != FIRST}
    with pytest.raises(CheckpointError, match=r"missing: conv_1\.conv\.unit0\.conv\.weight \(1 tensors\)"):
        load_published(network, without)
    with pytest.raises(CheckpointError, match=r"of another shape: conv_1\.conv\.unit0\.conv\.weight \(1 tensors\)"):
        load_published(network, released | {FIRST: torch.zeros(16, 5, 3, 3, 3)})
    with pytest.raises(CheckpointError, match=r"left over: conv_9\.conv\.unit0\.conv\.weight"):
        load_published(network, released | {"conv_9.conv.unit0.conv.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"no tensor 'conv_1\.conv\.unit0\.norm\.weight'"):
        load_published(network, released | {"conv_1.conv.unit0.norm.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"no plain numbers: conv_1\.conv\.unit0\.conv\.weight"):
        load_published(network, released | {FIRST: released[FIRST].to(torch.complex64)})
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e300])
def test_weights_that_are_not_finite_are_refused(released: dict[str, Tensor], value: float) -> None:
    broken = released[FIRST].double()
    broken[3, 2, 1, 1, 1] = value
    with pytest.raises(CheckpointError, match=r"conv_1\.conv\.unit0\.conv\.weight \(1 tensors\) hold values that are"):
        load_published(multi_unet(6, 1), released | {FIRST: broken})


def test_other_networks_are_refused_by_name(released: dict[str, Tensor]) -> None:
    with pytest.raises(CheckpointError, match=r"'conv_1\.conv\.unit0\.conv\.gain'.*weight standardisation"):
        size_of(released | {"conv_1.conv.unit0.conv.gain": torch.ones(16, 1, 1, 1, 1)})
    grouped = {name: t for name, t in with_batch_norm(released).items() if "running" not in name}
    with pytest.raises(CheckpointError, match=r"'conv_1\.conv\.unit0\.adn\.N\.weight'.*GROUP"):
        size_of(grouped)
    with pytest.raises(CheckpointError, match=r"no tensor 'conv_1\.conv\.unit0\.conv\.weight'.*; it has fc\.weight"):
        size_of({"fc.weight": torch.zeros(2, 2)})
    with pytest.raises(CheckpointError, match=r"no tensor 'up_stage_4\.2\.conv\.weight': it is incomplete"):
        size_of({name: tensor for name, tensor in released.items() if not name.startswith("up_stage_4")})
    with pytest.raises(CheckpointError, match=r"of shape \[16, 6\] is not the weight"):
        size_of(released | {FIRST: torch.zeros(16, 6)})


@pytest.mark.parametrize("wrapping", ["{}", "state_dict", "model_state_dict", "model", "both"])
def test_common_wrappings_and_prefixes_are_understood(wrapping: str, tmp_path: Path) -> None:
    state = {"conv_1.conv.unit0.conv.bias": torch.arange(3.0), "module_like.weight": torch.ones(2)}
    held = {
        "{}": state,
        "both": {"epoch": 3, "model": {"state_dict": {f"module._orig_mod.{n}": t for n, t in state.items()}}},
    }.get(wrapping, {wrapping: {f"module.{n}": t for n, t in state.items()}, "epoch": 3, "note": "best"})
    torch.save(held, tmp_path / "x.pth")
    found = read_published(tmp_path / "x.pth")
    assert list(found) == list(state)
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


class Evil:
    """What a pickle may hide: loading it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.write_text, (self.path, "run")


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": Evil(tmp_path / "ran")}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"x\.pth does not hold weights alone.*never done"):
        read_published(tmp_path / "x.pth")
    assert not (tmp_path / "ran").exists()
    torch.save(multi_unet(2, 1, widths=(4, 8)), tmp_path / "whole.pth")
    with pytest.raises(CheckpointError, match=r"whole\.pth does not hold weights.*save only its state_dict\(\)"):
        read_published(tmp_path / "whole.pth")


def test_names_go_there_and_back():
    for norm in ("instance", "batch"):
        network = multi_unet(6, 1, norm=norm)
        for ours in network.state_dict():
            assert our_name(their_name(ours)).replace("decoder.3.reduce.conv.", "decoder.3.reduce.") == ours


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no file of weights at .*none\.pth"):
        read_published(tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match="no file of weights at"):
        read_published(tmp_path)
    path = tmp_path / "x.pth"
    torch.save({"a": torch.zeros(1000)}, path)
    whole = path.read_bytes()
    for data in (b"", b"hello, this is text", b"\x80\x02garbage", bytes(1000), whole[:2000], whole[:-30], whole[10:]):
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=r"x\.pth (does not hold weights|was not written by)"):
            read_published(path)


def test_files_without_a_state_dict(tmp_path: Path) -> None:
    for held, said in [
        ([torch.zeros(1)], "holds no state dict .*but a list"),
        ({}, "but nothing"),
        ({"epoch": 3, "loss": 0.5, "w": torch.zeros(1)}, r"epoch, loss \(2 entries\) are not tensors"),
        ({"a": torch.zeros(1), "module.a": torch.zeros(1)}, "holds some tensors twice"),
    ]:
        torch.save(held, tmp_path / "x.pth")
        with pytest.raises(CheckpointError, match=said):
            read_published(tmp_path / "x.pth")
