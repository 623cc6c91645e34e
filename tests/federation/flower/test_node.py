"""Flower's node, real, against a server that fails: it ends each time, and `join` starts another one."""

import json
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from commands import Command
from fleet import NODE_ID, Fleet, fleet, make_kit

from multiseg.federation.flower import node as module
from multiseg.federation.flower.joining import Member, _Children
from multiseg.federation.flower.liveness import Pulse
from multiseg.federation.flower.node import PULL, Calls, beat, last_beat, may_have_acted
from multiseg.federation.identity.signing import MAY_HAVE_ACTED


def until(seconds: float, what: str, is_so: Callable[[], Any]) -> Any:
    end = time.monotonic() + seconds
    while not (found := is_so()):
        assert time.monotonic() < end, f"waited {seconds:.0f} s for: {what}"
        time.sleep(0.05)
    return found


def member(folder: Path, kit: Path, address: str) -> Member:
    return Member("alder", address, kit / "ca.crt", kit / "site.key", folder / "state")


NODE, SUPERVISOR = (
    "import sys; from multiseg.federation.flower import node; node.main(sys.argv[1:])",
    "import sys; from pathlib import Path; from multiseg.federation.flower import joining\n"
    "joining._Children.executor = lambda children: None\n"
    "run = joining.supervise\n"
    "joining.supervise = lambda children, hear, look: run(children[:1], hear, look)\n"
    "sys.exit(joining.main(sys.argv[1:]))",
)


def process(folder: Path, code: str, arguments: list[str], environment: Mapping[str, str]) -> Command:
    """A process of this code; neither it nor the nodes that it starts have to import Flower."""
    (script := folder / "script.py").write_text(code)
    return Command(arguments, folder / "said", {**os.environ, **environment}, script, forks=["flwr.supernode.cli"])


def start(folder: Path, kit: Path, address: str) -> Command:
    """The node as `join` starts it, without who would start it again."""
    site = member(folder, kit, address)
    (site.state / "node").mkdir(parents=True)
    (folder / "secret").write_bytes(b"s" * 96)
    children = _Children(site, folder / "site.toml", folder / "secret", print, Pulse(folder / "beat", str, print))
    child = children.node()
    return process(folder, NODE, child.command[3:], child.environment)


FAULTS: dict[str, dict[str, tuple[int, bytes]]] = {
    "HTTP 500 when asked for tasks": {"pull-messages": (500, b"database is locked")},
    "a page in place of an answer": {"pull-messages": (200, b"<html>Please sign in to the hospital's network</html>")},
    "HTTP 500 at a heartbeat": {"send-node-heartbeat": (500, b"")},
}


@pytest.mark.slow
def test_a_node_whose_connection_failed_ends_its_process(tmp_path: Path) -> None:
    """Flower's own stays in each of these, with nobody that asks for tasks or says that it is there."""
    kit, other = make_kit(tmp_path, "kit"), make_kit(tmp_path, "other")
    with ExitStack() as stack:
        fleets = {name: stack.enter_context(fleet(kit)) for name in (*FAULTS, "another certificate")}
        nodes = {
            name: start(tmp_path / str(number), kit, one.address) for number, (name, one) in enumerate(fleets.items())
        }
        try:
            for name, one in fleets.items():
                until(60, f"{name}: the node is in", lambda one=one: one.calls["pull-messages"])
                one.faults = FAULTS.get(name, {})
            fleets["another certificate"].show(other)
            ended = {name: node.wait(60) for name, node in nodes.items()}
        finally:
            for node in nodes.values():
                node.send_signal(signal.SIGKILL)
    assert ended == dict.fromkeys(fleets, 1)
    assert [one.calls["activate-node"] for one in fleets.values()] == [1] * len(fleets)


@pytest.fixture
def joined(tmp_path: Path) -> Iterator[tuple[Fleet, Path, Command]]:
    """A node that is kept running as `join` keeps it, without an executor."""
    kit = make_kit(tmp_path, "kit")
    with fleet(kit) as served:
        site = json.dumps({name: str(value) for name, value in vars(member(tmp_path, kit, served.address)).items()})
        supervisor = process(tmp_path, SUPERVISOR, [str(tmp_path / "site.toml"), site], {})
        try:
            yield served, kit, supervisor
        finally:
            supervisor.send_signal(signal.SIGTERM)
            supervisor.wait(30)


