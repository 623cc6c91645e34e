"""The supervisor of child processes."""

import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from multiseg.errors import FederationError
from multiseg.federation import supervise as module
from multiseg.federation.supervise import Child, Ending, backoff, command_path, supervise

PATIENCE = 30.0


class StopError(Exception):
    """Ends a supervisor from a test."""


def child(folder: Path, code: str, name: str = "one", **more: object) -> Child:
    return Child(name, (sys.executable, "-u", "-c", code), folder / f"{name}.log", **more)  # type: ignore[arg-type]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)


def stop_when(condition: Callable[[], bool]) -> Callable[[], None]:
    """A tick that sends us SIGTERM once, when it is time."""
    sent = []

    def tick() -> None:
        if condition() and not sent:
            sent.append(True)
            os.kill(os.getpid(), signal.SIGTERM)

    return tick


def test_every_line_is_heard_and_logged(tmp_path: Path) -> None:
    heard: list[tuple[str, str]] = []
    done = tmp_path / "done"
    code = f"import time; print('a\\nb'); print('ü', end='', flush=True); open({str(done)!r}, 'w'); time.sleep(60)"
    supervise([child(tmp_path, code)], lambda *line: heard.append(line), stop_when(done.exists))
    assert heard == [("one", "a"), ("one", "b"), ("one", "ü")]
    assert (tmp_path / "one.log").read_text(encoding="utf-8") == "a\nb\nü\n"


def test_who_ends_is_started_again_and_its_ending_told(tmp_path: Path) -> None:
    endings: list[Ending] = []

    def after(ending: Ending) -> float:
        endings.append(ending)
        if len(endings) == 3:
            raise StopError
        return 0.0

    with pytest.raises(StopError):
        supervise([child(tmp_path, "print('no'); raise SystemExit(7)", after=after)])
    assert [(ending.code, ending.times, ending.last_lines) for ending in endings] == [
        (7, 1, ("no",)),
        (7, 2, ("no",)),
        (7, 3, ("no",)),
    ]


