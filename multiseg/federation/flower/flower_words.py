"""Flower's own log texts that we have to match, since Flower gives no other signal: as flwr 1.41.0 writes them.

`tests/federation/flower/test_flower_words.py` finds each of them in the installed flwr. After an update of Flower that
test shows which have changed.
"""

from __future__ import annotations

import re

VERSION = "1.41.0"

# In the log of a site's node.
NODE_ID = "SuperNode ID:"
TRIES_AGAIN = "Connection attempt failed, retrying"
CONNECTED_AGAIN = "Connection successful"
CLOSED_BY_SERVER = "terminated gracefully"
"""The last line of a node that the server has revoked."""
ANSWER_IS_GONE = ("Sending:", "Sent successfully", "Ignoring reply")
"""The node no longer has an answer to send."""
MESSAGE_IS_LOST = ("Failed to send message", "Failed to receive message", "Failed to create task")
"""Starts the line on a task or an answer that the node has lost."""
STILL_ONLINE = 2004
"""The code with which the SuperLink refuses a node while it counts an earlier one as online."""

# In the SuperLink's details of a run.
RUN_IS_LOST = ("No heartbeat received", "Task failed with unknown error")
"""Starts the details of a run that lost its process or its SuperLink: killed, or ended by a signal."""

# In the log of a run.
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
"""Flower colours its lines even in files."""
OWN_LINE = re.compile(r"(INFO|DEBUG|WARNING) *:|Successfully installed ")
"""Starts a line of Flower's own."""
FAILURE = re.compile(r"ERROR *:|Traceback ")
"""Starts Flower's report of a failure; the run's details have its message, logs/superexec.log has all of it."""


def code_in_words(code: int) -> str:
    """How a node's log shows the code with which the node was refused."""
    return f"[code: {code}]"
