"""The page on networks: its names and its table."""

import re
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.networks import figures, kept_for_backward, table
from multiseg.models.blocks import NORMS
from multiseg.models.builders import NETWORKS, build

PAGE = (Path(__file__).parents[1] / "docs" / "models.md").read_text(encoding="utf-8")


def test_every_network_and_every_norm_is_on_the_page() -> None:
    named = re.findall(r"^\| `(\w+)` \|", PAGE, flags=re.MULTILINE)
    assert sorted(named) == sorted([*NETWORKS, *NORMS])


@pytest.mark.slow
def test_the_table_is_that_of_the_command() -> None:
    assert "\n".join(table(128)) in PAGE


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lf_unet", "hemis", "multi_unet_plus"])
def test_what_is_counted_on_shapes_is_what_a_run_does(name: str) -> None:
    present = torch.tensor([True, False])
    network, images = build(name, 2, 1), torch.randn(1, 2, 32, 32, 32)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(images, present[None])
    found = figures(name, 2, 32, present)
    assert found.flop == counter.get_total_flops()
    assert found.kept == kept_for_backward(network.train(), images, present[None])
