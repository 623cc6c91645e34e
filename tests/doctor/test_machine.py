"""The checks of a machine say what is wrong with it, and what to do."""

import errno
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from multiseg.doctor import machine
from multiseg.doctor.check_record import ERROR, OK, WARNING

GIB = 2**30


class Cards:
    """Stands for torch.cuda: cards with so many GiB free. They compute on the processor."""

    def __init__(self, *free_gib: float) -> None:
        self.free_gib = free_gib

    def is_available(self) -> bool:
        return bool(self.free_gib)

    def device_count(self) -> int:
        return len(self.free_gib)

    def mem_get_info(self, number: int) -> tuple[float, float]:
        return self.free_gib[number] * GIB, 80 * GIB

    def get_device_name(self, number: int) -> str:
        return "a card"


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What stands for the file of NVIDIA's driver; it is not there yet."""
    monkeypatch.setattr(machine, "DRIVER", tmp_path / "version")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch, "cuda", Cards())
    return tmp_path / "version"


def test_unmet_requirements_are_listed() -> None:
    texts = [
        "numpy>=1",
        "numpy>=999",
        "no-such-thing==1.2",
        "nor-this; extra == 'more'",
        "nor-that; python_version<'3'",
    ]
    found = dict(machine.unmet(texts))
    assert found.keys() == {"numpy>=999", "no-such-thing==1.2"}
    assert found["no-such-thing==1.2"] == "is missing"
    assert found["numpy>=999"].endswith("is installed")


def test_a_missing_package_is_an_error_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "requires", lambda name: ["no-such-thing==1.2"])
    assert machine.packages() == ("no-such-thing==1.2 (is missing)", ERROR, "pip install 'no-such-thing==1.2'")


def test_packages_and_python_are_fine_here() -> None:
    assert machine.packages().verdict == machine.python().verdict == OK
    assert torch.__version__.partition("+")[0] in machine.packages().found


def test_an_old_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.sys, "version_info", (3, 10, 4))
    assert machine.python()[1:] == (ERROR, "Use Python 3.11 or later.")


def test_one_thread_for_several_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: {0, 1, 2})
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    found = machine.processors()
    assert found.found.startswith("3 of ")
    assert found[1:] == (WARNING, "With OMP_NUM_THREADS, training on a CPU uses one processor only. Unset it.")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert machine.processors().verdict == OK


@pytest.mark.parametrize(("gib", "verdict"), [(3.9, WARNING), (4.1, OK)])
def test_memory(gib: float, verdict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multiseg.loaders.memory.total_memory", lambda: int(gib * GIB))
    assert machine.memory()[:2] == (f"{gib} GiB for this process", verdict)


def test_shared_memory_without_memfd(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.shared_memory().verdict == OK

    def refuse(name: str) -> int:
        raise OSError(errno.ENOSYS, "not here")

    monkeypatch.setattr(os, "memfd_create", refuse)
    found = machine.shared_memory()
    assert found.verdict == WARNING
    assert "TMPDIR" in found.remedy


@pytest.mark.parametrize(
    ("limits", "verdict", "shown"),
    [((1024, 1024), WARNING, "at most 1024"), ((8192, resource.RLIM_INFINITY), OK, "the system allows no limit")],
)
def test_open_files(limits: tuple[int, int], verdict: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.resource, "getrlimit", lambda which: limits)
    found = machine.open_files()
    assert found.verdict == verdict
    assert shown in found.found


def test_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/nowhere/at/all")
    monkeypatch.delenv("MPLCONFIGDIR", raising=False)
    found = machine.home()
    assert found.verdict == WARNING
    assert "MPLCONFIGDIR" in found.remedy
    monkeypatch.setenv("MPLCONFIGDIR", "/tmp")
    assert machine.home().verdict == OK


def test_little_room_for_temporary_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda folder: SimpleNamespace(free=GIB // 2))
    found = machine.temporary_files()
    assert found.found.startswith("0.5 GiB are free in ")
    assert "TMPDIR" in found.remedy


def test_a_machine_without_a_card(driver: Path) -> None:
    assert machine.gpu()[:2] == ("no NVIDIA GPU", WARNING)


@pytest.mark.parametrize(
    ("cuda", "visible", "verdict", "advice"),
    [
        (None, None, ERROR, "Install the build for CUDA"),
        ("12.8", "", WARNING, "Unset CUDA_VISIBLE_DEVICES"),
        ("12.8", None, ERROR, "the driver is too old for CUDA 12.8"),
    ],
)
def test_a_driver_whose_card_torch_cannot_use(
    cuda: str | None, visible: str | None, verdict: str, advice: str, driver: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.touch()
    monkeypatch.setattr(torch.version, "cuda", cuda)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = machine.gpu()
    assert found.verdict == verdict
    assert advice in found.remedy


def test_cards(driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "cuda", Cards(19.0, 70.0))
    monkeypatch.setattr(machine, "CARD", "cpu")
    found = machine.gpu()
    assert found.verdict == OK
    assert found.found.startswith("0: a card, 19 of 80 GiB free; 1: a card, 70 of 80 GiB free; CUDA ")
    monkeypatch.setattr(torch, "cuda", Cards(19.0))
    assert machine.gpu().verdict == WARNING
    assert "nvidia-smi" in machine.gpu().remedy


def test_a_card_that_computes_something_else(driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "cuda", Cards(70.0, 70.0))
    monkeypatch.setattr(machine, "computes_alike", lambda number: number == 0)
    found = machine.gpu()
    assert found.verdict == ERROR
    assert "a convolution on card 1 differs" in found.found


def test_computing_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "CARD", "cpu")
    assert machine.computes_alike(0)
    right = torch.nn.functional.conv3d
    calls: list[int] = []

    def wrong(images: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return right(images, kernel) * (1.03 if len(calls) == 2 else 1)

    monkeypatch.setattr(torch.nn.functional, "conv3d", wrong)
    assert not machine.computes_alike(0)
