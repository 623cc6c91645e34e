"""The released network of Xu et al. 2024: its tensors' names and shapes, and what it answers."""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from multiseg.errors import CheckpointError
from multiseg.models.builders import multi_unet
from multiseg.models.published import load_published, our_name

HERE = Path(__file__).parent


def drawn(name, shape):
    """A tensor of the seeded rule by which the expected logits were made with the released code."""
    values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if len(shape) == 5:
        values = values * math.sqrt(2 / math.prod(shape[1:]))
    elif name.endswith("adn.A.weight"):
        values = 0.25 + 0.05 * values
    else:
        values = 0.1 * values
    return torch.from_numpy(values.astype(np.float32))


@pytest.fixture(scope="module")
def released():
    shapes = json.loads((HERE / "published_tensors.json").read_text(encoding="utf-8"))
    return {name: drawn(name, shape) for name, shape in shapes.items()}


def test_the_answer_is_that_of_the_released_network(released):
    """`published_logits.npy`: every fourth voxel of its output, with weights and input of the seeded rule."""
    network = multi_unet(6, 1)
    load_published(network, released)
    images = np.random.default_rng(1234).standard_normal((1, 6, 32, 48, 32)).astype(np.float32)
    with torch.inference_mode():
        logits = network.eval()(torch.from_numpy(images), torch.ones(1, 6, dtype=torch.bool))
    expected = np.load(HERE / "published_logits.npy")
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(logits[0, 0, ::4, ::4, ::4].numpy(), expected, atol=1e-5)


def test_every_tensor_of_ours_has_its_published_name(released):
    own = set(multi_unet(6, 1).state_dict())
    names = {our_name(name).replace("decoder.3.reduce.conv.", "decoder.3.reduce.") for name in released}
    assert len(released) == 53
    assert names == own


def test_a_state_dict_that_does_not_fit_is_refused(released):
    network = multi_unet(6, 1)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    first = "conv_1.conv.unit0.conv.weight"
    without = {name: tensor for name, tensor in released.items() if name != first}
    with pytest.raises(CheckpointError, match=r"encoder\.0\.first\.conv\.weight \(1 tensors\)"):
        load_published(network, without)
    with pytest.raises(CheckpointError, match=r"encoder\.0\.first\.conv\.weight \(1 tensors\)"):
        load_published(network, released | {first: torch.zeros(16, 5, 3, 3, 3)})
    with pytest.raises(CheckpointError, match=r"encoder\.8\.first\.conv\.weight"):
        load_published(network, released | {"conv_9.conv.unit0.conv.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"no tensor 'conv_1\.conv\.unit0\.norm\.weight'"):
        load_published(network, released | {"conv_1.conv.unit0.norm.weight": torch.zeros(1)})
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
