"""The executor against the loopback API of a real Flower node."""

import hashlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path

import lone_node
import pytest
import torch
from commands import Command
from deployed import IMPORTED

from multiseg.errors import FederationError
from multiseg.federation.fab import app_bytes
from multiseg.federation.flower import executor as module
from multiseg.federation.flower.approval import Approval
from multiseg.federation.flower.executor import NodeClient, Work, execute
from multiseg.federation.messages import DESCRIBE, Answer, SiteTask, answer_from_bytes, to_bytes
from multiseg.federation.sites import audit_log

SECRET = b"a secret of a test, long enough for all"
FAB = app_bytes()
OWN = hashlib.sha256(FAB).hexdigest()
APPROVED = Approval((OWN,), OWN, "1.2.3")
NOBODY = Approval(("0" * 64,), OWN, "1.2.3")
PATIENCE = 60.0


@pytest.fixture(scope="module")
def connection_and_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Connection, int]]:
    folder = tmp_path_factory.mktemp("node")
    (folder / "secret").write_bytes(SECRET)
    (folder / "fab").write_bytes(FAB)
    files = [str(folder / name) for name in ("socket", "secret", "fab")]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.settimeout(PATIENCE)
        listener.bind(files[0])
        listener.listen()
        process = Command(files, folder / "said", script=Path(lone_node.__file__), forks=IMPORTED)
        accepted, _ = listener.accept()
    accepted.setblocking(True)
    with Connection(accepted.detach()) as connection:
        assert connection.poll(PATIENCE), (folder / "said").read_text()
        yield connection, connection.recv()
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.fixture
def server(connection_and_port: tuple[Connection, int]) -> Connection:
    return connection_and_port[0]


@pytest.fixture
def node(connection_and_port: tuple[Connection, int]) -> Iterator[NodeClient]:
    node = NodeClient(f"127.0.0.1:{connection_and_port[1]}", SECRET)
    yield node
    node.close()


def executed(
    node: NodeClient,
    server: Connection,
    task: SiteTask | bytes,
    work: Work,
    approval: Approval = APPROVED,
    note: Callable[[str, str], None] = lambda direction, text: None,
) -> tuple[Answer | tuple[int, str], list[str]]:
    """What the server hears of a task, and what is said at the site."""
    server.send(task if isinstance(task, bytes) else to_bytes(task))
    said: list[str] = []
    until = time.monotonic() + PATIENCE
    execute(node, approval, work, lambda: server.poll() or time.monotonic() > until, said.append, note)
    assert server.poll(), said
    heard = server.recv()
    return (answer_from_bytes(heard) if isinstance(heard, bytes) else heard), said


def answer(task: SiteTask, is_asked: Callable[[], bool]) -> Answer:
    return Answer(task.kind, "alder", task.round, {"pid": os.getpid()}, {"doubled": 2 * task.tensors["weights"]})


def ask(value: float) -> SiteTask:
    return SiteTask(DESCRIBE, "trial", 3, {}, {"weights": torch.full((1000, 700), value)})


def test_a_task_is_answered_in_a_process_of_its_own(node: NodeClient, server: Connection) -> None:
    pids = {os.getpid()}
    for value in (1.0, 2.0):
        heard, said = executed(node, server, ask(value), answer)
        assert isinstance(heard, Answer)
        assert (heard.kind, heard.site, heard.round) == (DESCRIBE, "alder", 3)
        assert said == []
        assert torch.equal(heard.tensors["doubled"], torch.full((1000, 700), 2 * value))
        pids.add(heard.body["pid"])
    assert len(pids) == 3


def test_an_app_that_nobody_approved_gets_nothing(node: NodeClient, server: Connection) -> None:
    heard, said = executed(node, server, ask(0.0), answer, NOBODY)
    assert heard == (7, f"it runs the same (multiseg 1.2.3 with the app {OWN[:12]}), but has not approved it")
    assert OWN in said[0]


def test_an_app_that_is_approved_and_not_installed_gets_nothing(node: NodeClient, server: Connection) -> None:
    """Both stand in `approved` during an update; what would answer is what is installed."""
    heard, said = executed(node, server, ask(0.0), answer, Approval((OWN, "ab" * 32), "ab" * 32, "1.2.3"))
    assert heard == (7, f"it runs multiseg 1.2.3 with the app abababababab, but the server's app is {OWN[:12]}")
    assert f"the server runs the app {OWN}, which is not the one installed here" in said[0]


def test_a_death_is_told_at_once(node: NodeClient, server: Connection) -> None:
    def die(task: SiteTask, is_asked: Callable[[], bool]) -> Answer:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    heard, said = executed(node, server, ask(0.0), die)
    assert heard == (8, "the answering process died.")
    assert "died" in said[0]


