"""The link of a deployed run: tasks and answers as messages of a Flower grid."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import httpx
from flwr.app import Message
from flwr.common.constant import ErrorCode
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid

from multiseg.errors import FederationError
from multiseg.federation.centre.answer_size import TooLarge
from multiseg.federation.centre.exchange import Failure, Presence
from multiseg.federation.flower.message_records import MESSAGE_TYPE, answer_of, error_in_words, task_record
from multiseg.federation.messages import Answer, SiteTask

MARGIN_S = 3.0
"""A site counts as online while its heartbeat is valid for this long: the SuperLink drops the message of a site that is
offline when its answer is asked for."""
SAME = (
    "Server and site have to run the same multiseg, and the site has to approve it: update one of them if they differ, "
    "compare the output of `multiseg fed app --hash` at both, and have the site write it into `approved` in site.toml "
    "and join again."
)


@dataclass(frozen=True)
class _Sent:
    """A task on its way: its site, the node that it went to, and when (Unix time)."""

    site: str
    node_id: int
    at: float


class FlowerLink:
    """See `exchange.Link`. Sites have the names that they were enrolled with.

    Flower's grid retries every call until the SuperLink answers.
    """

    def __init__(
        self,
        grid: Grid,
        sleep: Callable[[float], None] = time.sleep,
        revoked: Callable[[], Collection[str]] = tuple,
        too_large: Callable[[], Mapping[str, TooLarge]] = dict,
    ) -> None:
        self._grid, self._sleep, self._revoked, self._too_large = grid, sleep, revoked, too_large
        self._sent: dict[str, _Sent] = {}
        self._untaken: set[str] = set()

    def presence(self) -> Mapping[str, Presence]:
        """The sites that are online, and those whose key was revoked."""
        online = {name: Presence(True, node.last_activated_at) for name, node in self._online().items()}
        return online | {name: Presence(False, revoked=True) for name in self._revoked()}

    def send(self, site: str, task: SiteTask, ttl_s: float) -> str:
        """Send a task to a site's node; FederationError if the SuperLink refuses the message."""
        node = self._online().get(site)
        if node is None:
            id_ = f"nobody:{site}:{time.monotonic_ns()}"
            self._untaken.add(id_)
            return id_
        message = Message(task_record(task), node.node_id, MESSAGE_TYPE, ttl=ttl_s)
        ids = list(self._grid.push_messages([message]))
        if len(ids) != 1 or not ids[0]:
            raise FederationError(f"the SuperLink refused a {task.kind} task for {site}; its log says why.")
        self._sent[ids[0]] = _Sent(site, node.node_id, time.time())
        return str(ids[0])

    def collect(self, ids: Sequence[str]) -> Mapping[str, Answer | Failure]:
        """New answers and failures of sites that are online, each once."""
        waiting = [id_ for id_ in ids if id_ in self._sent]
        online = {node.node_id for node in self._online().values()} if waiting else set()
        found: dict[str, Answer | Failure] = {}
        for id_ in self._untaken.intersection(ids):
            found[id_] = Failure("it went offline before it got the task")
            self._untaken.remove(id_)
        for id_ in waiting:
            reply = self._pull(id_) if self._sent[id_].node_id in online else None
            reply = reply or self._refused_at_gate(id_)
            if reply is not None:
                found[id_] = reply
                del self._sent[id_]
        return found

    def wait(self, seconds: float) -> None:
        """Sleep."""
        self._sleep(seconds)

    def _pull(self, id_: str) -> Answer | Failure | None:
        """Pull one answer at a time, so that a broken connection loses only one."""
        sent = self._sent[id_]
        try:
            replies = list(self._grid.pull_messages([id_]))
            return self._judged(replies[0], sent) if replies else None
        except httpx.HTTPError as error:
            return Failure(f"its answer was lost on the way from the SuperLink ({type(error).__name__})")
        except FederationError as error:
            return Failure(str(error))

    def _refused_at_gate(self, id_: str) -> Failure | None:
        """A failure if an answer of the site was refused as too large since; it may have been for another run."""
        sent = self._sent[id_]
        refused = self._too_large().get(sent.site)
        if refused and refused.time > sent.at:
            return Failure(f"its answer was refused at the gate. {refused.text}")
        return None

    def _judged(self, reply: Message, sent: _Sent) -> Answer | Failure:
        if reply.has_error():
            if reply.error.code != ErrorCode.INVALID_FAB:
                return Failure(error_in_words(reply.error))
            # The site refuses every task until a person changes something.
            reason = (reply.error.reason or "without a reason").removesuffix(".")
            return Failure(f"it refuses this server's multiseg {version('multiseg')}: {reason}", SAME)
        if reply.metadata.src_node_id != sent.node_id:
            return Failure(f"node {reply.metadata.src_node_id} answered in place of {sent.site}")
        return answer_of(reply)

    def _online(self) -> dict[str, NodeInfo]:
        """The online nodes by name."""
        until = time.time() + MARGIN_S
        return {node.name: node for node in self._grid.get_nodes() if node.online_until > until}