def test_commands_are_found_where_pip_lays_scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside Python, in the folder of scripts (Debian has them apart), in PATH."""
    places = [tmp_path / name for name in ("python", "scripts", "path")]
    for place in places:
        place.mkdir()
    monkeypatch.setattr(sys, "executable", str(places[0] / "python3"))
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(places[1]))
    monkeypatch.setenv("PATH", str(places[2]))
    with pytest.raises(FederationError, match=r"flower-thing is neither in .*python, .*scripts nor in PATH"):
        command_path("flower-thing")
    for place in reversed(places):
        (place / "flower-thing").write_text("#!/bin/sh\n")
        (place / "flower-thing").chmod(0o755)
        assert command_path("flower-thing") == str(place / "flower-thing")


def test_backoff_grows_to_half_a_minute() -> None:
    assert [backoff(Ending("", 1, 0.0, times, ())) for times in (1, 2, 3, 6, 1000)] == [1, 2, 4, 30, 30]


def test_what_one_raises_stops_the_others(tmp_path: Path) -> None:
    pids: list[int] = []

    def after(ending: Ending) -> float:
        raise StopError

    with pytest.raises(StopError):
        supervise(
            [
                child(tmp_path, "import os, time; print(os.getpid()); time.sleep(60)"),
                child(tmp_path, "import time; time.sleep(1)", "two", after=after),
            ],
            lambda name, line: pids.append(int(line)),
        )
    assert len(pids) == 1
    assert not is_alive(pids[0])


def test_children_stop_in_turn_the_last_one_first(tmp_path: Path) -> None:
    heard: list[tuple[str, str]] = []
    code = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(print('end')));"
        "print('on'); time.sleep(60)"
    )
    supervise(
        [child(tmp_path, code, name) for name in ("one", "two")],
        lambda *line: heard.append(line),
        stop_when(lambda: len(heard) == 2),
    )
    assert (sorted(heard[:2]), heard[2:]) == ([("one", "on"), ("two", "on")], [("two", "end"), ("one", "end")])


def test_who_does_not_stop_is_killed_with_its_children(tmp_path: Path) -> None:
    pids: list[int] = []
    code = (
        "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "os.fork(); print(str(os.getpid()) + chr(10), end=''); time.sleep(600)"
    )
    supervise(
        [child(tmp_path, code, grace_s=0.3)],
        lambda name, line: pids.append(int(line)),
        stop_when(lambda: len(pids) == 2),
    )
    wait_for(lambda: not any(map(is_alive, pids)))
    assert len(set(pids)) == 2, "a child and its child, which ignore the request"


def test_a_second_signal_kills_at_once(tmp_path: Path) -> None:
    heard: list[str] = []
    code = (
        "import os, signal, time\n"
        "def again(*_): os.kill(os.getppid(), signal.SIGINT)\n"
        "signal.signal(signal.SIGTERM, again); print('on')\n"
        "while True: time.sleep(1)"
    )
    supervise(
        [child(tmp_path, code, grace_s=10_000.0)], lambda _, line: heard.append(line), stop_when(lambda: bool(heard))
    )
    assert heard == ["on"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_terminal_ends_the_children(tmp_path: Path, number: int) -> None:
    heard: list[str] = []
    code = "import os, time; print(os.getpid()); time.sleep(600)"

    def tick() -> None:
        if len(heard) == 1:
            heard.append("")
            os.kill(os.getpid(), number)

    before = signal.signal(number, signal.SIG_DFL)  # the tests themselves may be run with nohup
    try:
        supervise([child(tmp_path, code)], lambda _, line: heard.append(line), tick)
    finally:
        signal.signal(number, before)
    assert not is_alive(int(heard[0]))


def test_a_hang_up_that_is_ignored_stays_so(tmp_path: Path) -> None:
    ticks: list[int] = []

    def tick() -> None:
        ticks.append(1)
        os.kill(os.getpid(), signal.SIGHUP if len(ticks) == 1 else signal.SIGTERM)

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup has it
    try:
        supervise([], tick=tick)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert len(ticks) == 2


def test_signals_are_given_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    supervise([], tick=stop_when(lambda: True))
    assert signal.getsignal(signal.SIGTERM) is before


def test_full_logs_are_put_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOG_BYTES", 20)
    heard: list[str] = []
    code = "import time\nfor number in range(12): print('line', number)\ntime.sleep(60)"
    supervise([child(tmp_path, code)], lambda _, line: heard.append(line), stop_when(lambda: len(heard) == 12))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.log.1", "one.log.2", "one.log.3"]
    assert (tmp_path / "one.log.1").read_text().splitlines()[-1] == "line 11"


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A supervisor in a process of its own, whose child says its number."""
    code = (
        "import sys; from pathlib import Path; from multiseg.federation.supervise import Child, supervise;"
        "command = (sys.executable, '-u', '-c', 'import os, time; print(os.getpid()); time.sleep(600)');"
        "supervise([Child('one', command, Path(sys.argv[1]))], lambda name, line: print(line, flush=True))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, tmp_path / "log"], stdout=subprocess.PIPE, encoding="utf-8")
    with process:
        yield process
        process.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux's kernel does this")
def test_no_orphans_when_the_supervisor_is_killed(supervisor: subprocess.Popen[str]) -> None:
    assert supervisor.stdout is not None
    pid = int(supervisor.stdout.readline())
    assert is_alive(pid)
    supervisor.kill()
    wait_for(lambda: not is_alive(pid))


def test_a_child_that_nobody_can_wait_for_has_ended() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    assert process.wait() == 0
    assert module.has_ended(process.pid)


def test_exit_codes_are_heard_where_the_caller_had_them_ignored(tmp_path: Path) -> None:
    """As a shell or a container that sets SIGCHLD to be ignored hands that on; the child's whole group ends with it."""
    endings: list[Ending] = []

    def after(ending: Ending) -> float:
        endings.append(ending)
        raise StopError

    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with pytest.raises(StopError):
            supervise([child(tmp_path, "import os; os.fork(); os._exit(3)", after=after)])
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert [ending.code for ending in endings] == [3]
