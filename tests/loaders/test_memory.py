import errno
import gc
import multiprocessing
import os

import pytest

from multiseg.errors import ResourceError
from multiseg.loaders import memory as module
from multiseg.loaders.memory import SharedMemory


def write(memory, at, value):
    memory.view()[at] = value


@pytest.mark.parametrize("start", ["fork", "spawn", "forkserver"])
def test_a_process_however_started_writes_into_it(start):
    memory = SharedMemory(1000)
    process = multiprocessing.get_context(start).Process(target=write, args=(memory, 999, 7))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert memory.view()[999] == 7
    assert bytes(memory.view()[:999]) == bytes(999)


def test_no_memory_is_asked_for_that_nobody_can_have():
    with pytest.raises(ResourceError, match=r"need 1048576\.0 GiB, but this machine has .* GiB"):
        SharedMemory(2**50)


def limited(root, own, limits):
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(f"0::{own}\n")
    for group, limit in limits.items():
        folder = root / "sys/fs/cgroup" / group
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text(f"{limit}\n")
    return list(module._limits(root))


def test_a_limit_of_any_group_above_counts(tmp_path):
    limits = {"": "max", "job": "4096", "job/step": "max", "other": "1"}
    assert limited(tmp_path, "/job/step", limits) == [4096]


def test_a_containers_limit_counts(tmp_path):
    assert limited(tmp_path, "/", {"": "8192"}) == [8192]


def test_no_control_groups_no_limits(tmp_path):
    assert list(module._limits(tmp_path)) == []


def test_more_than_a_limit_is_refused(monkeypatch):
    monkeypatch.setattr(module, "_limits", lambda root: [10_000])
    SharedMemory(9_000)
    with pytest.raises(ResourceError, match="the patches read ahead and the cache need"):
        SharedMemory(11_000)


@pytest.mark.slow
def test_what_the_system_refuses_is_told_and_nothing_stays_open(monkeypatch, few_objects):
    def refused(*arguments):
        raise OSError(errno.ENOMEM, "refused")

    gc.collect()  # of other tests
    before = os.dup(0)
    os.close(before)
    monkeypatch.setattr(os, "posix_fallocate", refused)
    with pytest.raises(ResourceError, match=r"cannot allocate .* GiB of memory for patches .*refused.*a smaller cache"):
        SharedMemory(1000)
    gc.collect()  # a second close would be told here, or hit whoever has the number by now
    after = os.dup(0)
    os.close(after)
    assert after == before


def test_it_stays_while_somebody_looks():
    memory = SharedMemory(10, reserve=False)
    seen = memory.view()
    memory.close()
    memory.close()
    del memory
    seen[3] = 5
    assert seen[3] == 5
