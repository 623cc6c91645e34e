"""Two columns, one frozen."""

import pytest
import torch

from multiseg.errors import UsageError
from multiseg.models.builders import build, multi_unet, progressive
from multiseg.models.unet import decoded, encode

WIDTHS = (4, 6, 8, 10)
ALL = torch.ones(2, 4, dtype=torch.bool)


@pytest.fixture
def images():
    return torch.randn(2, 4, 16, 16, 16, generator=torch.Generator().manual_seed(1))


def test_the_first_column_is_the_trained_network(images):
    trained = multi_unet(3, 2, WIDTHS).eval()
    network = progressive(4, 2, WIDTHS, first_modalities=3)
    network.first.load_state_dict(trained.state_dict())
    assert torch.equal(network.first(images[:, :3], ALL[:, :3]), trained(images[:, :3], ALL[:, :3]))


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_training_leaves_the_first_column_alone(norm, images):
    network = progressive(4, 1, WIDTHS, dropout=0.3, norm=norm)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    # What a loop might do that thaws a head: nothing may learn here all the same.
    network.requires_grad_(True).train()
    assert not any(module.training for module in network.first.modules())
    optimiser = torch.optim.AdamW(network.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(2):
        optimiser.zero_grad()
        network(images, ALL).square().sum().backward()
        optimiser.step()
    after = network.state_dict()
    for name in after:
        own = not name.startswith("first.")
        assert own or torch.equal(after[name], before[name]), name
    moved = [name for name in after if not torch.equal(after[name], before[name])]
    assert {name.split(".")[0] for name in moved} == {"encoder", "decoder"}


def test_only_the_second_column_is_trainable():
    network = progressive(4, 1, WIDTHS)
    assert {name.split(".")[0] for name, p in network.named_parameters() if p.requires_grad} == {"encoder", "decoder"}
    assert not any(module.training for module in network.first.modules())
    assert not network.eval().training


def test_convolutions_after_a_concatenation_are_wider_and_nothing_else():
    network, plain = progressive(3, 2, WIDTHS), multi_unet(3, 2, WIDTHS)
    widened = {f"encoder.{at}.first.conv.weight" for at in (1, 2)} | {
        f"decoder.{at}.keep.conv.weight" for at in range(3)
    }
    own = network.state_dict()
    for name, tensor in plain.state_dict().items():
        expected = list(tensor.shape)
        expected[1:2] = [2 * n if name in widened else n for n in expected[1:2]]
        assert list(own[name].shape) == expected, name


def test_without_lateral_weights_the_second_column_is_a_multi_unet(images):
    network, plain = progressive(4, 2, WIDTHS).eval(), multi_unet(4, 2, WIDTHS).eval()
    own, state = plain.state_dict(), network.state_dict()
    for name, tensor in own.items():
        n = tensor.shape[1] if tensor.dim() > 1 else 0
        own[name] = state[name][:, :n] if n else state[name]
    plain.load_state_dict(own)
    with_laterals = network(images, ALL)
    with torch.no_grad():
        for name, tensor in network.named_parameters():
            if name in own and own[name].shape != tensor.shape:
                tensor[:, own[name].shape[1] :] = 0
    torch.testing.assert_close(network(images, ALL), plain(images, ALL), atol=1e-5, rtol=0)
    assert not torch.allclose(with_laterals, plain(images, ALL), atol=1e-3)


def test_where_the_first_column_is_read(images):
    """Behind the second column's own features, before every strided convolution but the first and every upsampling."""
    network = progressive(4, 2, WIDTHS).eval()
    read = {}

    def keep(name):
        return lambda module, args: read.__setitem__(name, args[0])

    for at in range(3):
        network.encoder[at].first.register_forward_pre_hook(keep(f"encoder {at}"))
        network.decoder[at].upsample.register_forward_pre_hook(keep(f"decoder {at}"))
    network(images, ALL)
    theirs = encode(network.first.encoder, images)
    deeps = decoded(network.first.decoder, theirs)
    assert torch.equal(read["encoder 0"], images)
    for at in (1, 2):
        assert torch.equal(read[f"encoder {at}"][:, WIDTHS[at - 1] :], theirs[at - 1])
    for at, deep in enumerate(deeps):
        skip = theirs[2 - at]
        expected = torch.cat([deep, skip], dim=1)
        assert torch.equal(read[f"decoder {at}"][:, expected.shape[1] :], expected)
        assert read[f"decoder {at}"].shape[1] == 2 * expected.shape[1]


def test_the_first_column_sees_only_what_it_knows(images):
    network = progressive(4, 1, WIDTHS, first_modalities=2)
    seen = []
    network.first.encoder[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    present = ALL.clone()
    present[0, 1] = False
    network(images, present)
    assert torch.equal(
        seen[0], torch.stack([images[0, :2] * torch.tensor([1.0, 0.0])[:, None, None, None], images[1, :2]])
    )


@pytest.mark.parametrize("first_modalities", [0, 5, -1])
def test_more_sequences_than_there_are(first_modalities):
    with pytest.raises(UsageError, match=f"first_modalities is {first_modalities}: give a number from 1 to 4"):
        progressive(4, 1, WIDTHS, first_modalities=first_modalities)


def test_a_saved_pair_of_columns_is_whole(images):
    network = progressive(4, 2, WIDTHS, norm="group", first_modalities=3).eval()
    numbers = {"widths": list(WIDTHS), "dropout": 0.2, "norm": "group", "first_modalities": 3}
    again = build("progressive", 4, 2, **numbers).eval()
    again.load_state_dict(network.state_dict())
    assert torch.equal(again(images, ALL), network(images, ALL))
