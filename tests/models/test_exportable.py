"""The form of a network that computes every sequence, and leaves out what is not present."""

import itertools

import pytest
import torch

from multiseg.export.onnx_file import exportable
from multiseg.models.builders import NETWORKS, build
from multiseg.models.presence import AllPairs, Pairs

SUBSETS = torch.tensor(list(itertools.product((True, False), repeat=3))[:-1])
COMPUTE_ONLY_PRESENT = ("lf_unet", "maf_unet", "hemis", "highres3d_hetero", "unet_hetero")


@pytest.mark.parametrize("name", COMPUTE_ONLY_PRESENT)
def test_computing_all_and_masking_gives_the_same_logits(name: str) -> None:
    torch.manual_seed(0)
    network = build(name, 3, 2, widths=(2, 3), dropout=0.1).eval()
    images = torch.randn(len(SUBSETS), 3, 6, 4, 4)
    made = exportable(network)
    with torch.inference_mode():
        expected = network(images, SUBSETS)
        torch.testing.assert_close(made(images, SUBSETS), expected, atol=1e-5, rtol=0)
        # What an absent channel holds has no effect, even if it is not finite.
        held = torch.where(SUBSETS[:, :, None, None, None], images, torch.nan)
        torch.testing.assert_close(made(held, SUBSETS), expected, atol=1e-5, rtol=0)
    assert any(getattr(module, "pairs_of", None) == Pairs.of for module in network.modules())  # it is a copy


@pytest.mark.parametrize("name", COMPUTE_ONLY_PRESENT)
def test_only_what_is_present_is_computed_otherwise(name: str) -> None:
    """A network that computes only what is present has a form that computes all, and no other network needs one."""
    made = {other: exportable(build(other, 3, 2, widths=(4, 6, 8), dropout=0.0)) for other in (name, "multi_unet")}
    found = {key: any(hasattr(module, "pairs_of") for module in net.modules()) for key, net in made.items()}
    assert found == {name: True, "multi_unet": False}
    assert name in NETWORKS


def test_the_pairs_of_all_by_hand() -> None:
    present = torch.tensor([[False, True], [False, False]])
    pairs = AllPairs.of(present, torch.device("cpu"))
    assert pairs.present.tolist() == [[False, True], [True, False]]  # without any sequence it has the first
    parts = {0: torch.tensor([1.0, 2.0]).reshape(2, 1, 1, 1, 1), 1: torch.tensor([4.0, 8.0]).reshape(2, 1, 1, 1, 1)}
    assert pairs.summed(parts).flatten().tolist() == [4.0, 2.0]
    assert pairs.mean(parts).flatten().tolist() == [4.0, 2.0]
    joined = torch.cat(list(parts.values()))
    assert {m: part.flatten().tolist() for m, part in pairs.separated(joined).items()} == {0: [1, 2], 1: [4, 8]}
