"""The site's executor: takes tasks from its own Flower node and answers each in a process forked for it.

It replaces Flower's superexec and clientapp. Those install and load the app that the server sends, in a new Python for
every message. This one never runs code that it receives, has imported all it needs, and tells the server at once when
an answering process dies. All private names of Flower that a site uses are in this module.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import torch._dynamo  # noqa: F401 (optimisers import it when first used: once here, not in every answering process)
from flwr.app import Context, Error, Message
from flwr.app.message import remove_content_from_message
from flwr.common.constant import ErrorCode, SubStatus
from flwr.proto.runtime_pb2 import AcquireTaskRequest, SendTaskHeartbeatRequest
from flwr.supercore import interceptors
from flwr.supercore.constant import TaskType
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

from multiseg import shown
from multiseg.allocator import return_memory
from multiseg.errors import FederationError, MultisegError, ResourceError, StoppedError
from multiseg.federation.fab import app_hash
from multiseg.federation.flower.approval import Approval, why_refused
from multiseg.federation.flower.environment import without_proxies
from multiseg.federation.flower.forked import Forked
from multiseg.federation.flower.joining import HANDED, MARK, PRIVATE
from multiseg.federation.flower.message_records import reply_with, task_of
from multiseg.federation.identity.signing import how_ended
from multiseg.federation.messages import FINISH, ROUND, Answer, SiteTask, to_bytes
from multiseg.federation.sites import audit_log
from multiseg.federation.sites.answering import answer
from multiseg.federation.sites.site import Site, experiment_folder
from multiseg.federation.sites.site_settings import read_site, to_site
from multiseg.training.events import Event, StepDone

POLL_SECONDS = 0.25
ASK_SECONDS = 5.0
"""Between two checks whether a run has ended."""
HEARTBEAT_SECONDS = 15.0
"""The node gives a task up after 60 s without one."""
PUSH_TRIES = 5
NOT_SENT = "The node has restarted since, so the answer is sent when the server asks again."
SAY_SECONDS = 10.0
"""Between two lines on the steps of a round."""
ACQUIRE = "/flwr.proto.Runtime/AcquireTask"

Work = Callable[[SiteTask, Callable[[], bool]], Answer]
"""Answers a task; its second argument says whether to stop."""


@dataclass
class Job:
    """A task that was taken from the node.

    Attributes:
        message: as it came; without its content once the answering process has it.
        fab_sha256: of the app that the server claims to run.
    """

    client: RuntimeHttpClient
    message: Message
    context: Context
    fab_sha256: str


class NodeClient:
    """The site's Flower node, on loopback."""

    def __init__(self, address: str, secret: bytes) -> None:
        self._address = address
        self._client = self._connect(
            interceptors.SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods={ACQUIRE})
        )

    def acquire(self) -> str:
        """The token of a waiting task; "" if there is none, or no node."""
        try:
            found = self._client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP]))
        except httpx.HTTPError:
            return ""
        return found.token if found.HasField("task") else ""

    def take(self, token: str) -> Job | None:
        """The task of a token; None if the node is gone."""
        client = self._connect(interceptors.RuntimeTokenHttpInterceptor(token))
        try:
            message, context, _, fab = pull_task_input(client)
        except httpx.HTTPError:
            client.close()
            return None
        return Job(client, message, context, hashlib.sha256(fab.content).hexdigest())

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _connect(self, interceptor: Any) -> RuntimeHttpClient:
        both = [interceptors.RuntimeVersionHttpInterceptor(component_name="flwr-clientapp"), interceptor]
        with without_proxies():
            return RuntimeHttpClient.from_server_address(self._address, True, None, both)


def execute(
    node: NodeClient,
    approval: Approval,
    work: Work,
    is_over: Callable[[], bool],
    say: Callable[[str], None],
    note: Callable[[str, str], None] = lambda direction, text: None,
    how_ended: Callable[[int], str] = lambda run_id: "",
) -> None:
    """Take tasks and answer them, one at a time, until `is_over`.

    Args:
        how_ended: is called every few seconds: how the run of the current task ended; "" if it is running.
        say: gets messages for a person.
        note: gets what came in ("in") or leaves ("out") without `work`: what was refused, damaged or died.
    """
    while not is_over():
        token = node.acquire()
        job = node.take(token) if token else None
        if job is None:
            time.sleep(POLL_SECONDS)
            continue
        try:
            reply, text = _answered(job, approval, partial(_work, work, note), is_over, how_ended)
            if reply is not None and reply.has_error():
                note("out", text)
            is_sent = reply is None or _push(job, reply)
            if text or not is_sent:
                say(f"{text} {'' if is_sent else NOT_SENT}".strip())
        finally:
            job.client.close()
            del job
            return_memory()  # the message's: the C library would keep much of it, and every later child inherit it


