"""The link of a deployed run, over a grid that is only played."""

import re
import time
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import httpx
import pytest
from flwr.app import Error, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from multiseg.errors import FederationError
from multiseg.federation.centre.answer_size import TooLarge
from multiseg.federation.centre.exchange import Desk, Failure, Presence, exchange
from multiseg.federation.flower.approval import Approval, why_refused
from multiseg.federation.flower.link import SAME, FlowerLink
from multiseg.federation.flower.message_records import reply_of, task_of
from multiseg.federation.messages import DESCRIBE, Answer, SiteTask
from multiseg.federation.plan import FederationOptions

TASK = SiteTask(DESCRIBE, "lesions")
SINCE = "2031-05-05T10:00:00+00:00"


class PlayedGrid(Grid):
    """Nodes that are there for so many seconds; `asked` says for whose replies it was asked."""

    def __init__(self, **seconds: float) -> None:
        self.seconds = {name: seconds[name] for name in seconds}
        self.numbers = {name: 11 * (place + 1) for place, name in enumerate(seconds)}
        self.pushed: dict[str, Message] = {}
        self.replies: dict[str, Message | Exception] = {}
        self.asked: list[str] = []
        self.takes = True

    def get_nodes(self) -> Iterable[NodeInfo]:
        now = time.time()
        return [
            NodeInfo(node_id=self.numbers[name], name=name, last_activated_at=SINCE, online_until=now + left)
            for name, left in self.seconds.items()
        ]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        if not self.takes:
            return [""]
        ids = []
        for message in messages:
            ids.append(f"message-{len(self.pushed)}")
            message.metadata.__dict__["_message_id"] = ids[-1]
            self.pushed[ids[-1]] = message
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        (id_,) = message_ids
        self.asked.append(id_)
        reply = self.replies.get(id_)
        if isinstance(reply, Exception):
            raise reply
        return [reply] if reply else []

    def answer(self, id_: str, answer: Answer | Error, node: int = 0) -> None:
        message = self.pushed[id_]
        reply = Message(answer, reply_to=message) if isinstance(answer, Error) else reply_of(answer, message)
        reply.metadata.__dict__["_src_node_id"] = node or message.metadata.dst_node_id
        self.replies[id_] = reply

    def set_run(self, run: Run) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Run:
        raise NotImplementedError

    def create_message(self, *args: object, **more: object) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        raise NotImplementedError

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        raise NotImplementedError


@pytest.fixture(autouse=True)
def task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages say which run and node they are of, as in a process that Flower started."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def test_who_is_there_and_since_when() -> None:
    link = FlowerLink(PlayedGrid(alder=30.0, birch=1.0, dogwood=-5.0))
    assert link.presence() == {"alder": Presence(True, SINCE)}  # birch may be gone before it could be asked


def test_a_task_goes_to_the_node_of_its_site_and_lives_so_long() -> None:
    grid = PlayedGrid(alder=30.0, birch=30.0)
    id_ = FlowerLink(grid).send("birch", TASK, 900.0)
    message = grid.pushed[id_]
    assert (message.metadata.dst_node_id, message.metadata.ttl) == (22, 900.0)
    assert task_of(message).experiment == "lesions"


def test_an_answer_comes_once() -> None:
    grid = PlayedGrid(alder=30.0, birch=30.0)
    link = FlowerLink(grid)
    first, second = link.send("alder", TASK, 60.0), link.send("birch", TASK, 60.0)
    assert link.collect([first, second]) == {}
    grid.answer(second, Answer(DESCRIBE, "birch", 0, {"a": 1}))
    found = link.collect([first, second])
    assert list(found) == [second]
    assert isinstance(found[second], Answer)
    assert found[second].body == {"a": 1}
    grid.asked.clear()
    assert link.collect([first, second]) == {}
    assert grid.asked == [first]


def test_nobody_asks_for_the_answer_of_a_site_that_is_away() -> None:
    grid = PlayedGrid(alder=30.0, birch=30.0)
    link = FlowerLink(grid)
    first, second = link.send("alder", TASK, 60.0), link.send("birch", TASK, 60.0)
    grid.seconds["birch"] = 1.0
    link.collect([first, second])
    assert grid.asked == [first]
    grid.seconds["birch"] = 30.0
    grid.answer(second, Answer(DESCRIBE, "birch"))
    assert list(link.collect([first, second])) == [second]


def test_a_site_that_goes_as_it_is_asked_is_asked_again() -> None:
    grid = PlayedGrid(alder=1.0)
    link = FlowerLink(grid)
    id_ = link.send("alder", TASK, 60.0)
    assert link.collect([id_]) == {id_: Failure("it went offline before it got the task")}
    assert link.collect([id_]) == {}, "told once"


def test_an_error_of_flower_is_a_failure() -> None:
    grid = PlayedGrid(alder=30.0)
    link = FlowerLink(grid)
    id_ = link.send("alder", TASK, 60.0)
    grid.answer(id_, Error(8, "ClientApp stopped responding."))
    assert link.collect([id_]) == {id_: Failure("the process at the site died (out of memory, or killed)")}


