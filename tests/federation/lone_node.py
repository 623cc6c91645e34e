"""A real Flower node's memory and its loopback API, with a test in the server's place: lone_node.py SOCKET SECRET FAB

At the socket a test hears the port; then, for the bytes of each task that it sends, the answer's bytes or what error
was told. The secret and the app are files.
"""

import hashlib
import socket
import sys
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import uvicorn
from flwr.app import Error, Message
from flwr.app.message import remove_content_from_message
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.main import create_app
from flwr.supernode.nodestate import NodeStateFactory
from flwr.supernode.start_client_internal import _pull_and_store_message, _push_messages

from multiseg.federation.flower.message_records import MESSAGE_TYPE, _record, answer_of
from multiseg.federation.messages import to_bytes

RUN_ID, SERVER_ID, NODE_ID = 11, 1, 7


def run(connection: Connection, secret: bytes, fab: bytes) -> None:
    """Speak with the test until it says None."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN_ID, SERVER_ID, 1
    factory = ObjectStoreFactory()
    states = NodeStateFactory(objectstore_factory=factory)
    states.state().set_node_id(NODE_ID)
    app = create_app(state_factory=states, superexec_auth_secret=secret)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        time.sleep(0.02)
    connection.send(server.servers[0].sockets[0].getsockname()[1])
    while (data := connection.recv()) is not None:
        connection.send(_exchanged(states, factory, data, fab))


def _exchanged(states: Any, factory: Any, data: bytes, fab: bytes) -> bytes | tuple[int, str]:
    """What a node does with one message, from its coming to the leaving of the reply."""
    content = _record(data)  # a damaged one, too
    message = Message(content, dst_node_id=NODE_ID, message_type=MESSAGE_TYPE)
    message.metadata.__dict__["_message_id"] = message.object_id
    objects = {name: found.deflate() for name, found in get_all_nested_objects(message).items()}
    digest = hashlib.sha256(fab).hexdigest()
    known = Run.create_empty(RUN_ID)
    known.fab_hash = digest
    _pull_and_store_message(
        state=states.state(),
        object_store=factory.store(),
        node_config={},
        receive=lambda: (remove_content_from_message(message), get_object_tree(message)),
        get_run=lambda run_id: known,
        get_fab=lambda name, run_id: Fab(digest, fab, {}),
        pull_object=lambda run_id, name: objects[name],
        confirm_message_received=lambda run_id, name: None,
        trusted_entities=None,
    )
    pushed: dict[str, bytes] = {}
    roots: list[str] = []

    def send(reply: Message, tree: Any, seconds: float) -> tuple[set[str], str]:
        roots.append(tree.object_id)
        return {node.object_id for node in _nodes(tree)}, "session"

    _push_messages(
        state=states.state(),
        object_store=factory.store(),
        send=send,
        push_object=lambda run_id, session, name, part: pushed.update({name: part}),
    )
    reply = inflate_object_from_contents(roots[0], pushed)
    assert isinstance(reply, Message)
    if reply.has_error():
        error: Error = reply.error
        return error.code, error.reason or ""
    return to_bytes(answer_of(reply))


def _nodes(tree: Any) -> list[Any]:
    return [tree, *(found for child in tree.children for found in _nodes(child))]


if __name__ == "__main__":
    line = socket.socket(socket.AF_UNIX)
    line.connect(sys.argv[1])
    run(Connection(line.detach()), *(Path(file).read_bytes() for file in sys.argv[2:]))
