import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """The networks here are so small that several threads only wait for each other, above all on a busy machine."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # of the processes that a test starts
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
