"""Checks of a machine: Python, packages, processors, memory, limits, GPU."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from multiseg.doctor.check_record import ERROR, WARNING, Found
from multiseg.faults import NOT_PERMITTED, NOT_SUPPORTED

OLDEST_PYTHON = (3, 11)
FEW_FILES = 4096
LITTLE_MEMORY_GIB = 4.0
LITTLE_ROOM_GIB = 1.0
GPU_NEEDS_GIB = 20.0
"""What a default training on a card keeps in its memory at most: docs/models.md."""
CARD = "cuda:{}"
RING_BYTES = 64 * 2**20
DRIVER = Path("/proc/driver/nvidia/version")
"""Present where the kernel has NVIDIA's driver, also in a container that was given no card."""


def python() -> Found:
    """The interpreter, the system, and where multiseg is installed."""
    number, place = platform.python_version(), Path(__file__).parents[1]
    found = f"Python {number} on {platform.system()} {platform.release()} {platform.machine()}; multiseg in {place}"
    if sys.version_info < OLDEST_PYTHON:
        return Found(found, ERROR, f"Use Python {OLDEST_PYTHON[0]}.{OLDEST_PYTHON[1]} or later.")
    if not sys.platform.startswith("linux"):
        return Found(found, WARNING, "multiseg is tested on Linux only: use it for real work.")
    return Found(found)


def packages() -> Found:
    """Whether every package that multiseg requires is installed in a version that it allows."""
    try:
        texts, number = requires("multiseg") or [], version("multiseg")
    except PackageNotFoundError:
        return Found("multiseg is imported, but not installed", WARNING, "Install it: pip install . in its folder.")
    faults = list(unmet(texts))
    if faults:
        names = " ".join(f"'{wanted}'" for wanted, _ in faults)
        return Found("; ".join(f"{name} ({what})" for name, what in faults), ERROR, f"pip install {names}")
    shown = ", ".join(f"{name} {version(name)}" for name in ("torch", "zarr", "numpy", "flwr"))
    return Found(f"multiseg {number}; {shown}; all requirements are met")


def unmet(texts: Iterable[str]) -> Iterator[tuple[str, str]]:
    """The requirements, such as "zarr>=3.1", that are not met, each with what is installed. Extras are left out."""
    from packaging.requirements import Requirement

    for text in texts:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            yield f"{requirement.name}{requirement.specifier}", "is missing"
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            yield f"{requirement.name}{requirement.specifier}", f"{installed} is installed"


def processors() -> Found:
    """The processors that this process may use, and the threads with which torch computes."""
    import torch

    num = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = torch.get_num_threads()
    found = f"{num} of {os.cpu_count()} processors; torch computes with {threads} thread{'s' * (threads > 1)}"
    if threads == 1 < num:
        limits = [name for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if name in os.environ]
        if not limits:
            advice = "Training on a CPU uses one processor only. Set OMP_NUM_THREADS to the number of processors."
        else:
            names, it = " and ".join(limits), "them" if len(limits) > 1 else "it"
            advice = f"With {names}, training on a CPU uses one processor only. Unset {it}."
        return Found(found, WARNING, advice)
    return Found(found)


def memory() -> Found:
    """The memory of the machine or, if that is less, of the container or the job."""
    from multiseg.loaders.memory import total_memory

    gib = total_memory() / 2**30
    found = f"{gib:.1f} GiB for this process"
    if gib < LITTLE_MEMORY_GIB:
        return Found(found, WARNING, "Give the container or job more, or use --workers 1, --memory and small patches.")
    return Found(found)


def shared_memory() -> Found:
    """Whether processes can share the memory into which patches are read."""
    from multiseg.loaders.memory import SharedMemory

    memory = SharedMemory(RING_BYTES)
    memory.view()[-1] = 7
    memory.map_again()
    if memory.view()[-1] != 7:
        return Found("memory that is mapped again has lost its contents", ERROR, "Use another kernel or sandbox.")
    memory.close()
    shm = Path("/dev", "shm")
    size = f"{shutil.disk_usage(shm).total / 2**30:.1f} GiB" if shm.is_dir() else "missing"
    found = f"{RING_BYTES // 2**20} MiB can be shared; {shm} ({size}) is not needed for it"
    if not _has_memfd():
        return Found(
            f"the system allows no anonymous shared memory (memfd), so that patches are shared by a file in "
            f"{tempfile.gettempdir()}",
            WARNING,
            "Allow memfd_create in the sandbox, or set TMPDIR to a folder in memory such as /dev/shm.",
        )
    return Found(found)


def _has_memfd() -> bool:
    try:
        os.close(os.memfd_create("multiseg"))
    except AttributeError:
        return False
    except OSError as error:
        if error.errno in NOT_SUPPORTED | NOT_PERMITTED:
            return False
        raise
    return True


