"""Fusion by attention: against the formula, and only of what is there."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own idiom)

from multiseg.models.builders import lf_unet, maf_unet, multi_unet
from multiseg.models.fusion import AttentionFusion
from multiseg.models.presence import Pairs

WIDTHS = (4, 6, 8)
PRESENT = torch.tensor([[True, False, True], [False, False, True], [True, True, True]])


def gathered(z, pairs):
    return {m: z[rows, m] for m, rows in pairs.rows.items()}


@pytest.fixture
def fusion():
    torch.manual_seed(0)
    return AttentionFusion(3, 4)


@pytest.fixture
def z():
    """Features of three sequences for three samples: [batch modality width i j k]."""
    return torch.randn(3, 3, 4, 5, 4, 3, generator=torch.Generator().manual_seed(1))


def test_the_formula_on_a_whole_concatenation(fusion, z):
    pairs = Pairs.of(PRESENT, torch.device("cpu"))
    weight = torch.cat([slot.weight for slot in fusion.slots], dim=1)
    slots = torch.where(PRESENT[:, :, None, None, None, None], z, 0.0).flatten(1, 2)
    scores = fusion.score(fusion.activation(F.conv3d(slots, weight, fusion.slots[0].bias)))
    a = torch.softmax(torch.where(PRESENT[:, :, None, None, None], scores, -torch.inf), dim=1)
    expected = (a[:, :, None] * torch.where(PRESENT[:, :, None, None, None, None], z, 0.0)).sum(1)
    torch.testing.assert_close(fusion(gathered(z, pairs), pairs), expected, atol=1e-6, rtol=0)


def test_weights_by_hand(fusion):
    """Scores log 3 and log 1 share the weight as 3 to 1 where both sequences are, and not at all where one is."""
    with torch.no_grad():
        fusion.score.weight.zero_()
        fusion.score.bias.copy_(torch.tensor([3.0, 100.0, 1.0]).log())
    pairs = Pairs.of(PRESENT[:2], torch.device("cpu"))
    z = torch.stack([torch.full((2, 4, 2, 2, 2), value) for value in (8.0, 1e6, 4.0)], dim=1)
    out = fusion(gathered(z, pairs), pairs)
    torch.testing.assert_close(out[0], torch.full((4, 2, 2, 2), 7.0))
    torch.testing.assert_close(out[1], torch.full((4, 2, 2, 2), 4.0))


def test_pairs_by_hand():
    present = torch.tensor([[False, True, False], [False, False, False], [False, True, True]])
    pairs = Pairs.of(present, torch.device("cpu"))
    assert {m: rows.tolist() for m, rows in pairs.rows.items()} == {0: [1], 1: [0, 2], 2: [2]}
    assert pairs.present[1].tolist() == [True, False, False]
    summed = pairs.summed(
        {0: torch.ones(1, 1, 1, 1, 1), 1: 2 * torch.ones(2, 1, 1, 1, 1), 2: torch.ones(1, 1, 1, 1, 1)}
    )
    assert summed.flatten().tolist() == [2.0, 1.0, 3.0]


def test_with_one_sequence_late_fusion_is_its_u_net():
    network = lf_unet(3, 2, WIDTHS, dropout=0.0)
    alone = multi_unet(1, 2, WIDTHS, dropout=0.0)
    alone.load_state_dict(network.unet.state_dict())
    images = torch.randn(1, 3, 8, 8, 8)
    for m in range(3):
        out = network(images, torch.arange(3)[None] == m)
        torch.testing.assert_close(out, alone(images[:, m : m + 1], torch.ones(1, 1, dtype=torch.bool)))


def test_late_fusion_treats_all_sequences_alike():
    """The same U-Net for all: to permute the sequences is to permute slots and attention maps."""
    network, permuted = (lf_unet(3, 2, WIDTHS, dropout=0.0) for _ in range(2))
    order = torch.tensor([2, 0, 1])
    state = network.state_dict()
    new = dict(state)
    for at, old in enumerate(order.tolist()):
        new[f"fusion.slots.{at}.weight"] = state[f"fusion.slots.{old}.weight"]
    for name in ("fusion.score.weight", "fusion.score.bias"):
        new[name] = state[name][order]
    permuted.load_state_dict(new)
    images = torch.randn(3, 3, 8, 8, 8)
    torch.testing.assert_close(
        permuted(images[:, order], PRESENT[:, order]), network(images, PRESENT), atol=1e-5, rtol=0
    )


def test_many_scales_treat_all_sequences_alike():
    network, permuted = (maf_unet(3, 2, WIDTHS, dropout=0.0) for _ in range(2))
    order = [2, 0, 1]
    state = network.state_dict()
    new = {}
    for name, tensor in state.items():
        part, at, *rest = name.split(".")
        if part == "encoders":
            new[".".join([part, str(order.index(int(at))), *rest])] = tensor
        elif part == "fusions" and rest[0] == "slots" and rest[2] == "weight":
            new[".".join([part, at, "slots", str(order.index(int(rest[1]))), "weight"])] = tensor
        else:
            new[name] = tensor[order] if part == "fusions" and rest[0] == "score" else tensor
    permuted.load_state_dict(new)
    images = torch.randn(3, 3, 8, 8, 8)
    torch.testing.assert_close(
        permuted(images[:, order], PRESENT[:, order]), network(images, PRESENT), atol=1e-5, rtol=0
    )


def rows_seen(unit, run):
    seen = []
    handle = unit.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    run()
    handle.remove()
    return seen


def test_only_what_is_present_is_computed():
    images = torch.randn(3, 3, 8, 8, 8)
    late, scales = lf_unet(3, 1, WIDTHS), maf_unet(3, 1, WIDTHS)
    assert rows_seen(late.unet.encoder[0], lambda: late(images, PRESENT)) == [6]
    for m, expected in enumerate([[2], [1], [3]]):
        assert rows_seen(scales.encoders[m][0], lambda: scales(images, PRESENT)) == expected
    assert rows_seen(scales.encoders[1][0], lambda: scales(images[:2], PRESENT[:2])) == []
    scales(images[:2], PRESENT[:2]).sum().backward()
    assert all(p.grad is None for p in scales.encoders[1].parameters())


@pytest.mark.parametrize("builder", [lf_unet, maf_unet])
def test_attention_learns(builder):
    network = builder(3, 1, WIDTHS, dropout=0.0)
    network(torch.randn(3, 3, 8, 8, 8), PRESENT).square().sum().backward()
    fusions = [network.fusion] if builder is lf_unet else network.fusions
    for fusion in fusions:
        assert all(p.grad.abs().sum() > 0 for p in fusion.parameters())
