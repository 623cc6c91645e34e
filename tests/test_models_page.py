"""The page on networks: its names and its table."""

import re
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import networks
from benchmarks.networks import figures, kept_for_backward, row, table
from multiseg.models.blocks import NORMS
from multiseg.models.builders import NETWORKS, build

PAGE = (Path(__file__).parents[1] / "docs" / "models.md").read_text(encoding="utf-8")


def test_every_network_and_every_norm_is_on_the_page() -> None:
    named = re.findall(r"^\| `(\w+)` \|", PAGE, flags=re.MULTILINE)
    assert sorted(named) == sorted([*NETWORKS, *NORMS])


whole_network = cache(figures)
"""Each network at 128^3 is counted once for all tests."""


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_a_networks_line_is_that_of_the_command(name: str) -> None:
    assert row(name, 6, whole_network(name, 6, 128)) in PAGE.splitlines()


@pytest.mark.slow
def test_the_table_is_that_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "figures", whole_network)
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