class RefusingGrid(PlayedGrid):
    """What its nodes answer: that they run another multiseg than the server."""

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = list(super().push_messages(messages))
        refusal = why_refused("ba" * 32, Approval(("ba" * 32, "12" * 32), "12" * 32, "0.9.9"))
        assert refusal is not None
        for id_ in ids:
            self.answer(id_, Error(7, refusal.to_server))
        return ids


def test_a_site_of_another_multiseg_is_named_at_once_with_what_to_do(tmp_path: Path) -> None:
    grid = RefusingGrid(alder=30.0)
    desk = Desk(FederationOptions("trial", ("alder",)), tmp_path, FlowerLink(grid), lambda event: None, lambda: False)
    text = (
        f"alder: it refuses this server's multiseg {version('multiseg')}: it runs multiseg 0.9.9 with the app "
        f"121212121212, but the server's app is babababababa. All finished rounds are saved. {SAME} Then start the same"
    )
    with pytest.raises(FederationError, match=re.escape(text)) as caught:
        exchange(desk, {"alder": TASK}, desk.terms())
    assert "quorum" not in str(caught.value)
    assert len(grid.pushed) == 1, "no second try"


def test_a_refusal_of_the_app_without_a_reason() -> None:
    grid = PlayedGrid(alder=30.0)
    link = FlowerLink(grid)
    id_ = link.send("alder", TASK, 60.0)
    grid.answer(id_, Error(7, "The FAB could not be verified."))
    text = f"it refuses this server's multiseg {version('multiseg')}: The FAB could not be verified"
    assert link.collect([id_]) == {id_: Failure(text, SAME)}


def test_an_answer_of_another_node_is_a_failure() -> None:
    grid = PlayedGrid(alder=30.0, birch=30.0)
    link = FlowerLink(grid)
    id_ = link.send("alder", TASK, 60.0)
    grid.answer(id_, Answer(DESCRIBE, "alder"), node=22)
    assert link.collect([id_]) == {id_: Failure("node 22 answered in place of alder")}


def test_a_reply_that_holds_no_answer_is_a_failure() -> None:
    grid = PlayedGrid(alder=30.0)
    link = FlowerLink(grid)
    id_ = link.send("alder", TASK, 60.0)
    reply = Message(RecordDict(), reply_to=grid.pushed[id_])
    reply.metadata.__dict__["_src_node_id"] = 11
    grid.replies[id_] = reply
    (failure,) = link.collect([id_]).values()
    assert isinstance(failure, Failure)
    assert "a message holds {}" in failure.text


def test_an_answer_that_breaks_off_is_a_failure_and_no_other_is_lost() -> None:
    grid = PlayedGrid(alder=30.0, birch=30.0)
    link = FlowerLink(grid)
    first, second = link.send("alder", TASK, 60.0), link.send("birch", TASK, 60.0)
    grid.replies[first] = httpx.ReadError("cut")
    grid.answer(second, Answer(DESCRIBE, "birch"))
    found = link.collect([first, second])
    assert found[first] == Failure("its answer was lost on the way from the SuperLink (ReadError)")
    assert isinstance(found[second], Answer)


def test_a_task_that_the_superlink_does_not_take_is_an_error() -> None:
    grid = PlayedGrid(alder=30.0)
    grid.takes = False
    with pytest.raises(FederationError, match="refused a describe task for alder"):
        FlowerLink(grid).send("alder", TASK, 60.0)


def test_a_site_whose_key_was_revoked_is_known_as_such() -> None:
    link = FlowerLink(PlayedGrid(alder=30, birch=30), revoked=lambda: ("birch", "cedar"))
    assert link.presence() == {
        "alder": Presence(True, SINCE),
        "birch": Presence(False, revoked=True),
        "cedar": Presence(False, revoked=True),
    }


def test_an_answer_that_the_gate_refused_as_too_large_is_asked_for_again_and_then_given_up() -> None:
    grid = PlayedGrid(alder=30.0, birch=30.0)
    refused: dict[str, TooLarge] = {}
    link = FlowerLink(grid, too_large=lambda: refused)
    first, second = link.send("alder", TASK, 60.0), link.send("birch", TASK, 60.0)
    refused["alder"] = TooLarge(time.time() - 60.0, "an older one")
    assert link.collect([first, second]) == {}
    refused["alder"] = TooLarge(time.time() + 1.0, "The site's answer is over 64 MiB.")
    grid.seconds["alder"] = -1.0  # its node begins again
    found = link.collect([first, second])
    assert found == {first: Failure("its answer was refused at the gate. The site's answer is over 64 MiB.")}
    assert link.collect([first, second]) == {}
    grid.seconds["alder"] = 30.0
    grid.answer(second, Answer(DESCRIBE, "birch", 0, {"a": 1}))
    assert list(link.collect([first, second])) == [second]
