"""What we read in Flower's own words, since it has no other signal for it: as flwr 1.41.0 writes them.

`tests/federation/flower/test_flower_words.py` finds each of them in the installed flwr. After an update of Flower that
test says which of them have changed.
"""

from __future__ import annotations

import re

VERSION = "1.41.0"

# In the log of a site's node.
NODE_ID = "SuperNode ID:"
TRIES_AGAIN = "Connection attempt failed, retrying"
CONNECTED_AGAIN = "Connection successful"
CLOSED_BY_SERVER = "terminated gracefully"
"""Ends a node that was not asked to end: the server has shut it out."""
ANSWER_IS_GONE = ("Sending:", "Sent successfully", "Ignoring reply")
"""A node that had an answer to send has it no longer."""
MESSAGE_IS_LOST = ("Failed to send message", "Failed to receive message", "Failed to create task")
"""Begins what a node says of a task or an answer that it then forgets."""
STILL_ONLINE = 2004
"""The code of the SuperLink's refusal of a second node beside one that it counts as online."""

# In the SuperLink's details of a run.
RUN_IS_LOST = ("No heartbeat received", "Task failed with unknown error")
"""Begins the details of a run whose process, or whose SuperLink, was lost: killed, or ended by a signal."""

# In the log of a run.
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
"""Flower colours its lines wherever they go."""
OWN_LINE = re.compile(r"(INFO|DEBUG|WARNING) *:|Successfully installed ")
"""Begins a line of Flower's own."""
FAILURE = re.compile(r"ERROR *:|Traceback ")
"""Begins what Flower makes of a failure: its words are in the run's details, and all of it in logs/superexec.log."""


def code_in_words(code: int) -> str:
    """How a node writes the code with which it was refused."""
    return f"[code: {code}]"
