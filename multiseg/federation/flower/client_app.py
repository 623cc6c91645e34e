"""The app for a site that runs Flower's own executor instead of ours: it only answers with the error."""

from __future__ import annotations

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from multiseg.federation.flower.message_records import reply_of, task_of
from multiseg.federation.messages import Answer

REASON = "this site runs Flower's own executor, which has none of its data: start it with multiseg fed join."

app = ClientApp()


@app.query("multiseg")
def refuse(message: Message, context: Context) -> Message:
    """Answer with the error."""
    task = task_of(message)
    site = str(context.node_config.get("site", ""))
    return reply_of(Answer(task.kind, site, task.round, error=REASON), message)
