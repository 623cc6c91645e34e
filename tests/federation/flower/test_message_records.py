"""Tasks and answers as Flower's messages."""

import json

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from safetensors.torch import save

from multiseg.errors import FederationError
from multiseg.federation.flower.message_records import (
    answer_of,
    answer_record,
    error_in_words,
    reply_of,
    task_of,
    task_record,
)
from multiseg.federation.messages import DESCRIBE, PROTOCOL, ROUND, Answer, SiteTask, answer_from_bytes

TASK = SiteTask(ROUND, "lesions", 3, {"kept": 2}, {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(1)})


@pytest.fixture(autouse=True)
def task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages say which run and node they are of, as in a process that Flower started."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def sent(record: RecordDict) -> Message:
    return Message(record, dst_node_id=7, message_type="query.multiseg", ttl=60)


def test_a_task_arrives_as_it_was_sent() -> None:
    got = task_of(sent(task_record(TASK)))
    assert (got.kind, got.experiment, got.round, got.body) == (ROUND, "lesions", 3, {"kept": 2})
    assert torch.equal(got.tensors["weight"], TASK.tensors["weight"])
    assert set(got.tensors) == {"weight", "bias"}


def test_an_answer_arrives_as_a_reply() -> None:
    answer = Answer(DESCRIBE, "alder", 0, {"pathology": "stroke"}, error="no", passing=True)
    message = sent(task_record(TASK))
    reply = reply_of(answer, message)
    got = answer_of(reply)
    assert (got.kind, got.site, got.body, got.error) == (DESCRIBE, "alder", {"pathology": "stroke"}, "no")
    assert got.passing
    assert reply.metadata.message_type == "query.multiseg"


def test_nothing_but_the_one_array_is_in_a_message() -> None:
    record = answer_record(Answer(ROUND, "alder", 1, {"num_cases": 5}))
    assert [(name, list(inner)) for name, inner in record.items()] == [("multiseg", ["message"])]
    array = record.array_records["multiseg"]["message"]
    assert (array.dtype, array.shape) == ("uint8", (len(array.data),))


def test_a_message_with_anything_more_is_refused() -> None:
    record = answer_record(Answer(ROUND, "alder", 1))
    record["more"] = ConfigRecord({"patient": "x"})
    with pytest.raises(FederationError, match="'more': \\['patient'\\]"):
        answer_of(sent(record))


def test_an_array_of_another_kind_is_refused() -> None:
    strange = ArrayRecord({"message": Array(dtype="uint8", shape=(1,), stype="numpy.ndarray", data=b"x")})
    with pytest.raises(FederationError, match=r"'numpy\.ndarray'; multiseg's have 'multiseg\.safetensors'"):
        answer_of(sent(RecordDict({"multiseg": strange})))


def test_damaged_bytes_are_refused() -> None:
    record = task_record(TASK)
    whole = record.array_records["multiseg"]["message"]
    half = Array(dtype="uint8", shape=(9,), stype=whole.stype, data=whole.data[:9])
    with pytest.raises(FederationError, match="9 bytes is damaged"):
        task_of(sent(RecordDict({"multiseg": ArrayRecord({"message": half})})))


def test_flowers_errors_are_told_in_words() -> None:
    assert error_in_words(Error(8)) == "the process at the site died (out of memory, or killed)"
    assert error_in_words(Error(99, "odd")) == "an error of Flower, code 99: odd"


@pytest.mark.parametrize("said", [{"body": ["num_cases"]}, {"round": "1"}, {"error": None}])
def test_a_head_of_other_types_is_refused(said: dict[str, object]) -> None:
    head = {"kind": ROUND, "site": "alder", "round": 1, "body": {}, "error": "", "protocol": PROTOCOL, **said}
    with pytest.raises(FederationError, match="its header has wrong types"):
        answer_from_bytes(save({}, metadata={"multiseg": json.dumps(head)}))