def _answered(
    job: Job,
    approval: Approval,
    work: Callable[[list[Message], Callable[[], bool]], bytes],
    is_over: Callable[[], bool],
    how_ended: Callable[[int], str],
) -> tuple[Message | None, str]:
    """The reply to a task, and a message for a person. No reply if the site stops: the server asks again later.

    If the run ends meanwhile the work is stopped, and the reply only frees the node for the next task.
    """
    if refused := why_refused(job.fab_sha256, approval):
        return _refusal(job, ErrorCode.INVALID_FAB, refused.to_server), refused.to_person
    came, run_id = [job.message], job.message.metadata.run_id
    job.message = remove_content_from_message(job.message)
    child = Forked(partial(work, came))
    came.clear()  # frees the memory here; the child has its own copy
    beat = asked = time.monotonic()
    ended = ""
    while not child.wait(POLL_SECONDS):
        if not ended and time.monotonic() - asked > ASK_SECONDS:
            ended = how_ended(run_id)
            asked = time.monotonic()
        if is_over() or ended:
            child.stop()
        if time.monotonic() - beat > HEARTBEAT_SECONDS:
            beat = time.monotonic()
            _heartbeat(job)
    data = child.result()
    if data is not None:
        return reply_with(data, job.message), ""
    if is_over():
        return None, "stopped; the server asks again when this site is back."
    if ended:
        text = f"stopped after the current step, since the run was {ended} at the server; this round is discarded."
        return _refusal(job, ErrorCode.CLIENT_APP_CRASHED, "the run has ended."), text
    text = "the answering process died (out of memory, killed, or see above); the server has been told."
    return _refusal(job, ErrorCode.CLIENT_APP_CRASHED, "the answering process died."), text


def _refusal(job: Job, code: int, reason: str) -> Message:
    return Message(Error(code, reason), reply_to=job.message)


def _work(work: Work, note: Callable[[str, str], None], came: list[Message], is_asked: Callable[[], bool]) -> bytes:
    try:
        task = task_of(came.pop())
    except FederationError as error:  # it is only about the message, so the server may read it
        note("in", f"refused: {error}")
        return to_bytes(Answer("", "", error=str(error)))
    return to_bytes(work(task, is_asked))


def _heartbeat(job: Job) -> None:
    """Tell the node that work on the task continues. If the node is gone the work continues: its answer is stored."""
    with suppress(httpx.HTTPError):
        job.client.SendTaskHeartbeat(SendTaskHeartbeatRequest())


def _push(job: Job, reply: Message) -> bool:
    """Hand the reply to the node; whether it accepted it."""
    status = SubStatus.FAILED if reply.has_error() else SubStatus.COMPLETED
    for number in range(PUSH_TRIES):
        try:
            push_message(job.client, reply, job.context)
            push_task_output(job.client, None, status, "")
        except httpx.TransportError:
            time.sleep(2**number * POLL_SECONDS)
        except httpx.HTTPStatusError:
            break
        else:
            sys.stdout.write(f"{HANDED}\n")
            sys.stdout.flush()
            return True
    return False


def _in_words(reply: Answer) -> str:
    what = f"round {reply.round}" if reply.kind == ROUND else reply.kind or "a task"
    if reply.body.get("waits"):
        return f"{what}: {reply.error}. To see and approve it: multiseg fed approve SITE.TOML"
    if reply.error:
        return f"{what}: failed, and the server was told: {reply.error}"
    num_bytes = sum(tensor.nbytes for tensor in reply.tensors.values())
    return f"{what}: done, {num_bytes / 1e6:.1f} MB to send."


class _Answering:
    """The work of a site, with messages on its progress."""

    def __init__(self, site: Site, say: Callable[[str], None]) -> None:
        self.site, self.say = site, say
        self._due = 0.0

    def __call__(self, task: SiteTask, is_asked: Callable[[], bool]) -> Answer:
        options = task.body.get("options", {})
        rounds = options.get("schedule", {}).get("rounds", "?")
        self.say(f"{task.experiment}: {task.kind}" + (f" {task.round} of {rounds}" if task.kind == ROUND else ""))
        try:
            reply = answer(task, self.site, is_asked, partial(self._step, task))
        except StoppedError:
            raise SystemExit(1) from None
        self.say(_in_words(reply))
        if task.kind == FINISH and not reply.error:
            self.say(f"{task.experiment}: finished. The model is in {experiment_folder(self.site, task.experiment)}.")
        return reply

    def _step(self, task: SiteTask, event: Event) -> None:
        if isinstance(event, StepDone) and time.monotonic() >= self._due:
            self._due = time.monotonic() + SAY_SECONDS
            done = event.step - task.body.get("steps_done", 0)
            steps = task.body.get("options", {}).get("local", {}).get("steps", "?")
            self.say(f"round {task.round}: training step {done}/{steps}, loss {event.loss:.3f}")


def main(arguments: list[str] | None = None) -> int:
    """Run until SIGTERM: `python -m multiseg.federation.flower.executor site.toml --node HOST:PORT --secret FILE`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("settings", type=Path)
    parser.add_argument("--node", required=True)
    parser.add_argument("--secret", type=Path, required=True)
    options = parser.parse_args(arguments)
    own, release = app_hash(), version("multiseg")  # now, while they are of the files that were imported
    os.umask(PRIVATE)
    logging.basicConfig(stream=sys.stdout, format="%(asctime)s %(levelname)s %(message)s")
    asked: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: asked.append(number))
    try:
        settings = read_site(options.settings)
    except MultisegError as error:
        _say(str(error))
        return error.exit_code
    node = NodeClient(options.node, options.secret.read_bytes())
    note = partial(_note, settings.state / audit_log.LOG)
    approval = Approval(settings.approved, own, release)
    work = _Answering(to_site(settings), _say)
    execute(node, approval, work, lambda: bool(asked), _say, note, partial(how_ended, settings))
    node.close()
    return 0


def _note(log: Path, direction: str, text: str) -> None:
    """Log what was refused or died. No data of the site leave with it, so a failure to log stops nothing."""
    entry = audit_log.AuditEntry(direction, "message", "", 0, 0, hashlib.sha256().hexdigest(), notes=(text,))
    try:
        audit_log.record(log, entry)
    except ResourceError as error:
        _say(str(error))


def _say(text: str) -> None:
    sys.stdout.write(f"{MARK}{shown.line(text)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