@pytest.mark.slow
def test_a_site_is_back_after_each_fault_without_a_hand(joined: tuple[Fleet, Path, Command], tmp_path: Path) -> None:
    served, kit, supervisor = joined
    other = make_kit(tmp_path, "other")

    def endings() -> int:
        return (tmp_path / "said").read_text().count("The connection ended")

    def comes_back(what: str, fail: Callable[[], object], mend: Callable[[], object]) -> None:
        """After the node's process has ended: a single call that failed may be no more than a heartbeat, sent again."""
        ended = endings()
        fail()
        until(60, f"the node ends at {what}", lambda: endings() > ended)
        activated = served.done["activate-node"]
        mend()
        until(90, f"back after {what}", lambda: served.done["activate-node"] > activated)

    def new_authority() -> None:  # without an overlap
        (kit / "ca.crt").write_bytes((other / "ca.crt").read_bytes())

    until(90, "the start", lambda: served.done["activate-node"])
    comes_back("another certificate", lambda: served.show(other), lambda: served.show(kit))
    comes_back("HTTP 500 at every call", lambda: served.faults.update({"": (500, b"")}), served.faults.clear)
    comes_back("a new ca.crt", lambda: served.show(other), new_authority)
    assert supervisor.poll() is None
    number = tmp_path / "state" / "node" / "id"  # written once the node says it, which is after the call
    until(60, "the node's number is kept", number.is_file)
    assert number.read_text() == str(NODE_ID)


def answered(calls: Calls, *answers: Any) -> list[Any]:
    """What a client's caller gets of these answers, one call each."""
    given = iter(answers)

    def call(client: object, *, path: str) -> Any:
        answer = next(given)
        if isinstance(answer, Exception):
            raise answer
        return answer

    watched, found = calls.around(call), []
    for _ in answers:
        try:
            found.append(watched(None, path=PULL))
        except (httpx.HTTPError, SystemExit) as error:
            found.append(type(error))
    return found


def status_error(status: int, **body: object) -> httpx.HTTPStatusError:
    request = httpx.Request("POST", "https://gate" + PULL)
    return httpx.HTTPStatusError("", request=request, response=httpx.Response(status, json=body, request=request))


UNCERTAIN = {
    "reset": (httpx.ReadError("reset"), True),
    "silent": (httpx.ReadTimeout("silent"), True),
    "gone": (httpx.RemoteProtocolError("gone"), True),
    "refused": (httpx.ConnectError("refused"), False),
    "a proxy's refusal": (httpx.ProxyError("403"), False),
    "a proxy between that gave up": (status_error(504), True),
    "502": (status_error(502), True),
    "the gate: the SuperLink is away": (status_error(503, **{MAY_HAVE_ACTED: False}), False),
    "the gate: the SuperLink failed": (status_error(503, **{MAY_HAVE_ACTED: True}), True),
    "the gate: wait": (status_error(503, detail="Too many requests"), False),
    "no page of ours": (status_error(503), False),
    "unknown": (status_error(404), False),
}


@pytest.mark.parametrize("name", UNCERTAIN)
def test_after_a_call_that_may_have_handed_out_a_task_the_node_connects_again(name: str) -> None:
    error, may_be_lost = UNCERTAIN[name]
    assert may_have_acted(error) is may_be_lost
    heard: list[str] = []
    found = answered(Calls(lambda: heard.append("answer")), error, "tasks", "tasks")
    assert found == [type(error), *([SystemExit] * 2 if may_be_lost else ["tasks"] * 2)]
    assert heard == ["answer"] * 2, "the server is back before the node ends"


@pytest.mark.parametrize("words", ["Failed to send message %s: %s", "Failed to receive message %s: %s"])
def test_after_a_message_that_flower_gave_up_the_node_connects_again(words: str) -> None:
    calls = Calls(lambda: None)
    log = logging.getLogger("flwr")
    handler = module._Lost(calls)
    log.addHandler(handler)
    try:
        log.error("Sent successfully")
        assert answered(calls, "tasks") == ["tasks"]
        log.error(words, "71", "HTTP 500")
    finally:
        log.removeHandler(handler)
    assert answered(calls, "tasks") == [SystemExit]


def test_a_beat_is_the_time_that_no_clock_moves(tmp_path: Path) -> None:
    file = tmp_path / "beat"
    assert last_beat(file) == -float("inf")
    file.touch()
    before = time.monotonic()
    beat(file)
    assert before - 1e-3 <= last_beat(file) <= time.monotonic()
