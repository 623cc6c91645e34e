import pytest
import torch

from multiseg.models.builders import multi_unet
from multiseg.training.checkpoint import TrainState


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """The networks here are so small that several threads only wait for each other, above all on a busy machine."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # of the processes that a test starts
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def few_state():
    """A function that gives a small network in a fresh state of training."""

    def make(dropout=0.2):
        torch.manual_seed(5)
        network = multi_unet(4, 1, widths=(4, 8), dropout=dropout)
        optimiser = torch.optim.Adam(network.parameters())
        return TrainState(network, optimiser, torch.amp.GradScaler("cpu", enabled=False))

    return make
