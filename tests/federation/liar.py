"""A site that lies, for tests: NaN in its update of round 2, and every answer pushed twice. liar.py site.toml"""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from multiseg.federation.fab import app_hash
from multiseg.federation.flower import executor
from multiseg.federation.flower.approval import Approval
from multiseg.federation.messages import ROUND
from multiseg.federation.sites.answering import answer
from multiseg.federation.sites.site_settings import read_site, to_site

settings = read_site(Path(sys.argv[1]))
site = to_site(settings)
secret = settings.state / "liar.secret"
secret.write_text(secrets.token_hex(48))
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
command = [
    "flower-supernode", "--superlink", settings.server, "--root-certificates", str(settings.ca),
    "--auth-supernode-private-key", str(settings.key), "--host", "127.0.0.1", "--port", str(port),
    "--isolation", "process", "--superexec-auth-secret-file", str(secret),
]  # fmt: skip
quiet = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "FLWR_HOME": str(settings.state / "liar")}
node = None
over = []
signal.signal(signal.SIGTERM, lambda *_: over.append(1))


def lie(task, is_asked):
    found = answer(task, site, is_asked)
    if task.kind == ROUND and task.round == 2:
        return replace(found, tensors={name: tensor * float("nan") for name, tensor in found.tensors.items()})
    return found


push = executor.push_message


def push_twice(client, message, context):
    push(client, message, context)
    push(client, message, context)


def is_gone():
    return node.poll() is not None


executor.push_message = push_twice
while not over:
    if node is None or node.poll() is not None:  # refused while the last one still counts as online
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        node = subprocess.Popen(command, env=os.environ | quiet | {"PATH": path})
        link = executor.NodeClient(f"127.0.0.1:{port}", secret.read_bytes())
    executor.execute(link, Approval(settings.approved, app_hash(), ""), lie, lambda: bool(over) or is_gone(), print)
    time.sleep(1)
node.terminate()