def test_what_is_raised_stays_at_the_site(
    node: NodeClient, server: Connection, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(task: SiteTask, is_asked: Callable[[], bool]) -> Answer:
        raise FederationError("patient 0815")

    heard, said = executed(node, server, ask(0.0), fail)
    assert "patient" not in str(heard) + str(said)
    assert "patient 0815" in capfd.readouterr().err


@pytest.mark.slow
def test_what_no_task_is_made_of_is_in_the_audit_log(node: NodeClient, server: Connection, tmp_path: Path) -> None:
    def die(task: SiteTask, is_asked: Callable[[], bool]) -> Answer:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    log = tmp_path / audit_log.LOG
    note = partial(module._note, log)
    executed(node, server, ask(0.0), answer, NOBODY, note)
    executed(node, server, ask(0.0), die, note=note)
    heard, _ = executed(node, server, b"x" * 100, answer, note=note)
    assert isinstance(heard, Answer)
    assert heard.error
    executed(node, server, ask(0.0), answer, note=note)  # which notes what it does itself
    entries = [(row["direction"], row["notes"]) for row in audit_log.rows(log)]
    assert [direction for direction, _ in entries] == ["out", "out", "in"]
    assert OWN in entries[0][1]
    assert "died" in entries[1][1]
    assert "damaged or not from multiseg" in entries[2][1]
    assert audit_log.verify(log) == []


def test_a_run_that_has_ended_stops_the_work_and_sets_the_node_free(node: NodeClient, server: Connection) -> None:
    """Its answer would be thrown away, and the node would take no other task meanwhile."""
    server.send(to_bytes(ask(1.0)))
    said: list[str] = []
    noted: list[tuple[str, str]] = []
    asked: list[int] = []
    until = time.monotonic() + PATIENCE

    def work(task: SiteTask, is_asked: Callable[[], bool]) -> Answer:
        while not is_asked():
            time.sleep(0.01)
        raise SystemExit(1)

    def how_ended(run_id: int) -> str:
        asked.append(run_id)
        return "stopped" if len(asked) > 1 else ""

    def is_over() -> bool:
        return server.poll() or time.monotonic() > until

    def note(direction: str, text: str) -> None:
        noted.append((direction, text))

    pause, module.ASK_SECONDS = module.ASK_SECONDS, 0.3
    try:
        execute(node, APPROVED, work, is_over, said.append, note, how_ended)
    finally:
        module.ASK_SECONDS = pause
    assert server.recv() == (8, "the run has ended.")
    assert asked == [lone_node.RUN_ID, lone_node.RUN_ID]
    assert said == ["stopped after the current step, since the run was stopped at the server; this round is discarded."]
    assert noted == [("out", said[0])]
    heard, _ = executed(node, server, ask(2.0), answer)  # the next task is taken at once
    assert isinstance(heard, Answer)


def test_who_stops_answers_nothing_and_the_work_ends(node: NodeClient, server: Connection) -> None:
    server.send(to_bytes(ask(1.0)))
    said: list[str] = []
    began = time.monotonic()

    def work(task: SiteTask, is_asked: Callable[[], bool]) -> Answer:
        while not is_asked():
            time.sleep(0.01)
        raise SystemExit

    execute(node, APPROVED, work, lambda: time.monotonic() > began + 2, said.append)
    assert said == ["stopped; the server asks again when this site is back."]
    assert not server.poll()


def test_a_wrong_secret_gets_no_task(connection_and_port: tuple[Connection, int]) -> None:
    stranger = NodeClient(f"127.0.0.1:{connection_and_port[1]}", b"another secret")
    assert stranger.acquire() == ""
    stranger.close()


def test_no_node_is_no_task() -> None:
    nobody = NodeClient("127.0.0.1:9", SECRET)
    assert nobody.acquire() == ""
    nobody.close()


@pytest.mark.slow
def test_the_executor_stands_by_what_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own app is that of its sources, whatever `approved` holds."""
    seen: list[Approval] = []
    monkeypatch.setattr(module, "execute", lambda node, approval, *others: seen.append(approval))
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    monkeypatch.setattr(os, "umask", lambda mask: 0)
    (tmp_path / "secret").write_bytes(SECRET)
    settings = tmp_path / "site.toml"
    settings.write_text(f'site = "alder"\nserver = "centre.example:8443"\nstore = "a.zarr"\napproved = ["{"0" * 64}"]')
    assert module.main([str(settings), "--node", "127.0.0.1:9", "--secret", str(tmp_path / "secret")]) == 0
    assert seen == [Approval(("0" * 64,), OWN, version("multiseg"))]


def test_a_log_that_cannot_be_written_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    module._note(tmp_path / "file" / audit_log.LOG, "in", "refused")
    assert "cannot be written" in capsys.readouterr().out