def open_files() -> Found:
    """How many files may be open; every command first asks for as many as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    shown = ["no limit" if limit == resource.RLIM_INFINITY else str(limit) for limit in (soft, hard)]
    found = f"at most {shown[0]} at once (the system allows {shown[1]})"
    if soft != resource.RLIM_INFINITY and soft < FEW_FILES:
        return Found(found, WARNING, f"Raise it: ulimit -n {FEW_FILES}, or LimitNOFILE of a systemd unit.")
    return Found(found)


def home() -> Found:
    """Whether there is a home folder for the caches of libraries. multiseg itself writes nothing there."""
    try:
        folder = Path.home()
    except RuntimeError:
        folder = Path("/nonexistent")
    if os.access(folder, os.W_OK):
        return Found(f"{folder} can be written")
    if os.environ.get("MPLCONFIGDIR"):
        return Found("no home that can be written, but matplotlib has MPLCONFIGDIR")
    return Found(
        "no home that can be written: matplotlib looks for fonts again in every command that draws",
        WARNING,
        "Set MPLCONFIGDIR to a folder that can be written.",
    )


def temporary_files() -> Found:
    """Room in the folder of temporary files."""
    folder = tempfile.gettempdir()
    gib = shutil.disk_usage(folder).free / 2**30
    if gib < LITTLE_ROOM_GIB:
        return Found(f"{gib:.1f} GiB are free in {folder}", WARNING, "Free some room, or set TMPDIR to another disk.")
    return Found(f"{gib:.0f} GiB are free in {folder}")


def gpu() -> Found:
    """Whether torch can compute on an NVIDIA card, and whether the card computes what a processor does."""
    import torch

    if not torch.cuda.is_available():
        return _no_gpu(torch.version.cuda, torch.__version__)
    cards = []
    for number in range(torch.cuda.device_count()):
        free, total = (size / 2**30 for size in torch.cuda.mem_get_info(number))
        cards.append((number, torch.cuda.get_device_name(number), free, total))
    listed = "; ".join(f"{number}: {name}, {free:.0f} of {total:.0f} GiB free" for number, name, free, total in cards)
    found = f"{listed}; CUDA {torch.version.cuda}"
    wrong = [str(number) for number, *_ in cards if not computes_alike(number)]
    if wrong:
        return Found(
            f"{found}; a convolution on card {', '.join(wrong)} differs from the processor's",
            ERROR,
            "Do not use this card: check its memory (nvidia-smi -q -d ECC) and its driver.",
        )
    if max(free for _, _, free, _ in cards) < GPU_NEEDS_GIB:
        advice = "End other programs on it (nvidia-smi), or set stream.batch_size = 1 with fit.accumulate = 10."
        return Found(f"{found}; a default training takes up to {GPU_NEEDS_GIB:.0f} GiB", WARNING, advice)
    return Found(f"{found}; a convolution agrees with the processor's")


def _no_gpu(cuda: str | None, number: str) -> Found:
    """What a machine without a usable card lacks: a card, a torch for it, or a driver."""
    if not DRIVER.exists():
        return Found("no NVIDIA GPU", WARNING, "Prediction works; train large networks on a machine with a GPU.")
    if cuda is None:
        advice = "Install the build for CUDA: pip install --force-reinstall torch (https://pytorch.org/get-started)."
        return Found(f"there is an NVIDIA driver, but torch {number} is a build without CUDA", ERROR, advice)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        advice = "Unset CUDA_VISIBLE_DEVICES, or set it to the number of a card that nvidia-smi lists."
        return Found(f"torch sees no card, and CUDA_VISIBLE_DEVICES is {visible!r}", WARNING, advice)
    advice = (
        "If nvidia-smi fails, install a newer driver, or give the container its cards (docker run --gpus all); "
        f"otherwise the driver is too old for CUDA {cuda}."
    )
    return Found(f"there is an NVIDIA driver, but torch {number} with CUDA {cuda} sees no card", ERROR, advice)


def computes_alike(number: int) -> bool:
    """Whether a card computes a convolution as the processor does, within the error of TF32 (10 bits of mantissa)."""
    import torch

    images = torch.linspace(-1, 1, 2 * 4 * 16**3).reshape(2, 4, 16, 16, 16)
    kernel = torch.linspace(-1, 1, 4 * 4 * 27).reshape(4, 4, 3, 3, 3)
    expected, card = torch.nn.functional.conv3d(images, kernel), CARD.format(number)
    computed = torch.nn.functional.conv3d(images.to(card), kernel.to(card)).cpu()
    scale = float(expected.abs().max())
    return bool((computed - expected).abs().max() <= 0.01 * scale)
