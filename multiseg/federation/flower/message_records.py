"""Tasks and answers as Flower's messages: each holds the bytes as one array, and nothing else."""

from __future__ import annotations

from flwr.app import Array, ArrayRecord, Error, Message, RecordDict
from flwr.common.constant import ErrorCode

from multiseg.errors import FederationError
from multiseg.federation.messages import Answer, SiteTask, answer_from_bytes, task_from_bytes, to_bytes

MESSAGE_TYPE = "query.multiseg"
"""For tasks and answers of every kind: the kind is in the bytes."""
RECORD, ARRAY, STYPE = "multiseg", "message", "multiseg.safetensors"

LOST = {
    ErrorCode.MESSAGE_UNAVAILABLE: "the task had expired before the site took it",
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE: "the answer had expired before the server took it",
    ErrorCode.NODE_UNAVAILABLE: "the site was offline",
    ErrorCode.CLIENT_APP_CRASHED: "the process at the site died (out of memory, or killed)",
}
"""Flower's error codes that may be temporary."""


def task_record(task: SiteTask) -> RecordDict:
    """The content of a message to a site."""
    return _record(to_bytes(task))


def answer_record(answer: Answer) -> RecordDict:
    """The content of a message to the server."""
    return _record(to_bytes(answer))


def task_of(message: Message) -> SiteTask:
    """The task in a message; FederationError if it holds an error, or anything but one valid task."""
    return task_from_bytes(_bytes(message))


def answer_of(message: Message) -> Answer:
    """The answer in a message; FederationError if it holds an error, or anything but one valid answer."""
    return answer_from_bytes(_bytes(message))


def reply_of(answer: Answer, message: Message) -> Message:
    """A site's reply to a message."""
    return Message(answer_record(answer), reply_to=message)


def reply_with(data: bytes, message: Message) -> Message:
    """A site's reply to a message, from the answer's bytes."""
    return Message(_record(data), reply_to=message)


def error_in_words(error: Error) -> str:
    """Flower's error in words."""
    return LOST.get(error.code) or f"an error of Flower, code {error.code}: {error.reason or 'without a reason'}"


def _record(data: bytes) -> RecordDict:
    array = Array(dtype="uint8", shape=(len(data),), stype=STYPE, data=data)
    return RecordDict({RECORD: ArrayRecord({ARRAY: array})})


def _bytes(message: Message) -> bytes:
    if message.has_error():
        raise FederationError(error_in_words(message.error))
    content = message.content
    records = {name: list(record) for name, record in content.items()}
    if records != {RECORD: [ARRAY]} or not isinstance(content[RECORD], ArrayRecord):
        raise FederationError(f"a message holds {records!s:.300}; multiseg's hold only {{{RECORD!r}: [{ARRAY!r}]}}.")
    array = content[RECORD][ARRAY]
    if not isinstance(array, Array) or array.stype != STYPE:
        raise FederationError(f"a message has type {getattr(array, 'stype', '')!r:.80}; multiseg's have {STYPE!r}.")
    return bytes(array.data)
