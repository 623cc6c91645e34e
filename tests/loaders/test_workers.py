"""Who reads: tasks go out, serials come back, and all are gone at the end."""

import errno
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
from commands import Command
from streams import stream_of

from multiseg.errors import ResourceError
from multiseg.loaders import reader_processes as processes
from multiseg.loaders import serving
from multiseg.loaders.patches import PatchTask
from multiseg.loaders.reader_processes import Processes
from multiseg.loaders.workers import Caller, Doer, Threads
from multiseg.store.reader import open_store


@pytest.fixture(scope="module")
def stream(store_url):
    return stream_of(open_store(store_url))


@pytest.fixture(
    params=[
        Caller,
        lambda work: Threads(work, 2),
        *(lambda work, n=n: Processes(work, n, "fork", True) for n in (1, 3)),
    ]
)
def crew(request, stream):
    made = request.param(stream._work(0))
    yield made
    made.close()


def tasks(num):
    return [PatchTask(serial, serial % 5, serial % 3, serial % 4, (0, 0, 0), 1) for serial in range(num)]


def test_every_task_comes_back_once(crew):
    for task in tasks(40):
        crew.give(task)
    done = []
    while len(done) < 40:
        some = crew.done()
        assert some
        done += some
    assert sorted(done) == list(range(40))


def test_a_crew_may_end_with_tasks_undone(crew):
    for task in tasks(40):
        crew.give(task)
    crew.done()
    crew.close()
    assert not multiprocessing.active_children()
    crew.close()


def test_work_is_shared(stream):
    crew = Processes(stream._work(0), 3, "fork", True)
    for task in tasks(30):
        crew.give(task)
    assert [len(worker.tasks) for worker in crew._workers] == [10, 10, 10]
    crew.close()


def test_a_crew_that_nobody_holds_is_gone(stream):
    crew = Processes(stream._work(0), 2, "fork", True)
    pids = [worker.process.pid for worker in crew._workers]
    del crew
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_worker_in_the_middle_of_a_patch_is_not_waited_for_long(stream, monkeypatch):
    monkeypatch.setattr(processes, "PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(Doer, "do", lambda self, task: time.sleep(3600))
    crew = Processes(stream._work(0), 2, "fork", True)
    for task in tasks(4):
        crew.give(task)
    crew.close()
    assert not multiprocessing.active_children()


def test_workers_hear_the_end_although_others_forked_since_have_their_lines(stream, monkeypatch):
    killed = []
    monkeypatch.setattr(multiprocessing.process.BaseProcess, "kill", killed.append)
    first, second = (Processes(stream._work(0), 2, "fork", True) for _ in range(2))
    first.close()
    second.close()
    assert killed == []


def test_no_process_can_be_started(stream, monkeypatch):
    def refused(process):
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", refused)
    with pytest.raises(
        ResourceError, match=r"cannot start a reader process: .*temporarily unavailable\. Give fewer workers"
    ):
        Processes(stream._work(0), 2, "fork", True)


def test_a_death_in_the_middle_of_a_message_is_a_death(stream, monkeypatch, caplog, tmp_path):
    def cut_short(work, line, parents_end, environment):
        if (tmp_path / "died").exists():
            serve(work, line, parents_end, environment)
        (tmp_path / "died").touch()
        os.write(line.fileno(), b"\x00\x00\x01\x00abc")
        os._exit(3)

    serve = serving.serve
    monkeypatch.setattr(serving, "serve", cut_short)
    crew = Processes(stream._work(0), 1, "fork", True)
    crew.give(tasks(1)[0])
    assert crew.done() == [0]
    assert "ended with exit code 3" in caplog.records[0].getMessage()
    crew.close()


@pytest.mark.slow
def test_signals_are_as_they_were_once_workers_have_started(stream):
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    for start in ("fork", "spawn"):
        Processes(stream._work(0), 1, start, True).close()
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


def test_ctrl_c_while_workers_start_is_the_parents_alone(store_url, tmp_path):
    script, said = tmp_path / "script.py", tmp_path / "said.txt"
    script.write_text(f"""
if __name__ == "__main__":
    import os, signal, sys, time
    sys.path.insert(0, {str(Path(__file__).parent)!r})
    from multiprocessing import active_children
    from multiseg.loaders.reader_processes import Processes
    from multiseg.store.reader import open_store
    from streams import stream_of
    crew = Processes(stream_of(open_store(sys.argv[1]))._work(0), 2, "spawn", True)
    for wait in (0.0, 0.05, 0.2):
        time.sleep(wait)
        try:
            os.killpg(0, signal.SIGINT)
            time.sleep(1)
        except KeyboardInterrupt:
            pass
    print([one.exitcode for one in active_children()])
""")
    assert Command([store_url], said, script=script).wait(timeout=60) == 0
    assert said.read_text().strip() == "[None, None]"
